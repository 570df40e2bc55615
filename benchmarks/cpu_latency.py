"""Low-bit ViT-L/16 on a CPU: what a user could pick, against fp32, in one run on one machine. Batch 1 and 4, random weights.

    python benchmarks/cpu_latency.py         10 to 20 minutes on two cores; needs a C++ compiler for the compiled sides

The paper's table has a column "CPU Latency" that is filled for fp32 alone. Sides are bitsandbytes' NF4 and int8 as this package runs
them, PyTorch's own dynamic int8 (FBGEMM or oneDNN, whichever this machine's build picks), and torchao's formats that run on a CPU,
where torchao is installed. Formats are put on the encoder's linears and on nothing else. Sides are timed in turns, `ROUNDS` times, so
that a slow spell meets all of them. What is said of each is the median of its calls and its ratio to fp32 run eagerly, and how far its
logits are from fp32's: norm of the difference over norm. With random weights that only shows that the arithmetic is what the side's
name says.

A side that cannot run is in the record with the reason.
"""

import argparse
import copy
import functools
import gc
import importlib
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from torch import Tensor, nn

from aside import machine
from lowbit_vit.errors import Unavailable
from lowbit_vit.model import precision
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import ARCHITECTURES, VisionTransformer, encoder_linears
from lowbit_vit.schema.plan import NF4, ComputeDtype, HighPrecision, Int8, Weights, uniform
from lowbit_vit.trial.measure import call_ms

RECORD = Path(__file__).parent / "records" / "cpu_latency.json"
ARCH = ARCHITECTURES["vit_l_16"]
CLASSES = 102
BATCHES = (1, 4)
ROUNDS = 5
CALLS = 2  # in a round
REFERENCE = "fp32, eager"

Forward = Callable[[Tensor], Tensor]


def main() -> None:
    """Time every side at every batch size and write the record, also after the first of them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    facts = machine("torch", "bitsandbytes", *(["torchao"] if importlib.util.find_spec("torchao") else []), load=os.getloadavg()[0])
    facts |= {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    batches: dict[str, object] = {}
    for batch in BATCHES:
        batches[str(batch)] = one_batch(batch)
        record = {"machine": facts, "rounds": ROUNDS, "calls": CALLS, "batches": batches}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(RECORD.read_text())


# --------------------------------------------------------------------------------------------------------------- sides


@functools.cache
def template() -> VisionTransformer:
    """A ViT-L/16 in fp32 with random weights."""
    torch.manual_seed(0)
    return VisionTransformer(ARCH, num_classes=CLASSES, attention="flash", qkv="fused").eval()


def fresh() -> VisionTransformer:
    """A copy of it: the same weights for every side."""
    return copy.deepcopy(template())


def ours(weights: Weights, dtype: ComputeDtype = "fp32") -> Callable[[Tensor], Forward]:
    """A side that this package runs, eagerly; images and logits stay in fp32."""

    def make(example: Tensor) -> Forward:
        model, plan = fresh(), uniform(weights, dtype)
        precision.apply_plan(model, plan)
        inner = precision.compute_dtype(plan)
        forward = prepare(model.eval(), "eager", example.to(inner))
        return lambda images: forward(images.to(inner)).float()

    return make


def compiled(make: Callable[[Tensor], nn.Module]) -> Callable[[Tensor], Forward]:
    """A side whose blocks are compiled, one by one, by PyTorch's C++ backend."""

    def build(example: Tensor) -> Forward:
        model = make(example)
        for block in model.get_submodule("blocks").children():
            block.compile(dynamic=False)
        return torch.inference_mode()(model)

    return build


def dynamic_int8(_: Tensor) -> Forward:
    """int8 weights by row, activations quantized anew in each call, per tensor: what PyTorch itself offers, though deprecated."""
    model = fresh()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(torch.ao.quantization|torch.quantize_per).*deprecated", category=Warning)
        quantized = torch.ao.quantization.quantize_dynamic(model.blocks, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    model.blocks = quantized
    return torch.inference_mode()(model)


def torchao(name: str) -> Callable[[Tensor], nn.Module]:
    """Its configuration on every encoder linear."""

    def make(_: Tensor) -> nn.Module:
        if importlib.util.find_spec("torchao") is None:
            raise Unavailable("torchao is not installed")
        quantization = importlib.import_module("torchao.quantization")
        model = fresh()
        linears = set(map(id, encoder_linears(model).values()))
        quantization.quantize_(model, getattr(quantization, name)(), filter_fn=lambda module, _: id(module) in linears)
        return model

    return make


SIDES: dict[str, Callable[[Tensor], Forward]] = {
    REFERENCE: ours(HighPrecision()),
    "fp32, compiled": compiled(lambda _: fresh()),
    "bf16, eager": ours(HighPrecision(), "bf16"),
    "bitsandbytes NF4, eager": ours(NF4(format="nf4", double_quantization=False)),
    "bitsandbytes int8, threshold 6, eager": ours(Int8(format="int8", threshold=6.0)),
    "bitsandbytes int8, threshold 0, eager": ours(Int8(format="int8", threshold=0.0)),
    "torch dynamic int8, eager": dynamic_int8,
    "torchao int8 dynamic, compiled": compiled(torchao("Int8DynamicActivationInt8WeightConfig")),
    "torchao int8 weights, compiled": compiled(torchao("Int8WeightOnlyConfig")),
}


def one_batch(batch: int) -> dict[str, object]:
    """Medians, ratios to fp32, and distances from its logits, at one batch size."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, 224, 224)
    forwards: dict[str, Forward] = {}
    prepared: dict[str, float] = {}
    skipped: dict[str, str] = {}
    logits: dict[str, Tensor] = {}
    for name, make in track(SIDES.items(), f"prepare, batch {batch}"):
        start = time.perf_counter()
        try:
            forwards[name] = make(images)
            forwards[name](images)
            logits[name] = forwards[name](images).clone()
            prepared[name] = round(time.perf_counter() - start, 1)
            print(f"{prepared[name]:6.1f} s to prepare {name}", flush=True)
        except Exception as error:
            if name == REFERENCE:
                raise
            skipped[name] = " ".join(str(error).split())[:200] or type(error).__name__
            forwards.pop(name, None)
        gc.collect()
    samples: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in track(range(ROUNDS), f"time, batch {batch}"):
        for name, forward in forwards.items():
            samples[name] += [call_ms("cpu", forward, images) for _ in range(CALLS)]
    medians = {name: round(median(values), 1) for name, values in samples.items()}
    truth = logits[REFERENCE]
    return {
        "prepare_s": prepared,
        "median_ms": medians,
        "least_ms": {name: round(min(values), 1) for name, values in samples.items()},
        "times_fp32": {name: round(medians[REFERENCE] / value, 3) for name, value in medians.items()},
        "logits_off": {name: round(float((found - truth).norm() / truth.norm()), 6) for name, found in logits.items()},
        "skipped": skipped,
    }


if __name__ == "__main__":
    main()
