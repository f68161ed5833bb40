"""The file of a run's secret, from which all its others are derived."""

from __future__ import annotations

from pathlib import Path

from dp_ray.errors import ConfigError, RunError
from dp_ray.keys import KEY_BYTES, RunKey
from dp_ray.storage import Folder

RUN_KEY = "run_key"

_REPLAY = " replay"
"""After the key of a run that repeats another one."""


def read_key(private: Folder) -> tuple[RunKey, bool]:
    """Return the secret of a run, and whether it was another run's before.

    Args:
        private: the private part of the run.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return _parse_key(private.read(RUN_KEY).decode())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{private}/{RUN_KEY}: {error}. Without its key ({KEY_BYTES} bytes in hex) a run "
            "cannot be continued; restore the file from a backup, or start a new run"
        ) from error


def write_key(private: Folder, key: RunKey, *, replay: bool) -> None:
    """Write a secret, for its owner alone, and whether it was another run's before.

    Raises:
        OSError: it cannot be written.
    """
    private.write(RUN_KEY, f"{key.secret.hex()}{_REPLAY if replay else ''}\n".encode())


def refuse_key_of_seed(key: RunKey, seed: int) -> None:
    """Refuse a key that can be computed from a published seed.

    Raises:
        ConfigError: an earlier version derived the key from the seed, which a release names now.
    """
    if key.follows_from(seed):
        raise ConfigError(
            "seed",
            seed,
            "an earlier version started this, in which the noise followed from the seed; a release "
            "names the seed now",
            "Finish it with that version, or start anew with another --name",
        )


def read_replay_key(file: Path, seed: int | None) -> RunKey:
    """Return the key of a run that is to be repeated.

    Args:
        file: that run's ``private/run_key``.
        seed: the configuration's.

    Raises:
        ConfigError: the file holds none, or it follows from the seed.
    """
    try:
        key = _parse_key(file.read_text(encoding="utf-8"))[0]
    except (OSError, ValueError) as error:
        raise ConfigError(
            "--replay-key",
            str(file),
            f"no run key: {error}",
            f"Give the private/{RUN_KEY} of the run to repeat ({KEY_BYTES} bytes in hex)",
        ) from error
    if seed is not None:
        refuse_key_of_seed(key, seed)
    return key


def _parse_key(text: str) -> tuple[RunKey, bool]:
    secret = text.strip()
    own = secret.removesuffix(_REPLAY)
    return RunKey(bytes.fromhex(own)), own != secret
