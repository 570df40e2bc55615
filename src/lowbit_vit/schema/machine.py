"""This machine: its description in records, and what it can run.

Torch is not imported: its facts are read from the running process if it is loaded, else from its files.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import AdaptationMethod, AttentionName, Device, Execution, MixedStudy, Profile, SensitivityStudy, Study
from lowbit_vit.schema.plan import Plan, Weights, uniform
from lowbit_vit.schema.record import Provenance, shorten

try:
    import pynvml
except ImportError:  # the report needs no GPU library
    pynvml = None

# Packages whose version can change a number in a record.
DECISIVE_PACKAGES = (
    "lowbit-vit",
    "torch",
    "torchvision",
    "triton",
    "bitsandbytes",
    "peft",
    "flash-attn",
    "nvidia-cudnn-cu13",
    "numpy",
    "scikit-learn",
    "pillow",
    "safetensors",
    "ray",
)

# The first driver series (Linux) of each CUDA major version.
_DRIVER_SERIES = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device that this process may use, as NVML sees it."""

    name: str
    uuid: str
    memory_gib: float
    driver: str
    capability: tuple[int, int]
    cuda: tuple[int, int]  # the newest that the driver supports


@dataclass(frozen=True)
class DoctorRow:
    """One arm of a profile, or another study's cells."""

    study: Study
    label: str
    plan: Plan
    attention: AttentionName
    adaptation: AdaptationMethod
    execution: Execution
    device: Device

    @property
    def precision(self) -> str:
        """The plan's name."""
        return self.plan.name

    @functools.cached_property
    def reason(self) -> str | None:
        """Why this machine cannot run it; None: it can."""
        return why_unavailable(device=self.device, attention=self.attention, execution=self.execution, plan=self.plan)


# ---------------------------------------------------------------------------------------------------------- provenance


def provenance(command: str) -> Provenance:
    """Where, when and with what this process runs. `git_dirty` is of src/ and profiles/ only: a run changes reports/ and dvc.lock."""
    gpu = visible_gpu()
    torch: Any = sys.modules.get("torch")
    revision, dirty = _git_state()
    return Provenance(
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        host_os=platform.platform(),
        python=platform.python_version(),
        packages=_package_versions(),
        cpu=_cpu_name(),
        cpu_cores=cpu_cores(),
        threads=torch.get_num_threads() if torch is not None else None,
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 2),
        gpu=gpu.name if gpu else None,
        gpu_uuid=gpu.uuid if gpu else None,
        gpu_memory_gib=gpu.memory_gib if gpu else None,
        driver=gpu.driver if gpu else None,
        cuda=torch.version.cuda if torch is not None else None,
        git_revision=revision,
        git_dirty=dirty,
        image_digest=os.environ.get("LOWBIT_VIT_IMAGE_DIGEST"),
        image_pinned={"1": True, "0": False}.get(os.environ.get("LOWBIT_VIT_IMAGE_PINNED", "")),
        container_runtime=os.environ.get("LOWBIT_VIT_CONTAINER_RUNTIME"),
        command=shorten(command),
    )


def command_line() -> str:
    """The command of this process; a study gives its trials folders relative to the project."""
    program = Path(sys.argv[0]).name
    return shlex.join(["lowbit-vit" if program == "__main__.py" else program, *sys.argv[1:]])


def _package_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in DECISIVE_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")  # platform.processor() is empty on Linux
    name = re.search(r"^model name\s*:(.*)$", information.read_text(), re.MULTILINE) if information.is_file() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Cores that this process may use; a container or taskset may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment_number(name: str, default: float, *, least: float) -> float:
    """A number that an environment variable sets; of a list, as OMP_NUM_THREADS may be, the first.

    Raises:
        ConfigError: it is none, or less than the least; names the variable.
    """
    text = os.environ.get(name, "").strip()
    try:
        number = float(text.split(",")[0]) if text else default
    except ValueError:
        number = float("nan")
    if not least <= number < float("inf"):
        raise ConfigError(f"environment variable {name}={text[:60]!r}: expected a number, at least {least:g}; correct or unset it")
    return number


@functools.cache
def _git_state() -> tuple[str | None, bool | None]:
    """Commit and uncommitted changes of the checkout this code came from, or nulls where there is none.

    A container image and the upload of `ray job submit` have no .git; their build sets LOWBIT_VIT_REVISION.
    """
    for folder in (Path(__file__).parent, Path.cwd()):
        top = _git(folder, "rev-parse", "--show-toplevel")
        # A package installed inside another project's folder must not borrow that project's commit.
        if top is None or not (Path(top) / "src" / "lowbit_vit").is_dir():
            continue
        changes = _git(Path(top), "status", "--porcelain", "--", "src", "profiles")
        return _git(Path(top), "rev-parse", "HEAD"), None if changes is None else bool(changes)
    revision = os.environ.get("LOWBIT_VIT_REVISION", "unknown")
    return (None if revision == "unknown" else revision), None


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's output, or None where git, the repository or the commit is missing."""
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


# ------------------------------------------------------------------------------------------------------- availability


def why_unavailable(*, device: Device, attention: AttentionName, execution: Execution, plan: Plan) -> str | None:
    """Why this machine cannot run such a trial, in one line; None: no reason is known."""
    if device == "cpu":
        return _why_not_on_the_cpu(attention, execution, plan)
    gpu = visible_gpu()
    if gpu is None:
        hidden = "CUDA_VISIBLE_DEVICES hides every GPU" if _first_visible() is None else None
        why = "nvidia-ml-py is not installed, so no GPU can be seen" if pynvml is None else hidden
        return f"needs CUDA ({why})" if why else "needs CUDA"
    uncapturable = [rule.weights.host_sync for rule in plan.rules if execution in ("cuda_graph", "compile_graph")]
    return _why_not_on_the_gpu(gpu, attention) or _why_no_kernel(gpu, plan) or next(filter(None, uncapturable), None)


