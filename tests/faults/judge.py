"""What must be true of a run after any faults, from the noise that was seen and what it left."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.storage import open_folder


@dataclass(frozen=True)
class Account:
    """What a run spent in truth, and what its ledger says.

    Attributes:
        releases: draws whose sum was noised.
        charges: noised sums that the ledger paid for.
        epsilon_true: of the releases.
        epsilon_charged: of the charges.
    """

    releases: int
    charges: int
    epsilon_true: float
    epsilon_charged: float


@dataclass(frozen=True)
class Use:
    """Noise that met a sum, or the count of the gradients within C.

    Attributes:
        kind: "sum" or "count": a draw may be used for one of each.
        draw: names the key of the examples' draw.
        noise: names the key of the noise.
        noised: digest of the sum or count.
        sigma: deviation of the noise, over what one example moves.
    """

    kind: str
    draw: str
    noise: str
    noised: str
    sigma: float


def uses(logs: Iterable[Path]) -> set[Use]:
    """All that were seen; the very same one again is the same release."""
    lines = [line for log in logs for line in log.read_text().splitlines()]
    entries = map(json.loads, lines)
    return {Use(e["kind"], e["draw"], e["noise"], e["sum"], e["sigma"]) for e in entries}


def keys_used_twice(logs: Iterable[Path]) -> list[Use]:
    """Keys of noise or of draws that met two sums, or two counts: there must be none."""
    found = uses(logs)
    noises = Counter(use.noise for use in found)
    draws = Counter((use.kind, use.draw) for use in found)
    return [use for use in found if noises[use.noise] > 1 or draws[use.kind, use.draw] > 1]


def account(run: Path, log: Path) -> Account:
    """Compares the ledger (verified as it is read) with the noise that was seen.

    What was released of one draw, a sum and perhaps a count, is one Gaussian mechanism with
    σ⁻² = Σ σᵢ⁻².
    """
    ledger = RunDirectory(open_folder(str(run))).read_ledger()
    plan = ledger.plan
    parts: dict[str, set[Use]] = defaultdict(set)
    for use in uses([log]):
        parts[use.draw].add(use)
    sigmas = [sum(use.sigma**-2 for use in of_one) ** -0.5 for of_one in parts.values()]
    seen = Counter(round(sigma, 9) for sigma in sigmas)
    truth = tuple((sigma, plan.sample_rate, count) for sigma, count in sorted(seen.items()))
    charged = tuple((round(sigma, 9), rate, count) for sigma, rate, count in ledger.history)
    spent = (epsilon_of("rdp", history, plan.delta) for history in (truth, charged))
    return Account(len(parts), ledger.charges, *spent)
