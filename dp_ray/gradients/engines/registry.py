"""The engines by name; each has a compiled form."""

from __future__ import annotations

from dp_ray.gradients.engines.compiled import Compiled, compiled_name
from dp_ray.gradients.engines.engine import Engine, Precision
from dp_ray.gradients.engines.per_layer import PerLayer
from dp_ray.gradients.engines.vmap import Vmap

PLAIN: dict[str, type[Engine]] = {kind.name: kind for kind in (Vmap, PerLayer)}
"""Engines that run the network's own code; the first is the reference."""

COMPILED: dict[str, str] = {name: compiled_name(name) for name in PLAIN}
"""Name of each plain engine → name of its compiled form."""

ENGINES: tuple[str, ...] = (*PLAIN, *COMPILED.values())
"""Values of ``train.engine`` beside ``auto``."""


def build_engine(name: str = Vmap.name, precision: Precision = "float32") -> Engine:
    """Make the engine of that name, one of :data:`ENGINES`.

    Args:
        name: see above.
        precision: see :class:`~dp_ray.gradients.engines.engine.Engine`.
    """
    plain = plain_form(name)
    engine = PLAIN[plain](precision)
    return engine if plain == name else Compiled(engine)


def plain_form(name: str) -> str:
    """Return the name of the engine that a compiled one is made from; of a plain one, its own."""
    return next((plain for plain, compiled in COMPILED.items() if compiled == name), name)
