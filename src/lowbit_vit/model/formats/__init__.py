"""Weight formats, a module each, with the name that the format has in a plan: what it makes of a linear layer, and how it is kept.

A module's `FORMAT` is an instance of `Format`. It is imported when a plan first names the format (`precision.format_named`), so a
process holds only what its plans use, and the hash of a record covers only that (`schema.code_hash`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.model.block_spec import SpecBlock
from lowbit_vit.model.vit import Block, VisionTransformer
from lowbit_vit.schema.plan import Format as Declared

W = TypeVar("W", bound=Declared)


Prepared = Callable[[], AbstractContextManager[None]]  # inside, one forward finds its weights prepared


class Format(ABC, Generic[W]):
    """One weight format. W: its class in `schema.plan`, with its settings.

    Attributes:
        library: the package that its layers are made with; None: torch alone.
        adapter: the name of peft's class for an adapter over a layer; None: there is none.
    """

    library: str | None = None
    adapter: str | None = None

    @abstractmethod
    def convert(self, linear: nn.Linear, bias: Tensor, weights: W, dtype: torch.dtype, *, name: str) -> nn.Module:
        """A new layer with a linear's weights; the source is not touched.

        Args:
            linear: weight fp32 [out, in].
            bias: [out], in the compute dtype, the new layer's own.
            weights: the format's settings.
            dtype: the compute dtype.
            name: for the error message.

        Raises:
            ConfigError: the format cannot hold these weights.
        """

    @abstractmethod
    def identify(self, layer: nn.Module) -> W | None:
        """The settings of a layer of this format, read from its class, parameters and state; None: it is of another one."""

    @abstractmethod
    def expected_bytes(self, weights: W, rows: int, columns: int, *, itemsize: int) -> int:
        """Bytes of a weight [rows, columns] as held in memory, scales included; itemsize: of the compute dtype."""

    @abstractmethod
    def restore(self, weights: W, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
        """The layer that a saved state describes: the inverse of its state_dict, on the tensors' device."""

    def constants(self, layer: nn.Module) -> list[Tensor]:
        """Tensors that a layer's values are made of and that are neither its parameters nor its buffers."""
        return []

    def dequantize(self, layer: nn.Module) -> Tensor:
        """The weights that a layer computes with, fp32 [out, in].

        Raises:
            LowbitVitError: the format has no such view of its weights.
        """
        raise LowbitVitError(f"{type(layer).__name__} is no low-bit layer")

    def fuse(self, block: Block | SpecBlock) -> nn.Module:
        """The block that runs in place of one whose fc1 has this format."""
        return block

    def prefetch(self, model: VisionTransformer, *, rows: int) -> Prepared | None:
        """What prepares weights ahead in a CUDA graph of the model for batches of so many rows, images x tokens; None: nothing."""
        return None

    def take_over(self, model: VisionTransformer) -> None:
        """Turn a model that was trained with adapters under `Plan.trained` into one under the plan itself, in place.

        Raises:
            ConfigError: the format cannot.
        """
        raise ConfigError("adapters of this format are trained over its own layers")
