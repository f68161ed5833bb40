"""The engines by name, each with a compiled form, and a user's own by import path."""

from __future__ import annotations

from dp_ray.errors import unknown_name
from dp_ray.gradients.engines.compiled import Compiled, compiled_name
from dp_ray.gradients.engines.engine import Engine, Precision
from dp_ray.gradients.engines.per_layer import PerLayer
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.imports import make_own

PLAIN: dict[str, type[Engine]] = {kind.name: kind for kind in (Vmap, PerLayer)}
"""Engines that run the network's own code; the first is the reference."""

COMPILED: dict[str, str] = {name: compiled_name(name) for name in PLAIN}
"""Name of each plain engine → name of its compiled form."""

ENGINES: tuple[str, ...] = (*PLAIN, *COMPILED.values())
"""Values of ``train.engine`` beside ``auto``; any with a colon is a user's own."""

_FIELD = "train.engine"


def build_engine(name: str = Vmap.name, precision: Precision = "float32") -> Engine:
    """Make the engine of that name.

    Args:
        name: one of :data:`ENGINES`, or the import path of a subclass of
            :class:`~dp_ray.gradients.engines.engine.Engine`.
        precision: see that class.

    Raises:
        ConfigError: there is none of that name, or it cannot be made.
    """
    if is_users_own(name):
        own: Engine = make_own(name, _FIELD, Engine, precision)  # type: ignore[type-abstract]
        own.name = name  # type: ignore[misc]
        return own
    plain = plain_form(name)
    if plain not in PLAIN:
        raise unknown_name(
            _FIELD, name, "no such engine", ("auto", *ENGINES), own="my_pkg.my_module:Class"
        )
    engine = PLAIN[plain](precision)
    return engine if plain == name else Compiled(engine)


def plain_form(name: str) -> str:
    """Return the name of the engine that a compiled one is made from; of a plain one, its own."""
    return next((plain for plain, compiled in COMPILED.items() if compiled == name), name)


def is_users_own(name: str) -> bool:
    """Return whether a name is the import path of a user's own engine."""
    return ":" in name
