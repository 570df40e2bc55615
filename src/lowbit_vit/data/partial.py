"""A file on its way here: NAME.part holds the bytes so far, NAME.part.json says what they belong to.

Whoever works on it holds a lock on NAME.part, which the system drops when the process ends in whatever way. So what lies there
unlocked was left by a run that was cut off, and the next one goes on from it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lowbit_vit.data.remote_files import Digest, RemoteFile
from lowbit_vit.errors import Busy


class Origin(BaseModel):
    """Which file the bytes are of, and which version of it at which address.

    Attributes:
        md5: of the whole file, as known beforehand.
        sha256: the same, or its first digits.
        url: the mirror that the first byte came from.
        total: bytes of the whole file as that mirror announced them, or None.
        etag: its strong entity tag, or None.
        last_modified: the date that it gave, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    md5: str | None
    sha256: str | None
    url: str
    total: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry (RFC 9110, 13.1.5)."""
        return self.etag or self.last_modified


class Partial:
    """The locked pair of files; `digest` is always that of the bytes on disk."""

    def __init__(self, path: Path, file: RemoteFile, descriptor: int) -> None:
        self.path = path
        self.file = file
        self.origin: Origin | None = None
        self.digest = Digest(file)
        self.pieced = False  # of more than one answer, so a wrong hash can be the fault of the seam
        self._descriptor = descriptor
        self._note = path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.digest.size

    def take_up(self) -> None:
        """Go on from what an earlier run left, or from nothing if that is of another file or does not say of which."""
        try:
            origin = Origin.model_validate_json(self._note.read_bytes())
        except (FileNotFoundError, ValidationError):
            return
        if (origin.md5, origin.sha256) != (self.file.md5, self.file.sha256):
            return
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "rb", closefd=False) as content:
            self.digest.read(content, f"check {self.path.name}")
        self.origin, self.pieced = origin, True

    def begin(self, origin: Origin) -> None:
        """Start from the first byte. The note is on disk before any byte that it describes."""
        self.restart()
        self._note.write_text(origin.model_dump_json() + "\n", encoding="utf-8")
        self.origin = origin

    def restart(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.origin, self.digest, self.pieced = None, Digest(self.file), False

    def append(self, block: bytes) -> None:
        """Write the next bytes to disk."""
        written = 0
        while written < len(block):
            written += os.write(self._descriptor, block[written:])
        self.digest.update(block)

    def publish(self, path: Path) -> None:
        """Give the finished file its name. A note that a crash leaves behind is removed by the next run."""
        os.fsync(self._descriptor)
        self.path.rename(path)
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove both files."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


@contextmanager
def hold_partial(path: Path, file: RemoteFile) -> Iterator[Partial]:
    """Lock `path`.part, creating it; if nothing is in it at the end, it is removed.

    Raises:
        Busy: another process is fetching this file.
        OSError: the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    descriptor = _lock(part)
    partial = Partial(part, file, descriptor)
    try:
        yield partial
    finally:
        if os.fstat(descriptor).st_size == 0:
            partial.discard()
        os.close(descriptor)


def has_leftovers(path: Path) -> bool:
    """Whether `path`.part or its note lies there."""
    part = path.with_name(f"{path.name}.part")
    return part.exists() or part.with_name(f"{part.name}.json").exists()


def _lock(part: Path) -> int:
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, its holder may have given the file its final name, or removed it.
            if part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Busy(f"{part}: another process is fetching this file; wait for it to end") from None
        except FileNotFoundError:  # between the two looks
            pass
        os.close(descriptor)
