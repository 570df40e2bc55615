"""Files from the network: resumed where a run was cut off, checked as they arrive, named only when whole and right.

The `fetch` functions are all that touches the network, and only the command of that name calls them. Proxies come from
http_proxy, https_proxy and no_proxy; LOWBIT_VIT_OFFLINE=1 forbids the network. Unpacking is in `archive`, what is known of each
file in `remote_files`, the half-done file in `partial`, one request in `mirror`.
"""

import logging
import os
import random
import shutil
import time
from pathlib import Path

import requests

from lowbit_vit.data.archive import extract_tar
from lowbit_vit.data.mirror import BLOCK, Interrupted, Patience, Refused, ask_mirror
from lowbit_vit.data.partial import Partial, has_leftovers, hold_partial
from lowbit_vit.data.remote_files import FLOWERS, WEIGHTS, RemoteFile, check_file
from lowbit_vit.errors import DataError

log = logging.getLogger(__name__)

OFFLINE = "LOWBIT_VIT_OFFLINE"


def fetch_flowers(root: Path) -> Path:
    """Fetch Flowers-102 in torchvision's layout: `root/flowers-102/{imagelabels.mat, setid.mat, jpg/}`.

    Returns:
        `root/flowers-102`. What is there already is kept after a check of the files' hashes.

    Raises:
        DataError, Busy: as `fetch` and `extract_tar`.
    """
    folder = root / "flowers-102"
    log.info("Oxford Flowers-102: %s", FLOWERS[0].licence)
    paths = [fetch(file, folder) for file in FLOWERS]
    if not (folder / "jpg").is_dir():
        # 8,189 JPEG files, 0.35 GB, which gzip makes no smaller.
        extract_tar(paths[0], folder, most_bytes=1 << 30, most_members=10_000)
    return folder


def fetch_weights(architecture: str, folder: Path) -> Path:
    """Fetch torchvision's ImageNet weights of one of `WEIGHTS`.

    Raises:
        DataError, Busy: as `fetch`.
    """
    file = WEIGHTS[architecture]
    log.info("%s: %s", file.name, file.licence)
    return fetch(file, folder)


def fetch(file: RemoteFile, folder: Path, *, patience: Patience | None = None) -> Path:
    """Download a file into a folder, unless it is there already; either way its size and hashes are checked.

    A download that is cut off, even by SIGKILL, leaves NAME.part and NAME.part.json, and the next call asks for the rest only.

    Returns:
        The file's path. It appears there by a rename, complete and checked.

    Raises:
        DataError: what is there differs; no mirror gave the right file; the disk is full; or the network is forbidden. Names
            the file, each address with what was wrong there, and what to do.
        Busy: another process is fetching it.
    """
    path = folder / file.name
    if path.exists():
        check_file(file, path)
        if not has_leftovers(path):
            return path
    elif os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise DataError(f"{path}: missing, and {OFFLINE} is set; put the file of {file.urls[0]} there by hand, or unset {OFFLINE}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_partial(path, file) as partial:
            if path.exists():  # since a moment ago, or next to what a killed run left
                check_file(file, path)
                partial.discard()
            else:
                partial.take_up()
                _transfer(file, path, partial, patience or Patience())
    except OSError as error:
        raise DataError(f"{path}: could not be written ({error.strerror or error}); make room or choose another folder") from error
    return path


def _transfer(file: RemoteFile, path: Path, partial: Partial, patience: Patience) -> None:
    """Go through the mirrors in order, again and again with growing waits, until the file is whole or none is left."""
    free = shutil.disk_usage(path.parent).free
    if free < file.sizes[0] - partial.size:
        raise DataError(f"{path}: needs {file.sizes[0] - partial.size} bytes of disk, {free} are free; make room")
    reasons: dict[str, str] = {}  # by address, the last one
    not_before = dict.fromkeys(file.urls, 0.0)  # of those that are not given up; time.monotonic
    idle_rounds, farthest = 0, partial.size
    with requests.Session() as session:
        session.max_redirects = 10
        while True:
            for url in list(not_before):
                time.sleep(max(0.0, not_before[url] - time.monotonic()))
                try:
                    ask_mirror(session, url, partial, patience)
                except Refused as error:
                    reasons[url] = str(error)
                    del not_before[url]
                except Interrupted as error:
                    reasons[url] = str(error)
                    not_before[url] = time.monotonic() + error.after_s
                else:
                    partial.publish(path)
                    return
                log.warning("%s: %s", url, reasons[url])
            idle_rounds = 0 if partial.size >= farthest + BLOCK else idle_rounds + 1
            farthest = max(farthest, partial.size)
            if not not_before or idle_rounds >= patience.tries:
                break
            wait_s = min(patience.longest_wait_s, patience.first_wait_s * 2 ** max(idle_rounds - 1, 0)) * random.uniform(0.5, 1)
            log.info("%s: %d bytes so far; again in %.1f s", path, partial.size, wait_s)
            time.sleep(wait_s)
    faults = "; ".join(f"{url}: {reasons[url]}" for url in file.urls)
    kept = f" ({partial.size} bytes are kept)" if partial.size else ""
    raise DataError(f"{path}: could not be fetched from {faults}; try again{kept}, or put the file there by hand")
