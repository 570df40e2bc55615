"""A quantized ViT of another library on disk: safetensors and a JSON card, no pickle. The library's own constructor builds it anew."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from lowbit_vit.errors import ConfigError, DataError, LowbitVitError, first_line
from lowbit_vit.model import any_vit, families, precision
from lowbit_vit.model.any_vit import Facts, facts_of
from lowbit_vit.model.block_spec import LINEARS, SpecBlock
from lowbit_vit.model.checkpoint import load_state, save_state
from lowbit_vit.schema.config import one_line
from lowbit_vit.schema.model_card import ANY_VIT_FILE
from lowbit_vit.schema.plan import Plan

_KIND = "quantized ViT"


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write a quantized model.

    Args:
        model: after `quantize_`.
        folder: is made where it is not there; files of an earlier save in it are replaced.

    Returns:
        The file of tensors; its card has the same name with .json.

    Raises:
        ConfigError: the model was not quantized by `quantize_`, or does not say how it was built, or was changed since.
        DataError: the disk is full.
    """
    facts = facts_of(model)
    family = families.FAMILIES[facts.family]
    arguments = family.arguments(model)
    _require_rebuilt(model, family, arguments)
    card = {
        "kind": _KIND,
        "family": facts.family,
        "arguments": arguments,
        "plan": facts.plan.model_dump(mode="json"),
        "left": facts.left,
    }
    path = Path(folder) / ANY_VIT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state(model.state_dict(), path, card)
    return path


def _require_rebuilt(model: nn.Module, family: Any, arguments: dict[str, Any]) -> None:
    """Refuse a model that `load` would build otherwise: its tensors have other names or shapes than the constructor's.

    Raises:
        ConfigError: names the first such tensor.
    """
    with torch.device("meta"):
        built = family.build(arguments)
    path, container = family.blocks(built)
    names, ours = list(container._modules), any_vit.blocks_of(model)  # noqa: SLF001
    specs, _ = any_vit.read_specs(family, container, path=path, partial=True)
    here, there = ({name: tuple(tensor.shape) for name, tensor in each.state_dict().items()} for each in (model, built))
    inside = tuple(f"{path}.{names[place]}." for place in ours if place in specs)
    here, there = ({name: shape for name, shape in each.items() if not name.startswith(inside)} for each in (here, there))
    for place, block in ours.items():
        if place in specs:
            for name, linear in specs[place].linears(multiple=1, fold=False):
                full = f"{path}.{names[place]}.{name}"
                here[full] = (block.linears()[name].out_features, block.linears()[name].in_features)
                pad = block.padded * (2 if name == LINEARS[2] and specs[place].gated else 1)
                there[full] = (
                    linear.out_features + (pad if name == LINEARS[2] else 0),
                    linear.in_features + (pad if name == LINEARS[3] else 0),
                )
    other = next((name for name in here | there if here.get(name) != there.get(name)), None)
    if other is not None:
        kinds = [str(list(each[other])) if other in each else "missing" for each in (here, there)]
        remembered = "timm before 1.0.31 remembers img_size, num_classes and global_pool alone"
        raise ConfigError(f"save: {other} is {kinds[0]}, and {kinds[1]} in what load would build; {remembered}")


def load(folder: str | Path, device: torch.device | str = "cpu", *, execution: str = "eager") -> nn.Module:
    """Read what `save` wrote, in evaluation mode.

    Args:
        folder: where it was saved.
        device: where the model is to run; it cannot be moved later.
        execution: as of `quantize_`.

    Raises:
        DataError: a file is missing or damaged, or does not fit the model that its card describes.
        Unavailable: the plan or the execution does not run on the device, or the library is not installed.
    """
    path = Path(folder) / ANY_VIT_FILE
    state, card = load_state(path)
    try:
        if card.get("kind") != _KIND:
            raise ValueError(f"its card is of kind {card.get('kind')!r}")
        plan, family = Plan.model_validate(card["plan"]), families.FAMILIES[card["family"]]
        any_vit.require_runs(plan, torch.device(device), execution=execution)
        model: nn.Module = family.build(card["arguments"]).eval().to(device)
        return _filled(model, family, plan, {name: tensor.to(device) for name, tensor in state.items()}, card, execution=execution)
    except ValidationError as error:
        raise DataError(f"{path.with_suffix('.json')}: {one_line(error)}") from None
    except LowbitVitError:
        raise
    except Exception as error:  # whatever the library, torch and bitsandbytes raise about what does not fit
        raise DataError(f"{path}: not a saved model ({first_line(error)}); save it again") from error


def _filled(
    model: nn.Module, family: Any, plan: Plan, state: dict[str, torch.Tensor], card: dict[str, Any], *, execution: str
) -> nn.Module:
    """The model with the tensors: layers are rebuilt by their formats, the rest is copied."""
    path, container = family.blocks(model)
    specs, _ = any_vit.read_specs(family, container, path=path, partial=True)
    left = {str(each[0]): str(each[1]) for each in card["left"]}
    names = list(container._modules)  # noqa: SLF001
    specs = {place: spec for place, spec in specs.items() if f"{path}.{place}" not in left}
    formats = plan.resolve([f"blocks.{place}.{name}" for place in specs for name in LINEARS])
    first, dtype = next(iter(state.values())), precision.compute_dtype(plan)
    kernel = any_vit.attention_kernel(plan, first.device, specs)
    blocks, layers = {}, set()
    for place, spec in specs.items():
        multiple, fold = any_vit.layout(formats, place)
        made: dict[str, nn.Module] = {}
        for inside, linear in spec.linears(multiple=multiple, fold=False):
            prefix = f"{path}.{names[place]}.inner.{inside}."
            own = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
            layer = precision.format_named(formats[f"blocks.{place}.{inside}"].format).restore(
                formats[f"blocks.{place}.{inside}"], own, dtype
            )
            given: tuple[Any, Any] = (layer.out_features, layer.in_features)
            if given != (linear.out_features, linear.in_features):
                raise ValueError(f"{prefix[:-1]} has {layer.out_features} outputs, the model {linear.out_features}")
            made[inside] = layer
            layers.add(prefix)
        block = SpecBlock(spec, made, kernel=kernel, dtype=dtype, fold=fold)
        blocks[place] = any_vit.finish(block, formats, place, name=f"{path}.{place}", padded=-spec.mlp_width % multiple)
    any_vit.install(model, family, blocks, Facts(card["family"], plan, tuple(left.items())), execution=execution)
    missing, unknown = model.load_state_dict(state, strict=False)
    absent = [name for name in missing if not name.startswith(tuple(layers))]
    if absent or unknown:
        raise ValueError(f"{len(absent)} tensors missing, {len(unknown)} left over, as {(absent or unknown)[0]}")
    return model
