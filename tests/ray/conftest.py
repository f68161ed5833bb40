"""Ray reads its environment when it is imported: set before any test module does."""

from dp_ray.cluster.environment import prepare_environment
from dp_ray.config import ClusterConfig

prepare_environment(ClusterConfig(num_workers=[1, 2]))
