"""A profile for your own images and weights: written with comments, checked, and entered in the pipeline.

The folder is listed and the weights, every tensor of them, are read before anything is written, so a profile that is there runs.
It gets one line in `stages.yaml`, from which DVC makes its stages. Torch is imported where there are weights to read.
"""

import getpass
import importlib.util
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import StrictUndefined, Template
from pydantic import AliasPath, BaseModel, Field, ValidationError

from lowbit_vit.data.folder import find_layout, list_images
from lowbit_vit.data.remote_files import WEIGHTS
from lowbit_vit.data.source import Source
from lowbit_vit.errors import ConfigError, DataError, Unavailable, escape_controls
from lowbit_vit.model.lazy_import import Deferred
from lowbit_vit.schema.config import (
    DRAWN_KEYS,
    TORCHVISION_DEPTH,
    Device,
    FolderData,
    Profile,
    SmallVit,
    TorchvisionVit,
    Views,
    load_profile,
    one_line,
    patch_size,
    read_text,
    read_yaml,
)
from lowbit_vit.schema.record import file_digest, write_atomic
from lowbit_vit.schema.workspace import Workspace

if TYPE_CHECKING:
    from lowbit_vit.model import checkpoint
else:
    checkpoint = Deferred("lowbit_vit.model.checkpoint")

log = logging.getLogger(__name__)

STAGES = "stages.yaml"
TEMPLATE = Path(__file__).with_name("profile.yaml.jinja")
DOWNLOADS = "data/raw"  # where the stages of dvc.yaml put torchvision's weights
# In YAML these are no texts: in one of its versions, or for one of the programs that read it.
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
# Of YAML's double quotes: characters that JSON leaves as they are, and YAML does not read, or reads as line ends.
_UNQUOTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# Ours: enough test images to tell arms apart.
DRAWN = {"split_seed": 0, "val_share": 0.1, "test_share": 0.3}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# torchvision's own evaluation resize of the checkpoints in WEIGHTS, for a crop of 224 px.
EVAL_RESIZE: dict[TorchvisionVit, int] = {"vit_b_16": 256, "vit_b_32": 256, "vit_l_16": 242, "vit_l_32": 256, "vit_h_14": 224}


@dataclass(frozen=True)
class Given:
    """A backbone as the profile will name it.

    Attributes:
        architecture: a torchvision name, or the sizes of a small ViT.
        weights: torchvision or ours.
        checkpoint: the file, as the profile will write it.
        sha256: of the file, or its first digits.
        views: sizes and normalization that the weights were trained with.
        words: one line for messages.
    """

    architecture: TorchvisionVit | SmallVit
    weights: str
    checkpoint: str
    sha256: str
    views: Views
    words: str

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.architecture.depth if isinstance(self.architecture, SmallVit) else TORCHVISION_DEPTH[self.architecture]


@dataclass(frozen=True)
class NewProfile:
    """The profile's file, its line in stages.yaml, the images found, and the backbone in words."""

    path: Path
    line: str
    source: Source
    backbone: str


