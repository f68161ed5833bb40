"""Privacy plans that no configuration was solved for."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from dp_ray.privacy.plan import PrivacyPlan


def privacy_plan(**changes: Any) -> PrivacyPlan:
    """Nine steps with σ = 1 and q = 1/10 of a hundred examples; ε is not computed."""
    values: dict[str, Any] = {
        "num_examples": 100,
        "expected_batch_size": 10,
        "views": 1,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.5,
        "steps": 9,
        "delta": 1e-5,
        "accountant": "rdp",
        "epsilon": math.inf,
    }
    return PrivacyPlan(**{**values, **changes})


def plan_at_rate(rate: float, **changes: Any) -> PrivacyPlan:
    """The same at another q."""
    q = Fraction(rate).limit_denominator(10**6)
    sizes = {"num_examples": q.denominator, "expected_batch_size": q.numerator}
    return privacy_plan(**sizes, **changes)
