"""``python -m dp_ray``."""

from dp_ray.cli import main

main()
