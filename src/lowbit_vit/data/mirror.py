"""One request to one mirror: what is missing of a file is asked for, the answer judged, its bytes kept and the whole checked."""

import logging
import re
import time
from dataclasses import dataclass
from http.client import IncompleteRead  # urllib3's is one, too

import requests
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError
from urllib3.util import Retry

from lowbit_vit import __version__
from lowbit_vit.data.partial import Origin, Partial
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.data.remote_files import RemoteFile

log = logging.getLogger(__name__)

BLOCK = 1 << 18  # bytes taken at a time, at most
SLOWEST = 1000  # bytes/s; a server that gives less for `stall_s` has stalled
RESUMED = 206
RANGE_REFUSED = 416
# Worth another try; any other status from 400 on is not.
PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        tries: rounds through the mirrors in which nothing was gained, before giving up.
        first_wait_s: mean wait after the first round is 3/4 of this; it doubles each time.
        longest_wait_s: no wait is longer; a server whose Retry-After asks for more is given up.
        connect_s: for a connection.
        stall_s: for the first byte of an answer, and for the next one.
    """

    tries: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 120.0
    connect_s: float = 15.0
    stall_s: float = 60.0


class Refused(Exception):
    """This mirror cannot give the file, now or in a minute."""


class Interrupted(Exception):
    """It may go on later, `after_s` from now at the earliest."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


def ask_mirror(session: requests.Session, url: str, partial: Partial, patience: Patience) -> None:
    """Ask one mirror for what is missing of a file, and check the whole.

    Raises:
        Refused: the mirror does not have it, or not the right one.
        Interrupted: it may go on later; what came is in `partial`.
    """
    if not _looks_whole(partial):
        # Bytes as they lie on the server: .tgz files are served as gzip-encoded by some.
        headers = {"User-Agent": f"lowbit-vit/{__version__}", "Accept-Encoding": "identity"}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
            # From another mirror or without a validator, the hash of the whole decides whether the pieces belong together.
            if partial.origin and partial.origin.url == url and partial.origin.validator:
                headers["If-Range"] = partial.origin.validator
        try:
            with session.get(url, headers=headers, stream=True, timeout=(patience.connect_s, patience.stall_s)) as response:
                _receive(response, url, partial, patience)
        except (requests.RequestException, HTTPError) as error:
            raise _name_failure(error, patience) from error
    if fault := partial.digest.fault():
        pieced = partial.pieced
        partial.restart()
        if pieced:
            raise Interrupted(f"{fault} after resuming; starting from the first byte")
        raise Refused(fault)


def _looks_whole(partial: Partial) -> bool:
    """Whether a run was cut off between the last byte and the check."""
    total = partial.file.size or (partial.origin.total if partial.origin else None)
    return total is not None and partial.size == total


def _receive(response: requests.Response, url: str, partial: Partial, patience: Patience) -> None:
    """Judge an answer by its status and headers, then append its body to the partial file."""
    places = [*(step.url for step in response.history), response.url]
    if url.startswith("https:") and not all(place.startswith("https:") for place in places):
        raise Refused("redirected from https to http")
    if response.status_code == RANGE_REFUSED and partial.size:
        if response.headers.get("Content-Range") == f"bytes */{partial.size}":
            return  # nothing is missing
        partial.restart()
        raise Interrupted("has fewer bytes than were fetched so far; starting from the first byte")
    if response.status_code == RESUMED:
        _check_seam(response, url, partial)
        partial.pieced = True
    elif response.status_code == requests.codes.ok:
        total = _length(response)
        if total is not None and total not in partial.file.sizes:
            raise Refused(f"announces {total} bytes, {partial.file.shown_size} expected")
        if partial.size:
            log.info("%s: does not resume, or the file changed; starting from the first byte", url)
        partial.begin(_origin(response, url, partial.file, total))
    elif response.status_code in PASSING:
        raise Interrupted(_status(response), _retry_after(response, patience))
    else:
        raise Refused(_status(response))
    _append(response, partial, patience)


