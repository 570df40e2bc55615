"""Weights on disk: torchvision's checkpoints in, and our own backbones as safetensors with a JSON card beside them.

A pickle runs code when it is read. So our own files are never pickles, and the one kind that is read, torchvision's `.pth`,
must have a known sha256 and is then opened with `weights_only=True`.
"""

import argparse
import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from lowbit_vit.errors import DataError, first_line, reading
from lowbit_vit.model.lazy_import import Deferred
from lowbit_vit.model.vit import VisionTransformer, architecture, fuse_qkv
from lowbit_vit.schema.config import Backbone, SmallVit, TorchvisionVit, patch_size
from lowbit_vit.schema.record import file_digest, sha256, write_atomic

if TYPE_CHECKING:
    import torchvision
else:
    torchvision = Deferred("torchvision")

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
# torch's dtypes that safetensors files hold, in its order, with the names in its header.
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES)}

# torchvision's names -> ours. Released checkpoints say mlp.linear_1, a state dict of today's model says mlp.0.
_TOP_NAMES = {
    "class_token": "class_token",
    "conv_proj.weight": "patch_embedding.weight",
    "conv_proj.bias": "patch_embedding.bias",
    "encoder.pos_embedding": "position_embedding",
    "encoder.ln.weight": "norm.weight",
    "encoder.ln.bias": "norm.bias",
    "heads.head.weight": "head.weight",
    "heads.head.bias": "head.bias",
}
_BLOCK_NAMES = {
    "ln_1": "norm1",
    "self_attention.out_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "mlp.linear_1": "mlp.fc1",
    "mlp.linear_2": "mlp.fc2",
}
_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+?)[._](weight|bias)")
# What torch.compile, FSDP and checkpointing put into the names of what they wrap.
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
_CLASS = re.compile(r"(?:^|\.)class_token$")
_HEAD = re.compile(r"(?:heads?|fc|classifier)\.")  # replaced by a new one, so whatever it is
# Names by which other libraries' ViTs are known.
_OTHERS = {
    "transformers": re.compile(r"(?:^|\.)embeddings\.(?:cls_token|patch_embeddings|class_embedding)"),
    "timm": re.compile(r"(?:^|\.)(?:cls_token$|patch_embed\.)"),
    "open_clip": re.compile(r"(?:^|\.)class_embedding$"),
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_NESTED = 3
# What torch's restricted unpickler stopped at; around it stands advice to load the file without restriction.
_STOPPED_AT = re.compile(r"GLOBAL ([\w.]+)")


def from_torchvision(state_dict: Mapping[str, Tensor], *, source: str = "checkpoint") -> dict[str, Tensor]:
    """Rename a torchvision ViT's state to ours (separate layout), in_proj cut into q, k and v; every tensor is a copy.

    A head of other layers than torchvision's is left out.

    Raises:
        DataError: an entry is not one of a torchvision ViT.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        match = _BLOCK.fullmatch(name)
        place = match[2] if match else ""
        if name in _TOP_NAMES:
            ours[_TOP_NAMES[name]] = tensor.clone()
        elif match and place == "self_attention.in_proj":
            if not tensor.ndim or tensor.shape[0] % 3:
                raise DataError(f"{source}: entry {name} of shape {tuple(tensor.shape)} is not q, k and v in one")
            for projection, rows in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                ours[f"blocks.{match[1]}.attention.{projection}.{match[3]}"] = rows.clone()
        elif match and place in _BLOCK_NAMES:
            ours[f"blocks.{match[1]}.{_BLOCK_NAMES[place]}.{match[3]}"] = tensor.clone()
        elif _HEAD.match(name):
            continue
        else:
            raise DataError(f"{source}: entry {_shown(name)} is not one of a torchvision VisionTransformer")
    return ours


def load_torchvision(path: Path, sha256_prefix: str) -> dict[str, Tensor]:
    """Read a torchvision ViT checkpoint (.pth) into our names, on the CPU.

    The state may lie in a dict, as torchvision's references save it, and its names may have one prefix, as DistributedDataParallel,
    torch.compile, AveragedModel or Lightning put before them.

    Args:
        path: the file.
        sha256_prefix: of its content, at least 8 hex digits; checked before anything in the file is read.

    Raises:
        DataError: the file is missing, its hash is another, or it does not hold the finite tensors of one torchvision ViT.
    """
    if len(sha256_prefix) < 8 or not re.fullmatch("[0-9a-f]+", sha256_prefix):
        raise DataError(f"{path}: checkpoint_sha256 {sha256_prefix!r} must be at least 8 lower-case hex digits")
    with reading(path, "not a file of plain tensors, refused", "save the model's state_dict() by itself"), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(sha256_prefix):
            raise DataError(
                f"{path}: sha256 {digest[:16]}... does not start with {sha256_prefix}; not opened, for a .pth can run code: "
                "fetch the file again, or correct backbone.checkpoint_sha256 if you trust it"
            )
        file.seek(0)
        try:
            # Namespace: torchvision's references save their arguments beside the weights.
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            stopped = _STOPPED_AT.search(str(error))
            if stopped is None and "weights_only" not in str(error):
                raise
            raise ValueError(f"it has {stopped[1]}" if stopped else "not written by torch.save, or a TorchScript archive") from error
        state = _find_state(content, path)
        require_finite({name: tensor for name, tensor in state.items() if not _HEAD.match(name)}, path)
        return from_torchvision(state, source=f"{path}")


def _find_state(content: object, path: Path) -> dict[str, Tensor]:
    """The state of the one torchvision ViT in what a checkpoint holds, without the prefix of its names."""
    dicts = dict(_dicts(content, ""))
    found = [
        (place, name.removesuffix("class_token"), tensors) for place, tensors in dicts.items() for name in tensors if _CLASS.search(name)
    ]
    if len(found) > 1:
        places = " and ".join(_shown(place + prefix) for place, prefix, _ in found[:2])
        raise DataError(f"{path}: holds more than one model, below {places}; save the state_dict() of one by itself")
    if not found:
        raise DataError(f"{path}: {_why_none([name for tensors in dicts.values() for name in tensors], content)}")
    ((place, prefix, tensors),) = found
    others = [name for name in tensors if not name.startswith(prefix) and name != "n_averaged" and not _HEAD.match(name)]
    if place or prefix:
        log.info("%s: its weights are those below %s", path.name, _shown(place + prefix))
    if others:
        log.warning("%s: not used, for they are not of the ViT: %s", path.name, ", ".join(map(_shown, others[:4])))
    return {_WRAPPED.sub("", name.removeprefix(prefix)): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _dicts(content: object, place: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of each dict in a checkpoint, with the keys that lead there, such as `model.`."""
    if isinstance(content, Mapping) and place.count(".") < _MOST_NESTED:
        yield place, {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        for key, value in content.items():
            yield from _dicts(value, f"{place}{key}.")


def _why_none(names: Sequence[str], content: object) -> str:
    """What a checkpoint with these names of tensors is, which are not those of a torchvision ViT."""
    if not names:
        return f"expected a dict of tensors, as torchvision's checkpoints are; found {type(content).__name__} without any"
    for library, pattern in _OTHERS.items():
        for name in filter(pattern.search, names):
            return (
                f"entry {_shown(name)} is a name of {library}, not one of a torchvision VisionTransformer, and only those are read; "
                "copy the weights into torchvision's model and save its state_dict()"
            )
    return f"entry {_shown(names[0])} is not one of a torchvision VisionTransformer, and there is no class_token"


def _shown(name: str) -> str:
    """A name out of a file, in a message."""
    return repr(name if len(name) <= 80 else f"{name[:80]}...")


def load_given(config: Backbone, root: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights that a profile starts from, in our names, and their card where they are ours.

    Raises:
        DataError: file or card is missing or damaged, has another hash, or holds other than finite tensors.
    """
    path = root / str(config.checkpoint)
    if config.weights == "torchvision":
        return load_torchvision(path, str(config.checkpoint_sha256)), None
    state, card = load_state(path)
    if not card["sha256"].startswith(str(config.checkpoint_sha256)):
        known = f"sha256 {card['sha256'][:16]}... does not start with {config.checkpoint_sha256}"
        raise DataError(f"{path}: {known}; correct backbone.checkpoint_sha256 if you trust the file")
    require_finite(state, path)
    return state, card


def require_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Look at every value.

    Raises:
        DataError: a tensor is not of dense floats, or has NaN or infinite values; names file and tensor.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu" or tensor.dtype not in _FLOATS:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
            raise DataError(f"{path}: entry {_shown(name)} is {kind}; weights are strided float32, float16, bfloat16 or float64")
        if bad := int((~tensor.float().isfinite()).sum()):
            raise DataError(f"{path}: entry {_shown(name)} has {bad:,} NaN or infinite values of {tensor.numel():,}")


def native_image_size(state: Mapping[str, Tensor], config: TorchvisionVit | SmallVit, *, source: str, new_head: bool) -> int:
    """Side of the images, px, that the positions of a state are made for, which must have every tensor of the architecture.

    With `new_head` its head may be any.

    Raises:
        DataError: the positions are not those of a square of patches, or the tensors are those of another model.
    """
    positions = state.get("position_embedding")
    tokens = 0 if positions is None or positions.ndim != 3 else positions.shape[1]
    side = math.isqrt(max(0, tokens - 1))
    if not side or side**2 != tokens - 1:
        shape = None if positions is None else tuple(positions.shape)
        raise DataError(f"{source}: positions of shape {shape} are not those of a square of patches and a class token")
    sizes = architecture(config, side * patch_size(config))
    head = state.get("head.weight")
    classes = 1 if head is None or not head.ndim else max(1, head.shape[0])
    model = VisionTransformer.empty(sizes, num_classes=classes, attention="math", qkv="separate", device="meta")
    require_tensors(model, state, source, new_head=new_head)
    return sizes.image_size


def save_state(model_state: Mapping[str, Tensor], path: Path, card: Mapping[str, Any]) -> str:
    """Write tensors as safetensors and `card` with their sha256 as JSON beside them, each whole or not at all.

    The tensors go first: after a crash between the two, the old card's hash does not fit and the pair is refused.

    Args:
        model_state: tensors of any dtype and device.
        path: ends in .safetensors; the card takes the same name with .json.
        card: JSON values: what the weights are and how they were made.

    Returns:
        sha256 of the safetensors file.

    Raises:
        DataError: the suffix is another, or the disk is full.
    """
    _refuse_other_suffix(path)
    # Contiguous copies: safetensors refuses views (the patch embedding may be channels_last, q, k, v slices of one tensor).
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in model_state.items()}
    content = safetensors.torch.save(tensors)
    digest = sha256(content)
    write_atomic(path, content)
    write_atomic(path.with_suffix(".json"), _card_content(card, digest))
    return digest


def saved_bytes(model_state: Mapping[str, Tensor], card: Mapping[str, Any]) -> int:
    """The size of the two files that `save_state` would write, without copying a tensor: a scan asks for it in every cell.

    The safetensors format: 8 bytes of length, a compact JSON header padded to a multiple of 8, then the tensors without gaps,
    by descending dtype and then by name. Source: https://github.com/huggingface/safetensors, serialize.

    Raises:
        KeyError: a dtype that is not among `_DTYPES`.
    """
    order = sorted(model_state, key=lambda name: (-_ORDER[model_state[name].dtype], name))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        tensor = model_state[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset + len(_card_content(card, "0" * 64))


def _card_content(card: Mapping[str, Any], digest: str) -> bytes:
    return (json.dumps({**card, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote: the tensors, on the CPU, and the card (with `sha256`).

    Raises:
        DataError: file or card is missing or damaged, their hashes differ, or the file is a pickle.
    """
    _refuse_other_suffix(path)
    card = _read_card(path.with_suffix(".json"))
    with reading(path, "cannot be read", "make them again"):
        digest = file_digest(path)
    if digest != card["sha256"]:
        raise DataError(
            f"{path}: sha256 is {digest[:16]}..., its card says {str(card['sha256'])[:16]}...; the file is damaged or was "
            "replaced: delete both and make them again"
        )
    with reading(path, "not a safetensors file", "pickles are refused"):
        return safetensors.torch.load_file(path), card


def fit_positions(state: Mapping[str, Tensor], model: VisionTransformer, *, source: str) -> dict[str, Tensor]:
    """The state with its positions resized to the model's image, bicubic, if they are of another size; the rest as it is.

    Source: torchvision's `interpolate_embeddings`, as in Dosovitskiy et al., 2021, 3.2 (fine-tuning at another resolution).

    Raises:
        DataError: there are no positions, or they are not those of a square of patches.
    """
    given, wanted = state.get("position_embedding"), model.position_embedding
    if given is None or given.ndim != 3:
        raise DataError(f"{source}: not the weights of {model.architecture.name}: it has no position embedding of three dimensions")
    if given.shape[1] == wanted.shape[1]:
        return dict(state)
    sizes = model.architecture
    try:
        resize = torchvision.models.vision_transformer.interpolate_embeddings
        resized = resize(sizes.image_size, sizes.patch_size, {"encoder.pos_embedding": given})
    except ValueError as error:
        raise DataError(f"{source}: position_embedding of shape {tuple(given.shape)} cannot be resized ({first_line(error)})") from error
    before, after = (round((count - 1) ** 0.5) for count in (given.shape[1], wanted.shape[1]))
    log.warning(
        "%s: positions of %d x %d patches resized to %d x %d, for images of %d px", source, before, before, after, after, sizes.image_size
    )
    return {**state, "position_embedding": resized["encoder.pos_embedding"]}


def restore(model: VisionTransformer, state: Mapping[str, Tensor], *, source: str, new_head: bool = False) -> None:
    """Copy a state of the separate layout into a model, every tensor of it; a fused model gets its rows concatenated.

    Args:
        model: receives the values, in its own dtype and on its own device.
        state: as `load_state` or `load_torchvision` return it.
        source: names the state in messages: its file.
        new_head: leave the model's own head as it is and ignore the state's; for fine-tuning on other classes.

    Raises:
        DataError: the class counts or any shapes differ, or tensors are missing or left over.
    """
    model.load_state_dict(require_tensors(model, state, source, new_head=new_head))


def require_tensors(model: VisionTransformer, state: Mapping[str, Tensor], source: str, *, new_head: bool) -> dict[str, Tensor]:
    """The state in the model's layout, with the model's head if `new_head`; arguments and errors are those of `restore`."""
    wanted = model.state_dict()
    given = dict(fuse_qkv(state) if model.qkv == "fused" else state)
    if new_head:
        given = {name: tensor for name, tensor in given.items() if not name.startswith("head.")}
        given |= {name: tensor for name, tensor in wanted.items() if name.startswith("head.")}
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        raise DataError(
            f"{source}: not the weights of {model.architecture.name}: "
            f"{len(missing)} tensors missing{_example(missing)}, {len(unknown)} left over{_example(unknown)}"
        )
    if given["head.weight"].ndim and len(given["head.weight"]) != model.num_classes:
        raise DataError(
            f"{source}: its head has {len(given['head.weight'])} classes, the data has {model.num_classes}; "
            "run lowbit-vit backbone again for this data"
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise DataError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, {model.architecture.name} at "
                f"{model.architecture.image_size} px needs {tuple(wanted[name].shape)}"
            )
    return given


def _refuse_other_suffix(path: Path) -> None:
    if path.suffix != _SUFFIX:
        raise DataError(f"{path}: weights are kept as {_SUFFIX}; other files, pickles above all, are refused")


def _read_card(path: Path) -> dict[str, Any]:
    with reading(path, "the card of the weights is not JSON", "make the weights again"):
        card = json.loads(path.read_bytes())
    if not isinstance(card, dict) or not isinstance(card.get("sha256"), str):
        raise DataError(f"{path}: the card of the weights has no sha256; make the weights again")
    return card


def _example(names: list[str]) -> str:
    return f" (as {repr(names[0])[1:-1]})" if names else ""  # a name out of a file may hold anything
