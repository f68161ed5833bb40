"""README.md of a release: what the model is, how to use it without dp-ray, and what it promises."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from dp_ray.artifacts.released_model import MODEL, ClassNames
from dp_ray.artifacts.statement import Statement
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.data.preprocess import Preprocess
from dp_ray.models.standalone import Construction, construction_of

CARD = "README.md"

IMAGE = "image.png"
"""The file that the code of a card reads."""

_SHOWN_CLASSES = 100


def release_card(values: dict[str, Any], statement: Statement, class_names: Sequence[str]) -> str:
    """Return a model card in Markdown.

    Args:
        values: the contents of config.yaml.
        statement: what is claimed.
        class_names: by label; empty if the classes have no names.
    """
    epsilon, delta = statement.cost
    cost = (
        "Without noise: there is no ε" if epsilon is None else f"ε = {epsilon:.4f}, δ = {delta:g}"
    )
    noised = "" if statement.test_accuracy_noise is None else ", with noise"
    metrics = [
        f"{name} {'is not known' if value is None else f'{value:.4f}{noised}'}"
        for name, value in statement.metrics.items()
        if value is not None or not noised
    ]
    lines = [
        f"# {as_markdown(values['name'])}",
        "",
        "An image classifier, trained with differential privacy by dp-ray.",
        "",
        f"**{cost}** ({as_markdown(statement.unit_of_privacy)}; {statement.adjacency})",
        "",
        f"On test images that its user declares {statement.declared}, which ε does not cover: "
        f"{as_markdown('; '.join(metrics))}.",
        *(["", f"> **Note.** {as_markdown(statement.warning)}"] if statement.warning else []),
        "",
        "## Use",
        "",
        usage(values, class_names),
        "## Privacy",
        "",
        f"{as_markdown(statement.mechanism)}. {Statement.FILE} is the statement in figures. It "
        "rests on:",
        "",
        *(f"* {as_markdown(text)}" for text in statement.assumptions),
    ]
    return "\n".join(lines) + "\n"


def usage(values: dict[str, Any], class_names: Sequence[str]) -> str:
    """Return the section on how a release is used: input, classes, code with and without dp-ray.

    Args:
        values: the contents of config.yaml; anybody may have written it, and no code that it names
            is imported.
        class_names: by label; empty if the classes have no names.

    Raises:
        ConfigError: the configuration is not valid.
    """
    config = parse_config(values)
    preprocess = Preprocess.of(config.data, class_names)
    facts = preprocess.facts
    colour = "grey" if facts.channels == 1 else "RGB"
    parts = [
        f"Input: one {colour} image of {facts.image_size} × {facts.image_size} pixels, scaled to "
        f"0–1, less the mean {list(facts.mean)}, over {list(facts.std)}. "
        f"Output: {facts.num_classes} numbers, {_outputs(config)}.",
        *([_classes(class_names)] if class_names else []),
        _block(_with_dp_ray(config)),
    ]
    construction = construction_of(config.model, facts)
    if construction is None and config.model.is_users_own:
        parts.append(
            "Its network was built by its author's own code, which config.yaml does not name. With "
            f'that network as `model`: `model.load_state_dict(load_file("{MODEL}"))`.'
        )
    elif construction is None:
        parts.append(
            f"Loading {as_markdown(config.model.name)} needs dp-ray, which has its layers; "
            "`dp-ray export` makes a program of it that torch alone runs."
        )
    else:
        parts += [
            f"Without dp-ray, in the folder of this file{_and_code(config)}:",
            _block("\n".join(_standalone(construction, preprocess))),
            "This decodes images of 8 bits a channel in sRGB as training did; dp-ray also takes "
            "those of 16 bits and of other colour profiles.",
        ]
    return "\n\n".join(parts) + "\n"


def as_markdown(text: Any) -> str:
    """Return text that Markdown shows as it is: no markup of its own, no HTML, one line."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", html.escape(plain, quote=False))


def _outputs(config: Config) -> str:
    if config.objective.name == "single_label":
        return "whose softmax is a probability for each class"
    return f"as {as_markdown(config.objective.name)} takes them"


def _classes(names: Sequence[str]) -> str:
    shown = [f"{label} {as_markdown(name)}" for label, name in enumerate(names[:_SHOWN_CLASSES])]
    more = len(names) - len(shown)
    rest = f", and {more} more in {ClassNames.FILE}" if more else ""
    return f"Classes: {', '.join(shown)}{rest}."


def _with_dp_ray(config: Config) -> str:
    own_code = ", own_code=True" if config.model.is_users_own else ""
    return "\n".join(
        [
            "import dp_ray",
            "",
            f'model, preprocess = dp_ray.load_model("."{own_code})',
            f'logits = model(preprocess("{IMAGE}"))',
        ]
    )


def _and_code(config: Config) -> str:
    if not config.model.is_users_own:
        return ""
    module = config.model.name.partition(":")[0]
    return f", where {as_markdown(module)}, its author's own code, can be imported"


def _standalone(construction: Construction, preprocess: Preprocess) -> list[str]:
    """Lines that load the network and pass one image through it, as ``model`` and ``logits``."""
    facts, ground = preprocess.facts, preprocess.background
    colour = {"white": (255, 255, 255), "black": (0, 0, 0)}.get(str(ground)) or tuple(ground)
    size = (facts.image_size, facts.image_size)
    modules = sorted({*construction.imports, "numpy", "torch"})
    if preprocess.class_names:
        modules = sorted({*modules, "json"})
    shape = f"{facts.channels}, 1, 1"
    lines = [
        *(f"import {module}" for module in modules),
        "from PIL import Image, ImageOps",
        "from safetensors.torch import load_file",
        "",
        *construction.lines,
        f'model.load_state_dict(load_file("{MODEL}"))',
        "model.eval()",
        "",
        f'image = ImageOps.exif_transpose(Image.open("{IMAGE}")).convert("RGBA")',
        f'ground = Image.new("RGB", image.size, {colour})',
        'image = Image.composite(image.convert("RGB"), ground, image.getchannel("A"))',
        f'image = image.convert("{"L" if facts.channels == 1 else "RGB"}")',
        f"image = ImageOps.fit(image, {size}, Image.Resampling.BILINEAR)",
        f"pixels = torch.tensor(numpy.array(image)).view({(*size, facts.channels)})",
        f"mean = torch.tensor({list(facts.mean)}).view({shape})",
        f"std = torch.tensor({list(facts.std)}).view({shape})",
        "with torch.no_grad():",
        "    logits = model((pixels.permute(2, 0, 1)[None] / 255 - mean) / std)",
    ]
    if preprocess.class_names:
        lines += [
            f'names = json.load(open("{ClassNames.FILE}", encoding="utf-8"))["names"]',
            "print(names[int(logits.argmax())], float(logits.softmax(dim=1).max()))",
        ]
    return lines


def _block(code: str) -> str:
    return f"```python\n{code}\n```"
