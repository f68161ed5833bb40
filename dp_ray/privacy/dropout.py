"""Dropout whose mask is a function of the example, not of the batch that it happened to be in.

Under ``vmap`` ordinary dropout draws from torch's global generator, so its masks change with the
number of workers and the microbatch size. A mask is no privacy mechanism and need not be secret;
it only has to be reproducible, so a mixing hash of (seed, call, element) is enough here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_KEEP_ELEMENT = (F.dropout,)
_KEEP_CHANNEL = {F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}
_UNSUPPORTED = (F.alpha_dropout, F.feature_alpha_dropout)


class KeyedDropout(TorchFunctionMode):
    """While active, ``torch.nn.functional.dropout*`` draw their masks from ``seed``.

    Args:
        seed: scalar int64 (one example's, inside ``vmap``), or None to leave dropout alone.

    Raises:
        NotImplementedError: at the call, for alpha dropout, which has no keyed form here.
    """

    def __init__(self, seed: Tensor | None) -> None:
        super().__init__()
        self._seed = seed
        self._calls = 0

    def __enter__(self) -> KeyedDropout:
        if self._seed is not None:
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._seed is not None:
            super().__exit__(exc_type, exc_value, traceback)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KEEP_ELEMENT or func in _KEEP_CHANNEL:
            return self._dropout(func, *args, **kwargs)
        if func in _UNSUPPORTED:
            raise NotImplementedError(f"{func.__name__} has no reproducible form; use dropout")
        return func(*args, **kwargs)

    def _dropout(
        self,
        func: Callable[..., Any],
        input: Tensor,  # noqa: A002 (torch's own name, which callers may use)
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0.0:
            return input
        shape = input.shape
        if func in _KEEP_CHANNEL:
            spatial = _KEEP_CHANNEL[func]
            shape = torch.Size([*shape[:-spatial], *[1] * spatial])
        assert self._seed is not None
        uniform = _hashed_uniform(self._seed, self._calls, shape)
        self._calls += 1
        # Never in place: vmap batches the mask, while the input may not be batched.
        del inplace
        return input * (uniform >= p).to(input.dtype) / max(1.0 - p, 1e-12)


def _hashed_uniform(seed: Tensor, call: int, shape: torch.Size) -> Tensor:
    """Numbers in [0, 1) from (seed, call, position), by the finalizer of SplitMix64.

    Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """
    position = torch.arange(shape.numel(), dtype=torch.int64, device=seed.device)
    x = seed + (position + call * (1 << 40) + 1) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift_right(x, 31)
    return (_shift_right(x, 40).to(torch.float32) * 2.0**-24).reshape(shape)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word; products of int64 wrap around."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
