"""How a forward is launched: op by op, as one CUDA graph, through the compiler, or both.

Low-bit layers launch several kernels where a 16-bit linear launches one, so the host can be what limits them. Comparing these
executions of the same model separates the time of kernels from the time of launching them.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.lazy_import import Deferred
from lowbit_vit.model.precision import format_named, formats_in
from lowbit_vit.model.vit import Block, VisionTransformer
from lowbit_vit.schema.config import Execution

if TYPE_CHECKING:
    from torch import _dynamo as compiler
else:
    compiler = Deferred("torch._dynamo")

BlockCall = Callable[[Tensor], Tensor]

WARMUP_CALLS = 3  # before a capture: allocations, kernel choices and lazy handles must be settled


def prepare(model: VisionTransformer, execution: Execution, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Make the model callable in the given execution, for batches exactly like the example, without gradients.

    Args:
        model: in evaluation mode, on its device; not to be changed afterwards.
        execution: eager, cuda_graph, compile (each block alone, so that one block's code serves all of one format), or compile_graph
            (a CUDA graph of the compiled blocks). In a graph, formats may prepare weights ahead (`formats.Format.prefetch`).
        example: images [B, 3, image_size, image_size] in the dtype and memory format that will be given.

    Returns:
        Images -> logits [B, K]. A captured graph writes every result into the same memory: use it before the next call. It
        raises ValueError on images of another shape or dtype.

    Raises:
        Unavailable: the execution cannot run here or cannot run this model; the message is the reason.
    """
    require_execution(model, execution, example.device)
    if execution == "cuda_graph":
        return _captured(_by_blocks(model, compiled=False, rows=_rows(model, example)), example)
    if execution == "compile":
        return _by_blocks(model, compiled=True, rows=None)
    if execution == "compile_graph":
        return _captured(_by_blocks(model, compiled=True, rows=_rows(model, example)), example)
    return torch.inference_mode()(model)


def require_execution(model: VisionTransformer, execution: Execution, device: torch.device) -> None:
    """Refuse an execution that cannot run here or cannot run this model.

    Raises:
        Unavailable: the message is the reason.
    """
    if execution == "eager":
        return
    if device.type != "cuda":
        # torch.compile runs on a CPU where a C++ compiler is installed. It is not offered: launching costs nothing there,
        # so the arm would compare compilers, and its result would depend on which one happens to be present.
        raise Unavailable(f"execution {execution} needs CUDA, the model is on {device.type}; use execution: eager")
    if execution in ("compile", "compile_graph") and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise Unavailable(f"execution {execution} needs a C compiler (Triton builds its launchers with it); install gcc")
    if execution in ("compile", "compile_graph") and not any(isinstance(block, Block) for block in model.blocks):
        raise Unavailable(f"execution {execution} has nothing to compile: every block runs by kernels of its own; use cuda_graph")
    reasons = [weights.host_sync for weights in formats_in(model)] if execution in ("cuda_graph", "compile_graph") else []
    for reason in filter(None, reasons):
        raise Unavailable(f"execution {execution}: {reason}; use execution: eager")


def _captured(forward: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Replay of one captured forward; weights, input and output stay at fixed addresses."""
    static_in = example.clone(memory_format=torch.preserve_format)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_CALLS):
                forward(static_in)
        torch.cuda.current_stream().wait_stream(side)
        # The graph keeps the stream's priority: work that is captured beside it must not come first.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(priority=-1)):  # type: ignore[no-untyped-call]
            static_out = forward(static_in)

    @torch.no_grad()
    def replay(images: Tensor) -> Tensor:
        if images.shape != static_in.shape or images.dtype != static_in.dtype:
            raise ValueError(
                f"the graph was captured for {tuple(static_in.shape)} {static_in.dtype}, got {tuple(images.shape)} {images.dtype}"
            )
        static_in.copy_(images)
        graph.replay()
        return static_out

    # The graph reads the weights where they lie and does not keep them: the replay must hold the model.
    replay.forward = forward  # type: ignore[attr-defined]
    return replay


def _rows(model: VisionTransformer, example: Tensor) -> int:
    return len(example) * model.architecture.tokens


def _by_blocks(model: VisionTransformer, *, compiled: bool, rows: int | None) -> Callable[[Tensor], Tensor]:
    """The model's forward, block by block, each as it is or compiled; the model itself stays as it is.

    Args:
        model: in evaluation mode.
        compiled: whether blocks go through the compiler.
        rows: images x tokens, for weights that are prepared ahead; None: none are.
    """
    calls = [_compiled(block) if compiled else block for block in model.blocks]
    names = [] if rows is None else sorted({weights.format for weights in formats_in(model)})
    prefetchers = [found for name in names if (found := format_named(name).prefetch(model, rows=rows or 0)) is not None]

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        """Images [B, 3, image_size, image_size] -> logits [B, K]."""
        # Past its limit the compiler would quietly run a block op by op under the label `compile`.
        limited = compiler.config.patch(fail_on_recompile_limit_hit=True) if compiled else nullcontext()
        with limited, ExitStack() as prepared:
            for prefetcher in prefetchers:
                prepared.enter_context(prefetcher())
            x_BNW = model.embed(images)
            for call in calls:
                x_BNW = call(x_BNW)
        logits_BK: Tensor = model.head(model.norm(x_BNW[:, 0]))
        return logits_BK

    return run


def _compiled(block: nn.Module) -> BlockCall:
    """A block compiled for static shapes. One that its format fused is run as it is: there is nothing in it to compile."""
    return torch.compile(block, dynamic=False) if isinstance(block, Block) else block