def write_profile(
    name: str,
    *,
    data: Path,
    backbone: str,
    root: Path,
    device: Device,
    image_size: int | None = None,
    architecture: TorchvisionVit | None = None,
    sha256: str | None = None,
) -> NewProfile:
    """Write `profiles/<name>.yaml` for a folder of images and a backbone, and add its line to `stages.yaml`.

    Args:
        name: of the profile.
        data: the images' folder, in one of the layouts of `data.folder`.
        backbone: a torchvision ViT by name, a .pth file of one, or a .safetensors file of ours with its card.
        root: the project.
        device: what it is to run on.
        image_size: side of the model's input, px; None: what the weights were trained with.
        architecture: of a .pth file whose name does not begin with it.
        sha256: of a .pth file whose name does not end with its first 8 digits, as torchvision's do.

    Raises:
        ConfigError: the name is taken or not allowed, the backbone is not known, or the sizes do not fit.
        DataError: the folder is not one of labelled images, or the weights or their card are missing or damaged.
    """
    path = root / "profiles" / f"{name}.yaml"
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ConfigError(f"new-profile: name {name!r} must be lower-case letters, digits and hyphens, a letter first")
    if name in YAML_WORDS:
        raise ConfigError(f"new-profile: name {name!r} is a word of YAML, which reads it as no text; choose another")
    if path.exists():
        raise ConfigError(f"{path}: there already; choose another name, or delete it and its line in {STAGES}")
    stages = _read_stages(root / STAGES, name)
    workspace = Workspace(root=root.resolve(), profile=name)
    workspace.require_outputs()
    _refuse_foreign(workspace, data)
    given = _read_backbone(backbone, root=root, architecture=architecture, sha256=sha256)
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; --data takes a folder of images, sorted into folders by class")
    layout = find_layout(data)
    keys = {"layout": layout, **{key: DRAWN[key] for key in DRAWN_KEYS[layout]}}
    views = _scale_views(given, image_size)
    config = FolderData.model_validate({"source": "image_folder", "views": views, "root": _shown_path(data, root), **keys})
    source = list_images(config, root)
    text = _render(name, config, source, given, device)
    load_profile(path, text)
    line = f"{name}: {{images: {_quoted(config.root)}, weights: {_quoted(given.checkpoint)}}}"
    entered = _enter(root / STAGES, stages, line)
    write_atomic(path, text.encode())
    try:
        write_atomic(root / STAGES, entered.encode())
    except DataError:
        path.unlink()
        raise
    return NewProfile(path, line, source, given.words)


def _read_stages(path: Path, name: str) -> str:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run this in the project's folder, or name it with --root")
    text = read_text(path)
    profiles = read_yaml(path, text).get("profiles", "missing")
    if not isinstance(profiles, dict | None):
        raise ConfigError(f"{path}: key profiles is {profiles!r:.60}, not a mapping of profiles; correct it")
    if name in (profiles or {}):
        raise ConfigError(f"{path}: has a line {name} already; choose another name, or delete the line")
    return text


def _enter(path: Path, text: str, line: str) -> str:
    """The text of stages.yaml with one more line, as far down and indented as it must be to say that and nothing else."""
    before = read_yaml(path, text)
    wanted = {**before, "profiles": {**(before["profiles"] or {}), **read_yaml(path, line)}}
    lines = text.removesuffix("\n").split("\n")
    indents = sorted({"  ", *(other[: len(other) - len(other.lstrip(" "))] for other in lines)}, key=len)
    for place in range(len(lines), 0, -1):
        for indent in indents:
            entered = "\n".join([*lines[:place], f"{indent}{line}", *lines[place:], ""])
            try:
                if read_yaml(path, entered) == wanted:
                    return entered
            except ConfigError:
                continue
    raise ConfigError(f"{path}: key profiles is not written line by line; add to it by hand: {line}")


def _refuse_foreign(workspace: Workspace, images: Path) -> None:
    """Refuse what DVC would remove before a stage, as an output of it, or could not tell from one."""
    outputs = (workspace.data, workspace.checkpoints, workspace.root / "reports" / workspace.profile)
    place = images.resolve()
    for output in outputs:
        if place == output or output in place.parents or place in output.parents:
            raise DataError(f"{images}: is or holds {output}, which a stage writes; move the images elsewhere")
    lock = workspace.root / "dvc.lock"
    made = lock.read_text(encoding="utf-8", errors="replace") if lock.is_file() else ""
    for stage, output in (("data", workspace.data), ("backbone", workspace.checkpoints)):
        if f" {stage}@{workspace.profile}:" not in made and output.is_dir() and any(output.iterdir()):
            cure = "choose another name, or move the files away"
            raise DataError(f"{output}: holds files, and DVC empties it before the stage {stage} of this profile; {cure}")


