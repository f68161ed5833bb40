"""What a release and a draw cost: version 1 of draws, noise and digests beside version 2.

    python benchmarks/noise_cost.py [--parameters 10000000] [--examples 10000000] [--threads 2]

Versions take turns, so that what else the machine does meets both, and the fastest call counts. On
a busy machine a small P and N with many repeats come closest to an idle one: a call then ends
before another process gets its core. Each part is timed by itself:
the normal numbers of P parameters, the digest of a float64 sum of as many, what the release adds to
that, and a Poisson draw from N examples. A release of version 1 draws its noise when the sum is
there; in version 2 a thread has drawn it meanwhile.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dp_ray.keys import LATEST, VERSIONS, KeyedStream
from dp_ray.performance.allocator import keep_freed_memory
from dp_ray.privacy.noise import KeyedNoiseOptimizer, NoiseAhead, NoiseSource
from dp_ray.privacy.sampling import PoissonSampler, Shard
from dp_ray.training.sum_digest import digest_of_sum

_KEY = bytes(32)

Part = Callable[[int], object]
"""Does the work of a part, which is given the number of the call."""


def stream(version: int, step: int) -> KeyedStream:
    """A stream of a key that protects nothing."""
    return KeyedStream(_KEY, incarnation=0, step=step, version=version)


def normals(version: int, count: int, step: int) -> None:
    """The normal numbers of a step."""
    stream(version, step).normal(count)


def draw(version: int, examples: int, step: int) -> None:
    """A Poisson draw at the rate of 4096 in 50,000."""
    sampler = PoissonSampler(examples, max(1, examples * 4096 // 50_000))
    sampler.draw(partial(stream, version), step, Shard(0, examples))


def digest(version: int, total: Tensor, step: int) -> None:
    """The digest of a sum."""
    digest_of_sum(_KEY, total, b"", incarnation=0, step=step, version=version)


class Release:
    """The noised update of P parameters.

    Args:
        total: [P] the sum.
        tensors: that the parameters are spread over.
    """

    def __init__(self, total: Tensor, tensors: int) -> None:
        self._sums = {str(i): part for i, part in enumerate(total.chunk(tensors))}
        params = [nn.Parameter(torch.zeros(len(part))) for part in self._sums.values()]
        self._optimizer = KeyedNoiseOptimizer(
            torch.optim.SGD(params, lr=0.1), expected_batch_size=64
        )

    def __call__(self, source: NoiseSource) -> None:
        """Release the sum with noise of a source."""
        self._optimizer.release(self._sums, noise_multiplier=1.0, sensitivity=1.0, stream=source)


def seconds(parts: dict[int, Part], repeats: int) -> dict[int, tuple[float, float]]:
    """Time and CPU time of each version's fastest call; they take turns, and the first warms up."""
    times: dict[int, list[tuple[float, float]]] = {version: [] for version in parts}
    for number in range(repeats + 1):
        for version, part in parts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            part(number)
            times[version].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {version: min(found[1:]) for version, found in times.items()}


def releases(total: Tensor, tensors: int, repeats: int) -> dict[int, tuple[float, float]]:
    """Time of the release alone; in version 2 it finds the noise drawn."""
    release = Release(total, tensors)
    ahead = NoiseAhead(lambda _, step: stream(LATEST, step))
    times: dict[int, list[tuple[float, float]]] = {version: [] for version in VERSIONS}
    for step in range(repeats + 1):
        ahead.start(0, step, len(total))
        drawn = ahead.of(0)(step)
        drawn.normal(len(total))  # as if the sum took longer than the draw
        for version, source in ((1, stream(1, step)), (LATEST, drawn)):
            wall, cpu = time.perf_counter(), time.process_time()
            release(source)
            times[version].append((time.perf_counter() - wall, time.process_time() - cpu))
    ahead.close()
    return {version: min(found[1:]) for version, found in times.items()}


def peak_megabytes() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=10**7)
    parser.add_argument("--examples", type=int, default=10**7)
    parser.add_argument("--tensors", type=int, default=10, help="that parameters are spread over")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as workers do
    count, examples = arguments.parameters, arguments.examples
    total = torch.randn(count, dtype=torch.float64)
    before = peak_megabytes()
    rows = [
        ("normal numbers", count, {v: partial(normals, v, count) for v in VERSIONS}),
        ("digest of a sum", count, {v: partial(digest, v, total) for v in VERSIONS}),
        ("Poisson draw", examples, {v: partial(draw, v, examples) for v in VERSIONS}),
    ]
    print(
        f"torch {torch.__version__}, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads; "
        f"P = {count:,}, N = {examples:,}; ns a parameter or example: time (CPU time)"
    )
    print("| part | version 1 | version 2 |\n| --- | --- | --- |")
    found = [(name, n, seconds(parts, arguments.repeats)) for name, n, parts in rows]
    found.append(("release", count, releases(total, arguments.tensors, arguments.repeats)))
    for name, number, times in found:
        cells = [
            f"{1e9 * wall / number:.1f} ({1e9 * cpu / number:.1f})"
            for wall, cpu in (times[version] for version in VERSIONS)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"at most {peak_megabytes() - before:.0f} MB beyond the sum")


if __name__ == "__main__":
    main()
