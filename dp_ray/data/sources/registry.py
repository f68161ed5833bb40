"""The sources by name."""

from __future__ import annotations

from dp_ray.config.data import DataConfig
from dp_ray.config.section import OBJECT
from dp_ray.data.source import Source
from dp_ray.data.sources.digits import Digits
from dp_ray.data.sources.fake import Fake
from dp_ray.data.sources.image_folder import ImageFolder
from dp_ray.data.sources.own import Own
from dp_ray.data.sources.passed import Passed
from dp_ray.data.sources.torchvision_sets import Cifar10, FashionMnist, Mnist
from dp_ray.errors import unknown_name

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
    "image_folder": ImageFolder,
    "fake": Fake,
}
"""Values of ``data.name``; any with a colon is the import path of the user's own."""


def source_of(config: DataConfig) -> Source:
    """Make the configured source; read no data and import no code of the user's.

    Raises:
        ConfigError: there is no source of that name.
    """
    kind = _kind(config.name)
    if kind is None:
        raise unknown_name(
            "data.name", config.name, "no such data set", SOURCES, own="my_pkg.my_module:load"
        )
    return kind(config)


def check_place(config: DataConfig) -> None:
    """Check, within moments, the facts of the configured data and that it is there.

    Raises:
        DpRayError: see :meth:`~dp_ray.data.source.Source.facts` and
            :meth:`~dp_ray.data.source.Source.check_place`.
    """
    source = source_of(config)
    source.facts()
    source.check_place()


def is_self_contained(name: str) -> bool:
    """Whether a data set of this name needs no file of the user's; false for unknown names."""
    kind = _kind(name)
    return kind is not None and kind.self_contained


def unheeded_fields(config: DataConfig) -> set[str]:
    """Return the decoding fields of other sources, which mean nothing to the configured one."""
    kind = _kind(config.name)
    heeded = frozenset() if kind is None else kind.decoding_fields
    return {name for other in SOURCES.values() for name in other.decoding_fields - heeded}


def _kind(name: str) -> type[Source] | None:
    if name == OBJECT:
        return Passed
    return Own if ":" in name else SOURCES.get(name)
