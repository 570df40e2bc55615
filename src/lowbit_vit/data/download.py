"""Files from the network: fetched whole or not at all, checked, unpacked without trusting the archive.

The `fetch` functions are all that touches the network, and only the command of that name calls them.
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import DataError

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT_S = 60  # without a byte


@dataclass(frozen=True)
class RemoteFile:
    """A file with known content.

    Attributes:
        url: where it is.
        name: its name here.
        size: bytes; None where the publisher gives none.
        md5: hex digest, or None.
        sha256: hex digest or its first digits, or None; one of the two hashes is always given.
    """

    url: str
    name: str
    size: int | None
    md5: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.md5 is None and self.sha256 is None:
            raise ValueError(f"{self.name}: needs md5 or sha256")


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
FLOWERS = (
    RemoteFile(f"{_OXFORD}/102flowers.tgz", "102flowers.tgz", 344862509, md5="52808999861908f626f3c1f4e79d11fa"),
    RemoteFile(f"{_OXFORD}/imagelabels.mat", "imagelabels.mat", 502, md5="e0620be6f572b9609742df49c70aed4d"),
    RemoteFile(f"{_OXFORD}/setid.mat", "setid.mat", 14989, md5="a5357ecc9cb78c4bef273ce3793fc85c"),
)


def _weights(file: str) -> RemoteFile:
    # torchvision's names end in the first 8 hex digits of the file's sha256.
    digest = file.removesuffix(".pth").rpartition("-")[2]
    return RemoteFile(f"https://download.pytorch.org/models/{file}", file, None, sha256=digest)


# torchvision's weights for 224-px input. IMAGENET1K_V1, except that vit_h_14 has none: IMAGENET1K_SWAG_LINEAR_V1 (CC-BY-NC 4.0).
WEIGHTS = {
    "vit_b_16": _weights("vit_b_16-c867db91.pth"),
    "vit_b_32": _weights("vit_b_32-d86f8d99.pth"),
    "vit_l_16": _weights("vit_l_16-852ce7e3.pth"),
    "vit_l_32": _weights("vit_l_32-c7638314.pth"),
    "vit_h_14": _weights("vit_h_14_lc_swag-c1eb923e.pth"),
}


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is there already; either way its size and hash are checked.

    Returns:
        The file's path. It appears there by a rename, complete and checked.

    Raises:
        DataError: the network failed, or size or hash differ; names the file and the address.
    """
    path = folder / file.name
    if path.exists():
        check_file(file, path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.NamedTemporaryFile(dir=folder, prefix=f".{file.name}.", delete=False)  # noqa: SIM115 - it outlives the block
    partial = Path(temporary.name)
    try:
        with temporary:
            _download(file, temporary)
        check_file(file, partial, name=path)
        partial.chmod(0o644)
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:  # URLError and a timeout are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(f"{path}: could not be fetched from {file.url} ({reason}); try again, or put the file there by hand") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_file(file: RemoteFile, path: Path, name: Path | None = None) -> None:
    """Compare a file on disk with what is known of it; `name` stands for the path in messages.

    Raises:
        DataError: its size or a hash differs.
    """
    shown = name or path
    advice = f"expected from {file.url}; delete it and fetch it again"
    if file.size is not None and path.stat().st_size != file.size:
        raise DataError(f"{shown}: {path.stat().st_size} bytes, {file.size} {advice}")
    for algorithm, expected in (("md5", file.md5), ("sha256", file.sha256)):
        if expected is None:
            continue
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=algorithm != "md5")).hexdigest()  # noqa: B023 - called here
        if not digest.startswith(expected):
            raise DataError(f"{shown}: {algorithm} {digest[: len(expected)]}, {expected} {advice}")


def extract_tar(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into a folder: regular files and folders only, each top entry whole or not at all.

    Raises:
        DataError: the archive is damaged; a member is a link or a device, or points out of the folder; or a top entry is
            there already. Nothing is left behind then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as name, tarfile.open(archive) as tar:
            members = tar.getmembers()
            with progress_bar(f"unpack {archive.name}", len(members), "files") as bar:
                for member in members:
                    _extract(tar, member, archive, Path(name))
                    bar.advance()
            entries = sorted(Path(name).iterdir())
            for entry in entries:
                if (folder / entry.name).exists():
                    raise DataError(f"{folder / entry.name}: there already; move it away to unpack {archive}")
            for entry in entries:
                entry.rename(folder / entry.name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: not a whole tar archive ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{archive}: could not be unpacked into {folder} ({error.strerror or error})") from error


def fetch_flowers(root: Path) -> Path:
    """Fetch Flowers-102 in torchvision's layout: `root/flowers-102/{imagelabels.mat, setid.mat, jpg/}`.

    Returns:
        `root/flowers-102`. What is there already is kept after a check of the files' hashes.

    Raises:
        DataError: as `fetch` and `extract_tar`.
    """
    folder = root / "flowers-102"
    paths = [fetch(file, folder) for file in FLOWERS]
    if not (folder / "jpg").is_dir():
        extract_tar(paths[0], folder)
    return folder


def fetch_weights(architecture: str, folder: Path) -> Path:
    """Fetch torchvision's ImageNet weights of one of `WEIGHTS`.

    Raises:
        DataError: as `fetch`.
    """
    return fetch(WEIGHTS[architecture], folder)


def _download(file: RemoteFile, target: IO[bytes]) -> None:
    request = urllib.request.Request(file.url, headers={"User-Agent": "lowbit-vit"})  # noqa: S310 - addresses are constants
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        length = file.size or response.length  # of the Content-Length header
        with progress_bar(f"fetch {file.name}", length, "bytes") as bar:
            while block := response.read(BLOCK):
                target.write(block)
                bar.advance(len(block))
        target.flush()
        os.fsync(target.fileno())


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{archive}: member {member.name!r} points out of its folder; not unpacked")
    path = folder / name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise DataError(f"{archive}: member {member.name!r} is neither a file nor a folder; not unpacked")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Owner, mode and times of the archive are not taken over.
    with content, path.open("xb") as target:
        shutil.copyfileobj(content, target, BLOCK)
