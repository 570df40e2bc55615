"""The images and weights of a profile on a cluster's node: fetched once by their sha256, shared by all trials of that node.

No node is assumed to see the submitter's disk. A node keeps what it fetched below one folder,
LOWBIT_VIT_CACHE or ~/.cache/lowbit-vit, and each unit works in a workspace of its own there, made of hard links:

objects/<sha256>     a file's content: fetched in pieces, checked, put in place by a rename, read-only
units/<unit>/        data/prepared/<profile>, checkpoints/<profile>, reports/<profile>; gone when the unit ends
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lowbit_vit.data.arrays import MANIFEST, read_manifest
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.file_lock import temporary_folder
from lowbit_vit.schema.machine import environment_number
from lowbit_vit.schema.record import file_digest
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.resume import starting_weights, weights_sha256

CACHE = "LOWBIT_VIT_CACHE"
CACHE_GIB = "LOWBIT_VIT_CACHE_GIB"
_DEFAULT_GIB = 50.0
# What travels in one piece, so that neither side ever holds a whole checkpoint.
PIECE_BYTES = 32 * 2**20
# Files whose content this process has compared with their hash: inode and time of change.
_checked: set[tuple[str, int, int]] = set()


@dataclass(frozen=True)
class NodeFile:
    """A file of the submitter's that a trial may read."""

    path: str  # below the workspace's root, with /
    sha256: str
    size: int


# ------------------------------------------------------------------------------------------------------- on the submitter


def list_files(workspace: Workspace, trials: Sequence[Trial]) -> tuple[NodeFile, ...]:
    """Everything below data/prepared/<profile> and checkpoints/<profile> that the trials may read.

    The hashes of arrays and weights are those that their manifest and cards name; the node compares them with what arrives.

    Raises:
        DataError: a manifest or a card is damaged.
    """
    known: dict[Path, str] = {}
    if (workspace.data / MANIFEST).exists():
        known = {workspace.data / entry.file: entry.sha256 for entry in read_manifest(workspace.data).arrays}
    wanted = {starting_weights(trial, workspace).name for trial in trials}
    found = []
    for path in sorted(path for folder in (workspace.data, workspace.checkpoints) for path in folder.rglob("*") if path.is_file()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            if path.name != workspace.backbone.name and path.name not in wanted:  # adapted with a seed that no trial has
                continue
            digest = weights_sha256(path) or file_digest(path)
        else:
            digest = known.get(path) or file_digest(path)
        found.append(NodeFile(path=path.relative_to(workspace.root).as_posix(), sha256=digest, size=path.stat().st_size))
    return tuple(found)


def read_pieces(path: Path) -> Iterator[bytes]:
    """A file's content, at most PIECE_BYTES at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


# ------------------------------------------------------------------------------------------------------------ on the node


def cache_folder() -> Path:
    """Where this node keeps what it fetched."""
    given = os.environ.get(CACHE)
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(home) if home else Path.home() / ".cache") / "lowbit-vit"


@contextmanager
def node_workspace(profile: str, files: Sequence[NodeFile], fetch: Callable[[NodeFile], Iterable[bytes]]) -> Iterator[Workspace]:
    """A workspace on this node with the given files in place; its reports are empty, and it is gone afterwards.

    Args:
        profile: its name.
        files: what must be there.
        fetch: gives a file's content in pieces; called only for what the node does not have yet.

    Raises:
        DataError: what arrived is not what its hash says, or the cache cannot be written.
    """
    cache = cache_folder()
    objects, units = cache / "objects", cache / "units"
    with ExitStack() as stack:
        try:
            for folder in (objects, units):
                folder.mkdir(parents=True, exist_ok=True)
            root = stack.enter_context(temporary_folder(units, prefix="tmp"))
        except OSError as error:
            raise DataError(f"{cache}: cannot be written ({error.strerror}); set {CACHE} on this node to a folder that can") from error
        # One unit at a time: the others of this node need the same files and would only fetch them twice.
        with FileLock(cache / "lock"):
            for part in objects.glob(".*"):  # half-fetched by a worker that was killed
                part.unlink(missing_ok=True)
            for file in files:
                content = _obtain(file, objects, fetch)
                place = root / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.hardlink_to(content)
            _evict(objects, keep={file.sha256 for file in files})
        yield Workspace(root=root, profile=profile)


def _obtain(file: NodeFile, objects: Path, fetch: Callable[[NodeFile], Iterable[bytes]]) -> Path:
    """The file's content in the cache, checked by this process at least once."""
    path = objects / file.sha256
    with suppress(FileNotFoundError):
        facts = path.stat()
        identity = (file.sha256, facts.st_ino, facts.st_mtime_ns)
        if identity in _checked or file_digest(path) == file.sha256:
            _checked.add(identity)
            probe = objects / ".now"  # the file system's own time, in which the other objects' times are
            probe.touch()
            os.utime(path, ns=(probe.stat().st_mtime_ns, facts.st_mtime_ns))  # last used; what is used least is evicted first
            return path
        path.unlink()  # damaged on this node's disk
    digest = hashlib.sha256()
    try:
        with tempfile.NamedTemporaryFile(dir=objects, prefix=".", delete=False) as part:
            for piece in fetch(file):
                digest.update(piece)
                part.write(piece)
            part.flush()
            os.fsync(part.fileno())
    except OSError as error:
        raise DataError(f"{objects}: {file.path} could not be written ({error.strerror}); free disk space on this node") from error
    arrived = Path(part.name)
    if digest.hexdigest() != file.sha256:
        arrived.unlink()
        raise DataError(
            f"{file.path}: sha256 {digest.hexdigest()[:16]} arrived, {file.sha256[:16]} expected: the submitter's file is damaged; "
            f"delete its folder and run dvc repro again"
        )
    arrived.chmod(0o444)
    arrived.replace(path)
    facts = path.stat()
    _checked.add((file.sha256, facts.st_ino, facts.st_mtime_ns))
    return path


def _evict(objects: Path, keep: set[str]) -> None:
    """Hold the cache below its limit; what a running unit has linked stays on the disk until that unit ends."""
    limit = environment_number(CACHE_GIB, _DEFAULT_GIB, least=0) * 2**30
    held = sorted(((path.stat(), path) for path in objects.glob("[!.]*")), key=lambda pair: pair[0].st_atime_ns)
    total = sum(facts.st_size for facts, _ in held)
    for facts, path in held:
        if total <= limit:
            return
        if path.name not in keep:
            path.unlink()
            total -= facts.st_size
