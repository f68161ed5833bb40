"""The data sets by name, and their public facts; nothing here reads any data.

Facts are known without reading anything, so a plan can be made and a configuration refused before
any private data is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from dp_ray.config.run import DataConfig
from dp_ray.errors import ConfigError


@dataclass(frozen=True)
class DataFacts:
    """Public facts of a data set; images are [channels, image_size, image_size]."""

    num_examples: int
    num_classes: int
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_KNOWN = {
    # mean and std of the torchvision sets are the published constants of public data.
    "digits": DataFacts(1437, 10, 8, 1, (0.3,), (0.37,)),
    "mnist": DataFacts(60_000, 10, 28, 1, (0.1307,), (0.3081,)),
    "fashion_mnist": DataFacts(60_000, 10, 28, 1, (0.2860,), (0.3530,)),
    "cifar10": DataFacts(50_000, 10, 32, 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
_FAKE = DataFacts(10_000, 10, 32, 3, (0.5,) * 3, (0.5,) * 3)

_FACT_FIELDS = ("num_examples", "num_classes", "image_size", "channels")


def data_facts(config: DataConfig) -> DataFacts:
    """The public facts of the configured data set; reads no data.

    Raises:
        ConfigError: a fact that must be given is missing, or contradicts what is known.
    """
    given = {name: getattr(config, name) for name in _FACT_FIELDS}
    known = _KNOWN.get(config.name)
    if known is not None:
        for name, value in given.items():
            if value is not None and value != getattr(known, name):
                raise ConfigError(
                    f"data.{name}",
                    value,
                    f"{config.name} has {getattr(known, name)}",
                    "Leave it out",
                )
        facts = {name: getattr(known, name) for name in _FACT_FIELDS}
    elif config.name == "fake":
        facts = {n: getattr(_FAKE, n) if value is None else value for n, value in given.items()}
    elif config.name == "image_folder" or ":" in config.name:
        for name, value in given.items():
            if value is None:
                raise ConfigError(
                    f"data.{name}",
                    None,
                    f"must be given for data.name = {config.name}",
                    "It is public: it goes into the privacy statement",
                )
        facts = given
    else:
        names = ", ".join([*_KNOWN, "image_folder", "fake"])
        raise ConfigError(
            "data.name", config.name, "no such data set", f"Use {names}, or my_pkg.my_module:load"
        )
    channels = facts["channels"]
    mean = config.mean or (known.mean if known else [0.5] * channels)
    std = config.std or (known.std if known else [0.5] * channels)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ConfigError(
                f"data.{name}", values, f"{channels} values are needed", "One a channel"
            )
    return DataFacts(**facts, mean=tuple(mean), std=tuple(std))
