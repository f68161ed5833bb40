"""The device of a worker, and the settings of a GPU."""

from __future__ import annotations

import torch

from dp_ray.config.cluster import ClusterConfig


def local_device(cluster: ClusterConfig) -> torch.device:
    """The device of a worker in this process: the first GPU if a worker is to have one."""
    return torch.device("cuda" if cluster.gpus_per_worker else "cpu")


def prepare_device(device: torch.device, workers: int = 1) -> None:
    """Set what torch leaves open on a GPU, for all that this process computes.

    Products and convolutions of float32 are exact to float32: ``train.precision`` alone allows
    less, and only where gradients are computed. A worker by itself takes the algorithm of a
    convolution that it measures to be fastest, because microbatches have one shape; so two
    processes may round differently. Several workers must round alike: they take the one that cuDNN
    names for the shape, of those that repeat themselves.

    Args:
        device: where this process computes.
        workers: W.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = workers == 1
    torch.backends.cudnn.deterministic = workers > 1
