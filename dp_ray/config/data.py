"""The sections on data and its views."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dp_ray.config.section import (
    Colour,
    Count,
    Named,
    NonNegative,
    Positive,
    Probability,
    Section,
)


def _check_name(name: str) -> str:
    if not name or not name.isprintable():
        raise ValueError(f"a name must have printable characters, and no others: {name!a}")
    return name


ClassName = Annotated[str, AfterValidator(_check_name)]


class DataConfig(Named):
    """Which examples, and how many are expected in a step."""

    name: str = Field(
        "digits",
        description="A data set by its name, or the import path of your own loader or source "
        "(my_pkg.my_module:load).",
    )
    root: str | None = Field(
        None,
        description="Folder that holds the data; needed where files are read. ~ and $NAME are what "
        "they are on each node.",
    )
    download: bool = Field(False, description="Let torchvision download the data into root.")
    expected_batch_size: Count = Field(
        ..., description="B̄: examples expected in a step. Public; q = B̄/N."
    )
    num_examples: Count | None = Field(
        None,
        description="N, the number of training examples. Public and recorded; known for a "
        "public data set, given for private ones.",
    )
    num_classes: Annotated[int, Field(ge=2, le=10**6)] | None = Field(
        None, description="Number of classes; known for the named data sets."
    )
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Side of the square images in pixels; known for the named data sets."
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); known for the named data sets."
    )
    mean: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        description="Per-channel mean to subtract, on the 0-1 scale. Must be public knowledge: "
        "never computed from the private data. Known for the named data sets, else 0.5.",
    )
    std: list[Positive] | None = Field(
        None, description="Per-channel divisor, as public as mean. Else 0.5."
    )
    background: Literal["white", "black"] | Colour = Field(
        "white",
        description="What shows through transparent parts of the images in an image_folder: white, "
        "black, or [red, green, blue], each from 0 to 255.",
    )
    class_names: Annotated[list[ClassName], Field(min_length=2)] | None = Field(
        None,
        description="Names of the classes in the order of labels, for people: they go into the "
        "release. Public. By default those that the data has, such as an image_folder's.",
    )
    evaluation: Literal["held_out", "public"] = Field(
        "held_out",
        description="What you declare the test split to be; accuracy is computed on it and is "
        "not covered by ε.",
    )
    evaluation_noise: Annotated[float, Field(ge=1e-3, allow_inf_nan=False)] | None = Field(
        None,
        description="σ: Gaussian noise on the number of test examples that the model is right on, "
        "each of which moves it by 1, in what is published (privacy.json, cards, public pages). "
        "Only with evaluation held_out; null publishes exact figures.",
    )
    cache: str | None = Field(
        None,
        description="Folder for the decoded copy that all workers of a node map into memory; "
        "default ~/.cache/dp-ray. As private as the data. ~ and $NAME likewise.",
    )

    @model_validator(mode="after")
    def _channels_agree(self) -> DataConfig:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and self.channels is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        names = self.class_names or []
        if len(set(names)) < len(names):
            raise ValueError("class_names has a name twice")
        if names and self.num_classes is not None and len(names) != self.num_classes:
            raise ValueError(f"class_names has {len(names)} names for {self.num_classes} classes")
        if self.evaluation_noise is not None and self.evaluation == "public":
            raise ValueError("evaluation_noise is for figures of held_out data: set it to null")
        return self


class AugmentConfig(Section):
    """The K views of an example: random changes, drawn anew in each step."""

    views: Count = Field(
        1, description="K: augmented copies of each example; their gradients are averaged first."
    )
    shift: NonNegative = Field(
        0.0, description="Largest shift in pixels, each way; whole pixels unless subpixel."
    )
    subpixel: bool = Field(
        False, description="Draw shifts as real numbers (bilinear interpolation)."
    )
    padding: Literal["reflect", "constant"] = Field(
        "constant", description="What a shift, rotation or scaling brings in from outside."
    )
    horizontal_flip: Probability = Field(0.0, description="Probability of mirroring a view.")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0, description="Largest rotation in degrees, each way."
    )
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Zoom factor drawn from 1 - scale to 1 + scale."
    )
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Brightness factor drawn from 1 ± brightness."
    )
    contrast: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Contrast factor drawn from 1 ± contrast."
    )
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Saturation factor drawn from 1 ± saturation (RGB only)."
    )
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="Hue shift drawn from ± hue, as a part of the colour circle (RGB only)."
    )
    cutout: Annotated[int, Field(ge=0)] = Field(
        0, description="Side in pixels of a square set to the mean colour at a random place."
    )