def require_inputs(profile: Profile, workspace: Workspace) -> None:
    """Look into what the profile's stages start from and write to: all that would stop one after another has run.

    Raises:
        ConfigError: the weights are of another architecture's sizes.
        DataError: images or weights are missing, damaged or not what the profile says, or an output cannot be kept.
        Unavailable: DVC cannot run here.
    """
    workspace.require_outputs()
    _require_dvc_runs(workspace.root)
    if profile.data.source == "image_folder":
        list_images(profile.data, workspace.root)
    if profile.backbone.weights == "scratch":
        return
    path = workspace.root / str(profile.backbone.checkpoint)
    if path.is_file():
        if importlib.util.find_spec("torch") is None:
            log.warning("%s: not looked into, for torch is not installed", path)
            return
        state, card = checkpoint.load_given(profile.backbone, workspace.root)
        checkpoint.native_image_size(state, profile.backbone.architecture, source=str(path), new_head=card is None)
    elif path.parent not in (workspace.root / DOWNLOADS, *(workspace.root / "checkpoints").glob("*")):  # DVC makes those
        raise DataError(f"{path}: no such weights; correct backbone.checkpoint in {workspace.profile_file}")


def _require_dvc_runs(root: Path) -> None:
    config = root / ".dvc" / "config"
    scm = config.is_file() and "no_scm" not in config.read_text(encoding="utf-8", errors="replace")
    if scm and not any((folder / ".git").exists() for folder in (root, *root.parents)):
        raise Unavailable(f"{root}: not a git repository, which DVC needs; run git init there")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise Unavailable(f"user {os.getuid()} has no name, which DVC needs; set the environment variable USER to one") from None


def _scale_views(given: Given, image_size: int | None) -> Views:
    """The weights' own views, or those scaled to another image size.

    Raises:
        ConfigError: the patches do not tile the image, or the size is out of range.
    """
    views, patch = given.views, patch_size(given.architecture)
    if image_size is None or image_size == views.image_size:
        return views
    if image_size % patch:
        nearest = max(1, round(image_size / patch)) * patch
        raise ConfigError(f"new-profile: --image-size {image_size} is not a multiple of the patch size {patch}; nearest: {nearest}")
    log.warning("images of %d px: positions of weights made for %d px will be resized", image_size, views.image_size)
    return _resized(views, image_size)


def _resized(views: Views, image_size: int) -> Views:
    """All sizes in proportion."""
    scale = image_size / views.image_size
    sizes = {"image_size": image_size, "eval_resize": round(views.eval_resize * scale), "train_resize": round(views.train_resize * scale)}
    try:
        return Views.model_validate(views.model_dump() | sizes)
    except ValidationError as error:
        raise ConfigError(f"new-profile: --image-size {image_size}: {one_line(error)}") from None


def _render(name: str, config: FolderData, source: Source, given: Given, device: Device) -> str:
    spared = [k for k in (2, 4) if k < given.depth]
    if not spared:
        raise ConfigError(f"new-profile: a backbone of {given.depth} blocks is too shallow; sparing 2 blocks needs at least 3")
    if isinstance(given.architecture, SmallVit):
        sizes = ", ".join(f"{key}: {value}" for key, value in given.architecture.model_dump().items())
        model, architecture = "a small ViT", f"{{{sizes}}}"
    else:
        model = architecture = given.architecture
    folder = Path(config.root).name
    text = TEMPLATE.read_text(encoding="utf-8")
    title = escape_controls(f"{folder} with {given.words}.")
    template = Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    rendered: str = template.render(
        name=name,
        quoted=_quoted,
        title=" ".join(title.split()),
        description=f"{model} on the images of the folder {folder}",
        config=config,
        counts=f"{len(source.class_names)} classes; " + ", ".join(f"{split} {len(items)}" for split, items in source.splits.items()),
        architecture=architecture,
        given=given,
        device=device,
        cuda=device == "cuda",
        dtype="fp16" if device == "cuda" else "fp32",
        spared=spared,
    )
    return rendered


def _quoted(text: str) -> str:
    """A YAML string: JSON's are, but for some characters."""
    return _UNQUOTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


# ----------------------------------------------------------------------------------------------------------- the backbone


class _Card(BaseModel):
    """The keys that a profile takes from the model card of a file of ours."""

    sha256: str
    profile: str | None = None
    architecture: TorchvisionVit | SmallVit = Field(validation_alias=AliasPath("backbone", "architecture"))
    views: Views
    training: object = None


