"""The networks of step_speed.py in JAX, on torch's parameters by name; images are [n, H, W, C]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Array = Any
Params = dict[str, Array]


def convolution(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    """``weight`` is [out, in, kh, kw], as torch has it."""
    y = jax.lax.conv_general_dilated(
        x,
        weight.transpose(2, 3, 1, 0),
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + bias


def group_norm(x: Array, weight: Array, bias: Array, groups: int) -> Array:
    """Over space and the channels of a group; biased variance, ε = 1e-5."""
    n, h, w, c = x.shape
    grouped = x.reshape(n, h, w, groups, c // groups)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = grouped.var(axis=(1, 2, 4), keepdims=True)
    unit = (grouped - mean) * jax.lax.rsqrt(variance + 1e-5)
    return unit.reshape(n, h, w, c) * weight + bias


def max_pool(x: Array) -> Array:
    """2×2, stride 1."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")


def small_cnn(p: Params, x: Array) -> Array:
    """``tanh_cnn`` for grey images."""
    for name, stride, padding in (("features.0", 2, 3), ("features.3", 2, 0)):
        x = convolution(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding)
        x = max_pool(jnp.tanh(x))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    x = jnp.tanh(x @ p["head.1.weight"].T + p["head.1.bias"])
    return x @ p["head.3.weight"].T + p["head.3.bias"]


def wide_resnet(p: Params, x: Array, *, standardized: bool) -> Array:
    """WRN-16-4 with 16 groups."""

    def layer(name: str, x: Array, stride: int) -> Array:
        x = group_norm(jax.nn.relu(x), p[f"{name}.1.weight"], p[f"{name}.1.bias"], 16)
        return conv(f"{name}.2", x, stride)

    def conv(name: str, x: Array, stride: int) -> Array:
        weight = p[f"{name}.weight"]
        if standardized:
            filters = weight.reshape(len(weight), -1)
            centred = filters - filters.mean(axis=1, keepdims=True)
            length = jnp.sqrt((centred**2).sum(axis=1, keepdims=True))
            unit = centred / jnp.maximum(length, 1e-2)
            weight = (p[f"{name}.gain"][:, None] * unit).reshape(weight.shape)
        return convolution(x, weight, p[f"{name}.bias"], stride, weight.shape[-1] // 2)

    x = conv("0", x, 1)
    for block in range(1, 7):
        stride = 2 if block in (3, 5) else 1
        has_shortcut = f"{block}.shortcut.2.weight" in p
        shortcut = layer(f"{block}.shortcut", x, stride) if has_shortcut else x
        x = layer(f"{block}.residual.0", x, stride)
        x = shortcut + layer(f"{block}.residual.1", x, 1)
    x = group_norm(jax.nn.relu(x), p["8.weight"], p["8.bias"], 16).mean(axis=(1, 2))
    return x @ p["11.weight"].T + p["11.bias"]


FORWARD: dict[str, Callable[[Params, Array], Array]] = {
    "small CNN": small_cnn,
    "WRN-16-4": partial(wide_resnet, standardized=True),
    "WRN-16-4 plain": partial(wide_resnet, standardized=False),
}
