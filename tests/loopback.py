"""A real HTTP server on the loopback, and what servers get wrong.

A `Loopback` serves one content under every path. What it does at each request is an `Answer`, a function that gets the
request's handler and the server; `script` lists the answers to the next requests, `otherwise` is the one after those.
"""

import http.client
import http.server
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

NEVER = 30.0  # s; a stalled answer ends with its server, much sooner


class Request(NamedTuple):
    """What was asked."""

    path: str
    encoding: str | None  # Accept-Encoding


class Handler(http.server.BaseHTTPRequestHandler):
    """Hands each request to its server's script."""

    server: "Loopback"

    def do_GET(self) -> None:
        self.server.asked.append(Request(self.path, self.headers["Accept-Encoding"]))
        answer = self.server.script.pop(0) if self.server.script else self.server.otherwise
        with suppress(BrokenPipeError, ConnectionResetError):
            answer(self, self.server)
        self.close_connection = True

    def do_CONNECT(self) -> None:
        self.server.asked.append(Request(self.path, None))
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
        script: the answers to the next requests.
        otherwise: the answer when the script is over.
        asked: the requests so far.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.script: list[Answer] = []
        self.otherwise: Answer = serve
        self.asked: list[Request] = []
        self.over = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of what is tested."""


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


def _head(handler: Handler, status: int, length: int | None, **headers: str) -> None:
    handler.send_response(status)
    if length is not None:
        headers["Content-Length"] = str(length)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def announce(length: int | None, content: bytes | None = None) -> Answer:
    """200 with a length of the test's choice, whatever is sent."""

    def answer(handler: Handler, server: Loopback) -> None:
        _head(handler, 200, length)
        handler.wfile.write(server.content if content is None else content)

    return answer


def serve(handler: Handler, server: Loopback) -> None:
    """As it should be."""
    announce(len(server.content))(handler, server)


def truncate(end: int) -> Answer:
    """The right length, the bytes up to number `end`, and the end of the connection."""

    def answer(handler: Handler, server: Loopback) -> None:
        announce(len(server.content), server.content[:end])(handler, server)

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


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler, server: Loopback) -> None:
        _head(handler, code, 0, **headers)

    return answer


def redirect(to: str) -> Answer:
    return status(302, Location=to)


def flip_byte(handler: Handler, server: Loopback) -> None:
    """The right length, one bit wrong."""
    middle = len(server.content) // 2
    wrong = server.content[:middle] + bytes([server.content[middle] ^ 1]) + server.content[middle + 1 :]
    announce(len(wrong), wrong)(handler, server)


def hang_up(handler: Handler, server: Loopback) -> None:
    """Not a byte."""


def babble(handler: Handler, server: Loopback) -> None:
    """Not HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def pass_on(addresses: dict[str, str]) -> Answer:
    """What a proxy does: fetch the named host's file from where that host really is."""

    def answer(handler: Handler, server: Loopback) -> None:
        wanted = urllib.parse.urlsplit(handler.path)
        real = urllib.parse.urlsplit(addresses[wanted.netloc])
        assert real.hostname is not None
        connection = http.client.HTTPConnection(real.hostname, real.port or 80, timeout=5)
        connection.request("GET", wanted.path)
        content = connection.getresponse().read()
        connection.close()
        announce(len(content), content)(handler, server)

    return answer
