"""CUDA graphs of another library's ViT for whatever batch sizes come: a few are captured, and a batch is filled up to the next of them."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowbit_vit.model import nf4_prefetch
from lowbit_vit.model.block_spec import SpecAttention, SpecBlock, SpecMlp
from lowbit_vit.model.execution import WARMUP_CALLS
from lowbit_vit.model.lazy_import import Deferred

if TYPE_CHECKING:
    from torch import _dynamo as compiler
else:
    compiler = Deferred("torch._dynamo")

SIZES = (1, 2, 4, 8, 16, 32, 64)  # larger batches are eager: their kernels take longer than launching them
MOST_GRAPHS = 4  # the one that was used least recently goes; all share one pool of memory


class _Captured:
    """One captured forward for one shape; results lie at fixed addresses."""

    def __init__(self, model: nn.Module, blocks: Sequence[Any], example: Tensor, pool: Any) -> None:
        forward = type(model).forward
        self.images = torch.zeros_like(example)
        self.graph = torch.cuda.CUDAGraph()
        linears = [linear for block in blocks for linear in block.linears().values()]
        with torch.inference_mode(), compiled_parts(blocks):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.prefetchers = nf4_prefetch.prefetchers(linears, rows=self._rows(model, blocks[0]))  # their buffers are the graph's
                for _ in range(WARMUP_CALLS):
                    with nf4_prefetch.running(self.prefetchers):
                        forward(model, self.images)
            torch.cuda.current_stream().wait_stream(side)
            stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]  # see `execution`
            with torch.cuda.graph(self.graph, pool=pool, stream=stream), nf4_prefetch.running(self.prefetchers):
                self.out = forward(model, self.images)

    def _rows(self, model: nn.Module, block: Any) -> int:
        """Images x tokens, as a block sees them."""
        seen: list[int] = []
        handle = block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
        type(model).forward(model, self.images)
        handle.remove()
        return seen[0]


class Graphs:
    """Stands for a model's `forward`: captures a graph when a size first comes, replays it from any stream and thread.

    A call is eager where a graph would change what it means: with other arguments than the images, with hooks on a block, for more images
    than the largest size, on another device, or during another capture.

    Args:
        model: on CUDA, quantized; not to be changed afterwards.
        blocks: its blocks that are ours (`any_vit.Block`).
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Any]) -> None:
        self.model, self.blocks = model, blocks
        self._captured: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        return Graphs(deepcopy(self.model, memo), deepcopy(self.blocks, memo))

    @torch.compiler.disable(reason="it replays CUDA graphs")  # type: ignore[no-untyped-call,untyped-decorator]
    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the model's own forward."""
        if args or kwargs or not self._serves(images):
            eager: Tensor = type(self.model).forward(self.model, images, *args, **kwargs)
            return eager
        count = len(images)
        size = next(size for size in SIZES if size >= count)
        with self._lock, torch.inference_mode():
            captured = self._graph(images, size)
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)  # another stream may still read or write what follows
            captured.images[:count].copy_(images)
            captured.graph.replay()
            out = captured.out[:count].clone()
            self._done = stream.record_event()
        return out  # type: ignore[no-any-return]

    def _serves(self, images: Tensor) -> bool:
        on_device = images.is_cuda and images.device == next(self.model.parameters()).device
        hooked = any(block._forward_hooks or block._forward_pre_hooks for block in self.blocks)  # noqa: SLF001
        return (
            on_device and not hooked and images.ndim == 4 and 0 < len(images) <= SIZES[-1] and not torch.cuda.is_current_stream_capturing()
        )

    def _graph(self, images: Tensor, size: int) -> _Captured:
        key = (size, *images.shape[1:], images.dtype)
        if key not in self._captured:
            while len(self._captured) >= MOST_GRAPHS:
                torch.cuda.synchronize()
                self._captured.popitem(last=False)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            example = images[:1].expand(size, *images.shape[1:]).contiguous()
            self._captured[key] = _Captured(self.model, self.blocks, example, self._pool)
        self._captured.move_to_end(key)
        return self._captured[key]


@contextmanager
def compiled_parts(blocks: Sequence[Any]) -> Iterator[None]:
    """Inside, what PyTorch computes in our blocks is compiled: whole blocks in 16 bits, what stands between kernels in others."""
    parts: list[tuple[nn.Module, str]] = []
    for block in (each.inner for each in blocks):
        if isinstance(block, SpecBlock):
            parts.append((block, "forward"))
            continue
        if isinstance(block.attention, SpecAttention) and not block.attention.plain:
            parts.append((block.attention, "split"))
        if isinstance(block.mlp, SpecMlp) and not block.mlp.plain:
            parts.append((block.mlp, "activate"))
    for module, name in parts:
        module.__dict__[name] = torch.compile(getattr(module, name), dynamic=False)
    try:
        # A size is a compilation; past its limit the compiler would run a part op by op.
        with compiler.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
            yield
    finally:
        for module, name in parts:
            module.__dict__.pop(name, None)
