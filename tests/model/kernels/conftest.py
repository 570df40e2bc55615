"""Triton's interpreter, for this folder alone: the kernels run on the CPU, element by element, with numpy.

@triton.jit asks when it decorates whether to interpret, so the kernels' modules are imported anew with the interpreter switched on
and forgotten afterwards: other tests of the same process see compiled kernels. Triton's own functions, such as `tl.max`, were
decorated long before and are wrapped here.
"""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.compiler.code_generator  # it keeps the language's functions as it finds them: not while they are patched
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

PACKAGE = "lowbit_vit.model.kernels"
NAMES = ("coded", "validation", "pdl", "gelu", "quantize", "gemm", "nf4", "rotary", "attention")


def _forget() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name == PACKAGE or name.startswith(f"{PACKAGE}.")}


def _convert_float(given: Any, from_type: Any, to_type: Any, rounding: Any) -> Any:
    """Triton 3.9's interpreter cuts fp32 to bf16 instead of rounding, and to e4m3 loses the carry (127 becomes 64): PyTorch's casts."""
    target = {tl.bfloat16: (torch.bfloat16, torch.int16), tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8)}.get(to_type)
    if target is None or from_type != tl.float32:
        return _TRITONS(given, from_type, to_type, rounding)
    numbers = torch.from_numpy(np.ascontiguousarray(given).view(np.float32))
    if to_type == tl.float8e4nv:  # as the GPU's cvt.satfinite
        numbers = numbers.clamp(-448, 448)
    bits = numbers.to(target[0]).view(target[1]).numpy()
    return bits.view(np.uint16) if to_type == tl.bfloat16 else bits


def _create_dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    """Triton 3.9's interpreter multiplies the bits of bf16 numbers as if they were integers: widen them first."""
    if a.dtype == tl.bfloat16:
        a, b = (interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32) for x in (a, b))
    return _TRITONS_DOT(builder, a, b, d, precision, imprecise)


def _patch_language(_: Any) -> Any:
    """Triton 3.9's interpreter patches the language at each call of a function inside a kernel, in milliseconds, and takes only the
    kernel's own patches back, so that the next kernel of the process would not compile: once a launch, with all that any call needs.
    """
    if tl.static_print is print:  # patched: this is a call inside a launch
        return interpreter._LangPatchScope()
    return _TRITONS_PATCH(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))


_TRITONS = interpreter._convert_float
_TRITONS_DOT = interpreter.InterpreterBuilder.create_dot
_TRITONS_PATCH = interpreter._patch_lang


@pytest.fixture(scope="module")
def kernels() -> Iterator[SimpleNamespace]:
    """The kernels' modules, interpreted."""
    before = _forget()
    with pytest.MonkeyPatch.context() as patch, triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        patch.setattr(interpreter, "_convert_float", _convert_float)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", _create_dot)
        patch.setattr(interpreter, "_patch_lang", _patch_language)
        for module in (tl, tl.standard):
            for name, value in list(vars(module).items()):
                # Those with an underscore are handed to reductions, which know them by identity.
                if isinstance(value, JITFunction) and not name.startswith("_"):
                    patch.setattr(module, name, interpreter.InterpretedFunction(value.fn))
        yield SimpleNamespace(**{name: importlib.import_module(f"{PACKAGE}.{name}") for name in NAMES})
    _forget()
    sys.modules.update(before)
