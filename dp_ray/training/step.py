"""A worker's part of a step: draw, views, per-unit gradients, clip, sum over its shard.

A unit is one example here, in all of its views.

Everything here is a function of (parameters, step, incarnation); nothing can draw noise.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_ray.data.store import Examples
from dp_ray.data.views import ViewMaker
from dp_ray.errors import RunError
from dp_ray.gradients.clipped_sum import ClippedSum, clipped_gradient_sum
from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.engines.engine import Engine
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.keys import LATEST, KeyedStream, SamplingKeys
from dp_ray.objectives.objective import Objective
from dp_ray.performance.profile import part
from dp_ray.privacy.sampling import Microbatch, Sampler, Shard, microbatches
from dp_ray.training import feed
from dp_ray.training.feed import MicrobatchInputs, ahead
from dp_ray.training.probe import Differentiated


@dataclass(frozen=True)
class Assignment:
    """What the workers do next.

    Attributes:
        step: the step to sum up.
        incarnation: which invocation of it.
        max_grad_norm: C of the step.
        done: nothing more: all steps are taken, or the budget is spent.
    """

    step: int
    incarnation: int
    max_grad_norm: float
    done: bool


STATISTICS = ("examples", "losses", "clipped", "norms", "within")
"""Examples, sum of their losses, how many have a norm above C, sum of norms; and the sum of +½ for
each norm up to C and -½ for each above, of which one that is no finite number is neither."""


@dataclass(frozen=True)
class ShardSum:
    """The clipped sum over one shard, ready to be reduced.

    Attributes:
        vector: [P] float64 sum of clipped gradients; in float32 the rounding of a large sum would
            depend on the data by more than the slack in the clipping.
            One example moves it by the assignment's C at most, in L2 norm.
        statistics: float64, one for each of :data:`STATISTICS`. Private.
    """

    vector: Tensor
    statistics: Tensor

    @property
    def within(self) -> float:
        """The last of the statistics; one example more or less moves it by ½ at most."""
        return float(self.statistics[STATISTICS.index("within")])


@dataclass(frozen=True)
class ShardWorker:
    """Computes one worker's share of any step.

    Attributes:
        model: the network; parameters are passed in, its own are used only where frozen.
        layout: order of the parameters in the vector.
        data: training examples; those of ``shard`` join, and no other example is differentiated.
        shard: this worker's examples.
        sampler: the mechanism's draw.
        views: the K augmentations.
        objective: the loss of a unit's views, and what its labels are.
        keys: draw, views and dropout; no key of the noise.
        clipping: how gradients are brought within C.
        microbatch_size: B; changes memory and speed alone.
        engine: computes a microbatch's sum; changes speed alone.
        device: where the network runs.
        differentiated: in an audit, takes the place of ``model`` and the objective's loss.
        version: of the run's draws (:data:`dp_ray.keys.VERSIONS`).
    """

    model: nn.Module
    layout: ParameterLayout
    data: Examples
    shard: Shard
    sampler: Sampler
    views: ViewMaker
    objective: Objective
    keys: SamplingKeys
    clipping: Clipping
    microbatch_size: int
    engine: Engine
    device: torch.device
    differentiated: Differentiated | None = None
    version: int = LATEST

    def drawn(self, assignment: Assignment) -> NDArray[np.int64]:
        """[n] ids of the shard's examples that take part in a step, ascending.

        Raises:
            RunError: the sampler drew one twice, or one of another shard.
        """
        key, incarnation, version = self.keys.draw, assignment.incarnation, self.version
        ids = self.sampler.draw(
            lambda step: KeyedStream(key, incarnation=incarnation, step=step, version=version),
            assignment.step,
            self.shard,
        )
        within = not len(ids) or (self.shard.start <= ids[0] and ids[-1] < self.shard.stop)
        if not (within and bool((ids[1:] > ids[:-1]).all())):
            raise RunError(
                f"privacy.mechanism: its sampler drew ids for step {assignment.step} that do not "
                "ascend within the shard, so that an example could join twice. Nothing of the step "
                "was released. Repair the sampler, and start a new run with another --name"
            )
        return ids

    def clipped_sum(
        self, params: Tensor, assignment: Assignment, *, left_out: int | None = None
    ) -> ShardSum:
        """The shard's sum at parameters [P]; zero if nothing was drawn.

        Args:
            params: [P].
            assignment: the step.
            left_out: in an audit, the id of an example that is as if it had not been drawn.
        """
        address = {"incarnation": assignment.incarnation, "step": assignment.step}
        with part("draw"):
            drawn = self.drawn(assignment)
            drawn = drawn if left_out is None else drawn[drawn != left_out]
        view_stream = KeyedStream(self.keys.views, **address)
        dropout_stream = KeyedStream(self.keys.dropout, **address)
        vector = torch.zeros_like(params, dtype=torch.float64)
        statistics = torch.zeros(len(STATISTICS), dtype=torch.float64, device=self.device)
        layout = self.layout if self.differentiated is None else self.differentiated.layout
        by_name, sums = layout.split(params), layout.split(vector)  # views: nothing is copied
        with closing(self._inputs(drawn, view_stream, dropout_stream)) as batches:
            for batch in batches:
                self._add(batch, by_name, assignment.max_grad_norm, sums, statistics)
        return ShardSum(vector, statistics)

    def _inputs(
        self, drawn: NDArray[np.int64], view_stream: KeyedStream, dropout_stream: KeyedStream
    ) -> Generator[MicrobatchInputs, None, None]:
        """The microbatches of a draw; for a GPU, prepared by a thread while it computes."""

        def prepare(batch: Microbatch) -> MicrobatchInputs:
            with part("views"):
                images, labels = self.data.read(batch.ids)
                images[~batch.mask] = 0  # padding holds no example, not even under a mask
                labels[~batch.mask] = self.objective.labels.padding
                seeds = dropout_stream.words(batch.ids.astype("u8"), 1)[:, 0].astype("i8")
                return MicrobatchInputs(
                    images=torch.from_numpy(images),
                    labels=torch.from_numpy(labels),
                    mask=torch.from_numpy(batch.mask),
                    dropout_seeds=torch.from_numpy(seeds),
                    view_numbers=self.views.numbers(view_stream, batch.ids),
                )

        batches = map(prepare, microbatches(drawn, self.microbatch_size))
        if self.device.type not in feed.READ_AHEAD:
            yield from batches
            return
        with closing(ahead(batch.pinned(self.device) for batch in batches)) as pinned:
            for batch in pinned:
                yield batch.to(self.device)

    def _add(
        self,
        batch: MicrobatchInputs,
        params: dict[str, Tensor],
        max_grad_norm: float,
        sums: dict[str, Tensor],
        statistics: Tensor,
    ) -> None:
        """Add a microbatch to both; on a GPU, without waiting for it: no copy to the host."""
        other = self.differentiated
        with part("views"):
            views = self.views.make(batch.images, self.views.parameters(batch.view_numbers))
        with part("gradients"):
            piece = clipped_gradient_sum(
                self.model if other is None else other.network,
                params,
                views,
                batch.labels,
                max_grad_norm=max_grad_norm,
                clipping=self.clipping,
                mask=batch.mask,
                loss_fn=self.objective.loss if other is None else other.loss,
                dropout_seeds=batch.dropout_seeds,
                engine=self.engine,
                into=sums,
            )
        with part("add up"):
            _count(piece, batch.mask, max_grad_norm, statistics)


def _count(piece: ClippedSum, mask: Tensor, max_grad_norm: float, statistics: Tensor) -> None:
    """Add the unmasked of a microbatch's examples to the statistics."""
    norms, losses = piece.norms.double(), piece.losses.double()
    clipped = (norms > max_grad_norm).double()
    ones = torch.ones_like(norms)
    within = torch.where(norms.isfinite(), 0.5 - clipped, 0.0)
    counted = torch.stack([ones, losses, clipped, norms, within]).where(mask, 0.0)
    statistics += counted.sum(dim=1)
