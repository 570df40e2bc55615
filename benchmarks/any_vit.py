"""The ViTs that people deploy, by `lowbit_vit.quantize_` and by others, in one run on one GPU: batch 1 and 32, bf16, random weights.

    python benchmarks/any_vit.py dinov2                 one family of `FAMILIES`; the record is benchmarks/records/any_vit-dinov2.json
    python benchmarks/any_vit.py dinov2 --seconds 200   no new side is begun after so many seconds
    python benchmarks/any_vit.py dinov2 clip siglip2    several: first calls of all at once, so that compilers share the cores, then in
                                                        turn the times, by a process a family that finds compiled kernels on the disk

The reference is the faster of the library's blocks and ours in bf16, both compiled and in a CUDA graph. First every side is made ready
and called once; then all take turns, `ROUNDS` times, and a ratio is of the medians of these turns. A call is what a user would call:
images are copied in; of our graphs, results are copied out. Beside the times: seconds from `quantize_` to the first result, peak memory
beyond what was there before, the error of the features against fp32, and the longest kernels. The record is written after each side and
each batch size; a side that cannot run is in it with the reason.
"""

import argparse
import gc
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lowbit_vit
from fast_path import RECORDS, kernels_us, packages, version
from lowbit_vit.errors import Unavailable
from lowbit_vit.model.any_vit import high_precision
from lowbit_vit.schema.machine import provenance
from lowbit_vit.trial.measure import call_ms

ROUNDS, CALLS = 5, 40  # 200 samples a side
LONG_MS, CALLS_LONG = 20.0, 20  # of sides that take longer, 100
WARMUP = 10
LAYER_SCALE = 0.1  # timm begins with 1e-5, which would hide every error
BF16 = torch.bfloat16
Forward = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """A model of timm: its name, the side of its images, and the batch sizes."""

    name: str
    size: int
    batches: tuple[int, ...] = (1, 32)


FAMILIES = {
    "vit": Case("vit_large_patch16_224", 224),
    "dinov2": Case("vit_large_patch14_dinov2", 224),
    "dinov2-518": Case("vit_large_patch14_dinov2", 518, (1, 8)),
    "clip": Case("vit_large_patch14_clip_336", 336),
    "siglip2": Case("vit_so400m_patch14_siglip_384", 378),
    "dinov3": Case("vit_large_patch16_dinov3", 256),
    "eva02": Case("eva02_large_patch14_448", 448),
}


def fresh(case: Case) -> nn.Module:
    """The model in fp32 on the GPU, the same for every side, without a head."""
    torch.manual_seed(0)
    given = {"pretrained": False, "num_classes": 0, "img_size": case.size}
    try:
        with torch.device("cuda"):  # drawn there: on a CPU it takes seconds, once for each side
            model: nn.Module = timm.create_model(case.name, **given).eval()
    except RuntimeError:  # a release of timm that mixes devices
        model = timm.create_model(case.name, **given).eval()
    model.requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.fill_(LAYER_SCALE)
    return model.cuda()


def captured(model: nn.Module, example: Tensor) -> Forward:
    """A CUDA graph of a model as it is; images are copied in."""
    images = example.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with (
        torch.inference_mode(),
        torch.cuda.stream(side),
        sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True),
    ):
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with (
        torch.inference_mode(),
        sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True),
        torch.cuda.graph(graph),
    ):
        out = model(images)

    @torch.inference_mode()
    def replay(given: Tensor) -> Tensor:
        images.copy_(given)
        graph.replay()
        return out  # type: ignore[no-any-return]

    replay.model = model  # type: ignore[attr-defined]  # the graph reads its weights
    return replay


def library(case: Case) -> Callable[[Tensor], Forward]:
    """Timm's own blocks in bf16, compiled, in a graph for each batch size."""
    model = fresh(case).to(BF16)
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(dynamic=False)
    return lambda example: captured(model, example)


