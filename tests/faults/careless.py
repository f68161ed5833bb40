"""A driver whose ledger lets any replay pass: what the judge must see."""

from __future__ import annotations

import json
import sys

from dp_ray.ledger.ledger import Ledger, Verdict
from faults import driver
from faults.inject import Fault

_charge = Ledger.charge


def careless(self: Ledger, *arguments: object) -> Verdict:
    """Releases a sum under an incarnation that another sum was released under."""
    verdict = _charge(self, *arguments)  # type: ignore[arg-type]
    return Verdict.REPLAYED if verdict is Verdict.CONFLICT else verdict


if __name__ == "__main__":
    Ledger.charge = careless  # type: ignore[method-assign, assignment]
    Ledger.incarnation_for = lambda _self, _step, diverged: 0  # type: ignore[method-assign]  # noqa: ARG005
    driver.main(sys.argv[1], Fault(**json.loads(sys.argv[2])), resume="--resume" in sys.argv)
