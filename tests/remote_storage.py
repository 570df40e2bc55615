"""The three kinds of remote storage that the tests use, each real: a folder, a web server that takes uploads, an S3 server."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "lab"
# moto takes any key; real ones go the same way, through the environment.
S3_KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-lab", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Storage:
    """A place for `dvc remote add`, and its objects.

    Attributes:
        url: for `dvc remote add`.
        options: for `dvc remote modify`.
        variables: the environment that dvc needs there.
        read, write, delete: of one object, by its md5.
    """

    url: str
    options: dict[str, str]
    variables: dict[str, str]
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], object]
    delete: Callable[[str], object]


def _key(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"


class _Uploads(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP: GET and HEAD as the standard library has them, POST and PUT write, DELETE removes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        path = Path(self.translate_path(self.path))
        content = b"".join(self._chunks()) if self.headers.get("Transfer-Encoding") == "chunked" else self._counted()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._done(201)

    do_PUT = do_POST

    def do_DELETE(self) -> None:
        Path(self.translate_path(self.path)).unlink()
        self._done(204)

    def _counted(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _done(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        pass


def _files(folder: Path, url: str, options: dict[str, str]) -> Storage:
    """Storage whose objects are files in a folder here."""
    folder.mkdir()

    def write(md5: str, content: bytes) -> None:
        path = folder / _key(md5)
        path.chmod(0o644)  # DVC makes them read-only
        path.write_bytes(content)

    return Storage(
        url=url,
        options=options,
        variables={},
        read=lambda md5: (folder / _key(md5)).read_bytes(),
        write=write,
        delete=lambda md5: (folder / _key(md5)).unlink(),
    )


@contextmanager
def in_folder(folder: Path) -> Iterator[Storage]:
    """A folder of this machine, or one that is mounted."""
    yield _files(folder, str(folder), {})


@contextmanager
def on_web_server(folder: Path) -> Iterator[Storage]:
    """A web server on the loopback that keeps its objects in the folder."""

    class Handler(_Uploads):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type] # request, address, server

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield _files(folder, f"http://127.0.0.1:{server.server_port}", {"method": "PUT"})
        server.shutdown()
        thread.join()


@contextmanager
def on_s3(folder: Path) -> Iterator[Storage]:
    """moto's S3 server on the loopback; it keeps its objects in memory."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    session = boto3.Session(S3_KEYS["AWS_ACCESS_KEY_ID"], S3_KEYS["AWS_SECRET_ACCESS_KEY"], region_name=S3_KEYS["AWS_DEFAULT_REGION"])
    bucket = session.resource("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)

    def of(md5: str) -> Any:
        return bucket.Object(f"{folder.name}/{_key(md5)}")

    yield Storage(
        url=f"s3://{BUCKET}/{folder.name}",
        options={"endpointurl": endpoint},
        variables=S3_KEYS,
        read=lambda md5: bytes(of(md5).get()["Body"].read()),
        write=lambda md5, content: of(md5).put(Body=content),
        delete=lambda md5: of(md5).delete(),
    )
    server.stop()


KINDS = {"folder": in_folder, "http": on_web_server, "s3": on_s3}
