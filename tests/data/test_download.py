"""Fetching from a real server on the loopback, and archives that try to write elsewhere."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torchvision

from lowbit_vit.data import download
from lowbit_vit.data.download import FLOWERS, WEIGHTS, RemoteFile, extract_tar, fetch, fetch_flowers, fetch_weights
from lowbit_vit.errors import DataError

CONTENT = bytes(range(256)) * 5000


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `/cut/` promises twice the bytes that it sends."""

    def do_GET(self) -> None:
        if self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)

    def handler(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()
        thread.join()


def remote(address: str, content: bytes = CONTENT, name: str = "file.bin") -> RemoteFile:
    return RemoteFile(f"{address}/{name}", name, len(content), md5=hashlib.md5(content).hexdigest())


def test_a_file_arrives_whole_and_is_not_fetched_twice(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    path = fetch(remote(address), tmp_path / "in")
    assert path.read_bytes() == CONTENT
    (folder / "file.bin").unlink()
    assert fetch(remote(address), tmp_path / "in") == path
    assert [entry.name for entry in (tmp_path / "in").iterdir()] == ["file.bin"]


def test_a_prefix_of_sha256_is_enough_and_checked(served: tuple[str, Path], tmp_path: Path) -> None:
    url = f"{served[0]}/file.bin"
    prefix = hashlib.sha256(CONTENT).hexdigest()[:8]
    assert fetch(RemoteFile(url, "a", None, sha256=prefix), tmp_path).read_bytes() == CONTENT
    with pytest.raises(DataError, match=rf"{tmp_path / 'b'}: sha256 {prefix}, 00000000 expected from {url}"):
        fetch(RemoteFile(url, "b", None, sha256="00000000"), tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (lambda url: RemoteFile(f"{url}/file.bin", "file.bin", len(CONTENT), md5="0" * 32), rf"md5 [0-9a-f]{{32}}, {'0' * 32} expected"),
        (lambda url: RemoteFile(f"{url}/file.bin", "file.bin", 7, md5="0" * 32), f"{len(CONTENT)} bytes, 7 expected"),
        (lambda url: RemoteFile(f"{url}/none.bin", "file.bin", 7, md5="0" * 32), r"could not be fetched from .*/none\.bin \(.*not found"),
        (lambda url: RemoteFile(f"{url}/cut/file", "file.bin", None, md5="0" * 32), "could not be fetched from .*/cut/file|expected from"),
        (lambda _: RemoteFile("http://127.0.0.1:1/file", "file.bin", None, md5="0" * 32), "could not be fetched .*Connection refused"),
    ],
    ids=["md5", "size", "404", "cut off", "no server"],
)
def test_a_fetch_that_fails_names_file_and_address_and_leaves_nothing(
    served: tuple[str, Path], tmp_path: Path, file: Callable[[str], RemoteFile], message: str
) -> None:
    with pytest.raises(DataError, match=f"(?i){tmp_path / 'in' / 'file.bin'}: .*{message}"):
        fetch(file(served[0]), tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_file_that_is_there_but_differs_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"delete it and fetch it again"):
        fetch(remote("http://127.0.0.1:1"), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:-1]


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid = kind, target, 0o4777, 12345
    return info


def test_an_archive_is_unpacked_without_its_modes_and_owners(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tgz", (entry("jpg", tarfile.DIRTYPE), b""), (entry("jpg/1.jpg"), b"one"), (entry("./jpg/sub/2.jpg"), b"two")
    )
    extract_tar(path, tmp_path / "out")
    assert (tmp_path / "out" / "jpg" / "1.jpg").read_bytes() == b"one"
    assert (tmp_path / "out" / "jpg" / "sub" / "2.jpg").read_bytes() == b"two"
    assert (tmp_path / "out" / "jpg" / "1.jpg").stat().st_mode & 0o7111 == 0
    assert [child.name for child in (tmp_path / "out").iterdir()] == ["jpg"]


@pytest.mark.parametrize(
    "member",
    [
        entry("../evil"),
        entry("jpg/../../evil"),
        entry("/tmp/evil"),
        entry("evil", tarfile.SYMTYPE, "/etc"),
        entry("evil", tarfile.LNKTYPE, "jpg/1.jpg"),
        entry("evil", tarfile.FIFOTYPE),
        entry("evil", tarfile.CHRTYPE),
    ],
    ids=["..", "inner ..", "absolute", "symbolic link", "hard link", "pipe", "device"],
)
def test_a_hostile_member_is_refused_and_nothing_is_left(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"), (member, b""))
    with pytest.raises(DataError, match=f"{path}: member '.*evil' .*not unpacked"):
        extract_tar(path, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").rglob("*")) == [tmp_path / "deep" / "out"]


def test_a_cut_off_archive_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), CONTENT))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=f"{path}: not a whole tar archive"):
        extract_tar(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out" / "jpg").mkdir(parents=True)
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"))
    with pytest.raises(DataError, match=f"{tmp_path / 'out' / 'jpg'}: there already"):
        extract_tar(path, tmp_path / "out")


def test_flowers_arrive_in_torchvisions_layout(served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = served
    archive(folder / "102flowers.tgz", (entry("jpg/image_00001.jpg"), b"one"))
    for name in ("imagelabels.mat", "setid.mat"):
        (folder / name).write_bytes(name.encode())
    small = tuple(remote(address, (folder / file.name).read_bytes(), file.name) for file in FLOWERS)
    monkeypatch.setattr(download, "FLOWERS", small)
    for _ in range(2):
        assert fetch_flowers(tmp_path / "data") == tmp_path / "data" / "flowers-102"
        assert (tmp_path / "data" / "flowers-102" / "jpg" / "image_00001.jpg").read_bytes() == b"one"
        assert (tmp_path / "data" / "flowers-102" / "setid.mat").read_bytes() == b"setid.mat"


def test_flowers_files_are_those_that_torchvision_knows() -> None:
    theirs = dict(torchvision.datasets.Flowers102._file_dict.values())
    assert {file.name: file.md5 for file in FLOWERS} == theirs


def test_weights_are_fetched_under_torchvisions_name(served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = RemoteFile(f"{served[0]}/file.bin", "vit.pth", None, sha256=hashlib.sha256(CONTENT).hexdigest()[:8])
    monkeypatch.setitem(WEIGHTS, "vit_b_16", small)
    assert fetch_weights("vit_b_16", tmp_path / "raw") == tmp_path / "raw" / "vit.pth"


@pytest.mark.parametrize("architecture", WEIGHTS)
def test_weights_are_torchvisions(architecture: str) -> None:
    known = {weights.url for weights in torchvision.models.get_model_weights(architecture)}
    file = WEIGHTS[architecture]
    assert file.url in known
    assert file.sha256 is not None
    assert file.name.endswith(f"-{file.sha256}.pth")