def ours(what: Any) -> Callable[[Case], Callable[[Tensor], Forward]]:
    """A side that this package runs."""

    def make(case: Case) -> Callable[[Tensor], Forward]:
        model = lowbit_vit.quantize_(fresh(case), what, execution="cuda_graph")
        return lambda _: torch.inference_mode()(model)

    return make


def torchao(name: str) -> Callable[[Case], Callable[[Tensor], Forward]]:
    """Torchao's configuration on the blocks' linears, compiled blocks, in a graph for each batch size."""

    def make(case: Case) -> Callable[[Tensor], Forward]:
        quantization = importlib.import_module("torchao.quantization")
        options = {"granularity": quantization.PerRow()} if name.startswith("Float8") else {}
        model = fresh(case).to(BF16)
        quantization.quantize_(model.blocks, getattr(quantization, name)(**options))
        for block in model.blocks:  # type: ignore[union-attr]
            block.compile(dynamic=False)
        return lambda example: captured(model, example)

    return make


LIBRARY, OURS = "timm's blocks, bf16, compiled, graph", "our blocks, bf16, compiled, graph"
SIDES: dict[str, Callable[[Case], Callable[[Tensor], Forward]]] = {
    LIBRARY: library,
    OURS: ours(high_precision(BF16)),
    "fp8": ours("fp8"),
    "w8a8": ours("w8a8"),
    "nf4": ours("nf4"),
    "torchao fp8 by rows": torchao("Float8DynamicActivationFloat8WeightConfig"),
    "torchao int8": torchao("Int8DynamicActivationInt8WeightConfig"),
}


def images_of(case: Case, batch: int) -> Tensor:
    """The same for every side, in bf16."""
    return torch.randn(batch, 3, case.size, case.size, generator=torch.Generator().manual_seed(1)).to("cuda", BF16)


def main() -> None:
    """Time a family and write the record; of several, a process for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", choices=FAMILIES, nargs="+")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no new side of a family after so many seconds")
    parser.add_argument("--to", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument("--side", action="append", choices=SIDES, help="these alone, beside the reference")
    parser.add_argument("--first-calls", action="store_true", help="no times but these")
    parser.add_argument("--first-calls-of", type=Path, help="a folder of records of first calls: they count, and not this process's own")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise Unavailable("benchmarks/any_vit.py needs CUDA")
    if len(asked.families) > 1:
        several(asked.families, asked.to, [f"--seconds={asked.seconds}", *(f"--side={side}" for side in asked.side or ())])
        return
    started, family = time.monotonic(), asked.families[0]
    case = FAMILIES[family]
    facts = provenance(f"python benchmarks/any_vit.py {family}")
    machine = {"gpu": facts.gpu, "driver": facts.driver, "cuda": facts.cuda, "git_revision": facts.git_revision}
    record: dict[str, Any] = {
        "machine": {**machine, "packages": {**packages(), "timm": version("timm")}},
        "model": case.name,
        "image_size": case.size,
        "rounds": ROUNDS,
        "sides": {},
    }
    first = None
    if asked.first_calls_of:
        first = json.loads((asked.first_calls_of / f"any_vit-{family}.json").read_text())["sides"]
        record["first_calls"] = f"in a process of their own, beside {len(list(asked.first_calls_of.glob('*.json'))) - 1} others"
    with torch.inference_mode():
        exact = fresh(case)(images_of(case, case.batches[0]).float()).float()
    path = asked.to / f"any_vit-{family}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    ready: dict[str, dict[int, Forward]] = {}
    for name in (LIBRARY, OURS, *(asked.side or list(SIDES)[2:])):
        if time.monotonic() - started > asked.seconds:
            record["sides"][name] = {"skipped": f"{asked.seconds:.0f} seconds were over"}
        else:
            record["sides"][name], forwards = prepared(name, case, exact)
            if first is not None:
                record["sides"][name] = with_first_calls(record["sides"][name], first.get(name, {}))
            if forwards and not asked.first_calls:
                ready[name] = forwards
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{time.monotonic() - started:6.0f} s  {family}, {name}: {json.dumps(record['sides'][name])[:600]}", flush=True)
    for batch in () if asked.first_calls else case.batches:
        example = images_of(case, batch)
        for name, found in timed({name: forwards[batch] for name, forwards in ready.items() if batch in forwards}, example).items():
            record["sides"][name]["batches"][str(batch)] |= found
            print(f"{time.monotonic() - started:6.0f} s  {family}, batch {batch}, {name}: {json.dumps(found)[:200]}", flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def several(families: list[str], to: Path, options: list[str]) -> None:
    """First calls of all families at once, then their times in turn."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        command = [sys.executable, __file__]
        cold = [subprocess.Popen([*command, family, *options, f"--to={folder}", "--first-calls"]) for family in families]
        for process in cold:
            process.wait()
        print(f"{time.monotonic() - started:6.0f} s  first calls", flush=True)
        for family in families:
            subprocess.run([*command, family, *options, f"--to={to}", f"--first-calls-of={folder}"], check=False)


