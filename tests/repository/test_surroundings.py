"""What is around a run: files named as Python's modules, temporary folders, addresses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import RunError
from dp_ray.imports import USERS_FOLDERS, import_object
from dp_ray.on_ray.environment import check_environment, located, prepare_environment

OWN = ClusterConfig(num_workers=1)


def test_a_users_file_does_not_hide_a_module_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, with ``python -m``, and for workers, which find the user's folder by a variable."""
    (tmp_path / "profile.py").write_text("raise SystemExit('the user’s')")
    (tmp_path / "own_net.py").write_text("import cProfile, profile\nbuild = profile.Profile")
    code = (
        "import sys; sys.path.insert(0, ''); from dp_ray.imports import import_object; "
        "print(import_object('own_net:build', 'model.name').__module__)"
    )
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for folder, more in ((tmp_path, {}), ("/", {USERS_FOLDERS: str(tmp_path)})):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stdout.strip(), ran.stderr) == ("profile", "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import_object("own_net:build", "model.name")
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def long_folder(folder: Path) -> Path:
    return folder / ("long_" * 20)


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "below"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("place", [long_folder, a_file, below_a_file])
def test_a_temporary_folder_that_ray_cannot_use_is_refused(
    variable: str,
    place: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = place(tmp_path)
    monkeypatch.setattr("dp_ray.on_ray.environment._LONGEST_SOCKET", 68 + len(str(tmp_path)) + 20)
    monkeypatch.setenv(variable, str(folder))
    with pytest.raises(RunError, match=f"^{variable} = .*Ray cannot .*Set RAY_TMPDIR to a short"):
        check_environment(OWN)
    monkeypatch.setenv(variable, str(tmp_path))
    check_environment(OWN)


def test_a_full_temporary_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 3 * 2**20})
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"RAY_TMPDIR = /tmp: .* full \(3 MiB are free\)"):
        check_environment(OWN)


def test_an_address_where_nothing_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_environment(ClusterConfig(address=address))
    for wrong in (address, "127.0.0.1:no", "6379"):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(RunError, match=f"cluster.address = {wrong}: .*cluster.address=local"):
            check_environment(ClusterConfig(address=wrong))
        monkeypatch.setenv("RAY_ADDRESS", wrong)
        with pytest.raises(RunError, match=f"RAY_ADDRESS = {wrong}: "):
            check_environment(ClusterConfig(address=wrong))


def test_a_ray_of_our_own_stays_on_the_loopback_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """``local`` wins over RAY_ADDRESS, which is read once."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for address, expected in (("local", "0"), (None, None)):
        monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
        prepare_environment(located(ClusterConfig(address=address)))
        assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == expected
