"""A new profile is whole, says what it starts from, and is refused where it could not run; nothing is overwritten."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from torchvision.models import get_model_weights

from lowbit_vit.data.remote_files import WEIGHTS
from lowbit_vit.errors import ConfigError, DataError, LowbitVitError
from lowbit_vit.new_profile import EVAL_RESIZE, IMAGENET_MEAN, IMAGENET_STD, NewProfile, write_profile
from lowbit_vit.schema.config import Device, Profile, TorchvisionVit, load_profile
from lowbit_vit.study.cells import cells

ROOT = Path(__file__).parents[1]
SMALL = {"name": "small", "patch_size": 4, "depth": 3, "heads": 2, "width": 64, "mlp_width": 64}
VIEWS = {"image_size": 8, "eval_resize": 9, "train_resize": 10, "mean": [0.3, 0.3, 0.3], "std": [0.4, 0.4, 0.4]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "profiles").mkdir(parents=True)
    for name in ("stages.yaml", "profiles/demo.yaml"):
        shutil.copy(ROOT / name, root / name)
    return root


def fill(root: Path, *splits: str) -> Path:
    """Ten images by their names of each of two classes, in each split."""
    for split in splits or (".",):
        for name in ("white ash", "冬青"):
            (root / split / name).mkdir(parents=True)
            for index in range(10):
                (root / split / name / f"{index}.jpg").touch()
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "my photos")


def ours(folder: Path, **changes: Any) -> Path:
    """Weights of ours, as far as a profile looks at them, with their card."""
    folder.mkdir(exist_ok=True)
    path = folder / "backbone.safetensors"
    save_file({"head.weight": np.zeros((7, 64), np.float32)}, path)
    card = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "profile": "demo", "backbone": {"architecture": SMALL}, "views": VIEWS}
    path.with_suffix(".json").write_text(json.dumps({key: value for key, value in (card | changes).items() if value is not None}))
    return path


def write(
    project: Path, data: Path, backbone: str | Path = "vit_b_16", *, name: str = "mine", device: Device = "cpu", **options: Any
) -> NewProfile:
    return write_profile(name, data=data, backbone=str(backbone), root=project, device=device, **options)


def entry(project: Path) -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load((project / "stages.yaml").read_text())["profiles"]["mine"]
    return found


@pytest.mark.parametrize("device", get_args(Device))
@pytest.mark.parametrize("architecture", WEIGHTS)
def test_every_torchvision_vit_gets_a_profile_whose_studies_can_be_laid_out(
    project: Path, photos: Path, architecture: str, device: Device
) -> None:
    made = write(project, photos, architecture, device=device)
    profile = load_profile(made.path)
    assert profile.backbone.architecture == architecture
    assert profile.device == device
    assert profile.backbone.checkpoint == f"data/raw/{WEIGHTS[architecture].name}" == entry(project)["weights"]
    assert entry(project)["images"] == str(photos)
    assert len(cells(profile, "variants")) == len(profile.variants.arms) >= 6
    assert cells(profile, "sensitivity")


@pytest.mark.parametrize("name", get_args(TorchvisionVit))
def test_views_are_those_that_torchvision_evaluates_the_checkpoint_with(name: TorchvisionVit) -> None:
    digest = WEIGHTS[name].sha256
    (weights,) = [member for member in get_model_weights(name) if str(digest) in member.url]
    views = weights.transforms()
    assert views.crop_size == [224]
    assert views.resize_size == [EVAL_RESIZE[name]]
    assert (tuple(views.mean), tuple(views.std)) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_profile_states_every_section_and_says_what_it_found(project: Path, photos: Path) -> None:
    text = write(project, photos).path.read_text()
    assert set(yaml.safe_load(text)) == set(Profile.model_fields) - {"container"}  # there is no image to pin yet
    assert "# 2 classes; train 12, val 2, test 6" in text
    assert text.startswith("# my photos with torchvision's vit_b_16 (licence ")
    assert "dvc repro report@mine" in text


@pytest.mark.parametrize(
    ("splits", "layout"), [(("train", "valid", "test"), "train-val-test"), (("train", "test"), "train-test"), ((), "classes")]
)
def test_the_layout_is_found(project: Path, tmp_path: Path, splits: tuple[str, ...], layout: str) -> None:
    data = load_profile(write(project, fill(tmp_path / "data", *splits)).path).data
    assert data.source == "image_folder"
    assert data.layout == layout


def test_a_folder_in_the_project_is_named_relative_to_it(project: Path) -> None:
    made = write(project, fill(project / "data" / "photos"), ours(project / "weights"))
    profile = load_profile(made.path)
    assert profile.data.source == "image_folder"
    assert profile.data.root == "data/photos"
    assert profile.backbone.checkpoint == "weights/backbone.safetensors"
    assert entry(project) == {"images": "data/photos", "weights": "weights/backbone.safetensors"}


def test_weights_of_ours_bring_their_architecture_views_and_hash(project: Path, photos: Path, tmp_path: Path) -> None:
    path = ours(tmp_path / "weights")
    profile = load_profile(write(project, photos, path).path)
    assert profile.backbone.weights == "ours"
    assert profile.backbone.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert profile.backbone.model_dump()["architecture"] == SMALL
    assert profile.data.views.model_dump(mode="json") == VIEWS
    # Of three blocks no more than two can be spared.
    assert profile.mixed.spared == (2,)


def test_weights_that_were_trained_say_that_they_may_have_seen_the_test_images(
    project: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(project, photos, ours(tmp_path / "weights"), name="first")
    assert not caplog.messages
    path = ours(tmp_path / "weights", training={"epochs": 5})
    write(project, photos, path)
    (said,) = caplog.messages
    assert said.startswith(f"{path}: trained on images of profile demo; if this folder holds them too, some may be test images here")


def test_an_image_size_scales_all_views(project: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    views = load_profile(write(project, photos, "vit_l_16", image_size=448).path).data.views
    assert (views.image_size, views.eval_resize, views.train_resize) == (448, 484, 512)
    assert "positions of weights made for 224 px will be resized" in caplog.text


def pth(folder: Path, name: str) -> tuple[Path, str]:
    path = folder / name
    path.write_bytes(b"what a .pth holds is not looked at here")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pth_file_is_taken_by_its_hash_from_its_name_or_as_given(project: Path, photos: Path, tmp_path: Path) -> None:
    plain, digest = pth(tmp_path, "mine.pth")
    named, _ = pth(tmp_path, f"vit_l_32-{digest[:8]}.pth")
    first = load_profile(write(project, photos, named, name="first").path).backbone
    second = load_profile(write(project, photos, plain, name="second", architecture="vit_b_32", sha256=digest[:12]).path).backbone
    assert (first.architecture, first.checkpoint_sha256) == ("vit_l_32", digest)
    assert (second.architecture, second.checkpoint_sha256) == ("vit_b_32", digest)


REFUSED: dict[str, tuple[dict[str, Any], type[LowbitVitError], str]] = {
    "a profile's name": ({"name": "demo"}, ConfigError, "profiles/demo.yaml: there already"),
    "a line's name": ({"name": "paper"}, ConfigError, "stages.yaml: has a line paper already"),
    "a wrong name": ({"name": "My photos"}, ConfigError, "name 'My photos' must be lower-case letters"),
    "a path as a name": ({"name": "../x"}, ConfigError, "name '../x' must be lower-case letters"),
    "no such folder": ({"data": Path("/nowhere")}, DataError, "/nowhere: no such folder"),
    "no such backbone": ({"backbone": "resnet50"}, ConfigError, "backbone 'resnet50' is not known; allowed: vit_b_16"),
    "an untiled image": ({"image_size": 225}, ConfigError, "--image-size 225 is not a multiple of the patch size 16; nearest: 224"),
    "a huge image": ({"image_size": 2048}, ConfigError, "--image-size 2048: key image_size"),
    "a hash without need": ({"sha256": "0" * 8}, ConfigError, "--architecture and --sha256 are of a .pth file"),
    "no such pth": ({"backbone": "/nowhere/vit_b_16-00000000.pth"}, DataError, "/nowhere/vit_b_16-00000000.pth: cannot be read"),
    "a pth of what": ({"backbone": "mine.pth"}, ConfigError, "mine.pth: say which ViT it is: --architecture vit_b_16|"),
    "a pth unhashed": ({"backbone": "vit_b_16.pth"}, ConfigError, "vit_b_16.pth: give the sha256 that its publisher states"),
    "a pth misread": (
        {"backbone": "vit_b_16.pth", "sha256": "XYZ"},
        ConfigError,
        "--sha256 'XYZ' must be at least 8 lower-case hex digits",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_become_a_profile_is_one_line_and_leaves_nothing(project: Path, photos: Path, case: str) -> None:
    changes, error, said = REFUSED[case]
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(error) as raised:
        write(project, **{"data": photos, "backbone": "vit_b_16", **changes})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


BAD_CARDS: dict[str, tuple[dict[str, Any], type[LowbitVitError], str]] = {
    "another file's": ({"sha256": "0" * 64}, DataError, "its card says 0000000000000000"),
    "an older version's": ({"views": None}, DataError, "backbone.json: key views: Field required; make the weights again"),
    "an unknown architecture's": ({"backbone": {"architecture": "resnet50"}}, DataError, "backbone.json: key"),
    "two blocks": ({"backbone": {"architecture": SMALL | {"depth": 2}}}, ConfigError, "a backbone of 2 blocks is too shallow"),
}


@pytest.mark.parametrize("case", BAD_CARDS)
def test_weights_of_ours_whose_card_does_not_fit_are_refused(project: Path, photos: Path, tmp_path: Path, case: str) -> None:
    changes, error, said = BAD_CARDS[case]
    with pytest.raises(error) as raised:
        write(project, photos, ours(tmp_path / "weights", **changes))
    assert said in str(raised.value)
    assert not (project / "profiles" / "mine.yaml").exists()


def test_weights_of_ours_without_a_card_or_damaged_are_refused(project: Path, photos: Path, tmp_path: Path) -> None:
    path = ours(tmp_path / "weights")
    path.write_bytes(path.read_bytes()[:-1])
    path.with_suffix(".json").write_text(
        json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "backbone": {"architecture": SMALL}, "views": VIEWS})
    )
    with pytest.raises(DataError, match="not weights of ours with their card"):
        write(project, photos, path)
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"backbone\.json: the card of the weights cannot be read"):
        write(project, photos, path)


def test_a_bad_folder_is_named_before_anything_is_written(project: Path, photos: Path) -> None:
    shutil.rmtree(photos / "冬青")
    with pytest.raises(DataError, match="one class, 'white ash'"):
        write(project, photos)
    assert sorted(path.name for path in (project / "profiles").iterdir()) == ["demo.yaml"]


def test_train_and_val_alone_say_what_to_rename(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no test; rename val to test \(val is then drawn from train\)"):
        write(project, fill(tmp_path / "data", "train", "val"))


def test_outside_of_a_project_it_says_where_to_go(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.yaml: not a file with a key profiles .*; run this in the project's folder"):
        write(tmp_path, photos)


def test_no_torch_is_loaded() -> None:
    code = "import sys, lowbit_vit.new_profile; print([name for name in ('torch', 'torchvision', 'ray') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
