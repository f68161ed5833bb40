"""Releases are the same bits as before the code moved, at recorded keys.

``release_digests.json`` was recorded at commit abcff7a, the last one before the layout by subject,
for version 1 of draws, noise and digests; for version 2 when it became the latest. Processors round
differently, so a digest counts on the kind of machine that recorded it. Elsewhere the norm of the
parameters is compared.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig, released, start

from dp_ray.keys import VERSIONS

RECORDED = json.loads(Path(__file__).with_name("release_digests.json").read_text(encoding="utf-8"))
NOISE: dict[str, dict[str, Any]] = {
    "plain": {},
    "adaptive": {"adaptive_clipping": {"quantile": 0.5, "learning_rate": 0.5}},
    "decreasing": {"noise_schedule": {"final": 0.5, "parts": 2}},
}
CASES = [
    *itertools.product(["vmap", "per_layer"], VERSIONS),
    # An engine does not depend on the version: one is enough of those that take long to compile.
    pytest.param("vmap_compiled", 1, marks=pytest.mark.slow),
    pytest.param("per_layer_compiled", 1, marks=pytest.mark.slow),
]


def machine() -> str:
    """What decides how a processor rounds."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    kind = names[0] if names else platform.processor()
    return f"{kind}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def release(config: Any) -> tuple[str, float]:
    """Digest and norm of what a run publishes."""
    start(config)
    tensors = released(config)
    data = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    norm = torch.cat([t.flatten().double() for t in tensors.values()]).norm()
    return hashlib.sha256(data).hexdigest()[:32], float(norm)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(("engine", "version"), CASES)
def test_a_release_is_what_it_was(
    make_config: MakeConfig, engine: str, noise: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The keys of that commit were not bound to initial parameters, and a run keeps its binding.
    monkeypatch.setattr("dp_ray.training.lead._binding", lambda *_: None)
    monkeypatch.setattr("dp_ray.ledger.ledger.LATEST", version)
    config = make_config(
        privacy=NOISE[noise],
        optimizer={"arguments": {"momentum": 0.9}, "ema_decay": 0.9},
        train={"engine": engine, "microbatch_size": 32},
    )
    digest, norm = release(config)
    recorded = RECORDED[f"{engine} {noise}" if version == 1 else f"{engine} {noise}, {version}"]
    assert norm == pytest.approx(recorded["norm"], rel=1e-4)
    if machine() in recorded["digests"]:
        assert digest == recorded["digests"][machine()]
