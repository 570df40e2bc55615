"""A new profile is whole, says what it starts from, and is refused where it could not run; nothing is overwritten."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest.mock import ANY

import pytest
import torch
import yaml
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from lowbit_vit.data.remote_files import WEIGHTS
from lowbit_vit.errors import ConfigError, DataError, LowbitVitError, Unavailable
from lowbit_vit.model import vit
from lowbit_vit.model.checkpoint import save_state
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.new_profile import (
    EVAL_RESIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    YAML_WORDS,
    NewProfile,
    require_inputs,
    write_profile,
)
from lowbit_vit.schema.config import Device, Profile, SmallVit, TorchvisionVit, load_profile
from lowbit_vit.schema.workspace import Workspace
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


def ours(folder: Path, change: Callable[[dict[str, Tensor]], object] = id, **changes: Any) -> Path:
    """Weights of ours with their card, either of them changed."""
    folder.mkdir(exist_ok=True)
    path = folder / "backbone.safetensors"
    architecture = changes.get("backbone", {"architecture": SMALL})["architecture"]
    depth = min(3, architecture["depth"]) if isinstance(architecture, dict) else 3
    sizes = SmallVit.model_validate(SMALL | {"depth": depth})
    model = VisionTransformer(vit.architecture(sizes, 8), num_classes=7, attention="math", qkv="separate")
    state = model.state_dict()
    change(state)
    digest = save_state(state, path, {})
    card = {"sha256": digest, "profile": "demo", "backbone": {"architecture": SMALL}, "views": VIEWS}
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
    assert len(cells(profile, "variants")) == profile.measurement.processes * len(profile.variants.arms) >= 36
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


@pytest.fixture(scope="module")
def pth_bytes() -> bytes:
    """torchvision's ViT of 2 blocks for images of 96 px in patches of 32."""
    theirs = TorchvisionTransformer(image_size=96, patch_size=32, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=64, num_classes=3)
    file = io.BytesIO()
    torch.save({"model": theirs.state_dict(), "epoch": 1}, file)
    return file.getvalue()


@pytest.fixture
def small_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's names stand for small sizes."""
    for name in ("vit_b_32", "vit_l_32"):
        monkeypatch.setitem(vit.ARCHITECTURES, name, vit.Architecture(name, 224, 32, depth=2, heads=2, width=64, mlp_width=64))


def pth(folder: Path, name: str, content: bytes) -> tuple[Path, str]:
    path = folder / name
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("small_vits")
def test_the_image_size_is_that_of_the_positions(project: Path, photos: Path, tmp_path: Path, pth_bytes: bytes) -> None:
    path, digest = pth(tmp_path, "swag.pth", pth_bytes)
    views = load_profile(write(project, photos, path, architecture="vit_b_32", sha256=digest).path).data.views
    assert (views.image_size, views.eval_resize, views.train_resize) == (96, 110, 110)


@pytest.mark.usefixtures("small_vits")
def test_a_pth_file_is_taken_by_its_hash_from_its_name_or_as_given(project: Path, photos: Path, tmp_path: Path, pth_bytes: bytes) -> None:
    plain, digest = pth(tmp_path, "mine.pth", pth_bytes)
    named, _ = pth(tmp_path, f"vit_l_32-{digest[:8]}.pth", pth_bytes)
    first = load_profile(write(project, photos, named, name="first").path).backbone
    second = load_profile(write(project, photos, plain, name="second", architecture="vit_b_32", sha256=digest[:12]).path).backbone
    assert (first.architecture, first.checkpoint_sha256) == ("vit_l_32", digest)
    assert (second.architecture, second.checkpoint_sha256) == ("vit_b_32", digest)


