"""A rehearsal of a run on made-up images, before the first charge: the network must be a function.

A step's guarantee rests on each example's gradient being a function of the parameters, the example
and the keyed randomness. A network of a user's may break that: by what it keeps between calls, by a
generator of random numbers, by looking at the other examples. Then one example more or less moves
the gradients of others, and the sum by many times C. Nothing here sees data, and no message holds a
value.

Parameters are the network's own, but for those that are constant, such as a head of zeros or a
scale of 1e-6: nothing could be seen of the layers before it, so these get small random numbers.

Shapes: B examples, K views, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.data.views import ViewMaker
from dp_ray.errors import ConfigError, DpRayError, ModelError
from dp_ray.gradients.clipped_sum import ClippedSum, clipped_gradient_sum
from dp_ray.gradients.engines.engine import Engine
from dp_ray.gradients.engines.registry import build_engine, is_users_own
from dp_ray.gradients.layout import ParameterLayout, trained_parameters, varied
from dp_ray.imports import USER_ERRORS, cause_of
from dp_ray.objectives.objective import Objective
from dp_ray.training.state import State, first_difference, read_state
from dp_ray.training.untrained import Untrained, relative_difference, same_bits

_ROUNDING = {"float32": 1e-5}
"""How far results of other shapes, or of a GPU's next call, may differ, relative to the largest."""

_SHORTER_ROUNDING = 3e-2
"""The same where products are shorter than float32."""

_REGROUPED = 1e-12
"""A float64 sum of the same numbers in other places."""

_Output = TypeVar("_Output")

_TRAINING, _EVALUATION = "training", "evaluation"


def rehearse(
    config: Config,
    facts: DataFacts,
    model: nn.Module,
    objective: Objective,
    *,
    engine: Engine,
    microbatch_size: int,
    device: torch.device,
    evaluated: Sequence[int],
    untrained: Untrained | None = None,
) -> Sequence[str]:
    """Check that a run's network is a function; see :class:`Rehearsal`.

    Args:
        config: of the run.
        facts: shape of the images.
        model: the network, on ``device``.
        objective: its loss; must be a function as well.
        engine: computes microbatches.
        microbatch_size: B.
        device: where the network runs.
        evaluated: numbers of images that an evaluation takes at a time.
        untrained: what is not trained, as it was before any call.

    Returns:
        What is equal within rounding only, a sentence each.

    Raises:
        DpRayError: it is none; see :meth:`Rehearsal.run`.
        torch.OutOfMemoryError: a GPU has too little memory for B examples.
    """
    rehearsal = Rehearsal(config, facts, model, objective, engine, device, untrained)
    rehearsal.run(microbatch_size, evaluated)
    return rehearsal.notes


