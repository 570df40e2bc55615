"""Unpacking without trusting the archive: regular files and folders only, inside the folder, within bounds, whole or not at all."""

import fcntl
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from lowbit_vit.data.progress import progress_bar
from lowbit_vit.errors import Busy, DataError

BLOCK = 1 << 20  # bytes copied at a time


def extract_tar(archive: Path, folder: Path, *, most_bytes: int, most_members: int) -> None:
    """Unpack a gzip-compressed tar archive into a folder; owners, modes and times of the archive are not taken over.

    Args:
        archive: the .tar.gz or .tgz.
        folder: where its top entries go; each appears by a rename.
        most_bytes: bytes of the uncompressed archive, headers included, beyond which it is refused while it is read: a bomb
            costs no more than this.
        most_members: files and folders beyond which it is refused.

    Raises:
        DataError: the archive is damaged or larger than allowed; a member is a link, a device or a sparse file, points out of
            the folder or comes twice; a top entry is there already; or the disk is full. Nothing is left behind then.
        Busy: another process is unpacking it.
    """
    try:
        with _working_folder(archive, folder) as working:
            _unpack(archive, working, most_bytes=most_bytes, most_members=most_members)
            entries = sorted(working.iterdir())
            for entry in entries:
                if (folder / entry.name).exists():
                    raise DataError(f"{folder / entry.name}: there already; move it away to unpack {archive}")
            for entry in entries:
                entry.rename(folder / entry.name)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{archive}: not a whole tar.gz archive ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{archive}: could not be unpacked into {folder} ({error.strerror or error})") from error


class _Bounded(gzip.GzipFile):
    """The uncompressed stream, up to a limit: tarfile would read a header of any size into memory."""

    def __init__(self, archive: Path, raw: IO[bytes], most_bytes: int) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._archive = archive
        self._most = most_bytes

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        if self.tell() > self._most:
            raise DataError(f"{self._archive}: more than {self._most} bytes when unpacked; not unpacked")
        return block


def _unpack(archive: Path, folder: Path, *, most_bytes: int, most_members: int) -> None:
    total, done = archive.stat().st_size, 0
    with (
        archive.open("rb") as raw,
        _Bounded(archive, raw, most_bytes) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
        progress_bar(f"unpack {archive.name}", total, "bytes") as bar,
    ):
        for count, member in enumerate(tar, start=1):
            if count > most_members:
                raise DataError(f"{archive}: more than {most_members} members; not unpacked")
            _extract(tar, member, archive, folder)
            bar.advance(raw.tell() - done)
            done = raw.tell()
        while content.read(BLOCK):  # to the end, where gzip has its checksum
            pass
        bar.advance(raw.tell() - done)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{archive}: member {member.name!r} points out of its folder; not unpacked")
    path = folder / name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise DataError(f"{archive}: member {member.name!r} is neither a plain file nor a folder; not unpacked")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise DataError(f"{archive}: member {member.name!r} comes twice; not unpacked")
    with content, path.open("xb") as target:
        shutil.copyfileobj(content, target, BLOCK)


@contextmanager
def _working_folder(archive: Path, folder: Path) -> Iterator[Path]:
    """An empty locked folder inside `folder`: what a killed run left in it is removed before, and it goes at the end."""
    working = folder / f".unpacking-{archive.name}"
    lock = _lock(working)
    try:
        for left_over in working.iterdir():
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()
        yield working
    finally:
        shutil.rmtree(working)
        os.close(lock)


def _lock(working: Path) -> int:
    """Lock a folder, making it if need be; the system drops the lock when the process ends in whatever way."""
    while True:
        working.mkdir(parents=True, exist_ok=True)
        lock = os.open(working, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise Busy(f"{working}: another process is unpacking there; wait for it to end") from None
        # Between opening and locking, its holder may have finished and removed it.
        if working.exists() and os.path.samestat(os.fstat(lock), working.stat()):
            return lock
        os.close(lock)
