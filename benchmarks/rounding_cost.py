"""What a release costs rank 0: CPU time and peak memory of the noised update of P parameters.

    python benchmarks/rounding_cost.py [--parameters 10000000]

The sum is a float64 vector, as workers reduce it. Each part is timed by itself: the digest of the
sum (charged before noise is drawn), the normal numbers, and the release, which draws them too. With
it, the release as it would be with the sum rounded to float32 before the noise.
"""

from __future__ import annotations

import argparse
import hmac
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import nn

from dp_ray.keys import KeyedStream
from dp_ray.privacy.noise import KeyedNoiseOptimizer

_KEY = bytes(32)


def seconds(work: Callable[[int], object], repeats: int) -> float:
    """Median CPU time of a call, which is given its number; the first call warms up."""
    times = []
    for number in range(repeats + 1):
        started = time.process_time()
        work(number)
        times.append(time.process_time() - started)
    return statistics.median(times[1:])


def peak_megabytes() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class RoundedFirst(KeyedNoiseOptimizer):
    """The release with the sum rounded to float32 before the noise, which moves it by more than C.

    It shows what one rounding at the end costs, and is of no other use.
    """

    def add_noise(self) -> None:
        """See :class:`KeyedNoiseOptimizer`; float32 throughout."""
        assert self._stream is not None
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(self._stream.normal(sum(p.numel() for p in self.params)))
        start = 0
        for p in self.params:
            part = noise[start : start + p.numel()].view_as(p).to(p)
            start += p.numel()
            p.grad = p.summed_grad.to(p.dtype) + std * part


VARIANTS = {"float64 until the noise": KeyedNoiseOptimizer, "float32 before": RoundedFirst}


def measure(variant: str, tensors: int, size: int, repeats: int) -> tuple[float, float]:
    """CPU seconds of a release, and peak memory beyond the sum in MB; in a process of its own."""
    params = [nn.Parameter(torch.zeros(size)) for _ in range(tensors)]
    total = torch.randn(tensors, size, dtype=torch.float64)
    optimizer = VARIANTS[variant](torch.optim.SGD(params, lr=0.1), expected_batch_size=64)
    before = peak_megabytes()

    def release(step: int) -> None:
        optimizer.release(
            {str(index): part for index, part in enumerate(total)},
            noise_multiplier=1.0,
            sensitivity=1.0,
            stream=KeyedStream(_KEY, incarnation=0, step=step),
        )

    return seconds(release, repeats), peak_megabytes() - before


def main() -> None:
    """Prints one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=10**7)
    parser.add_argument("--tensors", type=int, default=10, help="that they are spread over")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    size = arguments.parameters // arguments.tensors
    count = size * arguments.tensors
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
        for variant in VARIANTS:
            shape = (arguments.tensors, size, arguments.repeats)
            whole, peak = fresh.submit(measure, variant, *shape).result()
            print(
                f"P = {count:,}, {variant}: release {whole:.3f} s of CPU, at most {peak:.0f} MB "
                "beyond the sum"
            )
    total = torch.randn(count, dtype=torch.float64)
    normal = seconds(
        lambda step: KeyedStream(_KEY, incarnation=0, step=step).normal(count), arguments.repeats
    )
    digest = seconds(
        lambda _: hmac.digest(_KEY, total.numpy().tobytes(), "sha256"), arguments.repeats
    )
    print(f"of which normal numbers {normal:.3f} s; before it, the digest {digest:.3f} s")


if __name__ == "__main__":
    main()
