"""Views: each transform beside its torchvision counterpart, and what their draw depends on."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as V
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dp_ray.config.data import AugmentConfig
from dp_ray.data.facts import DataFacts
from dp_ray.data.views import ViewMaker, ViewParameters
from dp_ray.errors import ConfigError
from dp_ray.keys import KeyedStream

# Mean 0 and standard deviation 1 leave the pixels as they are, to compare them with torchvision's.
RGB = DataFacts(1000, 10, 16, 3, (0.0,) * 3, (1.0,) * 3)
GREY = DataFacts(1000, 10, 16, 1, (0.0,), (1.0,))
NORMALISED = DataFacts(1000, 10, 16, 3, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
KEY = bytes(range(32))
CPU = torch.device("cpu")
EXAMPLES, VIEWS = 5, 24


def stream(step: int = 3, key: bytes = KEY, incarnation: int = 0) -> KeyedStream:
    return KeyedStream(key, incarnation=incarnation, step=step)


def random_images(facts: DataFacts, count: int = EXAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (count, facts.channels, facts.image_size, facts.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def draw(
    facts: DataFacts = RGB, ids: NDArray[np.int64] | None = None, **fields_given: Any
) -> ViewParameters:
    maker = ViewMaker(AugmentConfig(**fields_given), facts, CPU)
    return maker.draw(stream(), np.arange(EXAMPLES) if ids is None else ids)


def transformed(
    facts: DataFacts, images: Tensor | None = None, **fields_given: Any
) -> tuple[Tensor, Tensor, ViewParameters]:
    """([V, C, H, W] originals on the 0-1 scale, [V, C, H, W] what the ViewMaker made, [V] draw)."""
    config = AugmentConfig(views=VIEWS, **fields_given)
    maker = ViewMaker(config, facts, CPU)
    images = random_images(facts) if images is None else images
    parameters = maker.draw(stream(), np.arange(10, 10 + len(images)))
    made = maker.make(images, parameters)
    assert made.dtype == torch.float32
    assert made.shape == (len(images), VIEWS, *images.shape[1:])
    originals = (images.float() / 255).repeat_interleave(VIEWS, dim=0)
    return originals, made.flatten(0, 1), parameters


def number(values: Tensor, view: int) -> float:
    return float(values[view])


def assert_alike(made: Tensor, expected: list[Tensor], originals: Tensor, atol: float) -> None:
    """Image by image; and the transform did something, or the comparison would mean nothing."""
    assert len(made) == len(expected)
    for view, reference in enumerate(expected):
        torch.testing.assert_close(
            made[view], reference, rtol=0, atol=atol, msg=lambda m, v=view: f"view {v}: {m}"
        )
    changed = (made - originals).abs().amax(dim=(1, 2, 3)) > 0.01
    assert float(changed.float().mean()) > 0.3


def expected_affine(image: Tensor, parameters: ViewParameters, view: int, padding: str) -> Tensor:
    """torchvision's affine map; with reflect padding on the largest reflected image there is."""
    size = image.shape[-1]
    if padding == "reflect":
        image = V.pad(image, [size - 1] * 4, padding_mode="reflect")
    moved = V.affine(
        image,
        angle=number(parameters.angle, view),
        translate=[number(parameters.shift_x, view), number(parameters.shift_y, view)],
        scale=number(parameters.zoom, view),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    return V.center_crop(moved, [size, size])


@pytest.mark.parametrize("facts", [RGB, GREY])
def test_mirror_is_horizontal_flip(facts: DataFacts) -> None:
    originals, made, parameters = transformed(facts, horizontal_flip=0.5)
    expected = [
        V.horizontal_flip(image) if parameters.mirror[view] else image
        for view, image in enumerate(originals)
    ]
    assert_alike(made, expected, originals, atol=0)
    assert 0 < int(parameters.mirror.sum()) < len(made)


@pytest.mark.parametrize("padding", ["reflect", "constant"])
@pytest.mark.parametrize("shift", [1.0, 4.0, 4.9, 15.0])
def test_whole_pixel_shift_is_pad_and_crop(padding: str, shift: float) -> None:
    """Exact, not interpolated: a crop of the padded image, right and down for positive shifts."""
    originals, made, parameters = transformed(RGB, shift=shift, padding=padding)
    margin, size = int(shift), RGB.image_size
    expected = []
    for view, image in enumerate(originals):
        padded = V.pad(image, [margin] * 4, padding_mode=padding)
        top = margin - int(parameters.shift_y[view])
        left = margin - int(parameters.shift_x[view])
        expected.append(V.crop(padded, top, left, size, size))
    assert_alike(made, expected, originals, atol=0)
    # Rows are not taken for columns:
    assert not torch.equal(parameters.shift_x, parameters.shift_y)


AFFINE = {
    "subpixel shift": {"shift": 2.5, "subpixel": True},
    "large subpixel shift": {"shift": 14.5, "subpixel": True},
    "rotation": {"rotation": 30.0},
    "any rotation": {"rotation": 180.0},
    "scale": {"scale": 0.3},
    "large scale": {"scale": 0.7},
    "scale and shift": {"scale": 0.4, "shift": 6.0},
    "mirror, rotation, scale, shift": {
        "horizontal_flip": 0.5,
        "rotation": 20.0,
        "scale": 0.2,
        "shift": 3.0,
        "subpixel": True,
    },
    "rotation and whole shift": {"rotation": 15.0, "shift": 2.0},
}


@pytest.mark.parametrize("padding", ["reflect", "constant"])
@pytest.mark.parametrize("name", AFFINE)
def test_rotation_scale_and_shift_are_affine(name: str, padding: str) -> None:
    """Reflect padding brings in no black, however far a view reaches beyond the image."""
    originals, made, parameters = transformed(RGB, padding=padding, **AFFINE[name])
    expected = [
        expected_affine(
            V.horizontal_flip(image) if parameters.mirror[view] else image,
            parameters,
            view,
            padding,
        )
        for view, image in enumerate(originals)
    ]
    assert_alike(made, expected, originals, atol=1e-4)


@pytest.mark.parametrize("name", AFFINE)
def test_reflection_reaches_as_far_as_the_strongest_draw(name: str) -> None:
    """Smallest zoom, largest rotation and shift at once, each way: no black comes in."""
    config = AugmentConfig(padding="reflect", **AFFINE[name])
    signs = torch.tensor([[a, x, y] for a in (-1, 0, 1) for x in (-1, 1) for y in (-1, 1)])
    images = random_images(RGB, len(signs))
    maker = ViewMaker(config, RGB, CPU)
    drawn = maker.draw(stream(), np.arange(len(signs)))
    reach = config.shift if config.subpixel else float(int(config.shift))
    strongest = replace(
        drawn,
        angle=signs[:, 0] * min(config.rotation, 45.0),
        zoom=torch.full((len(signs),), 1 - config.scale),
        shift_x=signs[:, 1] * reach,
        shift_y=signs[:, 2] * reach,
    )
    made = maker.make(images, strongest).flatten(0, 1)
    originals = images.float() / 255
    expected = [
        expected_affine(
            V.horizontal_flip(image) if strongest.mirror[view] else image,
            strongest,
            view,
            "reflect",
        )
        for view, image in enumerate(originals)
    ]
    assert_alike(made, expected, originals, atol=1e-4)


def test_grey_images_and_odd_sizes_are_moved_alike() -> None:
    facts = DataFacts(1000, 10, 9, 1, (0.0,), (1.0,))
    originals, made, parameters = transformed(facts, rotation=25.0, scale=0.2, shift=1.0)
    expected = [
        expected_affine(image, parameters, view, "constant") for view, image in enumerate(originals)
    ]
    assert_alike(made, expected, originals, atol=1e-4)


COLOUR = {
    "brightness": V.adjust_brightness,
    "contrast": V.adjust_contrast,
    "saturation": V.adjust_saturation,
    "hue": V.adjust_hue,
}


def colourful() -> Tensor:
    """Random pixels, and those where hue is undefined or two channels tie."""
    images = random_images(RGB)
    special = [(0, 0, 0), (255, 255, 255), (90, 90, 90), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    special += [(200, 200, 10), (10, 200, 200), (200, 10, 200), (10, 10, 200), (200, 10, 10)]
    for column, pixel in enumerate(special):
        images[0, :, :, column] = torch.tensor(pixel, dtype=torch.uint8)[:, None]
    return images


@pytest.mark.parametrize("strength", [0.1, 0.5])
@pytest.mark.parametrize("name", COLOUR)
def test_colour_is_torchvisions(name: str, strength: float) -> None:
    originals, made, parameters = transformed(RGB, colourful(), **{name: strength})
    factors = getattr(parameters, name)
    expected = [COLOUR[name](image, number(factors, i)) for i, image in enumerate(originals)]
    assert_alike(made, expected, originals, atol=1e-5)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_colour_of_grey_images_is_torchvisions(name: str) -> None:
    originals, made, parameters = transformed(GREY, **{name: 0.8})
    factors = getattr(parameters, name)
    expected = [COLOUR[name](image, number(factors, i)) for i, image in enumerate(originals)]
    assert_alike(made, expected, originals, atol=1e-5)


def expected_cutout(image: Tensor, parameters: ViewParameters, view: int, side: int) -> Tensor:
    left, top = int(parameters.cutout_x[view]), int(parameters.cutout_y[view])
    right, bottom = min(left + side, image.shape[-1]), min(top + side, image.shape[-2])
    left, top = max(left, 0), max(top, 0)
    return V.erase(image, top, left, bottom - top, right - left, torch.zeros(()))


@pytest.mark.parametrize("side", [1, 5, 8])
def test_cutout_is_erase(side: int) -> None:
    originals, made, parameters = transformed(RGB, cutout=side)
    expected = [
        expected_cutout(image, parameters, view, side) for view, image in enumerate(originals)
    ]
    assert_alike(made, expected, originals, atol=0)
    if side > 1:  # squares that reach over an edge are among them
        assert int(parameters.cutout_x.min()) < 0


@pytest.mark.parametrize("padding", ["reflect", "constant"])
def test_everything_at_once_in_the_documented_order(padding: str) -> None:
    """Mirror, affine, brightness, contrast, saturation, hue, normalisation, cutout."""
    originals, made, parameters = transformed(
        NORMALISED,
        horizontal_flip=0.5,
        rotation=20.0,
        scale=0.2,
        shift=2.5,
        subpixel=True,
        padding=padding,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        cutout=5,
    )
    expected = []
    for view, original in enumerate(originals):
        image = V.horizontal_flip(original) if parameters.mirror[view] else original
        image = expected_affine(image, parameters, view, padding).clamp(0, 1)
        for name, adjust in COLOUR.items():
            image = adjust(image, number(getattr(parameters, name), view))
        image = V.normalize(image, list(NORMALISED.mean), list(NORMALISED.std))
        expected.append(expected_cutout(image, parameters, view, 5))
    # Interpolation's 1e-4 grows by 1/std = 4, and by hue, which divides by the chroma.
    assert_alike(made, expected, originals, atol=1e-3)


@pytest.mark.parametrize("views", [1, 3])
def test_nothing_switched_on_is_exactly_normalisation(views: int) -> None:
    """K = 1 without augmentation is plain DP-SGD, whatever was drawn."""
    images = random_images(NORMALISED)
    maker = ViewMaker(AugmentConfig(views=views), NORMALISED, CPU)
    made = maker.make(images, maker.draw(stream(), np.arange(len(images))))
    plain = maker.normalize(images)
    assert torch.equal(made, plain[:, None].expand(-1, views, -1, -1, -1))
    reference = V.normalize(images.float() / 255, list(NORMALISED.mean), list(NORMALISED.std))
    torch.testing.assert_close(plain, reference, rtol=0, atol=1e-6)


def test_views_are_of_their_own_example_and_leave_it_as_it_was() -> None:
    images = random_images(RGB)
    images[:] = torch.arange(len(images), dtype=torch.uint8).view(-1, 1, 1, 1) * 50
    before = images.clone()
    _, made, _ = transformed(RGB, images, horizontal_flip=0.5, shift=2.0, padding="reflect")
    colours = made.view(len(images), VIEWS, -1)
    expected = (before.float() / 255).view(len(images), 1, -1).expand_as(colours)
    assert torch.equal(colours, expected)
    assert torch.equal(images, before)


RANGES: dict[str, Any] = {
    **{"rotation": 12.0, "scale": 0.2, "shift": 1.5, "subpixel": True},
    **{"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.05},
}


def test_drawn_parameters_fill_their_ranges_and_no_more() -> None:
    parameters = draw(ids=np.arange(500), views=8, horizontal_flip=0.25, cutout=4, **RANGES)
    ranges = {
        "angle": (-12.0, 12.0),
        "zoom": (0.8, 1.2),
        "shift_x": (-1.5, 1.5),
        "shift_y": (-1.5, 1.5),
        "brightness": (0.7, 1.3),
        "contrast": (0.6, 1.4),
        "saturation": (0.5, 1.5),
        "hue": (-0.05, 0.05),
    }
    for name, (low, high) in ranges.items():
        values = getattr(parameters, name).double().numpy()
        assert values.shape == (4000,)
        assert values.min() >= low - 1e-6, name
        assert values.max() <= high + 1e-6, name
        p_value = stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue
        assert p_value > 1e-3 / len(ranges), name
    mirrored = int(parameters.mirror.sum())
    low, high = stats.binom.interval(0.999, 4000, 0.25)
    assert low <= mirrored <= high
    # The centre of the square may be any pixel, each as often as any other.
    for corner in (parameters.cutout_x, parameters.cutout_y):
        counts = np.bincount((corner + 4 // 2).numpy(), minlength=16)
        assert len(counts) == 16
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("shift", "whole"), [(2.0, 2), (2.9, 2), (0.5, 0)])
def test_whole_pixel_shifts_take_each_value_equally_often(shift: float, whole: int) -> None:
    parameters = draw(ids=np.arange(500), views=8, shift=shift)
    for values in (parameters.shift_x, parameters.shift_y):
        found, counts = np.unique(values.numpy(), return_counts=True)
        assert found.tolist() == list(range(-whole, whole + 1))
        assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_parameters_of_a_view_are_drawn_independently() -> None:
    """No two fields share their random number."""
    parameters = draw(ids=np.arange(4000), horizontal_flip=0.5, **RANGES)
    table = np.stack([getattr(parameters, f.name).double().numpy() for f in fields(parameters)])
    correlation = np.corrcoef(table)
    apart = correlation[~np.eye(len(table), dtype=bool)]
    assert len(apart) == 110
    assert float(np.abs(apart).max()) < stats.norm.isf(1e-3 / 110) / 4000**0.5


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_mirror_never_and_always(probability: float) -> None:
    mirror = draw(views=50, horizontal_flip=probability).mirror
    assert mirror.double().mean() == probability


JITTER: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "rotation": 10.0,
    "scale": 0.1,
    "shift": 2.0,
    "subpixel": True,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
    "hue": 0.1,
    "cutout": 3,
}


def rows(parameters: ViewParameters, ids: NDArray[np.int64], views: int) -> dict[int, Any]:
    """Example id → [K, 11] its parameters."""
    table = torch.stack([getattr(parameters, f.name).double() for f in fields(parameters)], dim=1)
    parts = table.view(len(ids), views, -1)
    return {int(i): part.tolist() for i, part in zip(ids, parts, strict=True)}


def test_parameters_do_not_depend_on_the_rest_of_the_batch() -> None:
    """Same stream, id and view: the same parameters, in any company and any order."""
    maker = ViewMaker(AugmentConfig(views=4, **JITTER), RGB, CPU)
    together = np.array([3, 900, 17, 0, 55], dtype=np.int64)
    expected = rows(maker.draw(stream(), together), together, 4)
    for batch in ([55, 0, 3, 17, 900], [17], [900, 1, 2, 3], list(range(100))):
        ids = np.array(batch, dtype=np.int64)
        found = rows(maker.draw(stream(), ids), ids, 4)
        shared = set(batch) & set(together.tolist())
        assert shared
        assert all(found[i] == expected[i] for i in shared)


def test_other_views_examples_steps_incarnations_and_keys_differ() -> None:
    maker = ViewMaker(AugmentConfig(views=4, **JITTER), RGB, CPU)
    ids = np.arange(200)
    streams = [
        stream(),
        stream(step=4),
        stream(incarnation=1),
        stream(key=bytes(32)),
    ]
    angles = torch.cat([maker.draw(s, ids).angle for s in streams])
    assert len(angles) == 4 * 200 * 4
    assert len(torch.unique(angles)) > 0.999 * len(angles)  # float32 may tie once by chance


def test_an_empty_batch_gives_no_views() -> None:
    maker = ViewMaker(AugmentConfig(views=3, **JITTER), RGB, CPU)
    parameters = maker.draw(stream(), np.zeros(0, dtype=np.int64))
    assert parameters.angle.shape == (0,)


@pytest.mark.parametrize("shift", [16.0, 16.5, 400.0])
def test_shift_beyond_the_image_is_refused(shift: float) -> None:
    with pytest.raises(ConfigError) as refusal:
        ViewMaker(AugmentConfig(shift=shift), RGB, CPU)
    message = str(refusal.value)
    assert message.startswith(f"augment.shift = {shift}: ")
    assert "16 pixels a side" in message
    assert "smaller shift" in message
    ViewMaker(AugmentConfig(shift=15.9), RGB, CPU)


@pytest.mark.parametrize("field", ["hue", "saturation"])
def test_colour_transforms_of_grey_images_are_refused(field: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        ViewMaker(AugmentConfig(**{field: 0.2}), GREY, CPU)
    message = str(refusal.value)
    assert message.startswith(f"augment.{field} = 0.2: ")
    assert "grey" in message
    assert "Leave it out" in message
    ViewMaker(AugmentConfig(**{field: 0.2}), RGB, CPU)
