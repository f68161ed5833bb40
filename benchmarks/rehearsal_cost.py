"""What the rehearsal before the first charge adds to a run, in seconds of CPU, part by part.

    python benchmarks/rehearsal_cost.py configs/digits.yaml [--set model.name=resnet18 …]

Seconds of CPU of one thread are near to seconds of the clock on an idle machine, and say the same
on a busy one. ``plan`` is what ``dp-ray plan`` does, ``worker`` what each worker repeats with the
run's microbatches; a network of the user's own costs both in the plan.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dp_ray.config.files import load_config
from dp_ray.data.facts import data_facts
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.models.build import build_model
from dp_ray.objectives.registry import build_objective
from dp_ray.performance.estimate import planned_microbatch_size
from dp_ray.training.evaluation import evaluation_sizes
from dp_ray.training.rebuild import check_rebuilt
from dp_ray.training.rehearsal import Rehearsal, rehearse


def main() -> None:
    """Prints one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--test-images", type=int, default=360)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.set)
    facts, device = data_facts(config.data), torch.device("cpu")
    objective = build_objective(config.objective, facts.num_classes)
    model = build_model(config.model, facts)
    size = config.train.microbatch_size or planned_microbatch_size(config, facts, model)
    engine = build_engine("vmap", config.train.precision)

    def worker() -> None:
        rehearse(
            config,
            facts,
            model,
            objective,
            engine=engine,
            microbatch_size=size,
            device=device,
            evaluated=evaluation_sizes(arguments.test_images, 0, 1),
        )

    parts: dict[str, Callable[[], object]] = {
        "plan": Rehearsal(config, facts, model, objective, engine).try_out,
        "plan, of a network of the user's own, in addition": lambda: (
            Rehearsal(config, facts, model, objective, engine).run(2),
            check_rebuilt(config, facts, model, objective),
        ),
        f"worker, {size} examples a microbatch": worker,
    }
    print(f"{config.model.name}, {facts.image_size}×{facts.image_size}, K = {config.augment.views}")
    for name, part in parts.items():
        times = []
        for _ in range(arguments.repeats):
            started = time.process_time()
            part()
            times.append(time.process_time() - started)
        print(f"{name}: {min(times):.2f} s at least, median {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
