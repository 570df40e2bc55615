"""A real HTTP server on the loopback, and what servers get wrong.

A `Loopback` serves one content under every path. What it does at each request is an `Answer`, a function that gets the
request's handler and the server; `script` lists the answers to the next requests, `otherwise` is the one after those.
"""

import http.client
import http.server
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

NEVER = 30.0  # s; a stalled answer ends with its server, much sooner


class Request(NamedTuple):
    """What was asked, and when."""

    path: str
    range: str | None
    if_range: str | None
    time_s: float


class Handler(http.server.BaseHTTPRequestHandler):
    """Hands each request to its server's script."""

    server: "Loopback"

    def do_GET(self) -> None:
        self.server.asked.append(Request(self.path, self.headers["Range"], self.headers["If-Range"], time.monotonic()))
        answer = self.server.script.pop(0) if self.server.script else self.server.otherwise
        with suppress(BrokenPipeError, ConnectionResetError):
            answer(self, self.server)
        self.close_connection = True

    def do_CONNECT(self) -> None:
        self.server.asked.append(Request(self.path, None, None, time.monotonic()))
        if self.server.script:
            self.server.script.pop(0)(self, self.server)
        else:
            self.send_error(407, "Proxy Authentication Required")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        pass


Answer = Callable[[Handler, "Loopback"], None]


class Loopback(http.server.ThreadingHTTPServer):
    """See the module.

    Attributes:
        content: the bytes of every path.
        etag: of the content; None sends none.
        script: the answers to the next requests.
        otherwise: the answer when the script is over.
        asked: the requests so far.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.etag: str | None = '"first"'
        self.script: list[Answer] = []
        self.otherwise: Answer = serve
        self.asked: list[Request] = []
        self.over = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of what is tested."""

    def ranges(self) -> list[str | None]:
        return [request.range for request in self.asked]


@contextmanager
def serving(content: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Loopback]:
    with Loopback(content) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            server.address = server.address.replace("http:", "https:")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def _head(handler: Handler, status: int, length: int | None, **more: str) -> None:
    handler.send_response(status)
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    if handler.server.etag is not None:
        headers.setdefault("ETag", handler.server.etag)
    if length is not None:
        headers["Content-Length"] = str(length)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def _start(handler: Handler, server: Loopback) -> int:
    """The first byte asked for, unless If-Range says that the file is another now."""
    match = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    condition = handler.headers["If-Range"]
    return int(match[1]) if match and condition in (None, server.etag) else 0


def serve(handler: Handler, server: Loopback) -> None:
    """As it should be: ranges, If-Range, entity tag, length."""
    start, size = _start(handler, server), len(server.content)
    if start >= size:
        _head(handler, 416, 0, Content_Range=f"bytes */{size}")
    elif start:
        _head(handler, 206, size - start, Content_Range=f"bytes {start}-{size - 1}/{size}")
        handler.wfile.write(server.content[start:])
    else:
        _head(handler, 200, size)
        handler.wfile.write(server.content)


def truncate(end: int) -> Answer:
    """The right headers, the bytes up to number `end` of the file, and the end of the connection."""

    def answer(handler: Handler, server: Loopback) -> None:
        start, size = _start(handler, server), len(server.content)
        if start:
            _head(handler, 206, size - start, Content_Range=f"bytes {start}-{size - 1}/{size}")
        else:
            _head(handler, 200, size)
        handler.wfile.write(server.content[start:end])

    return answer


def stall(end: int) -> Answer:
    """As `truncate`, but the connection stays open and silent."""

    def answer(handler: Handler, server: Loopback) -> None:
        truncate(end)(handler, server)
        server.over.wait(NEVER)

    return answer


def stay_silent(handler: Handler, server: Loopback) -> None:
    """Not a byte, but the connection stays open."""
    server.over.wait(NEVER)


def trickle(handler: Handler, server: Loopback) -> None:
    """Some bytes now and then: never silent for long, never done."""
    _head(handler, 200, len(server.content))
    for byte in server.content:
        handler.wfile.write(bytes([byte]))
        if server.over.wait(0.05):
            return


def ignore_range(handler: Handler, server: Loopback) -> None:
    _head(handler, 200, len(server.content))
    handler.wfile.write(server.content)


def ignore_if_range(handler: Handler, server: Loopback) -> None:
    """Goes on at the byte asked for, in whatever version it has now."""
    del handler.headers["If-Range"]
    serve(handler, server)


def wrong_range(shown: str) -> Answer:
    """206 with a Content-Range of the test's choice, and the bytes from the start."""

    def answer(handler: Handler, server: Loopback) -> None:
        _head(handler, 206, len(server.content), **({"Content_Range": shown} if shown else {}))
        handler.wfile.write(server.content)

    return answer


def announce(length: int | None, content: bytes | None = None) -> Answer:
    """200 with a length of the test's choice, whatever is sent."""

    def answer(handler: Handler, server: Loopback) -> None:
        _head(handler, 200, length)
        handler.wfile.write(server.content if content is None else content)

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler, server: Loopback) -> None:
        _head(handler, code, 0, **headers)

    return answer


def redirect(to: str) -> Answer:
    return status(302, Location=to)


def flip_byte(handler: Handler, server: Loopback) -> None:
    """The right length and tag, one bit wrong."""
    middle = len(server.content) // 2
    wrong = server.content[:middle] + bytes([server.content[middle] ^ 1]) + server.content[middle + 1 :]
    announce(len(wrong), wrong)(handler, server)


def hang_up(handler: Handler, server: Loopback) -> None:
    """Not a byte."""


def babble(handler: Handler, server: Loopback) -> None:
    """Not HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def endless(handler: Handler, server: Loopback) -> None:
    """No length, and no end."""
    _head(handler, 200, None)
    while not server.over.is_set():
        handler.wfile.write(server.content)


def change_to(content: bytes, etag: str | None, then: Answer = serve) -> Answer:
    """Put another version in place, then answer."""

    def answer(handler: Handler, server: Loopback) -> None:
        server.content, server.etag = content, etag
        then(handler, server)

    return answer


def pass_on(addresses: dict[str, str]) -> Answer:
    """What a proxy does: fetch the named host's file from where that host really is."""

    def answer(handler: Handler, server: Loopback) -> None:
        wanted = urllib.parse.urlsplit(handler.path)
        real = urllib.parse.urlsplit(addresses[wanted.netloc])
        assert real.hostname is not None
        connection = http.client.HTTPConnection(real.hostname, real.port or 80, timeout=5)
        names = ("Range", "If-Range", "Accept-Encoding")
        connection.request("GET", wanted.path, headers={name: handler.headers[name] for name in names if handler.headers[name]})
        response = connection.getresponse()
        handler.send_response(response.status)
        for name, value in response.getheaders():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            handler.wfile.write(response.read())
        except http.client.IncompleteRead as error:
            handler.wfile.write(error.partial)
        connection.close()

    return answer