def _check_seam(response: requests.Response, url: str, partial: Partial) -> None:
    """That a 206 answer continues what is here: first byte, total size, entity tag.

    Raises:
        Refused, Interrupted: it does not; in the second case the bytes so far are forgotten.
    """
    shown = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", shown)
    if not partial.size:
        raise Refused(f"answers with a part ({shown}) to a request for the whole")
    first, last, total = match.groups() if match else (None, None, None)
    known = partial.origin.total if partial.origin else None
    fits = first is not None and last is not None and int(first) == partial.size <= int(last)
    if total not in (None, "*"):
        fits = fits and int(total) in partial.file.sizes and int(total) == (known or int(total)) == int(last or 0) + 1
    same = partial.origin is not None and (partial.origin.url != url or _strong_etag(response) in (None, partial.origin.etag))
    if not (fits and same):
        size = partial.size
        partial.restart()
        what = f"Content-Range {shown!r}" if not fits else "the part of another version"
        raise Interrupted(f"answers with {what} when asked for bytes {size}-; starting from the first byte")


def _append(response: requests.Response, partial: Partial, patience: Patience) -> None:
    total = partial.origin.total if partial.origin else None
    most = partial.file.sizes[-1]
    mark_s, mark_size = time.monotonic(), partial.size
    with progress_bar(f"fetch {partial.file.name}", total or partial.file.size, "bytes", done=partial.size) as bar:
        while block := response.raw.read1(BLOCK, decode_content=False):
            if partial.size + len(block) > most:
                partial.restart()
                raise Refused(f"sends more than {most} bytes, {partial.file.shown_size} expected")
            partial.append(block)
            bar.advance(len(block))
            if (since_s := time.monotonic() - mark_s) > patience.stall_s:
                if partial.size - mark_size < SLOWEST * since_s:
                    raise Interrupted(f"stalled: {partial.size - mark_size} bytes in {since_s:.0f} s")
                mark_s, mark_size = time.monotonic(), partial.size
    if total is not None and partial.size < total:
        raise Interrupted(f"ended after {partial.size} of {total} bytes")


def _origin(response: requests.Response, url: str, file: RemoteFile, total: int | None) -> Origin:
    modified = response.headers.get("Last-Modified")
    return Origin(md5=file.md5, sha256=file.sha256, url=url, total=total, etag=_strong_etag(response), last_modified=modified)


def _strong_etag(response: requests.Response) -> str | None:
    # A weak tag does not promise the same bytes (RFC 9110, 8.8.1).
    etag = response.headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else etag


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}".strip()


def _retry_after(response: requests.Response, patience: Patience) -> float:
    """Seconds that the server asks to wait; 0 where it does not say so in a form that can be read.

    Raises:
        Refused: longer than `longest_wait_s`.
    """
    try:
        asked_s = Retry(retry_after_max=10**9).parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0
    if asked_s > patience.longest_wait_s:
        raise Refused(f"{_status(response)}, asks to come back in {asked_s:.0f} s")
    return asked_s


def _name_failure(error: Exception, patience: Patience) -> Refused | Interrupted:
    """One line about a failure on the way, without the address of a proxy, which may carry a password."""
    root = _root(error)
    reason = _reason(root)
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Refused(f"its certificate is not trusted ({reason}); see REQUESTS_CA_BUNDLE")
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return Refused("http_proxy or https_proxy is not an address")
    if isinstance(error, requests.TooManyRedirects):
        return Refused("redirects in a circle")
    if isinstance(error, ValueError):  # requests' errors about addresses
        return Refused(f"redirects to what is no web address ({type(error).__name__})")
    if isinstance(error, requests.exceptions.ProxyError):
        reason = f"the proxy of http_proxy or https_proxy failed ({reason})"
    elif isinstance(error, requests.ConnectTimeout):
        reason = f"no connection within {patience.connect_s:g} s"
    elif isinstance(error, requests.ReadTimeout | ReadTimeoutError):
        reason = f"stalled: no byte within {patience.stall_s:g} s"
    elif isinstance(root, IncompleteRead):
        reason = "the connection ended too early"
    else:
        reason = f"connection failed ({reason})"
    return Interrupted(reason)


def _root(error: BaseException) -> BaseException:
    """What first went wrong, below the layers that wrapped it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    message = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(message.split())
