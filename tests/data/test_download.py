"""Fetching from a real server on the loopback that does what servers get wrong: one clear line, and the next run recovers."""

import email.utils
import hashlib
import logging
import os
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

import loopback
from loopback import Answer, Loopback, serving
from lowbit_vit.data import download, remote_files
from lowbit_vit.data.download import fetch, fetch_flowers, fetch_weights
from lowbit_vit.data.mirror import Patience
from lowbit_vit.data.partial import hold_partial
from lowbit_vit.data.remote_files import FLOWERS, WEIGHTS, Licence, RemoteFile
from lowbit_vit.errors import Busy, DataError
from tar_files import archive, entry

SIZE = 1 << 20
HALF = SIZE // 2
CONTENT = os.urandom(SIZE)
# A loaded machine may be silent for a moment; what is meant to stall is given up sooner.
HASTY = Patience(tries=2, first_wait_s=0.01, longest_wait_s=5.0, connect_s=5.0, stall_s=5.0)
IMPATIENT = replace(HASTY, stall_s=0.25)
LICENCE = Licence("CC0-1.0", "made up for a test", "https://example.org")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("LOWBIT_VIT_OFFLINE", raising=False)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(CONTENT) as running:
        yield running


def known(*addresses: str, content: bytes = CONTENT, name: str = "file.bin") -> RemoteFile:
    urls = tuple(f"{address}/{name}" for address in addresses)
    sha256 = hashlib.sha256(content).hexdigest()
    return RemoteFile(name, urls, LICENCE, size=len(content), md5=hashlib.md5(content).hexdigest(), sha256=sha256)


def vague(*addresses: str, content: bytes = CONTENT) -> RemoteFile:
    """As torchvision's weights: a rounded size and 8 digits of sha256."""
    urls = tuple(f"{address}/file.bin" for address in addresses)
    return RemoteFile("file.bin", urls, LICENCE, size_mib=round(len(content) / 2**20, 3), sha256=hashlib.sha256(content).hexdigest()[:8])


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def failure(file: RemoteFile, folder: Path, patience: Patience = HASTY) -> str:
    with pytest.raises(DataError) as caught:
        fetch(file, folder, patience=patience)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{folder / file.name}: ")
    return message


def arrives(file: RemoteFile, folder: Path) -> None:
    """The file is there, right, and alone."""
    path = fetch(file, folder, patience=HASTY)
    assert path == folder / file.name
    assert path.read_bytes() == CONTENT
    assert names(folder) == [file.name]


@pytest.mark.parametrize("kind", [known, vague])
def test_a_file_arrives_whole_and_is_not_fetched_twice(server: Loopback, tmp_path: Path, kind: Callable[[str], RemoteFile]) -> None:
    for _ in range(2):
        arrives(kind(server.address), tmp_path / "in")
    assert server.ranges() == [None]


