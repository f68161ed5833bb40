"""A user's own data: functions that return arrays, sources, and what is wrong with them."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from helpers.data import refusal

from dp_ray.config.data import DataConfig
from dp_ray.data.facts import data_facts
from dp_ray.data.source import Unread
from dp_ray.data.sources.registry import source_of
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DataError
from dp_ray.reporting.data import describe_unread

OWN_LOADER = """
import numpy as np

images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4)
labels = np.array([0, 1, 2, 0, 1, 2])
offset = 0

def load(config):
    assert config.num_examples == 6
    return (images + offset, labels), (images[:2] + offset, labels[:2])

def without_test(config):
    return (images, labels), (images[:0], labels[:0])

def one_split(config):
    return images, labels, images

def nothing(config):
    return None

def floats(config):
    return (images / 255, labels), (images / 255, labels)

def other_size(config):
    return (images[:, :, :2], labels), (images, labels)

def too_high(config):
    return (images, labels + 1), (images, labels)

def too_high_in_test(config):
    return (images, labels), (images, labels + 1)

def negative(config):
    return (images, labels - 1), (images, labels)

def fewer_labels(config):
    return (images, labels[:4]), (images, labels)

def more_labels(config):
    return (images[:4], labels), (images, labels)
"""


def own_module(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], DataConfig]:
    """A maker of configurations whose data is named by a module with this text."""
    name = f"own_{sha256((str(folder) + text).encode()).hexdigest()[:12]}"
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)

    def make(function: str) -> DataConfig:
        return DataConfig(
            name=f"{name}:{function}",
            expected_batch_size=2,
            num_examples=6,
            num_classes=3,
            image_size=4,
            channels=1,
            cache=str(folder / "cache"),
        )

    return make


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataConfig]:
    """A configuration whose loader is a function of the module ``OWN_LOADER``."""
    return own_module(OWN_LOADER, tmp_path, monkeypatch)


def test_own_loader_by_import_path(own_config: Callable[[str], DataConfig]) -> None:
    data = open_dataset(own_config("load"))
    assert data.train.images.tobytes() == bytes(range(96))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(data.test) == 2
    assert isinstance(data.train.images, np.memmap)


def test_own_loader_without_a_test_split(own_config: Callable[[str], DataConfig]) -> None:
    data = open_dataset(own_config("without_test"))
    assert len(data.train) == 6
    assert len(data.test) == 0


def test_own_loader_with_other_content_is_decoded_anew(
    own_config: Callable[[str], DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_config("load")
    first = open_dataset(config)
    module = importlib.import_module(config.name.partition(":")[0])
    monkeypatch.setattr(module, "offset", np.uint8(1))
    second = open_dataset(config)
    assert second.train.images.tobytes() == bytes(range(1, 97))
    assert first.digest != second.digest


@pytest.mark.parametrize("function", ["nothing", "one_split"])
def test_own_loader_with_another_return_is_refused(
    own_config: Callable[[str], DataConfig], function: str
) -> None:
    message = refusal(DataError, own_config(function))
    assert message.startswith("data.name = ")
    assert function in message
    assert "((train_images, train_labels), (test_images, test_labels))" in message


@pytest.mark.parametrize("function", ["floats", "other_size"])
def test_own_images_of_another_shape_or_type_are_refused(
    own_config: Callable[[str], DataConfig], function: str
) -> None:
    message = refusal(DataError, own_config(function))
    assert "uint8 (1, 4, 4)" in message
    assert "data.image_size" in message


@pytest.mark.parametrize("function", ["fewer_labels", "more_labels"])
def test_own_images_and_labels_must_be_as_many(
    own_config: Callable[[str], DataConfig], function: str
) -> None:
    """A clear error; never a label for no image, or numpy's words on broadcasting."""
    with pytest.raises((ConfigError, DataError), match=r"(?s)6.*4|4.*6"):
        open_dataset(own_config(function))


@pytest.mark.parametrize(
    ("function", "reach"),
    [("too_high", "1 to 3"), ("too_high_in_test", "1 to 3"), ("negative", "-1 to 1")],
)
def test_labels_out_of_range_are_refused(
    own_config: Callable[[str], DataConfig], function: str, reach: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        open_dataset(own_config(function))
    assert str(refused.value).startswith("data.num_classes = 3: ")
    assert f"labels reach from {reach}" in str(refused.value)
    for error in (refused.value, pickle.loads(pickle.dumps(refused.value))):  # from a worker
        assert "some labels are out of range" in error.shared
        assert "reach" not in error.shared
        assert str(error) == str(refused.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("dp_ray.config.run:no_loader", "no_loader"), ("no_such_module:load", "no_such_module")],
)
def test_a_loader_that_cannot_be_imported_is_refused(
    tmp_path: Path, name: str, reason: str
) -> None:
    config = DataConfig(
        name=name,
        expected_batch_size=2,
        num_examples=6,
        num_classes=3,
        image_size=4,
        channels=1,
        cache=str(tmp_path),
    )
    message = refusal(ConfigError, config)
    assert message.startswith(f"data.name = {name!r}: cannot be imported: ")
    assert reason in message.partition("imported: ")[2]


