"""Archives that try to write elsewhere, to fill the disk, or that are damaged: named in one line, and nothing is left."""

import fcntl
import gzip
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit_vit.data.archive import extract_tar
from lowbit_vit.errors import Busy, DataError
from tar_files import archive, entry

CONTENT = bytes(range(256)) * 200


def extract(path: Path, folder: Path) -> None:
    extract_tar(path, folder, most_bytes=1_000_000, most_members=20)


def refusal(path: Path, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        extract(path, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_an_archive_is_unpacked_without_its_modes_and_owners(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tgz", (entry("jpg", tarfile.DIRTYPE), b""), (entry("jpg/1.jpg"), b"one"), (entry("./jpg/sub/2.jpg"), b"two")
    )
    extract(path, tmp_path / "out")
    assert (tmp_path / "out" / "jpg" / "1.jpg").read_bytes() == b"one"
    assert (tmp_path / "out" / "jpg" / "sub" / "2.jpg").read_bytes() == b"two"
    assert (tmp_path / "out" / "jpg" / "1.jpg").stat().st_mode & 0o7111 == 0
    assert [child.name for child in (tmp_path / "out").iterdir()] == ["jpg"]


HOSTILE = {
    "..": entry("../evil"),
    "inner ..": entry("jpg/../../evil"),
    "absolute": entry("/tmp/evil"),
    "symbolic link": entry("evil", tarfile.SYMTYPE, "/etc"),
    "hard link": entry("evil", tarfile.LNKTYPE, "jpg/1.jpg"),
    "pipe": entry("evil", tarfile.FIFOTYPE),
    "character device": entry("evil", tarfile.CHRTYPE),
    "block device": entry("evil", tarfile.BLKTYPE),
    "unknown type": entry("evil", b"Z"),
    "two lines": entry("../line\nevil"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_member_is_refused_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"), (HOSTILE[kind], b""))
    message = refusal(path, tmp_path / "deep" / "out")
    assert message.startswith(f"{path}: member '")
    assert "evil'" in message
    assert message.endswith("not unpacked")
    assert list((tmp_path / "deep").rglob("*")) == [tmp_path / "deep" / "out"]


def test_a_link_and_a_file_through_it_write_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = entry("jpg", tarfile.SYMTYPE, str(tmp_path / "elsewhere"))
    refusal(archive(tmp_path / "a.tgz", (link, b""), (entry("jpg/evil"), b"x")), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list((tmp_path / "out").iterdir()) == []


def zeros(path: Path, count: int) -> Path:
    """A tar of one file of so many zeros, never whole in memory."""
    info = entry("jpg/zeros")
    info.size = count
    with gzip.open(path, "wb", compresslevel=1) as target:
        target.write(info.tobuf())
        for _ in range(count >> 20):
            target.write(bytes(1 << 20))
        target.write(bytes(10240))
    return path


def header_bomb(path: Path) -> Path:
    """A member whose name is 32 MiB long, in a header that tarfile reads whole."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 32 << 20
    with gzip.open(path, "wb", compresslevel=1) as target:
        target.write(info.tobuf())
        target.write(b"a" * info.size)
    return path


def sparse(path: Path) -> Path:
    """A member of a few bytes that says that it is 1 TiB with a hole."""
    info = entry("jpg/sparse")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(1 << 40),
        "GNU.sparse.name": "jpg/sparse",
    }
    return archive(path, (info, b"1\n0\n1\n".ljust(512, b"\0") + b"x"))


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "size": (lambda path: zeros(path, 64 << 20), "more than 1000000 bytes when unpacked; not unpacked"),
    "count": (lambda path: archive(path, *((entry(f"jpg/{i}"), b"") for i in range(21))), "more than 20 members; not unpacked"),
    "header": (header_bomb, "more than 1000000 bytes when unpacked; not unpacked"),
    "sparse": (sparse, "is neither a plain file nor a folder; not unpacked"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_costs_no_more_than_the_bound(tmp_path: Path, kind: str) -> None:
    make, said = BOMBS[kind]
    message = refusal(make(tmp_path / "a.tgz"), tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'a.tgz'}: ")
    assert message.endswith(said)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_bound_itself_is_allowed(tmp_path: Path) -> None:
    path = zeros(tmp_path / "a.tgz", 1 << 20)
    extract_tar(path, tmp_path / "out", most_bytes=512 + (1 << 20) + 10240, most_members=1)
    assert (tmp_path / "out" / "jpg" / "zeros").stat().st_size == 1 << 20


def broken(path: Path, change: Callable[[bytes], bytes]) -> Path:
    archive(path, (entry("jpg/1.jpg"), os.urandom(50_000)))
    path.write_bytes(change(path.read_bytes()))
    return path


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda whole: whole[:-300],
    "cut off in the checksum": lambda whole: whole[:-4],
    "wrong checksum": lambda whole: whole[:-8] + bytes(4) + whole[-4:],
    "not gzip": lambda whole: b"<html>" + whole,
    "rubbish inside": lambda whole: whole[:1000] + bytes(1000) + whole[2000:],
    "gzip of no tar": lambda _: gzip.compress(b"<html>" * 1000),
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_named_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    path = broken(tmp_path / "a.tgz", DAMAGE[kind])
    assert refusal(path, tmp_path / "out").startswith(f"{path}: not a whole tar.gz archive (")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_member_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"), (entry("jpg/1.jpg"), b"two"))
    assert "member 'jpg/1.jpg' comes twice" in refusal(path, tmp_path / "out")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out" / "jpg").mkdir(parents=True)
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"))
    assert refusal(path, tmp_path / "out").startswith(f"{tmp_path / 'out' / 'jpg'}: there already")
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "jpg"]


def test_another_process_that_unpacks_is_waited_for_by_the_user(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"))
    working = tmp_path / "out" / ".unpacking-a.tgz"
    working.mkdir(parents=True)
    held = os.open(working, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Busy, match="another process is unpacking there; wait for it to end"):
        extract(path, tmp_path / "out")
    assert working.is_dir()
    os.close(held)
    extract(path, tmp_path / "out")
    assert [child.name for child in (tmp_path / "out").iterdir()] == ["jpg"]


def test_after_sigkill_the_next_run_starts_clean(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", *((entry(f"jpg/{i}.jpg"), os.urandom(1_000_000)) for i in range(15)))
    code = "import sys, pathlib; from lowbit_vit.data.archive import extract_tar; a, b = map(pathlib.Path, sys.argv[1:])\n"
    code += "extract_tar(a, b, most_bytes=10**9, most_members=20)"
    working = tmp_path / "out" / ".unpacking-a.tgz" / "jpg"
    with subprocess.Popen([sys.executable, "-c", code, path, tmp_path / "out"], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not (working / "2.jpg").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [child.name for child in (tmp_path / "out").iterdir()] == [".unpacking-a.tgz"]
    extract_tar(path, tmp_path / "out", most_bytes=10**9, most_members=20)
    assert [child.name for child in (tmp_path / "out").iterdir()] == ["jpg"]
    assert len(list((tmp_path / "out" / "jpg").iterdir())) == 15
