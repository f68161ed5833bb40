"""The public facts of the configured data set; nothing here reads any data.

Facts are known without reading anything, so a plan can be made and a configuration refused before
any private data is touched.
"""

from __future__ import annotations

from dp_ray.config.data import DataConfig
from dp_ray.data.source import DataFacts
from dp_ray.data.sources.registry import source_of

__all__ = ["DataFacts", "data_facts"]


def data_facts(config: DataConfig) -> DataFacts:
    """Return the public facts of the configured data set; read no data.

    Raises:
        ConfigError: a fact that must be given is missing, or contradicts what is known.
    """
    return source_of(config).facts()
