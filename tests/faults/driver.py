"""The driver of a run that is hurt: ``python -m faults.driver CONFIG FAULT [--resume]``."""

from __future__ import annotations

import functools
import json
import math
import sys

from helpers.support import replay_of

from dp_ray.api.train import run_training
from dp_ray.config.files import load_config
from dp_ray.errors import DpRayError
from dp_ray.on_ray.environment import located, prepare_environment
from faults import inject
from faults.inject import Fault


def main(path: str, fault: Fault, *, resume: bool) -> None:
    """Trains as ``dp-ray train`` does, with the fault in the coordinator's process."""
    config = load_config(path)
    inject.driver(fault)
    if config.cluster.max_workers == 0:
        inject.watch(fault)
    else:
        prepare_environment(located(config.cluster))
        from dp_ray.on_ray import trainer

        trainer.train_func_per_worker = functools.partial(inject.worker, fault=fault)
    replay = None if resume else replay_of(config)
    run_training(config, resume=resume, replay=replay, accept_charges=math.inf)


if __name__ == "__main__":
    try:
        main(sys.argv[1], Fault(**json.loads(sys.argv[2])), resume="--resume" in sys.argv)
    except DpRayError as error:
        sys.exit(f"{type(error).__name__}: {error}")
