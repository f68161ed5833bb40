"""Random layers whose numbers are a function of the example, not of the batch that it is in.

Under ``vmap`` random operations draw from torch's global generator, so dropout masks would change
with the number of workers and the microbatch size. A mask is no privacy mechanism and need not be
secret; it only has to be reproducible, so a mixing hash of (seed, call, element) is enough here.

Layers are not replaced. A ``TorchFunctionMode`` sees each call that they make and answers torch's
few sampling operations itself; whatever is built from these (dropout of any kind and shape, dropout
inside attention, stochastic depth of torchvision and timm, a layer of the user's) is keyed by that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType, TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dp_ray.models.current_layer import current_layer

_Function = Callable[..., Any]

_WRITTEN_IN_PYTHON = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    F.gumbel_softmax,
    F.multi_head_attention_forward,
    F.rrelu,
}
"""Functions whose body checks arguments and calls sampling operations; the body is torch's own."""

_UNINITIALISED = {torch.empty, torch.empty_like, Tensor.new_empty}

_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}

_GAMMA = 0x9E3779B97F4A7C15
_INVERSE = pow(_GAMMA, -1, 1 << 64)
"""γ of SplitMix64, and what times γ is 1 modulo 2⁶⁴."""

_ALPHA = 1.7580993408473766
"""Of SELU: minus what alpha dropout sets an element to."""


class KeyedDropout(TorchFunctionMode):
    """While active, random operations of torch draw their numbers from ``seed``.

    Covered: ``dropout`` in 1, 2 and 3 dimensions, ``alpha_dropout``, ``feature_alpha_dropout``,
    dropout of ``scaled_dot_product_attention``, ``rrelu``, ``bernoulli``, ``rand``, ``randn`` and
    what fills a tensor in place (``bernoulli_``, ``uniform_``, ``normal_``, ``exponential_``).

    Args:
        seed: scalar int64 (one example's, inside ``vmap``), or None to leave randomness alone.

    Raises:
        NotImplementedError: at the call, for a random operation that has no keyed form here.
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
        func: _Function,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WRITTEN_IN_PYTHON:
            with self:
                return _body(func)(*args, **kwargs)
        if func in _KEYED and kwargs.get("generator") is None:
            return _KEYED[func](self, *args, **kwargs)
        if func in _RECURRENT and args[-4] > 0 and args[-3]:  # vmap does not always see it
            raise NotImplementedError(_refusal(func))
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            if "called random operation" not in str(error):
                raise
            raise NotImplementedError(_refusal(func)) from error
        if func in _UNINITIALISED:
            # Into a tensor that vmap does not batch, an example's own numbers could not be written.
            assert self._seed is not None
            return torch.where(self._seed == self._seed, result, result)
        return result

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Float32 numbers in [0, 1), others at each call."""
        assert self._seed is not None
        uniform = _hashed_uniform(self._seed, self._calls, torch.Size(shape))
        self._calls += 1
        return uniform

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Float32 standard normal numbers, by Box-Muller."""
        radius = (-2 * (1 - self.uniform(shape)).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(shape)).cos()


def _hashed_uniform(seed: Tensor, call: int, shape: torch.Size) -> Tensor:
    """Numbers in [0, 1) from (seed, call, position), by the finalizer of SplitMix64.

    Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """
    position = torch.arange(shape.numel(), dtype=torch.int64, device=seed.device)
    # seed + (position + …)·γ, as one product with γ: torch's compiler calculates with positions
    # beforehand, and fails where a multiple of one does not fit into an int64.
    x = (seed * _signed(_INVERSE) + (position + call * (1 << 40) + 1)) * _signed(_GAMMA)
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


@cache
def _body(func: _Function) -> _Function:
    """The body of a Python function of torch, which under a mode would only call the mode again."""
    assert isinstance(func, FunctionType)
    undispatched = {
        name: lambda *_: False
        for name in func.__code__.co_names
        if name.startswith("has_torch_function")
    }
    body = FunctionType(
        func.__code__,
        {**func.__globals__, **undispatched},
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _refusal(func: _Function) -> str:
    name = getattr(func, "__name__", str(func))
    remedy = "use torch.rand, torch.randn or torch.bernoulli, without a generator"
    if func in _RECURRENT:
        remedy = "set its argument dropout to 0, and put nn.Dropout between layers"
    return f"{current_layer()}{name} draws random numbers that have no keyed form: {remedy}"


# What each sampling operation computes. Each takes the mode first, and then torch's arguments.


def _multiplied(x: Tensor, keep: Tensor, p: float, inplace: bool) -> Tensor:
    """x · keep / (1 - p), in place where that was asked for and is possible."""
    scale = max(1.0 - p, 1e-12)
    if inplace:
        try:
            return x.mul_(keep).div_(scale)
        except RuntimeError:
            pass  # vmap does not batch x, or x is a leaf: callers take the value that is returned
    return x * keep / scale


def _dropout(per_channel: bool = False, inplace: bool = False) -> _Function:
    def dropout(mode: KeyedDropout, input: Tensor, p: float, train: bool) -> Tensor:  # noqa: A002
        if not train or p == 0.0:
            return input
        keep = (mode.uniform(_mask_shape(input, per_channel)) >= p).to(input.dtype)
        return _multiplied(input, keep, p, inplace)

    return dropout


def _alpha_dropout(per_channel: bool = False, inplace: bool = False) -> _Function:
    """Keeps mean 0 and variance 1: Klambauer et al. 2017, arXiv 1706.02515, section 3."""

    def dropout(mode: KeyedDropout, input: Tensor, p: float, train: bool) -> Tensor:  # noqa: A002
        if not train or p == 0.0:
            return input
        keep = (mode.uniform(_mask_shape(input, per_channel)) >= p).to(input.dtype)
        if p == 1.0:
            return _multiplied(input, keep, 0.0, inplace)
        a = ((1 - p) * (1 + p * _ALPHA**2)) ** -0.5
        result: Tensor = a * (input * keep - _ALPHA * (1 - keep) + _ALPHA * p)
        return _written(input, result) if inplace else result

    return dropout


def _mask_shape(x: Tensor, per_channel: bool) -> Sequence[int]:
    if not per_channel:
        return x.shape
    if x.ndim < 2:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    return [*x.shape[:2], *[1] * (x.ndim - 2)]


def _attention(
    mode: KeyedDropout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as torch documents it; the fused kernels draw masks of their own."""
    if dropout_p == 0.0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        value = value.repeat_interleave(repeats, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        if attn_mask is not None:
            raise RuntimeError("attn_mask and is_causal cannot both be given")
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = _dropout()(mode, scores.softmax(-1), dropout_p, True)
    out: Tensor = weights.to(value.dtype) @ value
    return out


def _rrelu(
    mode: KeyedDropout,
    input: Tensor,  # noqa: A002
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: None = None,  # noqa: ARG001
) -> Tensor:
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2)
    slope = lower + (upper - lower) * mode.uniform(input.shape).to(input.dtype)
    return torch.where(input >= 0, input, slope * input)


