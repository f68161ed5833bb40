"""What ``dp-ray data`` does: opens the data as a run would, reports on it, draws examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_ray.api.checks import check_look
from dp_ray.artifacts.result_directory import IGNORE
from dp_ray.config.run import Config
from dp_ray.data.cache import cache_path
from dp_ray.data.files import skipped_line
from dp_ray.data.source import Unread
from dp_ray.data.sources.registry import source_of
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DpRayError, StorageError
from dp_ray.on_ray.job import check_storage_path, errors_for_log, in_job
from dp_ray.reporting.contact_sheet import draw_contact_sheet
from dp_ray.reporting.data import data_facts_of, describe_data, describe_unread
from dp_ray.storage import Folder, LocalFolder, open_folder, user_path

SHEET = "contact_sheet.png"
REPORT = "report.txt"


def look_at_data(config: Config, out: str | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """Report what a run would be trained and evaluated on; costs no privacy budget.

    Args:
        config: whose data.
        out: folder for the report and the contact sheet; by default ``<name>-data`` in
            train.storage_path.
        tell: shows lines to the user. In a job, whose log others may read, they have counts of
            skipped entries and no other figure or name.

    Returns:
        The report and where its files are; in a job, only where they are.

    Raises:
        DpRayError: a run would refuse the data, others could read the folder, or matplotlib is
            missing.
    """
    check_look(config)
    if out is None:
        check_storage_path(config.train.storage_path)
        folder = open_folder(config.train.storage_path) / f"{config.name}-data"
    else:
        check_storage_path(out, "--out")
        folder = open_folder(out)
    _check_place(folder, config)
    _lay_out(folder)
    with errors_for_log(folder, LocalFolder(cache_path(config.data))):
        source = source_of(config.data)
        unread = source.unread()
        _tell_unread(unread, tell)  # before what may be refused because of them
        dataset = open_dataset(config.data, source=source)
        facts = data_facts_of(dataset, unread, config.data)
        sheet = draw_contact_sheet(dataset, config.augment)
    files = {"report": f"{folder}/{REPORT}", "contact_sheet": f"{folder}/{SHEET}"}
    whole = f"{describe_data(facts, whole=True)}\n\n{describe_unread(unread, whole=True)}\n"
    try:
        folder.write(REPORT, whole.encode(errors="backslashreplace"))
        folder.write(SHEET, sheet)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not in_job():
        tell(describe_data(facts))
    tell(f"\nreport        {files['report']}")
    tell(f"pictures      {files['contact_sheet']}")
    tell(
        "keep secret   both: they show private data, and dp-ray's privacy statement covers neither"
    )
    return files if in_job() else {**facts, **files}


def _tell_unread(unread: Unread, tell: Callable[[str], None]) -> None:
    text = skipped_line(unread.counts) if in_job() else describe_unread(unread)
    if text:
        tell(f"{text}\n")


def _check_place(folder: Folder, config: Config) -> None:
    """Refuse a folder whose files the two would be among: of the data, or the user's own.

    Raises:
        ConfigError: it is such a folder.
    """
    if not isinstance(path := folder.path, Path):
        return
    if config.data.root is not None:
        root = user_path(config.data.root)
        if path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                "--out", str(path), f"lies in data.root, {root}", "Give a folder outside of it"
            )
    ours = {SHEET, REPORT, IGNORE}
    if path.is_dir() and (others := sorted(p.name for p in path.iterdir() if p.name not in ours)):
        raise ConfigError(
            "--out",
            str(path),
            f"holds other files ({others[0]})",
            "Give a new folder, or one that dp-ray data has made",
        )


def _lay_out(folder: Folder) -> None:
    """Make a folder for its owner's eyes, which neither git nor Ray's uploads take.

    Raises:
        StorageError: others could read it, or it cannot be written.
    """
    if not isinstance(path := folder.path, Path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        exposure = folder.exposure()
        if exposure is None and not folder.exists(IGNORE):
            folder.write(IGNORE, b"*\n")
    except OSError as error:
        raise _unwritable(folder, error) from error
    if exposure is not None:
        raise StorageError(f"{exposure}. Or give another --out: the sheet shows private images")


def _unwritable(folder: Folder, error: OSError) -> DpRayError:
    return StorageError(f"{folder} cannot be written: {error}. Give another --out FOLDER")
