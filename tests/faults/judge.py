"""What must be true of a run after any faults, from the noise that was seen and what it left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dp_ray.privacy.accounting import epsilon_of
from dp_ray.storage import open_folder
from dp_ray.training.plan import PrivacyPlan
from dp_ray.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Account:
    """What a run spent in truth, and what its ledger says.

    Attributes:
        releases: distinct noised sums that were seen.
        charges: noised sums that the ledger paid for.
        epsilon_true: of the releases.
        epsilon_charged: of the charges.
    """

    releases: int
    charges: int
    epsilon_true: float
    epsilon_charged: float


def uses(logs: Iterable[Path]) -> dict[tuple[str, str], set[str]]:
    """(draw key, noise key) → the sums that they were used for."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for log in logs:
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            found[entry["draw"], entry["noise"]].add(entry["sum"])
    return found


def keys_used_twice(logs: Iterable[Path]) -> list[tuple[str, str]]:
    """Keys of noise or of draws that met two sums: there must be none."""
    found = uses(logs)
    by_noise: dict[str, set[tuple[str, str]]] = defaultdict(set)
    by_draw: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for (draw, noise), sums in found.items():
        by_noise[noise].update((draw, total) for total in sums)
        by_draw[draw].update((noise, total) for total in sums)
    return [pair for pair in found if len(by_noise[pair[1]]) > 1 or len(by_draw[pair[0]]) > 1]


def account(run: Path, log: Path) -> Account:
    """Compares the ledger (verified as it is read) with the noise that was seen."""
    ledger = RunDirectory(open_folder(str(run))).read_ledger()
    plan = PrivacyPlan.from_dump(ledger.plan)
    releases = len({noise for _, noise in uses([log])})

    def cost(count: int) -> float:
        released = ((plan.noise_multiplier, plan.sample_rate, count),)
        return epsilon_of("rdp", released, plan.delta)

    return Account(releases, ledger.charges, cost(releases), cost(ledger.charges))
