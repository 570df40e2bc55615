"""Trials that are forked: what the process that they are forked from imports, and what a fork does.

A trial is a process of its own, and most of a short one is the import of torch, transformers and peft: seconds on any machine.
multiprocessing's forkserver imports this module once (`study.process`), and a fork of it begins with everything imported.

A fork cannot use threads, OpenMP regions or CUDA contexts of the process that it is forked from. bitsandbytes asks for the GPU's
capability when it is imported, and peft imports bitsandbytes; on a machine with a GPU the fork imports both, and only what they
import is imported here. So is transformers, where torchao is installed.

A trial runs the sources as they were when they were imported here; `trial.run` takes the hash in its record in the same import.
"""

import atexit
import gc
import importlib
import importlib.util
import logging
import multiprocessing.forkserver
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Literal

import torch

# Imported otherwise when its layers first run.
import lowbit_vit.model.kernels.attention
import lowbit_vit.model.kernels.gemm
import lowbit_vit.model.kernels.nf4
import lowbit_vit.model.kernels.rotary  # noqa: F401
from lowbit_vit.errors import LowbitVitError, first_line
from lowbit_vit.schema.config import load_trial, load_trials
from lowbit_vit.schema.machine import visible_gpu
from lowbit_vit.schema.plan import FORMATS
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.run import record_trial
from lowbit_vit.trial.scan import run_scan

log = logging.getLogger(__name__)

# What trials import beside this package, by themselves or through bitsandbytes and peft. A test shows that none asks CUDA.
_LIBRARIES = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torchvision",
    "accelerate",
    "transformers.modeling_utils",
)
_ASKING_CUDA = ("bitsandbytes", "peft")
# Imports torchao where it is installed, and torchao asks the GPU for its capability when it is imported (transformers 5.17, torchao 0.18).
_IMPORTING_TORCHAO = "transformers.modeling_utils"
# torch then looks for GPUs through NVML, which leaves CUDA alone: for a library whose newer version asks.
_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


def libraries(*, gpu: bool) -> tuple[str, ...]:
    """What is imported beside this package, in order."""
    if not gpu:
        return (*_LIBRARIES, *_ASKING_CUDA)
    return tuple(name for name in _LIBRARIES if name != _IMPORTING_TORCHAO or importlib.util.find_spec("torchao") is None)


def preload(*, gpu: bool) -> dict[str, str]:
    """Import the libraries that trials need.

    Args:
        gpu: whether this machine has one: then nothing may ask CUDA.

    Returns:
        Library -> why it could not be imported. The trial that needs it reports that; others do without.
    """
    before = os.environ.get(_NVML)
    if gpu:
        os.environ[_NVML] = "1"
    left_out = {}
    for name in libraries(gpu=gpu):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  (whatever a library's own code raises)
            left_out[name] = f"{type(error).__name__}: {first_line(error)}"
    if gpu and before is None:
        del os.environ[_NVML]
    return left_out


def _end_server() -> None:
    """End the process that was forked from, at its end; forks themselves end without `atexit`.

    Its socket lies in a folder that a launching process removes, unless it was killed. The clean-up of some libraries complains.
    """
    address = multiprocessing.forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]  # noqa: SLF001  (no public way)
    if address is not None and os.getppid() != _LAUNCHING:
        shutil.rmtree(Path(address).parent, ignore_errors=True)
    os._exit(0)


for name in FORMATS:  # otherwise when a plan names one
    importlib.import_module(f"lowbit_vit.model.formats.{name}")
_LAUNCHING = os.getppid()
_GPU = visible_gpu() is not None
_LEFT_OUT = preload(gpu=_GPU)
_THREADS = tuple(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
gc.collect()
atexit.register(_end_server)
gc.freeze()  # else a collection in a fork would write to, and so copy, every page of what was imported


def run(verb: Literal["trial", "scan"], file: str, out: str, root: str) -> int:
    """In a fork: do what `lowbit-vit VERB FILE --out OUT` does.

    Args:
        verb: what to run.
        file: the request, relative to the root.
        out: folder for records and predictions, relative to the root.
        root: the project's folder.

    Returns:
        The exit code.

    Raises:
        LowbitVitError: the imports leave a fork without CUDA or threads, the request is wrong, or a record cannot be written.
    """
    if _GPU and torch.cuda._is_in_bad_fork():  # noqa: SLF001  (there is no public way to ask)
        raise LowbitVitError("an import ahead of the fork initialized CUDA, so this process cannot use it")
    if _THREADS:
        raise LowbitVitError(f"an import ahead of the fork started threads, which this process lacks: {', '.join(_THREADS)}")
    for name, reason in _LEFT_OUT.items():
        sys.stderr.write(f"not imported beforehand: {name} ({reason})\n")
    logging.basicConfig(level=logging.INFO, format="%(levelname)-8s %(message)s")
    threads = int(os.environ["OMP_NUM_THREADS"])
    if torch.get_num_threads() != threads:  # the first fork's number was in the environment when torch was imported
        torch.set_num_threads(threads)
    sys.argv = ["lowbit-vit", verb, file, "--out", out]  # the command that repeats this run stands in the record
    if verb == "scan":
        trials = load_trials(Path(file))
        records = run_scan(trials, Workspace(root=Path(root), profile=trials[0].profile), Path(out))
        log.info("%d trials done", len(records))
        return 0
    trial = load_trial(Path(file))
    record = record_trial(trial, Workspace(root=Path(root), profile=trial.profile), Path(out))
    log.info("%s: %s%s", record.trial_id, record.status, f" ({record.reason})" if record.reason else "")
    return 0 if record.status in ("success", "skipped") else 5
