"""The table of known files agrees with torchvision, with the images' copies here, and says on what terms each file is."""

import hashlib
import tarfile
from importlib.metadata import files, metadata
from pathlib import Path

import pytest
import torchvision

from lowbit_vit.data.remote_files import FLOWERS, FLOWERS_LICENCE, SWAG_LICENCE, TEACHER_LICENCE, WEIGHTS, Licence, RemoteFile, check_file
from lowbit_vit.errors import DataError
from lowbit_vit.recipe import teacher

COPIES = Path(__file__).parents[3] / "shared" / "flowers-102" / "train-val.tar"
FILES = {file.name: file for file in (*FLOWERS, *WEIGHTS.values())}


def test_flowers_files_are_those_that_torchvision_knows() -> None:
    flowers = torchvision.datasets.Flowers102
    assert {file.name: file.md5 for file in FLOWERS} == dict(flowers._file_dict.values())
    assert {file.urls[0] for file in FLOWERS} == {f"{flowers._download_url_prefix}{file.name}" for file in FLOWERS}


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_real_files_of_labels_and_splits_are_right_in_size_and_all_hashes(tmp_path: Path, name: str) -> None:
    if not COPIES.is_file():
        pytest.skip("no Flowers-102 images in ../shared/flowers-102")
    with tarfile.open(COPIES) as tar:
        tar.extract(f"flowers-102/{name}", tmp_path, filter="data")
    check_file(FILES[name], tmp_path / "flowers-102" / name)


@pytest.mark.parametrize("architecture", WEIGHTS)
def test_weights_are_torchvisions(architecture: str) -> None:
    file = WEIGHTS[architecture]
    theirs = next(weights for weights in torchvision.models.get_model_weights(architecture) if weights.url == file.urls[0])
    assert len(file.sha256) == 8
    assert file.name.endswith(f"-{file.sha256}.pth")
    assert ("license" in theirs.meta) == (file.licence == SWAG_LICENCE)


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_its_terms_and_comes_over_https(name: str) -> None:
    file = FILES[name]
    assert file.licence.name in {"not stated", "CC-BY-NC-4.0"}
    assert len(str(file.licence).splitlines()) == 1
    assert file.licence.source.startswith("https://")
    assert all(url.startswith("https://") and url.endswith(f"/{name}") for url in file.urls)
    assert len(set(file.urls)) == len(file.urls)


def test_flowers_have_mirrors_and_no_licence_is_invented() -> None:
    assert all(len(file.urls) == 3 for file in FLOWERS)
    assert FLOWERS_LICENCE.name == "not stated"


@pytest.mark.skipif(teacher._MISSING is not None, reason="the teacher's packages are not installed")
def test_the_teachers_terms_are_those_of_its_package() -> None:
    package = metadata(teacher.PACKAGE)
    assert package["License"] == "UNKNOWN"
    assert package["Version"] in TEACHER_LICENCE.source
    # Its LICENSE file is the only place with a licence.
    text = next(path for path in files(teacher.PACKAGE) or () if path.name == "LICENSE").read_text(encoding="utf-8")
    assert "Apache Software License 2.0" in text


def test_all_hashes_and_the_size_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    md5, sha256 = hashlib.md5(b"abc").hexdigest(), hashlib.sha256(b"abc").hexdigest()
    licence = Licence("not stated", "", "")
    check_file(RemoteFile("a", ("https://example.org/a",), licence, size=3, md5=md5, sha256=sha256[:8]), path)
    check_file(RemoteFile("a", ("https://example.org/a",), licence, sha256), path)
    for wrong, said in (
        ({"size": 4, "md5": md5, "sha256": sha256}, "3 bytes, 4 expected"),
        ({"size": 3, "md5": "0" * 32, "sha256": sha256}, f"md5 {md5}, {'0' * 32} expected"),
        ({"size": 3, "md5": md5, "sha256": "0" * 8}, f"sha256 {sha256[:8]}, 00000000 expected"),
        ({"sha256": "0" * 64}, f"sha256 {sha256}, {'0' * 64} expected"),
    ):
        with pytest.raises(DataError, match=f"{path}: {said}; delete it and fetch it again"):
            check_file(RemoteFile("a", ("https://example.org/a",), licence, **wrong), path)
    with pytest.raises(DataError, match="could not be read"):
        check_file(RemoteFile("a", ("https://example.org/a",), licence, sha256), tmp_path / "none")
