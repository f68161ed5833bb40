"""Per-example weight gradients of convolutions, without the grouped convolution that vmap makes.

``vmap`` turns B weight gradients into one convolution with B groups, for which CPU libraries have
no good kernel: with 256 channels it takes three times as long as the batch's gradient. The rule
here calls the library once per example, over its K views, which is what such kernels are made for.
It wins for wide layers and loses for narrow ones, where the call itself costs most; so it is one
engine of several (``engines.py``), and the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SMALL = 2_000_000
"""Multiply-adds of one example's weight gradient below which a library call costs more than them:
25 to 65 µs on the machines that this was measured on. A GPU needs more work at a time than one
example has, so there none is large."""

_convolution = torch.ops.aten.convolution
_convolution_backward = torch.ops.aten.convolution_backward


class PerExampleConvolutions(TorchFunctionMode):
    """While active (inside ``vmap``), ``conv2d`` takes its weight gradients example by example."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _conv2d(*args, **kwargs)
        return func(*args, **kwargs)


def _conv2d(
    input: Tensor,  # noqa: A002 (torch's own name, which callers may use)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(input.device.type):
        # Autocast ends before the backward pass begins: cast where autograd sees it.
        short = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(short), weight.to(short)  # noqa: A001
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    output: Tensor = _Convolution.apply(input, weight, geometry)
    return output if bias is None else output + bias.to(output.dtype).view(-1, 1, 1)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


_Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients by the input and by the weight, of which ``wanted`` says the ones to compute."""
    stride, padding, dilation, groups = geometry
    by_input, by_weight, _ = _convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )
    return by_input, by_weight


class _Convolution(torch.autograd.Function):
    """A convolution without bias: x [n, C, H, W], or [B, n, C, H, W] under ``vmap``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        stride, padding, dilation, groups = geometry
        y: Tensor = _convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        x, weight, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = _gradients(grad, x, weight, ctx.geometry, [True, False])[0]
        if ctx.needs_input_grad[1]:
            by_weight = _WeightGradient.apply(x, grad, weight, ctx.geometry)
        return by_input, by_weight, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        x, weight, geometry = inputs
        if in_dims[1] is not None or in_dims[0] is None:
            raise NotImplementedError("a convolution whose weights differ between examples")
        x_bn = x.movedim(in_dims[0], 0)
        y = _Convolution.apply(x_bn.flatten(0, 1), weight, geometry)
        return y.unflatten(0, (info.batch_size, -1)), 0


class _WeightGradient(torch.autograd.Function):
    """The gradient by the weight: of one example, or [B, …] under ``vmap``."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        return _gradients(grad, x, weight, geometry, [False, True])[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: there are no second derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:  # noqa: ARG004
        x, grad, weight, geometry = inputs
        assert in_dims[2] is None
        x_b, grad_b = x.movedim(in_dims[0], 0), grad.movedim(in_dims[1], 0)
        small = weight.numel() * grad_b[0, :, 0].numel() < _SMALL or x_b.device.type == "cuda"
        if geometry[3] == 1 and small:
            return _small_weight_gradients(x_b, grad_b, weight, geometry), 0
        return _weight_gradients(x_b, grad_b, weight, *geometry), 0


def _small_weight_gradients(x: Tensor, grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """[B, …] weight gradients of x [B, K, C, H, W]: one product of matrices per example.

    The patches of the input that the kernel saw, [B, K·H'·W', kh·kw·C], are laid out for that.
    """
    stride, (pad_h, pad_w), dilation, _ = geometry
    out_channels, in_channels, *kernel = weight.shape
    patches = F.pad(x.movedim(2, -1), (0, 0, pad_w, pad_w, pad_h, pad_h))  # [B, K, H, W, C]
    for i in (0, 1):
        spread = dilation[i] * (kernel[i] - 1) + 1
        patches = patches.unfold(2 + i, spread, stride[i])[..., :: dilation[i]]
    # [B, K, H', W', C, kh, kw]
    patches = patches.movedim(4, -1).reshape(len(x), -1, weight[0].numel())
    grad_bo = grad.movedim(2, -1).reshape(len(x), -1, out_channels).transpose(1, 2)
    product = torch.bmm(grad_bo, patches)
    return product.view(len(x), out_channels, *kernel, in_channels).movedim(-1, 2)


@torch.library.custom_op("dp_ray::convolution_weight_gradients", mutates_args=())
def _weight_gradients(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """[B, …] weight gradients of x [B, K, C, H, W]; opaque to the compiler, one call in its plan.

    A loop that the compiler sees would be unrolled B times for each layer.
    """
    out = weight.new_empty(len(x), *weight.shape)
    geometry = (stride, padding, dilation, groups)
    for i in range(len(x)):
        out[i] = _gradients(grad[i], x[i], weight, geometry, [False, True])[1]
    return out


@_weight_gradients.register_fake
def _(x: Tensor, grad: Tensor, weight: Tensor, *geometry: Any) -> Tensor:  # noqa: ARG001
    return weight.new_empty(len(x), *weight.shape)
