"""Preparing: decoded once, the same bytes every time, and every fault named before anything is trained."""

import csv
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Resize

from lowbit_vit.data.arrays import MANIFEST, VIEW_SPLITS, Dataset, load_dataset
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.errors import Busy, DataError
from lowbit_vit.schema import file_lock
from lowbit_vit.schema.config import DataConfig, DigitsData, FolderData, Views
from lowbit_vit.schema.file_lock import hold

VIEWS = Views(image_size=16, eval_resize=18, train_resize=20, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def digits(views: Views = VIEWS) -> DigitsData:
    return DigitsData(source="digits", views=views, split_seed=0)


def folder_config(root: Path) -> FolderData:
    return FolderData(source="image_folder", views=VIEWS, root=str(root))


def prepare(config: DataConfig, folder: Path, workers: int = 1) -> Dataset:
    return prepare_dataset(config, folder=folder, root=Path(), workers=workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "prepared" / "demo"


def test_every_view_holds_every_image_as_torchvision_makes_it(image_folder: Path, out: Path) -> None:
    data = prepare(folder_config(image_folder), out, workers=2)
    assert data.num_classes == 2
    for split, images in data.eval_views.items():
        for row, name in enumerate(images.ids):
            original = default_loader(str(image_folder / split / name))
            expected = CenterCrop(VIEWS.image_size)(Resize(VIEWS.eval_resize)(original))
            assert np.array_equal(images.images[row], np.asarray(expected))
            assert data.class_names[images.labels[row]] == Path(name).parent.name
    for split, images in data.train_views.items():
        for row, name in enumerate(images.ids):
            square = CenterCrop(VIEWS.train_resize)(Resize(VIEWS.train_resize)(default_loader(str(image_folder / split / name))))
            assert np.array_equal(images.images[row], np.asarray(square))


def test_the_bytes_do_not_depend_on_the_number_of_workers_or_the_run(image_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "demo", tmp_path / "two" / "demo"
    prepare(folder_config(image_folder), one, workers=1)
    prepare(folder_config(image_folder), two, workers=2)
    assert contents(one) == contents(two)
    # The manifest and the split beside the arrays.
    assert len(contents(one)) == 2 + sum(len(splits) for splits in VIEW_SPLITS.values())


def test_preparing_again_touches_nothing(image_folder: Path, out: Path) -> None:
    first = prepare(folder_config(image_folder), out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    second = prepare(folder_config(image_folder), out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert first.content_sha256 == second.content_sha256


def test_a_changed_image_is_decoded_again(image_folder: Path, out: Path) -> None:
    first = prepare(folder_config(image_folder), out)
    ash, elm = image_folder / "test" / "ash" / "0.png", image_folder / "test" / "elm" / "0.png"
    ash.write_bytes(elm.read_bytes())
    second = prepare(folder_config(image_folder), out)
    assert first.content_sha256 != second.content_sha256
    assert len(contents(out)) == 7
    assert np.array_equal(second.eval_views["test"].images[0], second.eval_views["test"].images[4])


def test_the_split_is_written_beside_the_arrays_with_every_files_hash(image_folder: Path, out: Path) -> None:
    data = prepare(folder_config(image_folder), out)
    with (out / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split, images in data.eval_views.items():
        own = [row for row in rows if row["split"] == split]
        assert [row["file"] for row in own] == [f"{split}/{name}" for name in images.ids]
        assert [row["class"] for row in own] == [data.class_names[label] for label in images.labels]
    assert all(hashlib.sha256((image_folder / row["file"]).read_bytes()).hexdigest() == row["sha256"] for row in rows)


def test_an_image_in_two_splits_stops_the_stage(image_folder: Path, out: Path) -> None:
    train, test = image_folder / "train" / "ash" / "0.png", image_folder / "test" / "elm" / "copy.png"
    test.write_bytes(train.read_bytes())
    with pytest.raises(DataError, match=rf"^{test} \(split test\): the same file as {train} \(split train\); keep one of them$"):
        prepare(folder_config(image_folder), out)
    assert not out.exists()


def test_an_image_in_two_splits_in_two_formats_stops_the_stage(image_folder: Path, out: Path) -> None:
    train, test = image_folder / "train" / "ash" / "1.jpg", image_folder / "test" / "elm" / "copy.bmp"
    with Image.open(train) as image:
        image.save(test)
    with pytest.raises(DataError, match=rf"^{test} \(split test\): the same pixels as {train} \(split train\); keep one of them$"):
        prepare(folder_config(image_folder), out)
    assert not out.exists()


@pytest.mark.parametrize(("bits", "said"), [(10, True), (12, True), (14, True), (16, False), (5, False)])
def test_images_that_hold_few_of_16_bits_are_counted(
    image_folder: Path, out: Path, caplog: pytest.LogCaptureFixture, *, bits: int, said: bool
) -> None:
    for index in range(6):
        values = np.random.default_rng(index).integers(0, 2**bits, (40, 40), dtype=np.uint16 if bits > 8 else np.uint8)
        Image.fromarray(values).save(image_folder / "train" / "elm" / f"{index}.png")
    prepare(folder_config(image_folder), out)
    assert (f"{image_folder}: 6 of 6 images of 16 bits are dark, none of their values is above " in caplog.text) == said


def test_other_views_are_decoded_again(out: Path) -> None:
    prepare(digits(), out)
    wider = VIEWS.model_copy(update={"image_size": 18})
    assert prepare(digits(wider), out).eval_views["val"].images.shape == (120, 18, 18, 3)
    with pytest.raises(DataError, match=r"manifest\.json: was prepared with other data\.views \(image_size\); run lowbit-vit data demo"):
        load_dataset(out, VIEWS)


def test_a_changed_array_is_found(out: Path) -> None:
    prepare(digits(), out)
    path = next(out.glob("eval-test-*.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: sha256 [0-9a-f]{{16}}, expected"):
        prepare(digits(), out)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "half"], ids=["empty", "not an image", "truncated"])
def test_a_bad_image_is_named_and_what_was_prepared_before_stays(image_folder: Path, out: Path, content: bytes | str) -> None:
    prepare(digits(), out)
    before = contents(out)
    path = image_folder / "val" / "elm" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-100] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=rf"^{path}: .*; replace or remove it$"):
        prepare(folder_config(image_folder), out)
    assert contents(out) == before


def test_all_bad_images_are_logged_and_counted(image_folder: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [image_folder / "train" / "ash" / "0.png", image_folder / "test" / "elm" / "1.jpg"]
    for path in bad:
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=rf"^{bad[0]}: not an image; replace or remove it \(and 1 more, listed above\)"):
        prepare(folder_config(image_folder), out)
    assert all(str(path) in caplog.text for path in bad)
    assert not out.exists()


def test_a_full_disk_is_one_clear_line_and_what_was_prepared_before_stays(out: Path) -> None:
    prepare(digits(), out)
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match=f"^{out}: could not be written"):
            prepare(digits(VIEWS.model_copy(update={"image_size": 12})), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == before


def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "PATIENCE_S", 0.1)
    left = out.with_name(".demo.partial")
    left.mkdir(parents=True)
    with hold(out.with_name(".demo.lock"), named="", doing="data"):
        (left / "of-a-killed-run.npy").touch()
        with pytest.raises(Busy, match=rf"prepared/demo: held by process {os.getpid()} \(data\); wait for it or stop it"):
            prepare(digits(), out)
        assert [path.name for path in left.iterdir()] == ["of-a-killed-run.npy"]
    prepare(digits(), out)
    assert not left.exists()
    assert "of-a-killed-run.npy" not in contents(out)


MANY = """
import sys
from pathlib import Path
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.schema.config import FolderData

if __name__ == "__main__":
    config = FolderData.model_validate_json(sys.argv[1])
    prepare_dataset(config, folder=Path(sys.argv[2]), root=Path(), workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_interrupted_run_leaves_no_process_and_no_data_set(image_folder: Path, out: Path, tmp_path: Path, number: int) -> None:
    original = image_folder / "train" / "ash" / "1.jpg"
    for index in range(10, 4000):
        (original.parent / f"{index}.jpg").symlink_to(original)
    script = tmp_path / "many.py"
    script.write_text(MANY)
    command = [sys.executable, str(script), folder_config(image_folder).model_dump_json(), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(children) < 3 and time.monotonic() < deadline:  # two workers and multiprocessing's resource tracker
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends Ctrl-C to all of them
    else:
        process.kill()
    assert process.wait(60) != 0
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not (out / MANIFEST).exists()
    data = prepare(digits(), out)
    assert data.name == "digits"
    assert sorted(path.name for path in out.parent.iterdir()) == [".demo.lock", "demo"]