def _read_backbone(backbone: str, *, root: Path, architecture: TorchvisionVit | None, sha256: str | None) -> Given:
    """Describe a backbone: a torchvision name, a .pth file, or a .safetensors file of ours with its card.

    Raises:
        ConfigError: it is none of them, or a .pth without architecture or sha256.
        DataError: file or card is missing or damaged, or the hash is another.
    """
    path = Path(backbone)
    if path.suffix == ".pth":
        return _read_pth(path, root=root, architecture=architecture, sha256=sha256)
    if architecture is not None or sha256 is not None:
        raise ConfigError(f"new-profile: --architecture and --sha256 are of a .pth file; {backbone} needs neither")
    if path.suffix == ".safetensors":
        return _read_ours(path, root=root)
    if path.is_file():
        raise ConfigError(f"{path}: weights end in .pth (a torchvision ViT's state_dict) or .safetensors (ours); rename or save it so")
    for known in EVAL_RESIZE:
        if known == backbone:
            file = WEIGHTS[known]
            words = f"torchvision's {known} (licence {file.licence.name})"
            return Given(known, "torchvision", f"{DOWNLOADS}/{file.name}", file.sha256, _imagenet_views(known), words)
    names = ", ".join(WEIGHTS)
    raise ConfigError(f"new-profile: backbone {backbone!r} is not known; allowed: {names}, a .pth file of one, a .safetensors file of ours")


def _read_pth(path: Path, *, root: Path, architecture: TorchvisionVit | None, sha256: str | None) -> Given:
    known = architecture or next((name for name in EVAL_RESIZE if path.name.startswith(name)), None)
    if known is None:
        raise ConfigError(f"{path}: say which ViT it is: --architecture {'|'.join(EVAL_RESIZE)}")
    ending = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    expected = sha256 or (ending[1] if ending else None)
    if expected is None:
        raise ConfigError(f"{path}: give the sha256 that its publisher states with --sha256: a .pth can run code, so no other is opened")
    if not re.fullmatch(r"[0-9a-f]{8,64}", expected):
        raise ConfigError(f"new-profile: --sha256 {expected!r} must be at least 8 lower-case hex digits")
    state = checkpoint.load_torchvision(path, expected)
    views = _resized(_imagenet_views(known), checkpoint.native_image_size(state, known, source=str(path), new_head=True))
    return Given(known, "torchvision", _shown_path(path, root), file_digest(path), views, f"{known} of {path.name}")


def _read_ours(path: Path, *, root: Path) -> Given:
    file = path.with_suffix(".json")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not file.is_file():
        cure = "give a backbone.safetensors or adapted-seed<N>.safetensors with its card, or a torchvision ViT's state_dict() as .pth"
        raise DataError(f"{file}: no such card, so {path.name} is not of this program; {cure}")
    state, content = checkpoint.load_state(path)
    try:
        card = _Card.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise DataError(f"{file}: {one_line(error)}; make the weights again with this version") from error
    checkpoint.require_finite(state, path)
    native = checkpoint.native_image_size(state, card.architecture, source=str(path), new_head=False)
    if native != card.views.image_size:
        raise DataError(f"{file}: key views: image_size is {card.views.image_size}, the weights' positions are of {native} px")
    if card.training is not None:
        said = "%s: trained on images of profile %s; if this folder holds them too, some may be test images here, and Top-1 be too high"
        log.warning(said, path, card.profile)
    words = f"{path.name} of profile {card.profile}, {state['head.weight'].shape[0]} classes"
    return Given(card.architecture, "ours", _shown_path(path, root), card.sha256, card.views, words)


def _imagenet_views(name: TorchvisionVit) -> Views:
    return Views(image_size=224, eval_resize=EVAL_RESIZE[name], train_resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _shown_path(path: Path, root: Path) -> str:
    """Relative to the project where the file lies in it, so that the profile works in another clone; absolute elsewhere."""
    absolute, project = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100  (.. goes, links stay)
    shown = (absolute.relative_to(project) if absolute.is_relative_to(project) else absolute).as_posix()
    if any("\ud800" <= c <= "\udfff" for c in shown):
        raise DataError(f"{shown!r}: its name is not UTF-8, so no profile can hold it; rename it")
    return shown
