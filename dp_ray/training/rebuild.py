"""A second instance of a user's network: what a release, and a resumed run, will be made of.

Whoever loads a release builds the network anew, elsewhere, and fills in the tensors that the file
holds. A run that is resumed does the same, from the seed. So whatever else decides the outputs must
come out the same each time that the network is built.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.errors import DpRayError, ModelError
from dp_ray.gradients.layout import ParameterLayout, trained_parameters
from dp_ray.imports import USER_ERRORS, cause_of, imported_anew
from dp_ray.models.build import build_model
from dp_ray.objectives.objective import Objective
from dp_ray.training.rehearsal import Rehearsal
from dp_ray.training.state import first_difference, read_objects
from dp_ray.training.untrained import Untrained, check_saved, same_bits

_OTHER_SEED = 1


def check_rebuilt(config: Config, facts: DataFacts, model: nn.Module, objective: Objective) -> None:
    """Refuse a network whose outputs depend on more than its arguments and its saved tensors.

    Args:
        config: names the network.
        facts: shape of the images.
        model: as :func:`~dp_ray.models.build.build_model` built it from seed 0, on the CPU.
        objective: of the run.

    Raises:
        ModelError: a second instance gives other outputs, or does not take the tensors; or frozen
            tensors come out differently when it is built again from the same seed.
    """
    place = f"model.name = {config.model.name!r}"
    check_saved(model, place)
    untrained = Untrained.of(model, ParameterLayout.of(model))

    def build(seed: int) -> nn.Module:
        try:
            with imported_anew():
                return build_model(config.model, facts, init_seed=seed)
        except (*USER_ERRORS, DpRayError):  # a module that cannot be imported twice
            return build_model(config.model, facts, init_seed=seed)

    if untrained.tensors and config.model.pretrained is None:
        drawn = untrained.changed_in(build(0))
        if drawn is not None:
            raise ModelError(
                f"{place}: {drawn} is not trained, and is drawn anew whenever the network is "
                "built, so a run could not be resumed with the frozen weights that it started "
                "with. Draw it by torch, or by a generator with a seed of its own"
            )
    other = build(_OTHER_SEED)
    try:
        other.load_state_dict(untrained.released(trained_parameters(model)))
    except USER_ERRORS as error:
        raise ModelError(
            f"{place}: a second instance does not take the tensors of a release: {cause_of(error)}"
        ) from error
    rehearsals = [Rehearsal(config, facts, net, objective) for net in (model, other)]
    ours, theirs = (rehearsal.outputs() for rehearsal in rehearsals)
    if all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True)):
        return
    raise ModelError(
        f"{place}: a second instance that loads the released tensors gives other outputs: "
        f"{_what_differs(model, other)}. Register it as a buffer, which is saved, or compute it "
        "from the arguments"
    )


def _what_differs(model: nn.Module, other: nn.Module) -> str:
    """What two instances hold that is in no file."""
    theirs: Mapping[str, Tensor] = dict(other.named_buffers())
    unsaved = [name for name, b in model.named_buffers() if not same_bits(b, theirs[name])]
    if unsaved:
        return f"the buffer {unsaved[0]} differs, and is not persistent"
    found = first_difference(read_objects(model), read_objects(other))
    return f"{found} differs, and is outside its state_dict" if found else "nobody can tell why"
