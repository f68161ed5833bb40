"""What all sections of a configuration share: strictness, and types of numbers."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from dp_ray.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
Budget = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a configuration: no unknown field, no silent conversion, no change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True)


OBJECT = "<object>"
"""The name of what was passed to ``dp_ray.train`` as a Python object."""


class Named(Section):
    """A section whose ``name`` says what is used: a known name, an import path, or an object.

    The object is beside the fields and no part of them: files say :data:`OBJECT` for its name.
    """

    name: str

    _passed: Any = PrivateAttr(default=None)

    @property
    def passed(self) -> Any:
        """The object that the name stands for; None if there is none here."""
        return self._passed

    @property
    def is_users_own(self) -> bool:
        """Whether the name stands for the user's own code or object, and is not a known one."""
        return ":" in self.name or self.name == OBJECT

    def object_passed_as(self, argument: str, what: str, example: str = "…") -> Any:
        """Return the object that the name stands for.

        Args:
            argument: of ``dp_ray.train`` that passes it, which is the section's name too.
            what: was passed, for the message.
            example: what the argument may be.

        Raises:
            ConfigError: there is none here, as where the section was read from a file.
        """
        if self._passed is None:
            raise ConfigError(
                f"{argument}.name",
                OBJECT,
                f"{what}, which no file holds",
                f"Pass it again: dp_ray.train(…, {argument}={example}), or {argument}= of the "
                "function that was called",
            )
        return self._passed

    def passing(self, value: Any) -> Self:
        """Return the section with an object in the place of its name."""
        section = self.model_copy(update={"name": OBJECT})
        section._passed = value
        return section