@dataclass
class Rehearsal:
    """Calls a network as a run does and compares what comes out and what stays behind.

    Attributes:
        config: of the run.
        facts: shape of the images.
        model: the network, on ``device``.
        objective: its loss.
        engine: computes microbatches.
        device: where the network runs.
        untrained: what is not trained, as it was before any call; by default as it is now.
        notes: what was not equal bit for bit, though within rounding.
    """

    config: Config
    facts: DataFacts
    model: nn.Module
    objective: Objective
    engine: Engine = field(default_factory=build_engine)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    untrained: Untrained | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = trained_parameters(self.model)
        self._own = {n: p.clone() for n, p in own.items()}
        self._given, self._params = (varied(own) for _ in range(2))
        layout = ParameterLayout.of(self.model)
        self._untrained = self.untrained or Untrained.of(self.model, layout)
        self._states: dict[str, State] = {}
        self._latest: dict[str, Callable[[], object]] = {}

    @property
    def _count(self) -> int:
        """Images of an evaluation: not K, of which a network may keep what a step has wrapped."""
        return self.config.augment.views + 1

    def try_out(self) -> None:
        """Call the network once in each mode, with two examples.

        Raises:
            ModelError: it fails in training, or changes its tensors.
            ConfigError: it fails in the configured precision or in evaluation, or its output is
                not one row of logits for each image.
        """
        images, labels = self._images(2)
        self._call(_TRAINING, lambda: self._sum(self.engine, images, labels))
        self._call(_EVALUATION, lambda: self._logits(images, range(self._count)))

    def outputs(self) -> list[Tensor]:
        """Gradients and logits of made-up images, to compare two networks by."""
        images, labels = self._images(2)
        found = self._call(_TRAINING, lambda: self._sum(self.engine, images, labels))
        return [
            *found.gradients.values(),
            self._call(_EVALUATION, lambda: self._logits(images, range(self._count))),
        ]

    def run(self, size: int, evaluated: Sequence[int] = ()) -> None:
        """Check that gradients and logits are functions; all that :meth:`try_out` does, too.

        Args:
            size: B; the same in all calls, as in a run: a network may keep what a step has wrapped.
            evaluated: further numbers of images that an evaluation takes at a time.

        Raises:
            DpRayError: see :meth:`try_out`; or what an example adds depends on other examples or
                on other calls. The message names what was kept between the calls.
        """
        half = max(size // 2, 1)
        mine, others, strangers = range(half), range(half, size), range(size, 2 * size - half)
        images, labels = self._images(2 * size - half)

        def of_mine(ids: Sequence[int], engine: Engine) -> Callable[[], ClippedSum]:
            """The sum over ``mine`` alone, in a microbatch of ``ids``."""
            order = torch.tensor(ids)
            return lambda: self._sum(engine, images[order], labels[order], order, order < half)

        def logits(ids: Sequence[int]) -> Callable[[], Tensor]:
            return lambda: self._logits(images, ids)

        plain = self.engine.uncompiled
        # Caches are filled, of each mode and shape; from then on nothing may change.
        first = self._call(_TRAINING, of_mine([*mine, *others], plain))
        self._check_finite(first.norms[0], "the gradients")
        few, more = self._count, self._count + 1
        for count in (*evaluated, more, few):  # a cache that keeps the latest ends as below
            self._call(_EVALUATION, logits(range(count)))
        sums, outputs = [first], []
        for neighbours in ([*mine, *others], [*mine, *strangers], [*strangers, *mine]):
            sums.append(self._call(_TRAINING, of_mine(neighbours, plain), "training"))
            others_first = [0, *(more * neighbours)[:-more:-1]]
            outputs.append(self._call(_EVALUATION, logits(others_first), "evaluation"))
            outputs.append(self._call(_EVALUATION, logits([0] * few), "evaluation of one"))
        for found in outputs:
            self._compare_logits(outputs[0][:1], found[:1])
        self._compare(sums)
        if plain is not self.engine:
            batches = ([*mine, *others], [*mine, *others], [*mine, *strangers], [*strangers, *mine])
            self._compare([self._call(_TRAINING, of_mine(ids, self.engine)) for ids in batches])

    # Calls

    def _call(self, mode: str, function: Callable[[], _Output], key: str | None = None) -> _Output:
        """Call the network; nothing of its own may change, nor, with a key, what it keeps."""
        output = self._guarded(mode, function)
        self._check_tensors(mode)
        if key is not None:
            state = self._read_state()
            place = first_difference(self._states.setdefault(key, state), state)
            self._latest[mode] = function
            if place is not None:
                self._refuse_state(place)
        return output

    def _guarded(self, mode: str, function: Callable[[], _Output]) -> _Output:
        try:
            return function()
        except (DpRayError, torch.OutOfMemoryError):
            raise
        except USER_ERRORS as error:  # the network may be the user's own, and raise anything
            raise self._explained(mode, error) from error

    def _explained(self, mode: str, error: BaseException) -> DpRayError:
        name, cause = self.config.model.name, cause_of(error)
        if mode == _EVALUATION:
            return ConfigError(
                "model.name",
                name,
                f"fails in evaluation mode, after model.eval(): {cause}",
                "It must take images in both modes, and return logits",
            )
        engine = self.engine
        if is_users_own(engine.name) and self._works(build_engine(precision=engine.precision)):
            return ConfigError(
                "train.engine", engine.name, f"fails where vmap does not: {cause}", "Repair it"
            )
        if engine.precision == "bfloat16" and self._works(build_engine(engine.uncompiled.name)):
            return ConfigError(
                "train.precision",
                "bfloat16",
                f"{name} works in float32 and fails in bfloat16, where torch.autocast mixes "
                f"dtypes: {cause}",
                "Use float32, or convert what is mixed to one dtype in the network",
            )
        return ModelError(
            f"model.name = {name!r}: no per-example gradient can be taken by torch.func: {cause}. "
            "Random layers other than dropout, in-place changes of buffers and control flow that "
            "depends on values are not supported"
        )

    def _works(self, engine: Engine) -> bool:
        images, labels = self._images(1)
        try:
            self._sum(engine, images, labels)
        except USER_ERRORS:
            return False
        return True

    def _check_tensors(self, mode: str) -> None:
        changed = self._untrained.changed_in(self.model)
        kind = "buffer" if changed in dict(self.model.named_buffers()) else "frozen parameter"
        if changed is None:
            kind = "parameter"
            pairs = [(self._own, trained_parameters(self.model)), (self._given, self._params)]
            changed = next(
                (n for old, new in pairs for n in old if not same_bits(old[n], new[n])), None
            )
        if changed is not None:
            raise ModelError(
                f"model.name = {self.config.model.name!r}: the {kind} {changed} is changed by a "
                f"call of the network in {mode} mode, so it would depend on the data, or on how "
                "many calls there were, which is private: freeze it, or use another layer"
            )

    def _refuse_state(self, place: str) -> None:
        """Refuse what changed; unless only another thread drew from a generator of this process."""
        why = "depends on the examples"
        before = self._read_state()
        for mode, function in self._latest.items():
            function()
            state = self._read_state()
            if (again := first_difference(before, state)) is not None:
                place, why = again, f"changes with each call in {mode} mode"
                break
            before = state
        else:
            if "generator of random numbers" in place:
                return
        objective = place.startswith("the objective ")
        field = "objective.name" if objective else "model.name"
        name = self.config.objective.name if objective else self.config.model.name
        raise ModelError(
            f"{field} = {name!r}: {place} {why}, so one "
            "example more or less would change the gradients of others. Remove it, or "
            "make it a function of the input's shape; random layers other than torch's dropout are "
            "not supported"
        )

    def _read_state(self) -> State:
        return read_state(self.model, self.device, self.objective)

    # Comparisons

    def _compare(self, sums: Sequence[ClippedSum]) -> None:
        """Compare four sums over the same examples: twice alike, with others, in other places."""
        first, reference, found, moved = sums
        self._compare_sums(first, reference, "differs from call to call")
        self._compare_sums(reference, found, "depends on the other examples of its microbatch")
        self._compare_sums(reference, moved, "depends on its place in the microbatch", place=True)

    def _compare_sums(
        self, expected: ClippedSum, found: ClippedSum, what: str, *, place: bool = False
    ) -> None:
        a, b = (torch.cat([g.flatten() for g in s.gradients.values()]) for s in (expected, found))
        off = relative_difference(a, b)
        if off <= (_REGROUPED if place else 0.0):
            return
        problem = f"the gradient of an example {what}"
        rounding = place or self.device.type == "cuda"
        if rounding and off <= _ROUNDING.get(self.engine.precision, _SHORTER_ROUNDING):
            self.notes.append(f"{problem}, by {off:.0e} of rounding")
            return
        raise ModelError(
            f"model.name = {self.config.model.name!r}: {problem} (by {off:.0e} of the largest "
            f"entry, with engine {self.engine.name}), so one example more or less would change the "
            "gradients of others: the network must be a function of its parameters and one example"
        )

    def _compare_logits(self, expected: Tensor, found: Tensor) -> None:
        self._check_finite(expected, "the logits, in evaluation mode,")
        if relative_difference(expected, found) > _ROUNDING["float32"]:
            raise ModelError(
                f"model.name = {self.config.model.name!r}: the logits of an image in evaluation "
                "mode depend on the other images of the batch, or differ from call to call: a "
                "release must give the same outputs wherever it is used"
            )

    def _check_finite(self, values: Tensor, what: str) -> None:
        if not values.isfinite().all():
            raise ModelError(
                f"model.name = {self.config.model.name!r}: {what} of an image of noise are not "
                "finite (NaN or infinity), so nothing can be checked of them. Scale the initial "
                "weights down, or keep divisors and logarithms away from 0"
            )

    # Inputs and outputs

    def _images(self, count: int) -> tuple[Tensor, Tensor]:
        """Views [n, K, C, H, W] and labels [n], always the same: noise, and edges of its range."""
        facts, generator = self.facts, torch.Generator().manual_seed(1)
        shape = (
            count,
            self.config.augment.views,
            facts.channels,
            facts.image_size,
            facts.image_size,
        )
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        for example, value in ((1, 0), (2, 255)):
            pixels[example : example + 1] = value
        labels = self.objective.labels.made_up(count, generator)
        views = ViewMaker(self.config.augment, facts, self.device).normalize(pixels.flatten(0, 1))
        return views.view(shape), labels.to(self.device)

    def _sum(
        self,
        engine: Engine,
        images: Tensor,
        labels: Tensor,
        seeds: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> ClippedSum:
        seeds = torch.arange(len(labels)) if seeds is None else seeds
        return clipped_gradient_sum(
            self.model,
            self._params,
            images,
            labels,
            max_grad_norm=self.config.privacy.max_grad_norm,
            clipping=self.config.privacy.clipping,
            mask=None if mask is None else mask.to(self.device),
            loss_fn=self.objective.loss,
            dropout_seeds=seeds.to(self.device),
            engine=engine,
        )

    @torch.no_grad()
    def _logits(self, images: Tensor, ids: Sequence[int]) -> Tensor:
        """Of the first view of each of ``ids``, which start anew beyond the last image."""
        images = images[torch.tensor(ids) % len(images), 0]
        was_training = self.model.training
        self.model.eval()
        try:
            logits = functional_call(self.model, self._params, (images,))
        finally:
            self.model.train(was_training)
        shape = tuple(getattr(logits, "shape", ()))
        wanted = (len(images), *self.objective.output_shape)
        if not isinstance(logits, Tensor) or shape != wanted:
            raise ConfigError(
                "model.name",
                self.config.model.name,
                f"returns {shape or type(logits).__name__} in evaluation mode, after model.eval(), "
                f"where {wanted} is needed",
                "A classifier returns one row of logits an image, in both modes",
            )
        return logits
