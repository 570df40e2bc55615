"""A converted model on disk: codes, scales, adapters and the unquantized rest as safetensors, and a JSON card beside them.

The tensors' names are those of bitsandbytes' and peft's own state dicts, so other programs can read the file. The size on disk
that the tables give is the size of these two files. A model that is read back gives the same logits, bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, DataError, LowbitVitError, first_line
from lowbit_vit.model import lora, precision
from lowbit_vit.model.checkpoint import load_state, save_state, saved_bytes
from lowbit_vit.model.vit import Architecture, VisionTransformer, encoder_linears
from lowbit_vit.schema.config import AttentionName, one_line
from lowbit_vit.schema.plan import Plan

_BASE = ".base_layer."  # what peft puts into the names of the tensors below an adapter


def save_model(model: VisionTransformer, plan: Plan, path: Path, card: Mapping[str, Any]) -> int:
    """Write a converted model, with its adapters unmerged if it has any.

    Args:
        model: after `apply_plan` with this plan.
        plan: what the model was converted with; checked against it.
        path: ends in .safetensors; the card takes the same name with .json.
        card: JSON values for people; `model` and `sha256` are added to it.

    Returns:
        Bytes of both files on disk.

    Raises:
        LowbitVitError: the model's layers are not what the plan says.
        DataError: the suffix is another, or the disk is full.
    """
    save_state(model.state_dict(), path, {**card, "model": _facts(model, plan)})
    return path.stat().st_size + path.with_suffix(".json").stat().st_size


def model_bytes(model: VisionTransformer, plan: Plan, card: Mapping[str, Any]) -> int:
    """Bytes of both files that `save_model` would write, without writing them.

    Raises:
        LowbitVitError: the model's layers are not what the plan says.
    """
    return saved_bytes(model.state_dict(), {**card, "model": _facts(model, plan)})


def _facts(model: VisionTransformer, plan: Plan) -> dict[str, Any]:
    """What the card says of the model: all that `load_model` needs beside the tensors."""
    _require_formats(model, plan)
    return {
        "architecture": dataclasses.asdict(model.architecture),
        "num_classes": model.num_classes,
        "qkv": model.qkv,
        "plan": plan.model_dump(mode="json"),
        "adapters": _adapter_facts(model),
    }


def load_model(path: Path, *, attention: AttentionName, device: torch.device | str = "cpu") -> VisionTransformer:
    """Read what `save_model` wrote, in evaluation mode, built directly on the device.

    Args:
        path: the .safetensors file.
        attention: the kernel to run it with; it is no part of the file.
        device: where the model is to run. It cannot be moved later: bitsandbytes leaves scales behind.

    Raises:
        DataError: file or card is missing, damaged, or not of a model of ours.
    """
    state, card = load_state(path)
    state = {name: tensor.to(device) for name, tensor in state.items()}
    try:
        facts = card["model"]
        plan = Plan.model_validate(facts["plan"])
        arch = Architecture(**facts["architecture"])
        if arch.depth > len(state):  # ahead of making so many blocks
            raise ValueError(f"{arch.depth} blocks, but {len(state)} tensors")
        model = VisionTransformer.empty(arch, num_classes=facts["num_classes"], attention=attention, qkv=facts["qkv"], device="meta")
        _fill(model, plan, {name.replace(_BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name})
        if facts["adapters"] is not None:
            lora.wrap(model, **facts["adapters"])
            _copy_adapters(model, state)
            if state["head.weight"].dtype == model.norm.weight.dtype:  # it was settled before it was saved
                lora.cast(model)
    except ValidationError as error:
        raise DataError(f"{path.with_suffix('.json')}: {one_line(error)}") from None
    except ConfigError as error:
        raise DataError(f"{path.with_suffix('.json')}: {first_line(error)}") from None
    except Exception as error:  # whatever torch and bitsandbytes raise about tensors and sizes that do not fit
        raise DataError(f"{path}: not a saved model ({first_line(error)}); delete it and its card and save it again") from error
    return model.eval()


def _fill(model: VisionTransformer, plan: Plan, state: dict[str, Tensor]) -> None:
    """Put the tensors into a model on the meta device: the encoder's linears are rebuilt by their formats, the rest is assigned."""
    linears = encoder_linears(model)
    formats = plan.resolve(linears)
    for name, weights in formats.items():
        own = {key.removeprefix(f"{name}."): state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
        layer = precision.format_named(weights.format).restore(weights, own, precision.compute_dtype(plan))
        given, wanted = ((each.out_features, each.in_features) for each in (layer, linears[name]))
        if given != wanted:
            raise ValueError(f"{name} has {given} outputs and inputs, the model {wanted}")
        parent, _, place = name.rpartition(".")
        setattr(model.get_submodule(parent), place, layer)
    missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    absent = [name for name in missing if name.rpartition(".")[0] not in formats]
    if absent or unknown:
        raise ValueError(f"{len(absent)} tensors missing, {len(unknown)} left over, as {(absent or unknown)[0]}")
    if model.patch_embedding.weight.dtype != precision.compute_dtype(plan):
        raise ValueError(f"its tensors are {model.patch_embedding.weight.dtype}, the plan's compute_dtype is {plan.compute_dtype}")
    _require_formats(model, plan)
    precision.fuse_blocks(model)


def _require_formats(model: VisionTransformer, plan: Plan) -> None:
    expected = plan.resolve(encoder_linears(model))
    for name, layer in encoder_linears(model).items():
        found = precision.format_of(precision.base_layer(layer), name=name)
        if found != expected[name]:
            raise LowbitVitError(f"{name} is {found.name}, the plan says {expected[name].name}")


def _adapter_facts(model: nn.Module) -> dict[str, float] | None:
    if not lora.adapters(model):
        return None
    config = vars(model)["peft_config"][lora.ADAPTER]
    return {"rank": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}


def _copy_adapters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, parameter in lora.trainable_parameters(model).items():
        if ".lora_" in name:
            parameter.data.copy_(state[name])