def _rrelu_(mode: KeyedDropout, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    return _written(input, _rrelu(mode, input, *args, **kwargs))


def _bernoulli(
    mode: KeyedDropout,
    input: Tensor,  # noqa: A002
    p: float | None = None,
    *,
    generator: None = None,  # noqa: ARG001
) -> Tensor:
    return (mode.uniform(input.shape) < (input if p is None else p)).to(input.dtype)


def _bernoulli_(
    mode: KeyedDropout,
    input: Tensor,  # noqa: A002
    p: float | Tensor = 0.5,
    *,
    generator: None = None,  # noqa: ARG001
) -> Tensor:
    return input.copy_(mode.uniform(input.shape) < p)


def _uniform_(
    mode: KeyedDropout,
    input: Tensor,  # noqa: A002
    from_: float = 0.0,
    to: float = 1.0,
    **rest: Any,
) -> Tensor:
    low = rest.get("from", from_)
    return input.copy_(low + (to - low) * mode.uniform(input.shape))


def _normal_(
    mode: KeyedDropout,
    input: Tensor,  # noqa: A002
    mean: float = 0.0,
    std: float = 1.0,
    **_: Any,
) -> Tensor:
    return input.copy_(mean + std * mode.normal(input.shape))


def _exponential_(mode: KeyedDropout, input: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:  # noqa: A002
    return input.copy_((1 - mode.uniform(input.shape)).log() / -lambd)


def _made(draw: Callable[[KeyedDropout, Sequence[int]], Tensor], make: _Function) -> _Function:
    """A function that makes a tensor as ``make`` does, of shape, type and device, and draws it."""

    def made(mode: KeyedDropout, *args: Any, generator: None = None, **kwargs: Any) -> Tensor:  # noqa: ARG001
        like: Tensor = make(*args, **kwargs)
        return draw(mode, like.shape).to(like)

    return made


def _written(target: Tensor, value: Tensor) -> Tensor:
    """Writes in place where that is possible; see :func:`_multiplied`."""
    try:
        return target.copy_(value)
    except RuntimeError:
        return value


_KEYED: dict[_Function, _Function] = {
    torch.dropout: _dropout(),
    torch.dropout_: _dropout(inplace=True),
    torch.feature_dropout: _dropout(per_channel=True),
    torch.feature_dropout_: _dropout(per_channel=True, inplace=True),
    torch.alpha_dropout: _alpha_dropout(),
    torch.alpha_dropout_: _alpha_dropout(inplace=True),
    torch.feature_alpha_dropout: _alpha_dropout(per_channel=True),
    torch.feature_alpha_dropout_: _alpha_dropout(per_channel=True, inplace=True),
    F.scaled_dot_product_attention: _attention,
    torch.rrelu: _rrelu,
    torch.rrelu_: _rrelu_,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
    Tensor.exponential_: _exponential_,
    torch.rand: _made(KeyedDropout.uniform, torch.empty),
    torch.rand_like: _made(KeyedDropout.uniform, torch.empty_like),
    torch.randn: _made(KeyedDropout.normal, torch.empty),
    torch.randn_like: _made(KeyedDropout.normal, torch.empty_like),
}
