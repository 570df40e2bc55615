"""Fetching from a real server on the loopback that does what servers get wrong: one clear line, and the next run recovers."""

import gzip
import hashlib
import logging
import os
import resource
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pooch
import pytest
import requests
import trustme

import loopback
from loopback import Answer, Loopback, serving
from lowbit_vit.data import download
from lowbit_vit.data.download import RETRIES, fetch, fetch_flowers, fetch_weights, unpack
from lowbit_vit.data.remote_files import FLOWERS, WEIGHTS, Licence, RemoteFile
from lowbit_vit.errors import DataError, Unavailable
from tar_files import archive, entry

SIZE = 1 << 20
HALF = SIZE // 2
CONTENT = os.urandom(SIZE)
OLD = bytes(SIZE)
LICENCE = Licence("CC0-1.0", "made up for a test", "https://example.org")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("LOWBIT_VIT_OFFLINE", raising=False)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pooch would have waited, one entry a retry."""
    waited: list[float] = []
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(CONTENT) as running:
        yield running


def known(*addresses: str, content: bytes = CONTENT, name: str = "file.bin") -> RemoteFile:
    urls = tuple(f"{address}/{name}" for address in addresses)
    sha256 = hashlib.sha256(content).hexdigest()
    return RemoteFile(name, urls, LICENCE, size=len(content), md5=hashlib.md5(content).hexdigest(), sha256=sha256)


def vague(*addresses: str) -> RemoteFile:
    """As torchvision's weights: 8 digits of sha256 are all that is known."""
    return RemoteFile("file.bin", tuple(f"{address}/file.bin" for address in addresses), LICENCE, hashlib.sha256(CONTENT).hexdigest()[:8])


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def failure(file: RemoteFile, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        fetch(file, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{folder / file.name}: ")
    return message


def arrives(file: RemoteFile, folder: Path) -> None:
    """The file is there, right, and alone."""
    path = fetch(file, folder)
    assert path == folder / file.name
    assert path.read_bytes() == CONTENT
    assert names(folder) == [file.name]


# -------------------------------------------------------------------------------------------------------------- one file


@pytest.mark.parametrize("kind", [known, vague])
def test_a_file_arrives_whole_and_is_not_fetched_twice(server: Loopback, tmp_path: Path, kind: Callable[[str], RemoteFile]) -> None:
    for _ in range(2):
        arrives(kind(server.address), tmp_path / "in")
    assert [request.encoding for request in server.asked] == ["identity"]


# What the server does, what is said about it, and whether it is asked again.
FAULTS: dict[str, tuple[Answer, str, bool]] = {
    "404": (loopback.status(404), "404 Not Found", False),
    "403": (loopback.status(403), "403 Forbidden", False),
    "429": (loopback.status(429), "429 Too Many Requests", True),
    "500": (loopback.status(500), "500 Internal Server Error", True),
    "redirect loop": (loopback.redirect("/file.bin"), "Exceeded 30 redirects.", True),
    "redirect to a file": (loopback.redirect("file:///etc/passwd"), "No connection adapters were found for 'file:///etc/passwd'", True),
    "redirect to nowhere": (loopback.redirect("http://127.0.0.1:1/x"), "[Errno 111] Connection refused", True),
    "flipped byte": (loopback.flip_byte, f"md5 .*, {hashlib.md5(CONTENT).hexdigest()} expected", True),
    "truncates": (loopback.truncate(HALF), f"IncompleteRead({HALF} bytes read, {HALF} more expected)", True),
    "stalls": (loopback.stall(HALF), "timed out", True),
    "stalls from the start": (loopback.stay_silent, "timed out", True),
    "announces less": (loopback.announce(SIZE - 9), f"{SIZE - 9} bytes, {SIZE} expected", True),
    "announces nothing, sends less": (loopback.announce(None, CONTENT[:-9]), f"{SIZE - 9} bytes, {SIZE} expected", True),
    "announces nothing, sends more": (loopback.announce(None, CONTENT + b"more"), f"{SIZE + 4} bytes, {SIZE} expected", True),
    "login page": (loopback.announce(6, b"<html>"), f"6 bytes, {SIZE} expected", True),
    "hangs up": (loopback.hang_up, "Remote end closed connection without response", True),
    "no HTTP": (loopback.babble, "SSH-2.0-OpenSSH_9.6", True),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_leaves_nothing_and_the_next_run_recovers(
    server: Loopback, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    server.otherwise, said, again = FAULTS[fault]
    if "stalls" in fault:
        monkeypatch.setattr(download, "TIMEOUT_S", (5.0, 0.25))
    message = failure(known(server.address), tmp_path)
    start, _, end = said.partition(".*")
    assert f"could not be fetched from {server.address}/file.bin: {start}" in message
    assert end in message
    assert message.endswith("; try again, or put the file there by hand")
    assert waits == ([1, 2, 3] if again else [])
    assert names(tmp_path) == []
    server.otherwise = loopback.serve
    monkeypatch.undo()
    arrives(known(server.address), tmp_path)


def test_the_first_digits_of_a_hash_are_enough_to_refuse(server: Loopback, tmp_path: Path) -> None:
    server.otherwise = loopback.flip_byte
    assert f", {hashlib.sha256(CONTENT).hexdigest()[:8]} expected" in failure(vague(server.address), tmp_path)
    assert names(tmp_path) == []


def test_a_passing_fault_is_passed_over(server: Loopback, tmp_path: Path, waits: list[float]) -> None:
    server.script = [loopback.status(503), loopback.truncate(HALF), loopback.flip_byte]
    arrives(known(server.address), tmp_path)
    assert len(server.asked) == 1 + RETRIES
    assert waits == [1, 2, 3]


def test_mirrors_are_tried_in_order(server: Loopback, tmp_path: Path) -> None:
    with serving(CONTENT) as second, serving(CONTENT) as third:
        server.otherwise = loopback.status(404)
        arrives(known("http://127.0.0.1:1", server.address, second.address, third.address), tmp_path)
        assert [len(one.asked) for one in (server, second, third)] == [1, 1, 0]


def test_a_mirror_with_another_file_cannot_spoil_the_good_one(server: Loopback, tmp_path: Path) -> None:
    with serving(OLD) as bad:
        arrives(known(bad.address, server.address), tmp_path)


def test_every_mirror_is_named_with_what_was_wrong(server: Loopback, tmp_path: Path) -> None:
    with serving(CONTENT) as second:
        server.otherwise, second.otherwise = loopback.status(404), loopback.flip_byte
        message = failure(known(server.address, second.address), tmp_path)
    assert f"{server.address}/file.bin: 404 Not Found; {second.address}/file.bin: md5 " in message


def test_a_redirect_to_another_host_is_followed(server: Loopback, tmp_path: Path) -> None:
    with serving(b"") as front:
        front.otherwise = loopback.redirect(f"{server.address.replace('127.0.0.1', 'localhost')}/store/abc")
        arrives(known(front.address), tmp_path)


def test_progress_has_amount_rate_and_the_files_name(server: Loopback, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arrives(known(server.address), tmp_path)
    shown = capfd.readouterr().err
    assert "100%" in shown
    assert "1.05M/1.05M" in shown
    assert "B/s" in shown


@pytest.mark.parametrize("content", [CONTENT[:-1], OLD, b""], ids=["short", "other", "empty"])
def test_a_file_that_is_there_but_differs_is_refused_and_kept(server: Loopback, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.bin").write_bytes(content)
    assert failure(known(server.address), tmp_path).endswith("expected; delete it and fetch it again")
    assert (tmp_path / "file.bin").read_bytes() == content
    assert server.asked == []


def test_offline_names_the_file_and_where_to_put_it(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBIT_VIT_OFFLINE", "1")
    file = known(server.address)
    said = f"missing, and LOWBIT_VIT_OFFLINE is set; put the file of {server.address}/file.bin there by hand, or unset LOWBIT_VIT_OFFLINE"
    assert failure(file, tmp_path / "in") == f"{tmp_path / 'in' / 'file.bin'}: {said}"
    assert not (tmp_path / "in").exists()
    (tmp_path / "file.bin").write_bytes(CONTENT)
    arrives(file, tmp_path)
    (tmp_path / "file.bin").write_bytes(OLD)
    assert "md5 " in failure(file, tmp_path)
    assert server.asked == []


def test_a_full_disk_is_one_line_and_leaves_nothing(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[requests.Response] = []

    def get(*given: Any, **options: Any) -> requests.Response:
        answers.append(requests.api.get(*given, **options))
        return answers[-1]

    monkeypatch.setattr(requests, "get", get)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        message = failure(known(server.address), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"{tmp_path / 'file.bin'}: could not be written (File too large); make room or choose another folder"
    assert names(tmp_path) == []
    assert [answer.raw.closed for answer in answers] == [True]


def test_a_folder_that_is_a_file_is_named(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    assert "could not be written (" in failure(known(server.address), tmp_path / "in")


def test_threads_that_fetch_at_once_leave_one_right_file(server: Loopback, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(known(server.address), tmp_path)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arrives(known(server.address), tmp_path)


# ------------------------------------------------------------------------------------------------- certificates and proxies


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def encrypted(authority: trustme.CA) -> Iterator[Loopback]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(CONTENT, context) as running:
        yield running


def test_an_unknown_certificate_is_refused(encrypted: Loopback, tmp_path: Path) -> None:
    message = failure(known(encrypted.address), tmp_path)
    assert "certificate verify failed" in message
    assert "see REQUESTS_CA_BUNDLE" in message
    assert encrypted.asked == []


def test_a_certificate_of_ones_own_authority_is_accepted(
    encrypted: Loopback, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with authority.cert_pem.tempfile() as bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        arrives(known(encrypted.address), tmp_path)


def test_a_proxy_is_used(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"") as proxy:
        proxy.otherwise = loopback.pass_on({"flowers.test": server.address})
        monkeypatch.setenv("http_proxy", proxy.address)
        arrives(known("http://flowers.test"), tmp_path)
        assert [request.path for request in proxy.asked] == ["http://flowers.test/file.bin"]


def test_no_proxy_goes_around_it(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"") as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        arrives(known(server.address), tmp_path)
        assert proxy.asked == []


def test_a_proxy_that_fails_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(b"") as proxy:
        monkeypatch.setenv("https_proxy", proxy.address.replace("http://", "http://user:secret@"))
        monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
        with caplog.at_level(logging.INFO):
            refused = failure(known("https://flowers.test"), tmp_path)
            gone = failure(known("http://flowers.test"), tmp_path)
        assert proxy.asked[0].path == "flowers.test:443"
    assert "the proxy of http_proxy or https_proxy failed (Tunnel connection failed: 407 Proxy Authentication Required)" in refused
    assert "the proxy of http_proxy or https_proxy failed ([Errno 111] Connection refused)" in gone
    assert "secret" not in refused + gone + caplog.text + "".join(capfd.readouterr())


# ------------------------------------------------------------------------------------------------------------------ archives


def refusal(path: Path, folder: Path) -> str:
    """Why an archive is not unpacked; nothing is left of it, there or elsewhere."""
    folder.mkdir(parents=True)
    before = sorted(folder.parents[1].rglob("*"))
    with pytest.raises(DataError) as caught:
        unpack(path, folder)
    assert sorted(folder.parents[1].rglob("*")) == before
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{path}: could not be unpacked")
    return str(caught.value)


def test_a_python_without_filters_unpacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(Unavailable, match=r"a\.tgz: Python 3\.\S+ cannot unpack it safely; use Python 3\.11\.4 or later$"):
        unpack(tmp_path / "a.tgz", tmp_path)


def test_an_archive_is_unpacked_without_its_modes_and_owners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive(
        tmp_path / "a.tgz", (entry("jpg", tarfile.DIRTYPE), b""), (entry("jpg/1.jpg"), b"one"), (entry("./jpg/sub/2.jpg"), b"two")
    )
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "jpg" / "1.jpg").read_bytes() == b"one"
    assert (tmp_path / "out" / "jpg" / "sub" / "2.jpg").read_bytes() == b"two"
    assert (tmp_path / "out" / "jpg" / "1.jpg").stat().st_mode & 0o7022 == 0
    assert (tmp_path / "out" / "jpg" / "1.jpg").stat().st_uid == os.getuid()
    assert names(tmp_path / "out") == ["jpg"]
    assert "unpack a.tgz" in capsys.readouterr().err


HOSTILE = {
    "..": entry("../evil"),
    "inner ..": entry("jpg/../../evil"),
    "symbolic link": entry("evil", tarfile.SYMTYPE, "/etc"),
    "link inside": entry("evil", tarfile.SYMTYPE, "jpg/1.jpg"),
    "hard link": entry("evil", tarfile.LNKTYPE, "jpg/1.jpg"),
    "pipe": entry("evil", tarfile.FIFOTYPE),
    "character device": entry("evil", tarfile.CHRTYPE),
    "block device": entry("evil", tarfile.BLKTYPE),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_member_is_refused_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"), (HOSTILE[kind], b""))
    assert "evil'" in refusal(path, tmp_path / "deep" / "out")


def test_an_absolute_name_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    unpack(archive(tmp_path / "a.tgz", (entry(f"{tmp_path}/evil"), b"x")), tmp_path / "out")
    assert names(tmp_path) == ["a.tgz", "out"]


def test_a_link_and_a_file_through_it_write_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = entry("jpg", tarfile.SYMTYPE, str(tmp_path / "elsewhere"))
    refusal(archive(tmp_path / "a.tgz", (link, b""), (entry("jpg/evil"), b"x")), tmp_path / "deep" / "out")
    assert names(tmp_path / "elsewhere") == []


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda whole: whole[:-300],
    "not gzip": lambda whole: b"<html>" + whole,
    "gzip of no tar": lambda _: gzip.compress(b"<html>" * 1000),
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_named_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), os.urandom(50_000)))
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    assert refusal(path, tmp_path / "deep" / "out").endswith("; delete it and fetch it again")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out" / "jpg").mkdir(parents=True)
    (tmp_path / "out" / "jpg" / "mine").touch()
    path = archive(tmp_path / "a.tgz", (entry("jpg/1.jpg"), b"one"))
    with pytest.raises(DataError, match="Directory not empty"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path / "out") == ["jpg"]
    assert names(tmp_path / "out" / "jpg") == ["mine"]


# ----------------------------------------------------------------------------------------------------- data sets and commands


@pytest.fixture
def small_flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Flowers-102 of one image under the real names, each file from a server of its own; the data folder."""
    tar = archive(tmp_path / "102flowers.tgz", (entry("jpg/image_00001.jpg"), os.urandom(2000)))
    contents = {file.name: tar.read_bytes() if file.name == tar.name else file.name.encode() for file in FLOWERS}
    with serving(contents["102flowers.tgz"]) as images, serving(b"imagelabels.mat") as labels, serving(b"setid.mat") as splits:
        addresses = (images.address, labels.address, splits.address)
        small = (known(address, content=contents[file.name], name=file.name) for file, address in zip(FLOWERS, addresses, strict=True))
        monkeypatch.setattr(download, "FLOWERS", tuple(small))
        yield tmp_path / "data"


def test_flowers_arrive_in_torchvisions_layout_with_their_terms(small_flowers: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert fetch_flowers(small_flowers) == small_flowers / "flowers-102"
            assert names(small_flowers / "flowers-102") == ["102flowers.tgz", "imagelabels.mat", "jpg", "setid.mat"]
            assert names(small_flowers / "flowers-102" / "jpg") == ["image_00001.jpg"]
    assert caplog.messages.count(f"Oxford Flowers-102: {LICENCE}") == 2


def test_weights_are_fetched_under_torchvisions_name_with_their_terms(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(WEIGHTS, "vit_b_16", known(server.address, name="vit.pth"))
    with caplog.at_level(logging.INFO):
        assert fetch_weights("vit_b_16", tmp_path / "raw") == tmp_path / "raw" / "vit.pth"
    assert f"vit.pth: {LICENCE}" in caplog.messages


def test_the_command_offline_ends_with_one_line_and_code_3_after_the_terms(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lowbit_vit", "fetch", "vit_l_16", "--to", str(tmp_path)],
        env={**os.environ, "LOWBIT_VIT_OFFLINE": "1", "COLUMNS": "1000"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 3
    assert run.stdout == ""
    terms, error = run.stderr.splitlines()
    assert str(WEIGHTS["vit_l_16"].licence) in terms
    assert error.startswith(f"lowbit-vit: {tmp_path / WEIGHTS['vit_l_16'].name}: missing, and LOWBIT_VIT_OFFLINE is set")


def test_the_command_interrupted_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(b"") as proxy:
        proxy.script = [loopback.stay_silent]
        run = subprocess.Popen(
            [sys.executable, "-m", "lowbit_vit", "fetch", "vit_b_16", "--to", str(tmp_path)],
            env={**os.environ, "https_proxy": proxy.address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not proxy.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert [request.path for request in proxy.asked] == ["download.pytorch.org:443"]
    assert (run.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "lowbit-vit: interrupted; run the same command again"
    assert names(tmp_path) == []
