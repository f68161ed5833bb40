"""An S3 server in this process, on the loopback: enough of the protocol for ``pyarrow.fs``.

``s3_server.py`` has a real one, which does as S3 does. This one does as a test says.

What it holds is a dictionary, so a test can damage it as no client could, and count what was
written. It checks no signatures. An object that comes in parts is there once they are complete.
"""

from __future__ import annotations

import io
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from dp_ray.storage import Folder, ObjectFolder

_HEADER = '<?xml version="1.0" encoding="UTF-8"?>'


class MemoryFolder(Folder):
    """Objects without a network, for tests that need thousands of them."""

    def __init__(self, uri: str, objects: dict[str, bytes] | None = None) -> None:
        self.uri = uri
        self.objects = {} if objects is None else objects

    def __truediv__(self, name: str) -> MemoryFolder:
        return MemoryFolder(f"{self.uri}/{name}", self.objects)

    def read(self, name: str) -> bytes:
        """See :class:`Folder`."""
        try:
            return self.objects[f"{self.uri}/{name}"]
        except KeyError:
            raise FileNotFoundError(name) from None

    def write(self, name: str, data: bytes) -> None:
        """See :class:`Folder`."""
        self.objects[f"{self.uri}/{name}"] = data

    def names(self) -> list[str]:
        """See :class:`Folder`."""
        inside = [k.removeprefix(f"{self.uri}/") for k in self.objects if k.startswith(self.uri)]
        return sorted({name.split("/")[0] for name in inside})

    def delete(self, name: str) -> None:
        """See :class:`Folder`."""
        self.objects.pop(f"{self.uri}/{name}", None)

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """See :class:`Folder`."""
        for file, data in files.items():
            (self / name).write(file, data)


class ObjectStore:
    """What the server holds, and what it was asked to write.

    Attributes:
        bucket: of this server alone: pyarrow's file systems are kept as long as the process.
        objects: ``folder/name`` → content.
        written: the objects that were written, in order, by their names in :attr:`objects`.
        refusing: answer writes with 403, as a store does whose credentials have expired.
    """

    def __init__(self) -> None:
        self.bucket = f"bucket-{secrets.token_hex(8)}"
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []
        self.refusing = False
        self.parts: dict[str, dict[int, bytes]] = {}

    def folder(self, name: str) -> ObjectFolder:
        """A folder as the product sees it."""
        return ObjectFolder(f"s3://{self.bucket}/{name}")

    def content(self, folder: str) -> dict[str, bytes]:
        """Name → content of the objects in a folder."""
        prefix = f"{folder}/"
        found = {k.removeprefix(prefix): v for k, v in self.objects.items() if k.startswith(prefix)}
        found.pop("", None)  # the mark of an empty folder, which pyarrow leaves
        return dict(sorted(found.items()))

    def replace(self, folder: str, content: dict[str, bytes]) -> None:
        """Puts other objects in the place of a folder's."""
        for name in self.content(folder):
            del self.objects[f"{folder}/{name}"]
        self.objects.update({f"{folder}/{name}": data for name, data in content.items()})

    def write(self, key: str, data: bytes) -> None:
        """An object, whole."""
        self.objects[key] = data
        self.written.append(key)


@contextmanager
def serve_objects() -> Iterator[ObjectStore]:
    """Runs a server on a free port, with the environment that leads pyarrow to it."""
    store = ObjectStore()
    server = _Server(store)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with pyarrow_led_to(server.server_port):
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def pyarrow_led_to(port: int) -> Iterator[None]:
    """With the environment of somebody whose S3 is a server on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


class _Server(ThreadingHTTPServer):
    def __init__(self, store: ObjectStore) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store
        self.daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

    def log_message(self, *_args: object) -> None:
        """Nothing: a test's output is its own."""

    def do_GET(self) -> None:
        key, query = self._address()
        if "list-type" in query:
            self._answer(200, _listing(self.server.store, query))
        elif key in self.server.store.objects:
            self._answer(*self._range(self.server.store.objects[key]))
        else:
            self._answer(404, _error("NoSuchKey"))

    def do_HEAD(self) -> None:
        key, _ = self._address()
        if key and key not in self.server.store.objects:
            self._answer(404, b"")
        else:
            self._answer(200, self.server.store.objects.get(key, b""))

    def do_PUT(self) -> None:
        data, (key, query) = self._body(), self._address()
        if self.server.store.refusing:
            self._answer(403, _error("AccessDenied"))
            return
        if "uploadId" in query:
            self.server.store.parts[query["uploadId"]][int(query["partNumber"])] = data
        else:
            self.server.store.write(key, data)
        self._answer(200, b"")

    def do_POST(self) -> None:
        data, (key, query) = self._body(), self._address()
        if self.server.store.refusing:
            self._answer(403, _error("AccessDenied"))
        elif "uploads" in query:
            upload = secrets.token_hex(8)
            self.server.store.parts[upload] = {}
            self._answer(200, _element("InitiateMultipartUploadResult", {"UploadId": upload}))
        elif "uploadId" in query:
            parts = self.server.store.parts.pop(query["uploadId"])
            self.server.store.write(key, b"".join(parts[number] for number in sorted(parts)))
            self._answer(200, _element("CompleteMultipartUploadResult", {"ETag": "e"}))
        else:  # ?delete
            for node in ElementTree.fromstring(data).iter():
                if node.tag.endswith("Key"):
                    self.server.store.objects.pop(node.text or "", None)
            self._answer(200, f"{_HEADER}<DeleteResult/>".encode())

    def do_DELETE(self) -> None:
        key, _ = self._address()
        self.server.store.objects.pop(key, None)
        self._answer(204, b"")

    def _address(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).removeprefix(f"/{self.server.store.bucket}").lstrip("/"), query

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = _join_chunks(self.rfile)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):  # chunks within chunks
            data = _join_chunks(io.BytesIO(data))
        return data

    def _range(self, data: bytes) -> tuple[int, bytes]:
        asked = self.headers.get("Range")
        if asked is None:
            return 200, data
        first, last = asked.removeprefix("bytes=").split("-")
        return 206, data[int(first) : int(last) + 1]

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _join_chunks(stream: IO[bytes]) -> bytes:
    whole = b""
    while size := int(stream.readline().split(b";")[0], 16):
        whole += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        """A trailer: checksums."""
    return whole


def _listing(store: ObjectStore, query: dict[str, str]) -> bytes:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    files, folders = [], set()
    for key in sorted(store.objects):
        rest = key.removeprefix(prefix)
        if key.startswith(prefix) and delimiter and delimiter in rest:
            folders.add(prefix + rest.split(delimiter)[0] + delimiter)
        elif key.startswith(prefix):
            files.append(key)
    entries = [
        f"<Contents><Key>{escape(key)}</Key><Size>{len(store.objects[key])}</Size>"
        "<LastModified>2026-11-24T00:00:00.000Z</LastModified></Contents>"
        for key in files
    ]
    entries += [
        f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        for name in sorted(folders)
    ]
    kept = entries[: int(query.get("max-keys", "1000"))]
    head = f"<KeyCount>{len(kept)}</KeyCount><IsTruncated>false</IsTruncated>"
    return f"{_HEADER}<ListBucketResult>{head}{''.join(kept)}</ListBucketResult>".encode()


def _element(name: str, fields: dict[str, str]) -> bytes:
    inner = "".join(f"<{field}>{value}</{field}>" for field, value in fields.items())
    return f"{_HEADER}<{name}>{inner}</{name}>".encode()


def _error(code: str) -> bytes:
    return _element("Error", {"Code": code, "Message": code})
