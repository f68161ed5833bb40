"""How a run is executed, as the ledger's session records have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from dp_ray.document import take_format


@dataclass(frozen=True)
class Execution:
    """What decides whether a sum repeats bit for bit. Two that are equal repeat it.

    Attributes:
        workers: W; None where a record does not say.
        threads: torch threads of rank 0.
        engine: its name.
        microbatch_size: B.
        machine: device, instructions and versions of rank 0, and a digest of all workers'.
    """

    FORMAT: ClassVar[int] = 2

    workers: int | None = None
    threads: int | None = None
    engine: str | None = None
    microbatch_size: int | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Return plain values for a record, with the format number."""
        known = {name: getattr(self, name) for name in _FIELDS}
        given = {name: value for name, value in known.items() if value is not None}
        return {"format": self.FORMAT, **given, **self.machine}

    def changes_from(self, before: Self) -> str:
        """Return what differs from an earlier execution, in words; empty if they are equal."""
        old, new = before.dump(), self.dump()
        # All workers' digest differs with any of the others, and says nothing to a reader.
        names = [n for n in {**old, **new} if n not in ("format", "all_workers")]
        changed = [
            f"{n} was {old.get(n, 'not recorded')}, now {new.get(n, 'not recorded')}"
            for n in names
            if old.get(n) != new.get(n)
        ]
        if not changed and self != before:
            changed = ["the machine of another worker is not the same"]
        return "; ".join(changed)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return the execution that a record says, of this format or of format 0.

        Raises:
            RunError: a newer version of dp-ray wrote the record.
        """
        rest = dict(values)
        take_format(rest, "a session in the ledger", cls.FORMAT)
        known = {name: rest.pop(name) for name in _FIELDS if name in rest}
        return cls(**known, machine=rest)


_FIELDS = ("workers", "threads", "engine", "microbatch_size")
