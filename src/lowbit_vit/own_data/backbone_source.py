"""The weights that a new profile starts from: a torchvision ViT, a .pth file of one, or a file of ours.

Cards, hashes and shapes are read, never the tensors: no torch.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from lowbit_vit.data.remote_files import WEIGHTS
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.config import TORCHVISION_DEPTH, SmallVit, TorchvisionVit, Views, one_line

DOWNLOADS = "data/raw"  # where the stages of dvc.yaml put torchvision's weights

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
        words: one line for people.
    """

    architecture: TorchvisionVit | SmallVit
    weights: str
    checkpoint: str
    sha256: str
    views: Views
    words: str

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""
        return self.architecture.patch_size if isinstance(self.architecture, SmallVit) else int(self.architecture.rpartition("_")[2])

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.architecture.depth if isinstance(self.architecture, SmallVit) else TORCHVISION_DEPTH[self.architecture]


def read_backbone(backbone: str, *, root: Path, architecture: TorchvisionVit | None, sha256: str | None) -> Given:
    """Find out what a backbone is: `backbone` is a torchvision name, a .pth file, or a .safetensors file of ours with its card.

    Raises:
        ConfigError: it is none of them, or a .pth without architecture or sha256.
        DataError: file or card is missing or damaged, or the hash is another.
    """
    path = Path(backbone)
    if path.suffix == ".pth":
        return _read_pth(path, root=root, architecture=architecture, sha256=sha256)
    if architecture is not None or sha256 is not None:
        raise ConfigError(f"new-profile: --architecture and --sha256 are of a .pth file; {backbone} needs neither")
    if backbone in WEIGHTS:
        file, known = WEIGHTS[backbone], _torchvision_name(backbone)
        words = f"torchvision's {known} (licence {file.licence.name})"
        return Given(known, "torchvision", f"{DOWNLOADS}/{file.name}", str(file.sha256), _imagenet_views(known), words)
    if path.suffix == ".safetensors":
        return _read_ours(path, root=root)
    names = ", ".join(WEIGHTS)
    raise ConfigError(f"new-profile: backbone {backbone!r} is not known; allowed: {names}, a .pth file of one, a .safetensors file of ours")


def _read_pth(path: Path, *, root: Path, architecture: TorchvisionVit | None, sha256: str | None) -> Given:
    named = next((name for name in get_args(TorchvisionVit) if path.name.startswith(name)), None)
    known = architecture or (_torchvision_name(named) if named else None)
    if known is None:
        raise ConfigError(f"{path}: say which ViT it is: --architecture {'|'.join(get_args(TorchvisionVit))}")
    ending = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    expected = sha256 or (ending[1] if ending else None)
    if expected is None:
        raise ConfigError(f"{path}: give the sha256 that its publisher states with --sha256: a .pth can run code, so no other is opened")
    if not re.fullmatch(r"[0-9a-f]{8,64}", expected):
        raise ConfigError(f"new-profile: --sha256 {expected!r} must be at least 8 lower-case hex digits")
    digest = _sha256(path)
    if not digest.startswith(expected):
        raise DataError(f"{path}: sha256 {digest[:16]}... does not start with {expected}; it is another file or a damaged one")
    return Given(known, "torchvision", shown_path(path, root), digest, _imagenet_views(known), f"{known} of {path.name}")


def _read_ours(path: Path, *, root: Path) -> Given:
    card = path.with_suffix(".json")
    digest = _sha256(path)
    try:
        content = json.loads(card.read_bytes())
        if content["sha256"] != digest:
            raise DataError(
                f"{path}: sha256 is {digest[:16]}..., its card says {str(content['sha256'])[:16]}...; it is damaged or another file"
            )
        architecture = _ARCHITECTURE.validate_python(content["backbone"]["architecture"])
        views = Views.model_validate_json(json.dumps(content["views"]))
        with safe_open(path, framework="numpy") as tensors:
            classes = tensors.get_slice("head.weight").get_shape()[0]
    except OSError as error:
        raise DataError(f"{card}: the card of the weights cannot be read ({error.strerror}); it belongs beside them") from error
    except KeyError as error:
        raise DataError(f"{card}: has no key {error}; make the weights again with this version") from error
    except ValidationError as error:
        raise DataError(f"{card}: {one_line(error)}") from error
    except (ValueError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{path}: not weights of ours with their card ({error}); give a backbone.safetensors or adapted-seed<N>.safetensors"
        ) from error
    words = f"{path.name} of profile {content.get('profile')}, {classes} classes"
    return Given(architecture, "ours", shown_path(path, root), digest, views, words)


_ARCHITECTURE: TypeAdapter[TorchvisionVit | SmallVit] = TypeAdapter(TorchvisionVit | SmallVit)


def _torchvision_name(name: str) -> TorchvisionVit:
    return next(known for known in TORCHVISION_DEPTH if known == name)


def _imagenet_views(name: TorchvisionVit) -> Views:
    return Views(image_size=224, eval_resize=EVAL_RESIZE[name], train_resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def shown_path(path: Path, root: Path) -> str:
    """Relative to the project where it lies in it, so that the profile works in another clone; absolute elsewhere."""
    absolute, project = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100  (.. goes, links stay)
    return (absolute.relative_to(project) if absolute.is_relative_to(project) else absolute).as_posix()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