# What the server does, what is said about it, and whether bytes are kept for the next run.
FAULTS: dict[str, tuple[Answer, str, bool]] = {
    "404": (loopback.status(404), "404 Not Found", False),
    "403": (loopback.status(403), "403 Forbidden", False),
    "500": (loopback.status(500), "500 Internal Server Error", False),
    "503, back tomorrow": (loopback.status(503, Retry_After="86400"), "503 Service Unavailable, asks to come back in 86400 s", False),
    "redirect loop": (loopback.redirect("/file.bin"), "redirects in a circle", False),
    "redirect to a file": (loopback.redirect("file:///etc/passwd"), "redirects to what is no web address (InvalidSchema)", False),
    "redirect to nowhere": (loopback.redirect("http://127.0.0.1:1/x"), "connection failed (Connection refused)", False),
    "flipped byte": (loopback.flip_byte, f"md5 .*, {hashlib.md5(CONTENT).hexdigest()} expected", False),
    "truncates": (loopback.truncate(HALF), "the connection ended too early", True),
    "stalls": (loopback.stall(HALF), "stalled: no byte within 0.25 s", True),
    "stalls from the start": (loopback.stay_silent, "stalled: no byte within 0.25 s", False),
    "trickles": (loopback.trickle, "stalled: ", True),
    "announces less": (loopback.announce(SIZE - 9), f"announces {SIZE - 9} bytes, {SIZE} bytes expected", False),
    "announces more": (loopback.announce(SIZE + 9), f"announces {SIZE + 9} bytes, {SIZE} bytes expected", False),
    "announces nothing, sends less": (loopback.announce(None, CONTENT[:-9]), f"{SIZE - 9} bytes, {SIZE} bytes expected", False),
    "announces nothing, sends more": (loopback.announce(None, CONTENT + b"more"), f"sends more than {SIZE} bytes", False),
    "never ends": (loopback.endless, f"sends more than {SIZE} bytes", False),
    "login page": (loopback.announce(6, b"<html>"), f"announces 6 bytes, {SIZE} bytes expected", False),
    "a part of the whole": (loopback.wrong_range(f"bytes 0-9/{SIZE}"), "answers with a part", False),
    "hangs up": (loopback.hang_up, "connection failed (Remote end closed connection without response)", False),
    "no HTTP": (loopback.babble, "connection failed (SSH-2.0-OpenSSH_9.6", False),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_leaves_nothing_half_written_and_the_next_run_recovers(server: Loopback, tmp_path: Path, fault: str) -> None:
    answer, said, keeps = FAULTS[fault]
    server.otherwise = answer
    message = failure(known(server.address), tmp_path, IMPATIENT if said.startswith("stalled") else HASTY)
    start, _, end = said.partition(".*")
    assert f"could not be fetched from {server.address}/file.bin: {start}" in message
    assert end in message
    assert message.endswith("try again, or put the file there by hand") != keeps
    assert names(tmp_path) == (["file.bin.part", "file.bin.part.json"] if keeps else [])
    size = (tmp_path / "file.bin.part").stat().st_size if keeps else 0
    assert not keeps or f"({size} bytes are kept)" in message
    server.otherwise = loopback.serve
    server.asked.clear()
    arrives(known(server.address), tmp_path)
    assert server.ranges() == [f"bytes={size}-" if keeps else None]


def test_a_length_that_lies_within_a_rounded_size_is_found_by_the_end(server: Loopback, tmp_path: Path) -> None:
    server.script = [loopback.announce(SIZE + 9)]
    arrives(vague(server.address), tmp_path / "more")  # then 416: nothing is missing
    assert server.ranges() == [None, f"bytes={SIZE}-"]
    server.otherwise = loopback.announce(SIZE - 9)
    expected = hashlib.sha256(CONTENT).hexdigest()[:8]
    assert f", {expected} expected" in failure(vague(server.address), tmp_path / "less")
    assert names(tmp_path / "less") == []


def test_a_broken_transfer_goes_on_at_the_byte_where_it_stopped(server: Loopback, tmp_path: Path) -> None:
    server.script = [loopback.truncate(HALF), loopback.truncate(HALF + 1000)]
    arrives(known(server.address), tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert [request.if_range for request in server.asked] == [None, '"first"', '"first"']


def test_a_transfer_that_gains_ground_is_not_given_up(server: Loopback, tmp_path: Path) -> None:
    server.script = [loopback.truncate(SIZE // 4 * part) for part in (1, 2, 3)]  # one more than HASTY's tries
    arrives(known(server.address), tmp_path)
    assert len(server.asked) == 4


STARTS_AGAIN: dict[str, Answer] = {
    "ignores Range": loopback.ignore_range,
    "Content-Range of other bytes": loopback.wrong_range(f"bytes 0-{SIZE - 1}/{SIZE}"),
    "Content-Range of another size": loopback.wrong_range(f"bytes {HALF}-{SIZE}/{SIZE + 1}"),
    "Content-Range with a gap": loopback.wrong_range(f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}"),
    "Content-Range that is none": loopback.wrong_range("half of it"),
    "no Content-Range": loopback.wrong_range(""),
    "416 with another size": loopback.status(416, Content_Range="bytes */7"),
}


@pytest.mark.parametrize("kind", STARTS_AGAIN)
def test_an_answer_that_does_not_fit_the_seam_starts_from_the_first_byte(server: Loopback, tmp_path: Path, kind: str) -> None:
    server.script = [loopback.truncate(HALF), STARTS_AGAIN[kind]]
    arrives(known(server.address), tmp_path)
    assert server.ranges()[:2] == [None, f"bytes={HALF}-"]
    assert server.ranges()[2:] in ([], [None])


OLD = bytes(SIZE)
CHANGES: dict[str, tuple[str | None, str | None, Answer]] = {
    "tag tells, server starts over": ('"old"', '"new"', loopback.serve),
    "tag tells, server goes on": ('"old"', '"new"', loopback.ignore_if_range),
    "no tag": (None, None, loopback.serve),
    "same tag": ('"old"', '"old"', loopback.serve),
    "weak tag": ('W/"old"', 'W/"old"', loopback.serve),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_changes_between_attempts_is_never_pieced_together(server: Loopback, tmp_path: Path, kind: str) -> None:
    before, after, answer = CHANGES[kind]
    server.content, server.etag = OLD, before
    server.script = [loopback.truncate(HALF), loopback.change_to(CONTENT, after, answer)]
    arrives(known(server.address), tmp_path)


def test_a_part_of_another_version_is_known_by_its_tag(server: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.content, server.etag = OLD, '"old"'
    server.script = [loopback.truncate(HALF), loopback.change_to(CONTENT, '"new"', loopback.ignore_if_range)]
    arrives(known(server.address), tmp_path)
    assert f"answers with the part of another version when asked for bytes {HALF}-; starting from the first byte" in caplog.text


def test_a_weak_tag_is_not_sent_in_if_range(server: Loopback, tmp_path: Path) -> None:
    server.etag = 'W/"weak"'
    server.script = [loopback.truncate(HALF)]
    arrives(known(server.address), tmp_path)
    assert [request.if_range for request in server.asked] == [None, None]


def test_a_busy_server_is_asked_again_after_the_time_it_names(server: Loopback, tmp_path: Path) -> None:
    soon = email.utils.formatdate(time.time() + 2.0, usegmt=True)
    server.script = [
        loopback.status(503, Retry_After="1"),
        loopback.status(429, Retry_After=soon),
        loopback.status(503, Retry_After="soon"),
    ]
    fetch(known(server.address), tmp_path, patience=replace(HASTY, tries=4))
    times = [request.time_s for request in server.asked]
    assert times[1] - times[0] >= 1.0
    assert times[2] - times[0] >= 0.9  # an HTTP date has whole seconds


def test_waits_grow(server: Loopback, tmp_path: Path) -> None:
    server.otherwise = loopback.status(500)
    with pytest.raises(DataError):
        fetch(known(server.address), tmp_path, patience=Patience(tries=4, first_wait_s=0.05))
    times = [request.time_s for request in server.asked]
    assert len(times) == 4
    # At least half of 0.05, 0.1 and 0.2 s: the rest is chance.
    for number, (earlier, later) in enumerate(pairwise(times)):
        assert later - earlier >= 0.025 * 2**number


def test_mirrors_are_tried_in_order(server: Loopback, tmp_path: Path) -> None:
    with serving(CONTENT) as second, serving(CONTENT) as third:
        server.otherwise = loopback.status(404)
        arrives(known("http://127.0.0.1:1", server.address, second.address, third.address), tmp_path)
        assert [len(one.asked) for one in (server, second, third)] == [1, 1, 0]


def test_the_next_mirror_goes_on_where_the_first_stopped(server: Loopback, tmp_path: Path) -> None:
    with serving(CONTENT) as second:
        server.script = [loopback.truncate(HALF)]
        second.etag = '"of its own"'
        arrives(known(server.address, second.address), tmp_path)
        assert second.ranges() == [f"bytes={HALF}-"]
        assert second.asked[0].if_range is None


def test_a_mirror_with_another_file_cannot_spoil_the_good_one(server: Loopback, tmp_path: Path) -> None:
    with serving(OLD) as bad:
        bad.script = [loopback.truncate(HALF)]
        arrives(known(bad.address, server.address), tmp_path)


def test_every_mirror_is_named_with_what_was_wrong(server: Loopback, tmp_path: Path) -> None:
    with serving(CONTENT) as second:
        server.otherwise, second.otherwise = loopback.status(404), loopback.flip_byte
        message = failure(known(server.address, second.address), tmp_path)
    assert f"{server.address}/file.bin: 404 Not Found; {second.address}/file.bin: md5 " in message


def test_a_redirect_to_another_host_is_followed(server: Loopback, tmp_path: Path) -> None:
    with serving(CONTENT) as front:
        front.otherwise = loopback.redirect(f"{server.address.replace('127.0.0.1', 'localhost')}/store/abc")
        server.script = [loopback.truncate(HALF)]
        arrives(known(front.address), tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]


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
    assert "its certificate is not trusted (" in message
    assert "see REQUESTS_CA_BUNDLE" in message
    assert encrypted.asked == []


def test_a_redirect_from_https_to_http_is_refused(
    server: Loopback, encrypted: Loopback, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with authority.cert_pem.tempfile() as bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        arrives(known(encrypted.address), tmp_path / "a")
        encrypted.otherwise = loopback.redirect(f"{server.address}/file.bin")
        assert "redirected from https to http" in failure(known(encrypted.address), tmp_path / "b")


def test_a_proxy_is_used(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"") as proxy:
        proxy.otherwise = loopback.pass_on({"flowers.test": server.address})
        monkeypatch.setenv("http_proxy", proxy.address)
        server.script = [loopback.truncate(HALF)]
        fetch(known("http://flowers.test"), tmp_path, patience=HASTY)
        assert [request.path for request in proxy.asked] == ["http://flowers.test/file.bin"] * 2
        assert server.ranges()[1] == f"bytes={HALF}-"


def test_no_proxy_goes_around_it(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"") as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        arrives(known(server.address), tmp_path)
        assert proxy.asked == []


def test_a_proxy_that_fails_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(b"") as proxy:
        monkeypatch.setenv("https_proxy", proxy.address.replace("http://", "http://user:secret@"))
        monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
        with caplog.at_level(logging.INFO):
            refused = failure(known("https://flowers.test"), tmp_path)
            gone = failure(known("http://flowers.test"), tmp_path)
        assert proxy.asked[0].path == "flowers.test:443"
    assert "the proxy of http_proxy or https_proxy failed (Tunnel connection failed: 407 Proxy Authentication Required)" in refused
    assert "the proxy of http_proxy or https_proxy failed (Connection refused)" in gone
    assert "secret" not in refused + gone + caplog.text


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


@pytest.mark.parametrize("content", [CONTENT[:-1], OLD, b""], ids=["short", "other", "empty"])
def test_a_file_that_is_there_but_differs_is_refused_and_kept(server: Loopback, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.bin").write_bytes(content)
    assert failure(known(server.address), tmp_path).endswith("expected; delete it and fetch it again")
    assert (tmp_path / "file.bin").read_bytes() == content
    assert server.asked == []


CHILD = """
import sys
from pathlib import Path
from lowbit_vit.data.download import fetch
from lowbit_vit.data.mirror import Patience
from lowbit_vit.data.remote_files import Licence, RemoteFile
from lowbit_vit.errors import Busy
url, size, sha256, folder = sys.argv[1:]
file = RemoteFile("file.bin", (url,), Licence("", "", ""), size=int(size), sha256=sha256)
try:
    fetch(file, Path(folder), patience=Patience(stall_s=20.0))
except Busy:
    sys.exit(6)
"""


def start_child(server: Loopback, folder: Path) -> "subprocess.Popen[bytes]":
    arguments = [f"{server.address}/file.bin", str(SIZE), hashlib.sha256(CONTENT).hexdigest(), str(folder)]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.DEVNULL)


def same(server: Loopback) -> RemoteFile:
    """The file that `start_child` fetches."""
    return RemoteFile("file.bin", (f"{server.address}/file.bin",), LICENCE, size=SIZE, sha256=hashlib.sha256(CONTENT).hexdigest())


def wait_for_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed_by_the_next(server: Loopback, tmp_path: Path, number: signal.Signals) -> None:
    server.script = [loopback.stall(HALF)]
    with start_child(server, tmp_path) as child:
        wait_for_size(tmp_path / "file.bin.part", HALF)
        child.send_signal(number)
    assert child.returncode == -number
    assert names(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    arrives(same(server), tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_the_second_of_two_processes_is_told_to_wait(server: Loopback, tmp_path: Path) -> None:
    server.script = [loopback.stall(HALF)]
    with start_child(server, tmp_path) as child:
        wait_for_size(tmp_path / "file.bin.part", HALF)
        with pytest.raises(Busy, match=r"file\.bin\.part: another process is fetching this file; wait for it to end"):
            fetch(same(server), tmp_path, patience=HASTY)
        assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:HALF]
        child.kill()


def test_processes_that_start_at_once_leave_one_right_file(server: Loopback, tmp_path: Path) -> None:
    children = [start_child(server, tmp_path) for _ in range(3)]
    codes = [child.wait(60) for child in children]
    assert 0 in codes
    assert set(codes) <= {0, 6}
    assert names(tmp_path) == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_threads_that_race_for_the_lock_leave_one_right_file(server: Loopback, tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def run() -> None:
        try:
            fetch(known(server.address), tmp_path, patience=HASTY)
        except Busy:
            pass
        except BaseException as error:  # noqa: BLE001 - shown below
            faults.append(error)

    for _ in range(10):
        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert names(tmp_path) == ["file.bin"]
        (tmp_path / "file.bin").unlink()


def leave(folder: Path, part: bytes, note: str | None) -> None:
    (folder / "file.bin.part").write_bytes(part)
    if note is not None:
        (folder / "file.bin.part.json").write_text(note)


def note_of(server: Loopback, folder: Path, content: bytes = CONTENT) -> str:
    """The note that a run leaves which was cut off."""
    server.script = [loopback.truncate(100)] * 2
    failure(known(server.address, content=content), folder)
    server.asked.clear()
    return (folder / "file.bin.part.json").read_text()


def test_what_another_file_left_is_not_taken_for_this_one(server: Loopback, tmp_path: Path) -> None:
    server.content = OLD
    note = note_of(server, tmp_path, OLD)
    server.content = CONTENT
    leave(tmp_path, OLD[:HALF], note)
    arrives(known(server.address), tmp_path)
    assert server.ranges() == [None]


@pytest.mark.parametrize("note", [None, "", '{"url": 1}'], ids=["none", "empty", "other"])
def test_a_part_that_does_not_say_what_it_is_of_is_not_used(server: Loopback, tmp_path: Path, note: str | None) -> None:
    leave(tmp_path, OLD[:HALF], note)
    arrives(known(server.address), tmp_path)
    assert server.ranges() == [None]


def test_a_part_that_was_damaged_on_disk_is_fetched_again(server: Loopback, tmp_path: Path) -> None:
    note = note_of(server, tmp_path)
    leave(tmp_path, OLD[:HALF], note)
    arrives(known(server.address), tmp_path)
    assert server.ranges() == [f"bytes={HALF}-", None]


def test_a_part_that_is_whole_only_needs_its_name(server: Loopback, tmp_path: Path) -> None:
    leave(tmp_path, CONTENT, note_of(server, tmp_path))
    arrives(known(server.address), tmp_path)
    assert server.asked == []


def test_leftovers_go_when_the_file_was_put_there_by_hand(server: Loopback, tmp_path: Path) -> None:
    note_of(server, tmp_path)
    (tmp_path / "file.bin").write_bytes(CONTENT)
    arrives(known(server.address), tmp_path)
    assert server.asked == []


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(server: Loopback, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        message = failure(known(server.address), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"{tmp_path / 'file.bin'}: could not be written (File too large); make room or choose another folder"
    server.asked.clear()
    arrives(known(server.address), tmp_path)
    assert server.ranges() == [f"bytes={HALF}-"]


def test_a_file_that_cannot_fit_is_refused_before_a_byte(server: Loopback, tmp_path: Path) -> None:
    giant = RemoteFile("file.bin", (f"{server.address}/file.bin",), LICENCE, size=10**18, md5="0" * 32)
    assert f"needs {10**18} bytes of disk, " in failure(giant, tmp_path)
    assert server.asked == []
    assert names(tmp_path) == []


def test_a_folder_that_is_a_file_is_named(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    assert "could not be written (" in failure(known(server.address), tmp_path / "in")


def test_progress_has_rate_and_time_left_and_starts_where_the_part_ends(
    server: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [loopback.truncate(HALF)]
    arrives(known(server.address), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("fetch file.bin")
    assert "524.3 kB/1.0 MB" in lines[0]
    assert "1.0 MB/1.0 MB, " in lines[-1]
    assert "/s" in lines[-1]


def test_a_lock_is_never_held_on_a_file_that_was_renamed(tmp_path: Path) -> None:
    file = known("http://127.0.0.1:1")
    path = tmp_path / "file.bin"
    with hold_partial(path, file) as first:
        first.append(CONTENT)
        first.publish(path)
        with hold_partial(path, file) as second:
            assert second.size == 0
    assert names(tmp_path) == ["file.bin"]


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


def test_the_command_interrupted_says_that_it_can_go_on(tmp_path: Path) -> None:
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
    assert err.splitlines()[-1] == "lowbit-vit: interrupted; what came is kept, run the same command again to go on"
    assert names(tmp_path) == []


def test_checking_a_large_file_shows_a_bar(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_files, "SHOWN_FROM", HALF)
    server.script = [loopback.truncate(HALF)] * 3
    failure(known(server.address), tmp_path)
    arrives(known(server.address), tmp_path)
    arrives(known(server.address), tmp_path)
    titles = [line.partition(" \N{BOX DRAWINGS HEAVY HORIZONTAL}")[0] for line in capsys.readouterr().err.splitlines()]
    assert titles[-3:] == ["check file.bin.part", "fetch file.bin", "check file.bin"]