@pytest.mark.parametrize(
    "labels", ["np.arange(6) + 0.5", "np.array(list('abcdef'))", "np.array(3)"]
)
def test_own_labels_that_are_no_row_of_whole_numbers_are_refused(
    labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "labels_" + labels.encode().hex()
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\n"
        "images = np.zeros((6, 1, 4, 4), dtype=np.uint8)\n"
        f"def load(config):\n    return (images, {labels}), (images, np.arange(6) % 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    facts = {"num_examples": 6, "num_classes": 2, "image_size": 4, "channels": 1}
    config = DataConfig(
        name=f"{name}:load", expected_batch_size=2, cache=str(tmp_path / "cache"), **facts
    )
    with pytest.raises(DataError, match="whole numbers"):
        open_dataset(config)
    config = config.model_copy(update={"name": f"{name}:images"})
    with pytest.raises(ConfigError, match=r"data\.name.*no function"):
        open_dataset(config)


RETURNED = {
    "ragged": ("[zeros((1, 4, 4)), zeros((1, 4, 5))]", "[0, 1]", "train images .*shape"),
    "grey among RGB": ("[zeros((3, 4, 4)), zeros((1, 4, 4))]", "[0, 1]", "train images .*shape"),
    "nothing": ("None", "[0, 1]", "train images hold NoneType"),
    "Pillow's": (
        "[Image.new('L', (4, 4)), object()]",
        "[0, 1]",
        "train images .*no numbers of one shape",
    ),
    "flat": ("zeros((2, 16))", "[0, 1]", r"\[N, C, H, W\], not of shape \(2, 16\)"),
    "several labels": ("zeros((2, 1, 4, 4))", "[[0], [0, 1]]", "train labels .*shape"),
    "words": ("zeros((2, 1, 4, 4))", "['cat', 'dog']", "train labels must be .* whole numbers"),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_what_a_loader_returns_instead_of_arrays_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, with the part and the cause; never numpy's own words alone."""
    images, labels, words = RETURNED[kind]
    name = f"returned_{kind.encode().hex()}"
    (tmp_path / f"{name}.py").write_text(
        "from numpy import uint8, zeros as of\nfrom PIL import Image\n"
        "def zeros(shape):\n    return of(shape, uint8)\n"
        f"def load(config):\n    return ({images}, {labels}), (zeros((1, 1, 4, 4)), [0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    facts = {"num_examples": 2, "num_classes": 2, "image_size": 4, "channels": 1}
    config = DataConfig(
        name=f"{name}:load", expected_batch_size=2, cache=str(tmp_path / "cache"), **facts
    )
    with pytest.raises(DataError, match=rf"data\.name = '{name}:load': .*{words}") as caught:
        open_dataset(config)
    assert "\n" not in str(caught.value)


def test_an_error_of_a_loader_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text, words in (
        (
            "exits",
            "import sys\ndef load(config):\n    sys.exit('no data')\n",
            "SystemExit: no data",
        ),
        ("typo", "def load(config) return None\n", "SyntaxError: "),
        ("key", "CLASSES = {}['a']\ndef load(config): ...\n", "KeyError: 'a'"),
    ):
        (tmp_path / f"loader_{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        config = DataConfig(
            name=f"loader_{name}:load",
            expected_batch_size=2,
            cache=str(tmp_path / "cache"),
            **{"num_examples": 2, "num_classes": 2, "image_size": 4, "channels": 1},
        )
        with pytest.raises((ConfigError, DataError)) as caught:
            open_dataset(config)
        message = str(caught.value)
        assert words in message
        assert re.search(rf"loader_{name}\.py, line \d", message)


# Sources of the user's

OWN_SOURCE = """
import numpy as np
from dataclasses import replace
from dp_ray.data.source import DataFacts, Source, Unread, given_facts
from dp_ray.data.splits import Notes

class Pieces:
    notes = Notes(classes=["a", "b", "c"])
    count, length = 6, 6

    def __len__(self):
        return self.length

    def pieces(self):
        for start in range(0, self.count, 4):
            ids = np.arange(start, min(start + 4, self.count))
            yield np.full((len(ids), 1, 4, 4), ids[:, None, None, None], np.uint8), ids % 3

class Whole(Source):
    train = test = Pieces()

    def facts(self):
        return given_facts(self.config)

    def splits(self):
        return self.train, self.test

    def unread(self):
        return Unread(skipped=[("in another tongue", "x.txt")], beside=["y"], read="z")

class Stamped(Whole):
    text = "1"

    def stamp(self):
        return self.text

def make(config):
    return Whole(config)

class OtherFacts(Whole):
    def facts(self):
        return replace(given_facts(self.config), mean=[0.25])

class NoFacts(Whole):
    def facts(self):
        return {"num_examples": 6}

class Abstract(Source):
    def facts(self):
        return given_facts(self.config)

class NumberedStamp(Whole):
    def stamp(self):
        return 7

class FailingStamp(Whole):
    def stamp(self):
        raise KeyError("jane")

class OneSplit(Whole):
    def splits(self):
        return [self.train]

class NoSplit(Whole):
    def splits(self):
        return self.train, None

class FewerTest(Whole):
    test = Pieces()
    test.count = 5

class MoreStamped(Stamped):
    train = Pieces()
    train.count = 7

class Words(Whole):
    train = Pieces()
    train.pieces = lambda: iter([(np.zeros((6, 1, 4, 4), np.uint8), ["a"] * 6)])

class Alone(Whole):
    train = Pieces()
    train.pieces = lambda: iter([np.zeros((6, 1, 4, 4), np.uint8)])

class Uneven(Whole):
    train = Pieces()
    train.pieces = lambda: iter([(np.zeros((6, 1, 4, 4), np.uint8), [0] * 5)])

class Broken(Whole):
    train = Pieces()
    train.pieces = lambda: (1 / 0 for _ in range(2))
"""


@pytest.fixture
def own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataConfig]:
    """A configuration whose source is a name of the module ``OWN_SOURCE``."""
    return own_module(OWN_SOURCE, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["make", "Whole", "Stamped"])
def test_a_source_by_its_import_path(name: str, own_source: Callable[[str], DataConfig]) -> None:
    data = open_dataset(own_source(name))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train.read(np.arange(6))[0][:, 0, 3, 3].tolist() == list(range(6))
    assert len(data.test) == 6
    assert data.notes[0].classes == ["a", "b", "c"]


def test_the_facts_of_a_source_need_none_of_the_users_code() -> None:
    """A plan is made, and a release is read, where that code is not."""
    facts = {"num_examples": 6, "num_classes": 3, "image_size": 4, "channels": 1}
    config = DataConfig(name="no_such_module:Whole", expected_batch_size=2, **facts)
    assert data_facts(config).num_examples == 6
    with pytest.raises(ConfigError, match=r"data\.channels = None: must be given"):
        data_facts(config.model_copy(update={"channels": None}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OtherFacts", r"data\.mean = None: the source has \[0\.25\]\. Make them agree"),
        ("NoFacts", r"facts\(\) must return DataFacts, not dict"),
        ("Abstract", r"load\(config\) failed: TypeError: .*abstract.*splits"),
        ("NumberedStamp", r"stamp\(\) must return a text or None, not int"),
        ("FailingStamp", r"stamp\(\) failed: KeyError: 'jane' \(.*\.py, line \d+\)"),
        ("OneSplit", r"splits\(\) must return the training and the test split"),
        ("NoSplit", r"splits\(\) returned an object of type NoneType, and no split"),
        ("FewerTest", r"pieces of the test split hold 5 examples, but its len\(\) is 6"),
        ("MoreStamped", r"pieces of the train split hold 7 examples, but its len\(\) is 6"),
        ("Words", r"train labels must be a row of whole numbers"),
        ("Alone", r"pieces\(\) of train must yield \(images, labels\)"),
        ("Uneven", r"6 train images and 5 labels"),
        ("Broken", r"pieces\(\) of train failed: ZeroDivisionError: .*\.py, line \d+\)"),
    ],
)
def test_a_mistake_in_a_source_is_told_in_one_line(
    name: str, words: str, own_source: Callable[[str], DataConfig]
) -> None:
    config = own_source(name)
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        open_dataset(config)
    assert "\n" not in str(caught.value)
    assert "jane" not in caught.value.shared
    assert config.cache is not None
    assert not [path for path in Path(config.cache).iterdir() if path.is_dir()]


def test_a_stamp_that_differs_is_another_copy(own_source: Callable[[str], DataConfig]) -> None:
    config = own_source("Stamped")
    first = open_dataset(config).digest
    module = importlib.import_module(config.name.partition(":")[0])
    module.Whole.train.pieces = lambda: iter([(np.ones((6, 1, 4, 4), np.uint8), np.arange(6) % 3)])
    assert open_dataset(config).digest == first  # its stamp says that nothing changed
    module.Stamped.text = "2"
    assert open_dataset(config).digest != first


def test_what_a_source_does_not_read_is_reported(
    own_source: Callable[[str], DataConfig], own_config: Callable[[str], DataConfig]
) -> None:
    unread = source_of(own_source("Whole")).unread()
    assert describe_unread(unread).splitlines() == [
        "skipped       1 in another tongue:",
        "              x.txt",
        "not read      y: only z are",
    ]
    assert source_of(own_config("load")).unread() == Unread()


def test_a_loader_is_called_once(
    own_config: Callable[[str], DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may read all data; ``dp-ray data`` asks what it does not read, too."""
    config, calls = own_config("load"), list[int]()
    module = importlib.import_module(config.name.partition(":")[0])
    load = module.load
    monkeypatch.setattr(module, "load", lambda section: calls.append(1) or load(section))
    source = source_of(config)
    source.unread()
    open_dataset(config, source=source)
    assert len(calls) == 1
