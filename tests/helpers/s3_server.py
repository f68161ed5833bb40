"""A real S3 server, moto's, on the loopback.

It lives in an environment of its own, because what it needs contradicts ``constraints.txt``;
``make test`` installs it there, and ``DP_RAY_TEST_S3`` names its command.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.object_store import pyarrow_led_to

_START_S = 120


@contextmanager
def serve_s3(log: Path) -> Iterator[str]:
    """The name of an empty bucket, to which ``s3://`` leads; the test is skipped without a server.

    Args:
        log: a file for what the server writes.
    """
    command = os.environ.get("DP_RAY_TEST_S3")
    if command is None:
        pytest.skip("DP_RAY_TEST_S3 names no S3 server: make test installs moto's and names it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as output:
        arguments = [command, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(arguments, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START_S
        while not _listens(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pyarrow_led_to(port):
            yield _new_bucket()
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _new_bucket() -> str:
    from pyarrow.fs import S3FileSystem

    name = f"bucket-{secrets.token_hex(8)}"
    S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True
    ).create_dir(name)
    return name
