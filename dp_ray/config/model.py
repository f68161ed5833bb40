"""The sections on the network, and on what it learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dp_ray.config.section import Named
from dp_ray.config.weights import Norm, norm_of_weights


class ModelConfig(Named):
    """The network; it may hold no state that crosses examples."""

    name: str = Field(
        "gn_cnn",
        description="gn_cnn, tanh_cnn, wrn_16_4, wrn_40_4, wrn_28_10, nf_resnet_50, any "
        "torchvision classifier (resnet18, …; batch norm is replaced by group norm, or frozen if "
        "pretrained), or the import path of your own (my_pkg.my_module:build).",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further keyword arguments for the network's builder."
    )
    pretrained: str | None = Field(
        None,
        description="Weights to start from: the name of torchvision's for its networks (DEFAULT, "
        "IMAGENET1K_V1), or a file of the network's tensors (.safetensors, .pt, .pth). You declare "
        "that they were trained on public data: ε does not cover it. A last linear layer of "
        "another number of classes starts afresh.",
    )
    pretrained_norm: Norm | None = Field(
        None,
        description="What the weights hold where a torchvision network has batch norm: frozen "
        "(its statistics, kept as they are) or group (group norm, as released by a run from "
        "scratch). Read from the file; frozen for torchvision's weights.",
    )
    trainable: Literal["all", "head"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all",
        description="all, head (the last nn.Linear), or patterns of parameters' names "
        "([layer4.*, fc.*]). All else is frozen: it gets no gradient and no noise, and counts in "
        "no norm.",
    )

    @model_validator(mode="before")
    @classmethod
    def _norm_of_file(cls, values: Any) -> Any:
        """Workers have the configuration and not the file."""
        if not isinstance(values, dict) or values.get("pretrained_norm") is not None:
            return values
        found = norm_of_weights(values.get("pretrained"))
        return values if found is None else {**values, "pretrained_norm": found}


class ObjectiveConfig(Named):
    """What is learned: the labels, the loss and the metrics."""

    name: str = Field(
        "single_label",
        description="single_label (one class an example: cross-entropy, test_accuracy, test_loss), "
        "or the import path of your own (my_pkg.my_module:make).",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further keyword arguments of make."
    )
