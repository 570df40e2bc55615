"""The attention kernels that the study compares: one signature, one pinned implementation each.

Left alone, PyTorch picks its own kernel (on an H100 cuDNN, on an A100 flash), so a row labelled "SDPA" says little. Here the
name decides and nothing else: a kernel that cannot run is an error, never another kernel.

    name       implementation                                            runs on
    math       matmul, softmax, matmul; 16-bit inputs are cast to fp32   CPU, CUDA
               and back, so on CUDA its GEMMs are fp32 (or TF32) ones
    efficient  the xFormers kernel inside PyTorch                        CUDA
    flash      CUDA: FlashAttention-2 inside PyTorch, fp16 and bf16;     CPU, CUDA
               CPU: PyTorch's own tiled kernel, fp32 too
    cudnn      NVIDIA's fused kernel, fp16 and bf16                      CUDA
    fa2        the flash-attn package, fp16 and bf16                     CUDA
    coded      this package's; in fp8 its result is e4m3 codes           CUDA, inside 8-bit blocks of up to 272 tokens

Shapes, as name suffixes here and in `vit`:

    B  images in the batch
    N  tokens of an image: its patches and the class token
    H  heads
    D  width of one head
    W  width of the model, H x D
    M  width of the MLP's hidden layer
    K  classes
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lowbit_vit.errors import Unavailable
from lowbit_vit.schema.config import AttentionName

try:
    from flash_attn import flash_attn_func

    _FA2_MISSING = None
except ImportError as error:
    # The reason is kept for `require`: "not installed" and "built for another torch" need different cures.
    _FA2_MISSING = " ".join(str(error).split())

_BACKENDS: dict[AttentionName, SDPBackend] = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
_ON_THE_CPU: tuple[AttentionName, ...] = ("math", "flash")
_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
CODED_HEAD_WIDTH, MOST_CODED_TOKENS = 64, 272
MOST_CODED_ROWS = 512  # of all images: with more, cuDNN and a pass for the codes take less (benchmarks/records/fast_path-parts.json)


def attend(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, kernel: AttentionName) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(D)) v for each head, with no mask and no dropout.

    No host synchronisation and no branch on values, so it can be compiled and captured in a CUDA graph.

    Args:
        q_BNHD: queries, floating point.
        k_BNHD: keys, same shape and dtype.
        v_BNHD: values, same shape and dtype.
        kernel: the implementation that runs.

    Returns:
        out_BNHD, same shape and dtype; under CUDA autocast, in autocast's dtype.

    Raises:
        Unavailable: the kernel needs CUDA and the tensors are elsewhere, or flash-attn cannot be imported.
        RuntimeError: PyTorch or flash-attn refuses the shape or dtype; `require` says so beforehand, in one line.
    """
    if kernel == "coded":
        raise Unavailable("attention coded runs inside blocks in 8 bits alone")
    if not q_BNHD.is_cuda and kernel not in _ON_THE_CPU:
        raise Unavailable(f"attention {kernel} needs CUDA; on the CPU there are: {', '.join(_ON_THE_CPU)}")
    if kernel == "fa2":
        if _FA2_MISSING is not None:
            raise Unavailable(_fa2_reason())
        if torch.is_autocast_enabled("cuda"):
            # What autocast does by itself for PyTorch's kernels, but not for a package's.
            dtype = torch.get_autocast_dtype("cuda")
            q_BNHD, k_BNHD, v_BNHD = q_BNHD.to(dtype), k_BNHD.to(dtype), v_BNHD.to(dtype)
        # PyTorch's kernels heed the same switch by themselves; it is of the gradient alone.
        out_BNHD: Tensor = flash_attn_func(q_BNHD, k_BNHD, v_BNHD, deterministic=torch.are_deterministic_algorithms_enabled())
        return out_BNHD
    with sdpa_kernel(_BACKENDS[kernel]):
        out_BHND = scaled_dot_product_attention(q_BNHD.transpose(1, 2), k_BNHD.transpose(1, 2), v_BNHD.transpose(1, 2))
    return out_BHND.transpose(1, 2)


def require(kernel: AttentionName, *, device: torch.device, dtype: torch.dtype, head_width: int = 64) -> None:
    """Check that a kernel runs here, by rule first and then by running it once on a few numbers.

    Args:
        kernel: the implementation that is wanted.
        device: where the model is.
        dtype: of q, k and v.
        head_width: D. 64 is every torchvision ViT's but h_14's (80).

    Raises:
        Unavailable: it does not; the message is the reason.
    """
    reason = _rule(kernel, device=device, dtype=dtype)
    if reason is None and kernel == "coded" and head_width != CODED_HEAD_WIDTH:
        reason = f"attention coded takes heads of {CODED_HEAD_WIDTH}, these have {head_width}; use cudnn"
    if reason is not None:
        raise Unavailable(reason)
    if kernel == "coded":
        return
    q_BNHD = torch.zeros(1, 16, 1, head_width, device=device, dtype=dtype)
    try:
        attend(q_BNHD, q_BNHD, q_BNHD, kernel)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as refusal:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        why = " ".join(str(refusal).split())[:200]
        raise Unavailable(f"attention {kernel} does not run in {_name(dtype)} with heads of {head_width} on {where}: {why}") from refusal


def _rule(kernel: AttentionName, *, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason that is known without running anything, or None."""
    if device.type != "cuda" and kernel not in _ON_THE_CPU:
        return f"attention {kernel} needs CUDA; on the CPU there are: {', '.join(_ON_THE_CPU)}"
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"attention {kernel} was asked for on {device}, but this machine has no usable CUDA device"
    if kernel == "fa2" and _FA2_MISSING is not None:
        return _fa2_reason()
    if device.type == "cuda" and kernel in ("flash", "cudnn", "fa2", "coded") and dtype not in _SIXTEEN_BIT:
        return f"attention {kernel} has no {_name(dtype)} kernel on CUDA; allowed: float16, bfloat16"
    return None


def _fa2_reason() -> str:
    return f"attention fa2 needs the flash-attn package, which cannot be imported: {_FA2_MISSING}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
