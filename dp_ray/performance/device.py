"""The device of a worker, and the settings of a GPU."""

from __future__ import annotations

import torch

from dp_ray.config.cluster import ClusterConfig


def local_device(cluster: ClusterConfig) -> torch.device:
    """The device of a worker in this process: the first GPU if a worker is to have one."""
    return torch.device("cuda" if cluster.gpus_per_worker else "cpu")


def prepare_device(device: torch.device) -> None:
    """Sets what torch leaves open on a GPU, for all that this process computes.

    Products and convolutions of float32 are exact to float32: ``train.precision`` alone allows
    less, and only where gradients are computed. Convolutions take the algorithm that is fastest by
    measurement, because microbatches have one shape; so two processes may round differently.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
