"""The adversary of an audit: observes all that a run releases, and scores each canary by it.

What ε covers is the publication of every noised sum, and of what is computed from them: every
state of the parameters. So that is what it sees, as rank 0 releases it; not the draws, not the
coins. Each step leaves one file in the run's private part, so that a run that is resumed, or whose
coordinator is started anew, keeps what was seen; a step that is released again looks the same.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dp_ray.auditing.canaries import Canaries
from dp_ray.auditing.planted import Directions, Planted
from dp_ray.data.store import Dataset, StoredSplit
from dp_ray.data.views import ViewMaker
from dp_ray.errors import RunError
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.objectives.objective import Objective
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.privacy.sampling import Shard
from dp_ray.storage import Folder
from dp_ray.training.evaluation import outputs_by_batch
from dp_ray.training.probe import Observation, ReleaseObserver

_QUARTILES = 1.349
"""Between the quartiles of a normal distribution lie so many standard deviations."""

_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class GradientObserver:
    """Notes how much likelier each noised sum is with a gradient canary than without.

    Along a canary's direction a sum holds the canary if it was drawn, which has probability q, and
    a noise of which the spread over all canaries tells how strong it is; it includes what other
    examples add. That is the log likelihood ratio of a mixture of two normal distributions, the
    best that can be had of them (Neyman & Pearson). It uses no coin.

    Attributes:
        folder: where it is noted.
        directions: of the canaries.
        amplitude: what a canary that was drawn adds, over C.
        sample_rate: q.
    """

    folder: Folder
    directions: Directions
    amplitude: float
    sample_rate: float

    def observe(self, observation: Observation) -> None:
        """See :class:`~dp_ray.training.probe.ReleaseObserver`."""
        x = self.directions.along(observation.noised).cpu().numpy() / self.amplitude
        low, high = np.quantile(x, [0.25, 0.75])
        spread = max(float(high - low) / _QUARTILES, _LEAST_SPREAD)
        out = math.log1p(-self.sample_rate) if self.sample_rate < 1 else -math.inf
        drawn = math.log(self.sample_rate) + (2 * x - 1) / (2 * spread**2)
        _note(self.folder, observation, np.logaddexp(out, drawn))


@dataclass(frozen=True)
class LossObserver:
    """Notes how well the parameters fit each mislabelled canary: minus its loss.

    Attributes:
        folder: where it is noted.
        canaries: their images and wrong labels, in or out.
        model: the network.
        layout: order of the parameters.
        views: how images are normalised.
        objective: of the run.
    """

    folder: Folder
    canaries: StoredSplit
    model: nn.Module
    layout: ParameterLayout
    views: ViewMaker
    objective: Objective

    def observe(self, observation: Observation) -> None:
        """See :class:`~dp_ray.training.probe.ReleaseObserver`."""
        params, everyone = self.layout.split(observation.params), Shard(0, len(self.canaries))
        device = observation.params.device
        losses = [
            self.objective.losses(outputs, labels)
            for outputs, labels in outputs_by_batch(
                self.model, params, self.canaries, self.views, device, everyone
            )
        ]
        fit = -torch.cat(losses).double().cpu().numpy()
        _note(self.folder, observation, np.nan_to_num(fit, nan=-np.inf))


def open_release_observer(
    folder: Folder,
    canaries: Canaries,
    dataset: Dataset,
    plan: PrivacyPlan,
    *,
    model: nn.Module,
    layout: ParameterLayout,
    views: ViewMaker,
    objective: Objective,
    planted: Planted | None,
) -> ReleaseObserver:
    """Return the observer that suits the canaries.

    Args:
        folder: where it takes notes.
        canaries: what to look for; not who is in.
        dataset: before they were put in.
        plan: q and C, which are public.
        model: the network.
        layout: order of its parameters.
        views: how images are normalised.
        objective: of the run.
        planted: gradient canaries, if they are such.
    """
    if planted is not None:
        amplitude = planted.amplitude(plan.max_grad_norm)
        return GradientObserver(folder, planted.directions, amplitude, plan.sample_rate)
    images, true = dataset.train.read(canaries.replaced)
    wrong = canaries.wrong_labels(true, dataset.facts.num_classes)
    return LossObserver(folder, StoredSplit(images, wrong), model, layout, views, objective)


def scores(folder: Folder) -> NDArray[np.float64]:
    """[m] what was noted for each canary, over all releases; higher looks more like a member.

    Raises:
        RunError: nothing was noted, or it cannot be read.
    """
    try:
        noted = [np.load(io.BytesIO(folder.read(name))) for name in sorted(folder.names())]
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: what the audit saw cannot be read: {error}") from error
    if not noted:
        raise RunError(f"{folder} is empty: the audit saw no release")
    return np.array(np.mean(noted, axis=0, dtype=np.float64))


def _note(folder: Folder, observation: Observation, values: NDArray[np.float64]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    folder.write(f"{observation.step:08d}-{observation.incarnation}.npy", buffer.getvalue())
