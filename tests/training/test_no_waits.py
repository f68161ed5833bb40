"""A microbatch reads no value back: on a GPU each reading would wait for all work before it.

Here by the operations that a step calls; ``test_on_gpu.py`` asks the driver.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.support import MakeConfig, start
from torch.utils._python_dispatch import TorchDispatchMode

from dp_ray.training.step import ShardWorker

_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Readings(TorchDispatchMode):
    """Lists operations whose result's shape, or a number that Python gets, depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = str(func)
        if "index" in name:  # by numbers it reads nothing
            indices = [a for a in args[1:2] if isinstance(a, list | tuple)]
            if any(t is not None and t.dtype == torch.bool for i in indices for t in i):
                self.found.append(name)
        elif _READS & set(func.tags):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_listing_knows_what_waits() -> None:
    tensor, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    for reading in (
        lambda: tensor.sum().item(),
        lambda: tensor[mask],
        lambda: bool(mask.any()),
        tensor.nonzero,
        lambda: tensor.equal(tensor),
        lambda: torch.masked_select(tensor, mask),
        lambda: tensor.__setitem__(mask, torch.zeros(3)),
    ):
        with Readings() as readings:
            reading()
        assert readings.found
    with Readings() as readings:
        _ = tensor[torch.tensor([1, 2])], tensor.where(mask, 0.0), tensor[1:].sum()
    assert not readings.found


@pytest.mark.parametrize(
    ("engine", "clipping"), [("vmap", "flat"), ("vmap", "automatic"), ("per_layer", "per_layer")]
)
def test_no_value_is_read_between_draw_and_sum(
    engine: str, clipping: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = ShardWorker._add
    readings = Readings()

    def listed(self: ShardWorker, *inputs: Any) -> None:
        with readings:
            add(self, *inputs)

    monkeypatch.setattr(ShardWorker, "_add", listed)
    augment = {
        "views": 2,
        "shift": 0.3,
        "rotation": 8.0,
        "scale": 0.1,
        "horizontal_flip": 0.5,
        "brightness": 0.2,
        "contrast": 0.2,
        "cutout": 2,
    }
    config = make_config(
        augment=augment,
        privacy={"steps": 1, "clipping": clipping},
        train={"engine": engine, "microbatch_size": 48},
    )
    start(config)
    assert readings.calls > 100
    assert readings.found == []
