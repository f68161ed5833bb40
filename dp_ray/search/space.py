"""What a search varies: fields that may be varied, and points of the space.

A point is a plain value for each field. Fields that decide the budget are drawn from a few levels,
so that each budget is solved once and every run that the search could make is known beforehand.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dp_ray.config.files import describe_fields, parse_config, set_field
from dp_ray.config.run import Config
from dp_ray.config.search import Domain, SweepConfig, place
from dp_ray.errors import ConfigError, did_you_mean

Point = dict[str, Any]
"""Dotted field → value."""

BUDGET_FIELDS = ("data.expected_batch_size", "privacy.noise_multiplier", "privacy.steps")

_CLIPPING = ("privacy.max_grad_norm", "privacy.clipping", "privacy.adaptive_clipping")
_SEARCHABLE = ("augment.", "model.", "optimizer.", *_CLIPPING, *BUDGET_FIELDS)
_ARGUMENTS = re.compile(r"^(model|optimizer|objective)\.(scheduler_)?arguments\.")
_EQUAL = {
    "privacy.epsilon": "trials are compared at an equal budget",
    "privacy.delta": "trials are compared at an equal budget",
    "privacy.noise_schedule": "trials are compared with one schedule",
    "privacy.accountant": "trials are compared at an equal budget",
    "objective.name": "trials are compared by one objective",
    "objective.arguments": "trials are compared by one objective",
    "seed": "all trials start from the same initial parameters, or each from its own",
    "name": "the search names its trials",
}


def check_space(sweep: SweepConfig) -> None:
    """Refuses a space that says nothing, too much, or does not suit the searcher.

    Raises:
        ConfigError: see the message; what a value itself may be is checked by :func:`config_at`.
    """
    space = sweep.tune.space
    if not space:
        raise ConfigError(
            "tune.space",
            {},
            "there is nothing to search",
            "Name fields, such as augment.views: {choice: [1, 2, 4]}",
        )
    known = {path for path, _ in describe_fields()}
    for field, domain in space.items():
        if field not in known and not _ARGUMENTS.search(field):
            raise ConfigError(
                f"tune.space.{field}",
                _shown(domain),
                "there is no such field",
                f"{did_you_mean(field, known)}See dp-ray config",
            )
        if not field.startswith(_SEARCHABLE):
            searchable = ", ".join(f"{s}*" if s.endswith(".") else s for s in _SEARCHABLE)
            section = ".".join(field.split(".")[:2])
            reason = _EQUAL.get(section, "it does not change what a model learns")
            if field.startswith("data."):
                reason = "the search is about one data set"
            raise ConfigError(
                f"tune.space.{field}",
                _shown(domain),
                f"cannot be searched: {reason}",
                f"Fields that can: {searchable}",
            )
    grids = [field for field, domain in space.items() if domain.grid is not None]
    if sweep.tune.searcher == "grid" and not grids:
        raise ConfigError(
            "tune.searcher", "grid", "no field has a grid", "Write {grid: […]} for a field"
        )
    if sweep.tune.searcher != "grid" and grids:
        raise ConfigError(
            f"tune.space.{grids[0]}",
            _shown(space[grids[0]]),
            f"the {sweep.tune.searcher} searcher tries no grid",
            "Write choice instead of grid, or set tune.searcher to grid",
        )


def point_at(space: Mapping[str, Domain], levels: int, shares: Mapping[str, float]) -> Point:
    """The point at a place in the unit cube.

    Args:
        space: the fields.
        levels: see ``tune.budget_levels``.
        shares: field → number in [0, 1], see :meth:`~dp_ray.config.search.Domain.at`; uniform ones
            give the space's distribution.
    """
    point: Point = {}
    for field, share in shares.items():
        domain = space[field]
        if field in BUDGET_FIELDS:
            values = domain.levels(levels)
            point[field] = values[place(share, len(values))]
        else:
            point[field] = domain.at(share)
    return point


def grid_points(space: Mapping[str, Domain]) -> Iterator[Point]:
    """All combinations of the fields that have a grid; the other fields are left open."""
    grids = {field: domain.grid for field, domain in space.items() if domain.grid is not None}
    for values in itertools.product(*grids.values()):
        yield dict(zip(grids, values, strict=True))


def budget_points(space: Mapping[str, Domain], levels: int) -> Iterator[Point]:
    """All combinations of values of the fields that decide the budget."""
    fields = {f: d.levels(levels) for f, d in space.items() if f in BUDGET_FIELDS}
    for values in itertools.product(*fields.values()):
        yield dict(zip(fields, values, strict=True))


def corner_points(space: Mapping[str, Domain], levels: int) -> list[Point]:
    """The points of all lowest and of all highest values."""
    low, high = dict.fromkeys(space, 0.0), dict.fromkeys(space, 1.0)
    return [point_at(space, levels, low), point_at(space, levels, high)]


def edge_points(space: Mapping[str, Domain], levels: int) -> list[Point]:
    """The corners, and for each value that a field lists the lowest corner with that value.

    What a trial can fail on is a value that is listed, or an end of a range.
    """
    corners = corner_points(space, levels)
    listed = [(field, value) for field, domain in space.items() for value in domain.values or ()]
    return corners + [{**corners[0], field: value} for field, value in listed]


def config_at(sweep: SweepConfig, point: Point) -> Config:
    """The training configuration at a point, its budget as the file gives it.

    Raises:
        ConfigError: a value that cannot be used; an unknown field.
    """
    values = copy.deepcopy(sweep.training)
    for field, value in point.items():
        set_field(values, field, copy.deepcopy(value))
    try:
        return parse_config(values)
    except ConfigError as error:
        if error.field not in point:
            raise
        raise ConfigError(
            f"tune.space.{error.field}",
            _shown(sweep.tune.space[error.field]),
            f"{error.value!r} cannot be used: {error.problem}",
            error.remedy,
        ) from error


def _shown(domain: Domain) -> dict[str, Any]:
    return domain.model_dump(exclude_none=True)
