"""Downloads of the files in `remote_files`, by pooch: retries, a progress bar, and a name only for a whole and checked file.

Only the verb `fetch` downloads. Proxies come from http_proxy, https_proxy and no_proxy, certificates from REQUESTS_CA_BUNDLE;
LOWBIT_VIT_OFFLINE=1 forbids the network.
"""

import logging
import os
import platform
import tarfile
import tempfile
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pooch
import requests

from lowbit_vit import __version__
from lowbit_vit.data.progress import progress_bar
from lowbit_vit.data.remote_files import FLOWERS, WEIGHTS, RemoteFile, check_file, find_fault
from lowbit_vit.errors import DataError, Unavailable, first_line

log = logging.getLogger(__name__)

OFFLINE = "LOWBIT_VIT_OFFLINE"
BLOCK = 1 << 18  # bytes taken at a time
RETRIES = 3  # a mirror, 1, 2 and 3 s after a failure
TIMEOUT_S = (15.0, 60.0)  # for a connection, and for each next byte
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses worth a retry
MIB = 2**20


def fetch_flowers(root: Path) -> Path:
    """Fetch Flowers-102 in torchvision's layout: `root/flowers-102/{imagelabels.mat, setid.mat, jpg/}`.

    Returns:
        `root/flowers-102`. Files that are there already are kept after a check of their hashes.

    Raises:
        DataError: as `fetch` and `unpack`.
    """
    folder = root / "flowers-102"
    log.info("Oxford Flowers-102: %s", FLOWERS[0].licence)
    paths = [fetch(file, folder) for file in FLOWERS]
    if not (folder / "jpg").is_dir():
        unpack(paths[0], folder)
    return folder


def fetch_weights(architecture: str, folder: Path) -> Path:
    """Fetch torchvision's ImageNet weights of one of `WEIGHTS`.

    Raises:
        DataError: as `fetch`.
    """
    file = WEIGHTS[architecture]
    log.info("%s: %s", file.name, file.licence)
    return fetch(file, folder)


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is there already, and check its size and hashes.

    The mirrors are tried in their order, each with its retries. A download that is cut off starts from the first byte again.

    Returns:
        The file's path, where it appears by a rename, whole and checked.

    Raises:
        DataError: the file there differs; no mirror gave the right file; the disk is full; or the network is forbidden. Names
            the file, each address with its fault, and what to do.
    """
    path = folder / file.name
    if path.exists():
        check_file(file, path)
        return path
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise DataError(f"{path}: missing, and {OFFLINE} is set; put the file of {file.urls[0]} there by hand, or unset {OFFLINE}")
    faults = []
    for url in file.urls:
        store = pooch.create(folder, base_url="", registry={file.name: None}, urls={file.name: url}, retry_if_failed=RETRIES)
        try:
            store.fetch(file.name, downloader=partial(_download, file))
        except (requests.RequestException, ValueError, DataError) as error:
            faults.append(f"{url}: {_reason(error)}")
            log.warning("%s", faults[-1])
        except OSError as error:
            raise DataError(f"{path}: could not be written ({error.strerror or error}); make room or choose another folder") from error
        else:
            return path
    raise DataError(f"{path}: could not be fetched from {'; '.join(faults)}; try again, or put the file there by hand")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz archive into a folder; its top entries appear there by a rename, once all of them are on the disk.

    Not pooch's `Untar`, which follows links and `..` out of its folder on Python 3.11 (it passes no filter to `tarfile`).

    Raises:
        DataError: the archive is damaged, a member is a link or a device or lies outside of the folder, a top entry is there
            already, or the disk is full. Nothing of the archive stays in the folder then.
        Unavailable: Python is older than 3.11.4.
    """
    if not hasattr(tarfile, "data_filter"):
        raise Unavailable(f"{archive}: Python {platform.python_version()} cannot unpack it safely; use Python 3.11.4 or later")
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as working,
            archive.open("rb") as content,
            tarfile.open(fileobj=content, mode="r:gz") as tar,
            progress_bar(f"unpack {archive.name}", archive.stat().st_size / MIB, "MiB") as bar,
        ):
            done = 0
            for member in tar:
                tar.extract(member, working, filter=_plain)
                bar.advance((content.tell() - done) / MIB)
                done = content.tell()
            for entry in sorted(Path(working).iterdir()):
                entry.rename(folder / entry.name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: could not be unpacked ({first_line(error)}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{archive}: could not be unpacked into {folder} ({error.strerror or error})") from error


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """The filter `data` of tarfile, without links."""
    if not (member.isreg() or member.isdir()):
        raise tarfile.TarError(f"member {member.name!r} is neither a plain file nor a folder")
    return tarfile.data_filter(member, folder)


def _download(file: RemoteFile, url: str, output_file: str, store: pooch.Pooch) -> None:
    """Download and check; pooch itself compares whole hashes only, and torchvision publishes the first digits of one."""
    # Bytes as they lie on the server: some send .tgz files with the encoding gzip, which requests would take off.
    headers = {"User-Agent": f"lowbit-vit/{__version__}", "Accept-Encoding": "identity"}
    with ExitStack() as opened:  # pooch leaves a response open that it does not read to its end: of a bad status, or a full disk

        def remember(response: requests.Response, **_: object) -> None:
            opened.callback(response.close)

        options = {"timeout": TIMEOUT_S, "headers": headers, "hooks": {"response": remember}}
        try:
            pooch.HTTPDownloader(progressbar=True, chunk_size=BLOCK, **options)(url, output_file, store)
        except requests.HTTPError as error:
            if error.response.status_code in PASSING:
                raise
            raise DataError(str(error)) from error  # pooch retries no DataError
    if fault := find_fault(file, Path(output_file)):
        raise ValueError(fault)


def _reason(error: BaseException) -> str:
    """The root cause of a failure, below the layers that wrapped it, in one line."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    if isinstance(root, requests.HTTPError):
        return f"{root.response.status_code} {root.response.reason}"
    reason = " ".join(str(root).split() or [type(root).__name__])
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy of http_proxy or https_proxy failed ({reason})"
    return f"{reason}; see REQUESTS_CA_BUNDLE" if isinstance(error, requests.exceptions.SSLError) else reason