REFUSED: dict[str, tuple[dict[str, Any], type[LowbitVitError], str]] = {
    "a profile's name": ({"name": "demo"}, ConfigError, "profiles/demo.yaml: there already"),
    "a line's name": ({"name": "paper"}, ConfigError, "stages.yaml: has a line paper already"),
    "a wrong name": ({"name": "My photos"}, ConfigError, "name 'My photos' must be lower-case letters"),
    "a path as a name": ({"name": "../x"}, ConfigError, "name '../x' must be lower-case letters"),
    **{word: ({"name": word}, ConfigError, f"name '{word}' is a word of YAML") for word in YAML_WORDS},
    "another suffix": ({"backbone": "stages.yaml"}, ConfigError, "stages.yaml: weights end in .pth (a torchvision ViT's state_dict)"),
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
    "another image size's": ({"views": VIEWS | {"image_size": 4}}, DataError, "image_size is 4, the weights' positions are of 8 px"),
    "another depth's": ({"backbone": {"architecture": SMALL | {"depth": 4}}}, DataError, "16 tensors missing (as blocks.3.norm1.weight)"),
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
    with pytest.raises(DataError, match="not a safetensors file"):
        write(project, photos, path)
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"backbone\.json: no such card, so backbone\.safetensors is not of this program; give a"):
        write(project, photos, path)
    path.unlink()
    with pytest.raises(DataError, match=r"backbone\.safetensors: no such file"):
        write(project, photos, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state["blocks.1.mlp.fc1.bias"].fill_(torch.nan),
            "entry 'blocks.1.mlp.fc1.bias' has 64 NaN or infinite values of 64",
        ),
        (lambda state: state.update({"norm.bias": torch.zeros(64, dtype=torch.int32)}), "entry 'norm.bias' is strided int32"),
        (lambda state: state.pop("head.weight"), "1 tensors missing (as head.weight)"),
        (
            lambda state: state.update({"position_embedding": torch.zeros(1, 4, 64)}),
            "positions of shape (1, 4, 64) are not those of a square",
        ),
    ],
)
def test_new_profile_and_doctor_look_into_the_weights(
    project: Path, photos: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    made = write(project, photos, ours(tmp_path / "weights"))
    require_inputs(load_profile(made.path), Workspace(root=project, profile="mine"))
    path = ours(tmp_path / "weights", change)
    with pytest.raises(DataError, match=re.escape(said)):
        write(project, photos, path, name="another")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made.path.write_text(re.sub(r"(checkpoint_sha256: )\S+", rf"\g<1>{digest}", made.path.read_text()))
    with pytest.raises(DataError, match=re.escape(said)):
        require_inputs(load_profile(made.path), Workspace(root=project, profile="mine"))


def test_doctor_says_that_weights_are_gone(project: Path, photos: Path, tmp_path: Path) -> None:
    made = write(project, photos, path := ours(tmp_path / "weights"))
    path.unlink()
    with pytest.raises(DataError, match=r"backbone\.safetensors: no such weights; correct backbone\.checkpoint in .*mine\.yaml"):
        require_inputs(load_profile(made.path), Workspace(root=project, profile="mine"))


OUTPUTS = ("data", "data/prepared", "data/prepared/mine", "checkpoints", "checkpoints/mine", "reports", "reports/mine/records/variants")


@pytest.mark.parametrize("kind", ["link", "file"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_that_dvc_cannot_keep_are_refused_before_anything_runs(
    project: Path, photos: Path, tmp_path: Path, output: str, kind: str
) -> None:
    (project / output).parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        (project / output).symlink_to(tmp_path / "elsewhere")
    else:
        (project / output).touch()
    said = f"{output}: is a link, and DVC keeps no outputs outside" if kind == "link" else f"{output}: is no folder"
    with pytest.raises(DataError, match=said):
        write(project, photos)
    with pytest.raises(DataError, match=said):
        require_inputs(load_profile(ROOT / "profiles" / "demo.yaml"), Workspace(root=project, profile="mine"))


def test_an_output_that_cannot_be_written_is_named(project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "checkpoints").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "checkpoints")
    with pytest.raises(DataError, match="checkpoints: cannot be written to, and a stage writes below it"):
        write(project, photos)


@pytest.mark.parametrize("output", ["data/prepared/mine", "checkpoints/mine"])
def test_what_lies_where_dvc_would_clear_is_not_lost(project: Path, photos: Path, output: str) -> None:
    (project / output).mkdir(parents=True)
    (project / output / "thesis.txt").touch()
    with pytest.raises(DataError, match=f"{output}: holds files, and DVC empties it"):
        write(project, photos)
    stage = "data" if "data" in output else "backbone"
    (project / "dvc.lock").write_text(f"stages:\n  {stage}@mine:\n")  # an output of an earlier profile of this name
    write(project, photos)


@pytest.mark.parametrize("place", [".", "data/prepared/mine/photos", "checkpoints"])
def test_images_are_no_output(project: Path, place: str) -> None:
    (project / place).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match=r"is or holds .*/mine, which a stage writes"):
        write(project, project / place)


def test_a_folder_whose_name_no_text_can_hold_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\\udcfcll': its name is not UTF-8"):
        write(project, fill(tmp_path / "m\udcfcll"))


@pytest.mark.parametrize("name", ["a # b: {c}", 'quo"te \\n', "tab\tline\nend", "nel\x85 ls\u2028 del\x7f bom\ufeff", "é 😀", "${key}"])
def test_a_folder_of_any_other_name_is_written_so_that_it_is_read(project: Path, tmp_path: Path, name: str) -> None:
    made = write(project, fill(tmp_path / name))
    data = load_profile(made.path).data
    assert data.source == "image_folder"
    assert data.root == entry(project)["images"] == str(tmp_path / name)


STAGES = {
    "four spaces": "profiles:\n    demo: {images: a, weights: b}\n",
    "a later key": "profiles:\n  demo: {images: a, weights: b}\n\nmore: 1\n",
    "a later comment": "profiles:\n  demo: {images: a, weights: b}\n# mine\n",
    "an entry in lines": "profiles:\n  demo:\n    images: a\n    weights: b\nmore: [1]\n",
    "no last line end": "profiles:\n  demo: {images: a, weights: b}",
    "no profile": "profiles:\n",
    "an earlier key": "more: 1\nprofiles:\n demo: {images: a, weights: b}\n",
    "line ends of Windows": "profiles:\r\n  demo: {images: a, weights: b}\r\n",
    "a byte order mark": "\ufeffprofiles:\n  demo: {images: a, weights: b}\n",
    "a document's start": "---\nprofiles:\n  demo: {images: a, weights: b}\n",
}


@pytest.mark.parametrize("kind", STAGES)
def test_stages_are_entered_as_the_file_is_written(project: Path, photos: Path, kind: str) -> None:
    (project / "stages.yaml").write_bytes(STAGES[kind].encode())
    before = yaml.safe_load(STAGES[kind])
    write(project, photos)
    after = yaml.safe_load((project / "stages.yaml").read_bytes())
    assert after.pop("profiles") == {**(before.pop("profiles") or {}), "mine": {"images": str(photos), "weights": ANY}}
    assert after == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"profiles: {demo: {images: a, weights: b}}\n", "key profiles is not written line by line; add to it by hand: mine: {images: "),
        (b"profiles: [demo]\n", "key profiles is ['demo'], not a mapping of profiles"),
        (b"stages: {}\n", "key profiles is 'missing', not a mapping of profiles"),
        (b"# f\xfcr\nprofiles:\n", "stages.yaml, line 1: not UTF-8; save it as UTF-8"),
        (b"profiles:\n demo: {\n", "not valid YAML"),
        (b"profiles:\n demo: {}\n demo: {}\n", "line 3: not valid YAML: key demo is given twice"),
    ],
)
def test_stages_that_cannot_be_added_to_stay_as_they_are(project: Path, photos: Path, content: bytes, said: str) -> None:
    (project / "stages.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        write(project, photos)
    assert (project / "stages.yaml").read_bytes() == content
    assert not (project / "profiles" / "mine.yaml").exists()


def test_doctor_says_what_dvc_lacks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, workspace = load_profile(ROOT / "profiles" / "demo.yaml"), Workspace(root=project, profile="demo")
    (project / ".dvc").mkdir()
    (project / ".dvc" / "config").touch()
    with pytest.raises(Unavailable, match="not a git repository, which DVC needs; run git init there"):
        require_inputs(demo, workspace)
    (project / ".git").mkdir()
    require_inputs(demo, workspace)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(Unavailable, match=r"user \d+ has no name, which DVC needs; set the environment variable USER"):
        require_inputs(demo, workspace)


def test_a_bad_folder_is_named_before_anything_is_written(project: Path, photos: Path) -> None:
    shutil.rmtree(photos / "冬青")
    with pytest.raises(DataError, match="one class, 'white ash'"):
        write(project, photos)
    assert sorted(path.name for path in (project / "profiles").iterdir()) == ["demo.yaml"]


def test_train_and_val_alone_say_what_to_rename(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no test; rename val to test \(val is then drawn from train\)"):
        write(project, fill(tmp_path / "data", "train", "val"))


def test_outside_of_a_project_it_says_where_to_go(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.yaml: no such file; run this in the project's folder, or name it with --root"):
        write(tmp_path, photos)


def test_no_torch_is_loaded() -> None:
    code = "import sys, lowbit_vit.new_profile; print([name for name in ('torch', 'torchvision', 'ray') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
