"""Other libraries' ViTs, a module each: where a model's blocks are, what `BlockSpec` a block is, and how the model is built anew.

To add a family: a module with the four functions of `Family`, and its name in `FAMILIES`. A family imports its library when it first
meets a model of it.
"""

from typing import Any, Protocol

from torch import nn

from lowbit_vit.errors import ConfigError
from lowbit_vit.model.block_spec import BlockSpec, Norm
from lowbit_vit.model.families import timm_eva, timm_vit, torchvision_vit
from lowbit_vit.model.families.reading import Unsupported

__all__ = ["FAMILIES", "BlockSpec", "Family", "Norm", "Unsupported", "family_of"]


class Family(Protocol):
    """What a family's module has."""

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is of this family."""

    def blocks(self, model: nn.Module) -> tuple[str, Any]:
        """The path of the container of the blocks, and the container itself."""

    def spec(self, block: nn.Module) -> BlockSpec:
        """What the block computes; raises `Unsupported`."""

    def patches(self, model: nn.Module) -> nn.Module:
        """The first layer that images meet."""

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """JSON values from which `build` makes a model of the same structure; raises `ConfigError`."""

    def build(self, arguments: dict[str, Any]) -> nn.Module:
        """A model with any weights."""


FAMILIES: dict[str, Any] = {"torchvision": torchvision_vit, "timm_vit": timm_vit, "timm_eva": timm_eva}


def family_of(model: nn.Module) -> tuple[str, Any]:
    """The name and module of a model's family.

    Raises:
        ConfigError: none supports it.
    """
    for name, family in FAMILIES.items():
        if family.matches(model):
            return name, family
    raise ConfigError(
        f"{type(model).__module__}.{type(model).__qualname__} is no supported model: give torchvision's VisionTransformer, or timm's "
        "VisionTransformer or Eva, as their own builders make them (docs/any-vit.md)"
    )
