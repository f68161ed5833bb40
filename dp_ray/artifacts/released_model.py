"""A release, wherever it lies: its configuration, its classes, and the network that it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from safetensors.torch import load
from torch import nn

from dp_ray.artifacts.run_directory import CONFIG, RELEASE, RunDirectory
from dp_ray.config.files import apply_override, parse_config
from dp_ray.config.run import Config
from dp_ray.config.validation import check_keys
from dp_ray.config.yaml_text import read_yaml
from dp_ray.data.preprocess import Preprocess
from dp_ray.document import Document
from dp_ray.errors import ConfigError, RunError, no_run
from dp_ray.gradients.engines.engine import in_one_line
from dp_ray.models.build import build_model
from dp_ray.storage import Folder, open_folder

MODEL = "model.safetensors"

_MAY_CHANGE = ("data.root", "data.cache", "data.download", "data.evaluation")
"""Where the data is; what a model was trained as cannot be changed afterwards."""


class ClassNames(Document):
    """class_names.json of a release, where the classes have names; public.

    Attributes:
        names: of the network's outputs, by label.
    """

    FILE: ClassVar[str] = "class_names.json"
    REMEDY: ClassVar[str] = "Copy the release anew, or remove the file: classes are numbers then"

    names: Annotated[list[str], Field(min_length=2)]


@dataclass(frozen=True)
class ReleasedModel:
    """What a run released.

    Attributes:
        folder: of the release.
        config: as published; of a run's own folder, with the places of its data.
        class_names: by label; empty if the classes have no names.
    """

    folder: Folder
    config: Config
    class_names: tuple[str, ...]

    @classmethod
    def open(
        cls,
        location: str,
        overrides: Sequence[str] = (),
        put_objects: Callable[[Config], Config] | None = None,
    ) -> ReleasedModel:
        """Read a release, inside :func:`~dp_ray.imports.reading`; import nothing that it names.

        Args:
            location: path or URI of a run, of a search, or of a release folder that was copied.
            overrides: ``a.b=value``, for example where the data is on this machine.
            put_objects: puts what was passed as Python objects into the configuration.

        Raises:
            DpRayError: there is no release, it is damaged, or a field may not be changed.
        """
        folder = open_folder(location)
        inside = folder.exists(RELEASE)
        release = folder / RELEASE if inside else folder
        config = _config(folder, overrides, released=inside)
        if put_objects is not None:
            config = put_objects(config)
        found = ClassNames.find(release)
        names = tuple(config.data.class_names or ()) if found is None else tuple(found.names)
        outputs = Preprocess.of(config.data).facts.num_classes
        if names and len(names) != outputs:
            raise RunError(
                f"{release}/{ClassNames.FILE} has {len(names)} names for {outputs} classes. "
                f"{ClassNames.REMEDY}"
            )
        return cls(release, config, names)

    def network(self) -> nn.Module:
        """Build the network in evaluation mode and load its tensors.

        Raises:
            OwnCodeError: it is code that the user did not agree to run.
            ConfigError: the network cannot be built here.
            RunError: the tensors are damaged, or of another network.
        """
        model = build_model(self.config.model, self.preprocess.facts)
        try:
            model.load_state_dict(load(self.folder.read(MODEL)))
        except Exception as error:  # a damaged file, or another network's, fails in any way
            raise RunError(
                f"{self.folder}/{MODEL} cannot be loaded: {in_one_line(error)}. Copy the release "
                "anew"
            ) from error
        return model.eval()

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the network's input."""
        return Preprocess.of(self.config.data, self.class_names)


def _config(folder: Folder, overrides: Sequence[str], *, released: bool) -> Config:
    run = RunDirectory(folder)
    if not folder.names():
        raise no_run(folder)
    kept = run.private.exists(CONFIG)  # a search has only what its best trial released
    if kept and not released:
        raise RunError(f"{folder} is unfinished: continue it with dp-ray train … --resume")
    try:
        release = folder / RELEASE if released else folder
        values = read_yaml(release.read(CONFIG).decode())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no finished run: {error}") from error
    check_keys(Config, values)
    if kept:  # where the data is, which is not published
        data = run.config().data
        values["data"].update({name: getattr(data, name) for name in ("root", "cache")})
        values["model"]["pretrained"] = run.config().model.pretrained
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field not in _MAY_CHANGE:
            raise ConfigError(
                "--set", override, "not for evaluate", f"It takes {', '.join(_MAY_CHANGE)}"
            )
        apply_override(values, override)
    return parse_config(values)
