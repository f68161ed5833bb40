"""What tests of data sets share."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dp_ray.config.data import DataConfig
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DataError


def pixel_rows(images: NDArray[np.uint8]) -> set[bytes]:
    """Each image as its bytes."""
    return {image.tobytes() for image in images}


def refusal(kind: type[ConfigError] | type[DataError], config: DataConfig) -> str:
    """The message with which data is refused."""
    with pytest.raises(kind) as caught:
        open_dataset(config)
    return str(caught.value)
