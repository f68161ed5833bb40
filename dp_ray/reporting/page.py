"""Templates filled in: pages, whose values are all escaped, and the model card."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dp_ray.artifacts.card import as_markdown
from dp_ray.artifacts.statement import Statement
from dp_ray.reporting.charts import palette_css
from dp_ray.reporting.statement import (
    covered,
    method,
    not_covered,
    privacy_profile,
    promise,
)
from dp_ray.reporting.words import describe_epsilon


def render(template: str, **values: Any) -> str:
    """A template of the ``templates`` folder, filled in.

    Args:
        template: its name. In .html whatever is no Markup is escaped, in .md what passes ``md``.
        values: all that it names.
    """
    return _templates().get_template(template).render(palette=palette_css(), **values)


def said_of(
    statement: Statement, profile: list[tuple[float, float]] | None = None
) -> dict[str, Any]:
    """What every report says of a statement in plain words, by the names in the templates.

    Args:
        statement: which.
        profile: from :func:`~dp_ray.reporting.statement.privacy_profile`, where it is at hand.
    """
    known = privacy_profile(statement) if profile is None else profile
    return {
        "promise": promise(statement, known),
        "method": method(statement),
        "covered": covered(statement),
        "not_covered": not_covered(statement),
        "assumptions": statement.assumptions,
    }


def cost_in_words(epsilon: float | None, delta: float) -> str:
    """The line that heads a report; it breaks nowhere but before δ."""
    if epsilon is None:
        return "No privacy: ε is infinite"
    return describe_epsilon(epsilon, delta).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("dp_ray.reporting"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=as_markdown, block=_as_block)
    return environment


def _as_block(text: str) -> str:
    """A block of code, indented: there is no fence that the text could close."""
    return "\n" + "\n".join(f"    {line}" for line in str(text).splitlines()) + "\n"
