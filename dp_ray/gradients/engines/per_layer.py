"""An engine with a rule of its own for convolutions; all other layers go the general way."""

from __future__ import annotations

from contextlib import AbstractContextManager

from dp_ray.gradients.engines.layer_rules import PerExampleConvolutions
from dp_ray.gradients.engines.vmap import Vmap


class PerLayer(Vmap):
    """See :mod:`dp_ray.gradients.engines.layer_rules`."""

    name = "per_layer"

    def rules(self) -> AbstractContextManager[object]:
        """See :class:`~dp_ray.gradients.engines.engine.Engine`."""
        return PerExampleConvolutions()
