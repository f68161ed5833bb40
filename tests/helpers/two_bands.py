"""The mechanism of docs/extending.md, a module that workers can import: two bands of noise."""

from helpers.pages import example

exec(compile(example("two_bands.py"), "two_bands.py", "exec"))