def with_first_calls(found: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """What is said of a side, but `prepare_s` and `first_call_s` are those of another process; None where it has none."""
    batches = {
        batch: row | {"first_call_s": first.get("batches", {}).get(batch, {}).get("first_call_s")}
        for batch, row in found.get("batches", {}).items()
    }
    return found | ({"batches": batches, "prepare_s": first.get("prepare_s")} if batches else {})


def prepared(name: str, case: Case, exact: Tensor) -> tuple[dict[str, Any], dict[int, Forward]]:
    """What is said of a side before it is timed, and its callables by batch size."""
    found: dict[str, Any] = {"batches": {}}
    forwards: dict[int, Forward] = {}
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()  # graphs are captured; the next side's blocks would count as recompilations of the last one's
    try:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        make = SIDES[name](case)
        found["prepare_s"] = round(time.perf_counter() - start, 1)
        found["held_MiB"] = round((torch.cuda.memory_allocated() - before) / 2**20, 1)
    except Exception as error:  # noqa: BLE001
        return {"skipped": reason(error)}, {}
    for batch in case.batches:
        example = images_of(case, batch)
        row: dict[str, Any] = {}
        found["batches"][str(batch)] = row
        try:
            torch.cuda.reset_peak_memory_stats()
            start, base = time.perf_counter(), torch.cuda.memory_allocated()
            forwards[batch] = make(example)
            out = forwards[batch](example).float()
            torch.cuda.synchronize()
            row["first_call_s"] = round(time.perf_counter() - start, 1)
            row["peak_MiB"] = round((torch.cuda.max_memory_allocated() - base) / 2**20, 1)
            if batch == case.batches[0]:
                row["relative_error"] = round(((out - exact).norm() / exact.norm()).item(), 5)
        except Exception as error:  # noqa: BLE001
            forwards.pop(batch, None)
            row["skipped"] = reason(error)
    return found, forwards


def timed(forwards: dict[str, Forward], example: Tensor) -> dict[str, dict[str, Any]]:
    """Of each side the median over all turns, its ratio to the faster reference, and its longest kernels."""
    calls: dict[str, int] = {}
    for name, call in forwards.items():
        usual = median(call_ms("cuda", call, example) for _ in range(WARMUP))
        calls[name] = CALLS if usual < LONG_MS else CALLS_LONG
    samples: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in range(ROUNDS):
        for name, call in forwards.items():
            samples[name] += [call_ms("cuda", call, example) for _ in range(calls[name])]
    medians = {name: round(median(values), 4) for name, values in samples.items()}
    reference = min((name for name in (LIBRARY, OURS) if name in medians), key=lambda name: medians[name], default=None)
    found: dict[str, dict[str, Any]] = {}
    for name, call in forwards.items():
        found[name] = {"median_ms": medians[name], "samples": len(samples[name]), "kernels_us": kernels_us(call, example)}
        if reference is not None:
            found[name] |= {"reference": reference, "times_the_reference": round(medians[reference] / medians[name], 3)}
    return found


def reason(error: Exception) -> str:
    """Why a side could not run, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main()
