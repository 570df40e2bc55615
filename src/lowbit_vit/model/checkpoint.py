"""Weights on disk: torchvision's checkpoints in, and our own backbones as safetensors with a JSON card beside them.

A pickle runs code when it is read. So our own files are never pickles, and the one kind that is read, torchvision's `.pth`,
must have a known sha256 and is then opened with `weights_only=True`.
"""

import hashlib
import json
import logging
import pickle
import re
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lowbit_vit.errors import DataError, first_line
from lowbit_vit.model.lazy_import import Deferred
from lowbit_vit.model.vit import VisionTransformer, fuse_qkv
from lowbit_vit.schema.record import sha256, write_atomic

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

# What torch's restricted unpickler raises on damaged bytes: seen by flipping bytes of small checkpoints.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    struct.error,
    AssertionError,
    AttributeError,
    TypeError,
)

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


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a torchvision ViT's state to ours (separate layout), in_proj cut into q, k and v; every tensor is a copy.

    Raises:
        DataError: an entry is not one of a torchvision ViT.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name in _TOP_NAMES:
            ours[_TOP_NAMES[name]] = tensor.clone()
            continue
        match = _BLOCK.fullmatch(name)
        if match is None:
            raise DataError(f"checkpoint: entry {name!r} is not one of a torchvision VisionTransformer")
        block, place, kind = match.groups()
        if place == "self_attention.in_proj":
            for projection, rows in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                ours[f"blocks.{block}.attention.{projection}.{kind}"] = rows.clone()
        elif place in _BLOCK_NAMES:
            ours[f"blocks.{block}.{_BLOCK_NAMES[place]}.{kind}"] = tensor.clone()
        else:
            raise DataError(f"checkpoint: entry {name!r} is not one of a torchvision VisionTransformer")
    return ours


def load_torchvision(path: Path, sha256_prefix: str) -> dict[str, Tensor]:
    """Read a torchvision ViT checkpoint (.pth) into our names, on the CPU.

    Args:
        path: the file.
        sha256_prefix: of its content, at least 8 hex digits; checked before anything in the file is read.

    Raises:
        DataError: the file is missing, its hash is another, or it holds anything but tensors of a torchvision ViT.
    """
    if len(sha256_prefix) < 8 or not re.fullmatch("[0-9a-f]+", sha256_prefix):
        raise DataError(f"{path}: checkpoint_sha256 {sha256_prefix!r} must be at least 8 lower-case hex digits")
    with _open(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(sha256_prefix):
            raise DataError(
                f"{path}: sha256 {digest[:16]}... does not start with {sha256_prefix}; not opened, for a .pth can run code: "
                "fetch the file again, or correct backbone.checkpoint_sha256 if you trust it"
            )
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise DataError(f"{path}: not a file of plain tensors, refused ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dict of tensors, as torchvision's checkpoints are; found {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        keys = ", ".join(others[:4])
        raise DataError(f"{path}: expected a dict of tensors alone, found more under {keys}; save the model's state_dict() by itself")
    try:
        return from_torchvision(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


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
    with _open(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != card["sha256"]:
        raise DataError(
            f"{path}: sha256 is {digest[:16]}..., its card says {str(card['sha256'])[:16]}...; the file is damaged or was "
            "replaced: delete both and make them again"
        )
    try:
        return safetensors.torch.load_file(path), card
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({first_line(error)}); pickles are refused") from error


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
    wanted = model.state_dict()
    given = dict(fuse_qkv(state) if model.qkv == "fused" else state)
    if new_head:
        given |= {name: tensor for name, tensor in wanted.items() if name.startswith("head.")}
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        raise DataError(
            f"{source}: not the weights of {model.architecture.name}: "
            f"{len(missing)} tensors missing{_example(missing)}, {len(unknown)} left over{_example(unknown)}"
        )
    if given["head.weight"].shape[0] != model.num_classes:
        raise DataError(
            f"{source}: its head has {given['head.weight'].shape[0]} classes, the data has {model.num_classes}; "
            "run lowbit-vit backbone again for this data"
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise DataError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, {model.architecture.name} at "
                f"{model.architecture.image_size} px needs {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(given)


def _refuse_other_suffix(path: Path) -> None:
    if path.suffix != _SUFFIX:
        raise DataError(f"{path}: weights are kept as {_SUFFIX}; other files, pickles above all, are refused")


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: the card of the weights cannot be read ({error.strerror}); make the weights again") from error
    except ValueError as error:
        raise DataError(f"{path}: the card of the weights is not JSON ({first_line(error)}); make the weights again") from error
    if not isinstance(card, dict) or not isinstance(card.get("sha256"), str):
        raise DataError(f"{path}: the card of the weights has no sha256; make the weights again")
    return card


def _example(names: list[str]) -> str:
    return f" (as {names[0]})" if names else ""
