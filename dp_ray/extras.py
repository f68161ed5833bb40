"""Optional libraries: which extra of dp-ray installs each, and the error where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from dp_ray.errors import MissingExtraError

EXTRAS: dict[str, tuple[str, ...]] = {
    "digits": ("sklearn",),
    "ray": ("ray",),
    "report": ("matplotlib",),
    "storage": ("pyarrow",),
    "tune": ("ray", "optuna", "matplotlib"),
}
"""Extras of pyproject.toml, and the modules that dp-ray imports from each."""

_LIBRARIES = {
    "matplotlib": "matplotlib",
    "optuna": "Optuna",
    "pyarrow": "PyArrow",
    "ray": "Ray",
    "sklearn": "scikit-learn",
}
"""Names of the modules' libraries, for messages."""


def missing(extra: str) -> list[str]:
    """Return the libraries of an extra that are not installed; imports none of them."""
    return [_LIBRARIES[module] for module in EXTRAS[extra] if find_spec(module) is None]


def require(extra: str, purpose: str, otherwise: str = "") -> None:
    """Check that the libraries of an extra are installed; imports none of them.

    Args:
        extra: a key of :data:`EXTRAS`.
        purpose: what needs them, such as ``data.name = 'digits'``.
        otherwise: another way out, for the end of the message.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    if libraries := missing(extra):
        raise MissingExtraError(purpose, libraries, extra, otherwise)
