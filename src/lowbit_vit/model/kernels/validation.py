"""What the kernels demand of their arguments. A kernel reads addresses: what is wrong must be refused before it starts."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.kernels.coded import CODES, VECTOR, Coded

# Read when this module is imported, as @triton.jit reads it: under the interpreter kernels run on the CPU, slowly, for tests.
INTERPRETED = bool(triton.knobs.runtime.interpret)
_INTERPRETED_MULTIPROCESSORS = 6  # stands for a GPU's under the interpreter


def multiprocessors(device: torch.device) -> int:
    """Of this GPU."""
    return _INTERPRETED_MULTIPROCESSORS if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def require_matrix(name: str, tensor: Tensor, *, dtypes: Sequence[torch.dtype], shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a tensor that a kernel would read wrongly.

    Args:
        name: of the argument, for the message.
        tensor: what was given.
        dtypes: allowed ones.
        shape: the one that is needed.
        device: where the kernel will run.

    Raises:
        ValueError: another dtype, shape, device, or not contiguous; one line that says which.
    """
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: {str(tensor.dtype).removeprefix('torch.')} given, allowed: {allowed}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {list(tensor.shape)} given, needed {list(shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: lies on {tensor.device}, the other arguments on {device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: strides {list(tensor.stride())} given; make it contiguous")


def require_coded(name: str, coded: Coded, *, depth: int, device: torch.device) -> None:
    """Refuse codes and scales that do not fit each other or the GEMM.

    Args:
        name: of the argument, for the message.
        coded: what was given.
        depth: K.
        device: where the kernel will run.

    Raises:
        ValueError: as `require_matrix`, or K is no multiple of 16.
    """
    rows = len(coded.codes)
    if depth % VECTOR:
        raise ValueError(f"{name}: {depth} columns given; a multiple of {VECTOR} is needed, so that rows start at whole vectors")
    require_matrix(f"{name}.codes", coded.codes, dtypes=CODES, shape=(rows, depth), device=device)
    require_matrix(f"{name}.scales", coded.scales, dtypes=(torch.float32,), shape=(rows,), device=device)


def require_device(device: torch.device, codes: torch.dtype | None = None) -> None:
    """Refuse a device on which the kernels do not run.

    Raises:
        Unavailable: it is no CUDA device, or one without tensor cores for these codes.
    """
    if device.type != "cuda":
        if INTERPRETED and device.type == "cpu":
            return
        raise Unavailable(f"these kernels need CUDA, the tensors are on {device.type}")
    capability = torch.cuda.get_device_capability(device)
    least = (8, 9) if codes == torch.float8_e4m3fn else (8, 0)
    if capability < least:
        raise Unavailable(
            f"{'fp8' if least == (8, 9) else 'these'} kernels need compute capability {least[0]}.{least[1]}; "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        )