def _why_not_on_the_gpu(gpu: Gpu, attention: AttentionName) -> str | None:
    if importlib.util.find_spec("torch") is not None and importlib.metadata.version("torch").endswith("+cpu"):
        return "needs CUDA: the installed torch is a CPU build"
    too_old = why_driver_too_old(gpu.driver, supports=gpu.cuda, built_for=_cuda_of_torch())
    if too_old is not None:
        return too_old
    if attention == "fa2" and importlib.util.find_spec("flash_attn") is None:
        return "needs the flash-attn package, which is not installed"
    if attention in ("flash", "cudnn", "fa2") and gpu.capability < (8, 0):
        return f"attention {attention} needs compute capability 8.0; {gpu.name} has {gpu.capability[0]}.{gpu.capability[1]}"
    return None


def why_driver_too_old(driver: str, *, supports: tuple[int, int], built_for: str | None) -> str | None:
    """Why the driver cannot run a torch built for this CUDA version; None if it can, or nothing is known.

    A driver runs every minor version of the CUDA major versions up to its own.
    Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html.

    Args:
        driver: such as 535.104.05.
        supports: the newest CUDA version that it supports.
        built_for: such as 13.0.
    """
    major = 0 if built_for is None else int(built_for.split(".")[0])
    if major <= supports[0]:
        return None
    series = _DRIVER_SERIES.get(major)
    newer = f"driver {series} or newer" if series else f"a driver that supports CUDA {major}"
    return f"driver {driver} supports CUDA {supports[0]}.{supports[1]}, the installed torch needs CUDA {built_for}: install {newer}"


@functools.cache
def _cuda_of_torch() -> str | None:
    """The CUDA version of the installed torch, read from its files; None: no torch, or a CPU build."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    version = Path(found.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    match = re.search(r"^cuda\b.*= *['\"]([0-9]+\.[0-9]+)", text, re.MULTILINE)
    return match.group(1) if match else None


def _why_no_kernel(gpu: Gpu, plan: Plan) -> str | None:
    """This project's kernels are Triton's, and need the tensor cores that multiply their codes."""
    for weights in (rule.weights for rule in plan.rules):
        least = weights.capability
        if least is not None and importlib.util.find_spec("triton") is None:
            return f"weights {weights.name} need the triton package, which is not installed"
        if least is not None and gpu.capability < least:
            have = f"{gpu.capability[0]}.{gpu.capability[1]}"
            return f"weights {weights.name} need compute capability {least[0]}.{least[1]}; {gpu.name} has {have}"
    return None


def _why_not_on_the_cpu(attention: AttentionName, execution: Execution, plan: Plan) -> str | None:
    if attention in ("efficient", "cudnn", "fa2", "coded"):
        return f"needs CUDA (attention {attention})"
    if execution != "eager":
        return f"needs CUDA (execution {execution})"
    ours = [rule.weights.name for rule in plan.rules if rule.weights.capability is not None]
    return f"needs CUDA (weights {ours[0]})" if ours else None


def visible_gpu() -> Gpu | None:
    """The first GPU that CUDA would use in this process, or None without driver, NVML or a visible device."""
    chosen = _first_visible()
    return None if chosen is None else _gpu(chosen)


def _first_visible() -> str | None:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return None if chosen in ("", "-1") else chosen


def gpu_count() -> int:
    """GPUs that CUDA would use in this process."""
    if visible_gpu() is None:
        return 0
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return int(pynvml.nvmlDeviceGetCount()) if chosen is None else len(chosen.split(","))


def gpu_place() -> tuple[int, int] | None:
    """Index of this process's first GPU among all GPUs of the machine, and their number; None: no GPU."""
    gpu = visible_gpu()
    if gpu is None:
        return None
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    return int(pynvml.nvmlDeviceGetIndex(handle)), int(pynvml.nvmlDeviceGetCount())


@functools.cache
def _gpu(chosen: str) -> Gpu | None:
    """A GPU by CUDA's name for it: an index or a UUID."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        by_index = chosen.isdecimal()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(chosen)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(chosen)
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # such as 12040 of 12.4
        return Gpu(
            name=pynvml.nvmlDeviceGetName(handle),
            uuid=pynvml.nvmlDeviceGetUUID(handle),
            memory_gib=round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 2),
            driver=pynvml.nvmlSystemGetDriverVersion(),
            capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            cuda=(cuda // 1000, cuda % 1000 // 10),
        )
    except pynvml.NVMLError:  # no driver, no such device
        return None


def doctor(profile: Profile) -> list[DoctorRow]:
    """The arms of a profile and the cells of its two other studies, each with the reason why this machine cannot run it."""
    adaptation: AdaptationMethod = "none" if profile.lora is None else "ptq"
    sensitivity, mixed = profile.sensitivity, profile.mixed
    blocks: list[tuple[Study, str, Weights, SensitivityStudy | MixedStudy]] = [
        ("sensitivity", f"each block, {weights.name}", weights, sensitivity) for weights in sensitivity.formats
    ]
    blocks.append(("mixed", f"{', '.join(map(str, mixed.spared))} blocks spared", mixed.weights, mixed))
    rows = []
    for arm in profile.variants.arms:
        plan, device = uniform(arm.weights, arm.compute_dtype), arm.device or profile.device
        rows.append(DoctorRow("variants", arm.label, plan, arm.attention, arm.adaptation, arm.execution, device))
    for name, label, weights, study in blocks:
        plan = uniform(weights, study.compute_dtype)
        rows.append(DoctorRow(name, label, plan, study.attention, adaptation, "eager", profile.device))
    return rows
