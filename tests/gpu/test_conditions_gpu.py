"""What goes wrong on a real GPU, each in one clear line: memory that runs out or is held, another process, a missing package."""

import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest
import torch

from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.errors import Busy
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.config import Profile, SmallVit, load_profile
from lowbit_vit.schema.machine import visible_gpu, why_unavailable
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.trial.gpu_state import exclusive
from lowbit_vit.trial.run import record_trial

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

PROFILES = Path(__file__).parents[2] / "profiles"
HELD = "import sys, torch; held = torch.zeros(2**20, device='cuda'); torch.cuda.synchronize(); print('on', flush=True); sys.stdin.read()"


def a_profile() -> Profile:
    """One fp16 arm of the paper profile, on digits with a small ViT."""
    paper, demo = load_profile(PROFILES / "paper.yaml"), load_profile(PROFILES / "demo.yaml")
    assert demo.backbone.training is not None
    small = SmallVit(patch_size=2, depth=4, heads=4, width=256, mlp_width=1024)
    short = demo.backbone.training.model_copy(update={"epochs": 1, "warmup_epochs": 0.5, "autocast": "bf16"})
    arms = tuple(arm for arm in paper.variants.arms if arm.label == "fp16, flash")
    none = tuple(arm.model_copy(update={"adaptation": "none"}) for arm in arms)
    measurement = paper.measurement.model_copy(
        update={"samples": 10, "seconds": 2.0, "trace": False, "invariance_images": None, "energy_seconds": None, "processes": 1}
    )
    return paper.model_copy(
        update={
            "data": demo.data,
            "backbone": demo.backbone.model_copy(update={"architecture": small, "training": short}),
            "lora": None,
            "measurement": measurement,
            "variants": paper.variants.model_copy(update={"arms": none}),
        }
    )


PROFILE = a_profile()
(TRIAL,) = cells(PROFILE, "variants")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    prepared = Workspace(root=tmp_path_factory.mktemp("conditions"), profile=PROFILE.name)
    prepare_dataset(PROFILE.data, folder=prepared.data, root=prepared.root, workers=2)
    make_backbone(PROFILE, prepared)
    return prepared


@contextmanager
def little_memory(spare: int) -> Iterator[None]:
    """Let this process have no more than what it holds now and `spare` bytes: the next large allocation fails for real."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + spare) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def peaks(record: Record) -> list[tuple[int | None, int | None, int | None]]:
    assert (record.status, record.reason) == ("success", None)
    assert record.measurement is not None
    return [(memory.before_bytes, memory.workspace_bytes, memory.peak_allocated_bytes) for memory in record.measurement.memory]


def test_a_trial_without_memory_is_oom_and_the_next_is_clean(workspace: Workspace, tmp_path: Path) -> None:
    record_trial(TRIAL, workspace, tmp_path)  # what is made once
    before = peaks(record_trial(TRIAL, workspace, tmp_path))
    logging.disable()  # pytest keeps what is logged, and with the traceback the model
    try:
        with little_memory(4 * 2**20):
            failed = record_trial(TRIAL, workspace, tmp_path)
    finally:
        logging.disable(logging.NOTSET)
    assert failed.status == "oom"
    assert failed.reason is not None
    assert failed.reason.startswith("out of memory: ")
    assert "\n" not in failed.reason
    assert peaks(record_trial(TRIAL, workspace, tmp_path)) == before


def test_memory_that_others_hold_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    paper = load_profile(PROFILES / "paper.yaml")
    large = next(trial for trial in cells(paper, "variants") if trial.label == "fp16, flash")
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 512 * 2**20, dtype=torch.uint8, device="cuda")
    # There is no data in this folder: had it looked, it would say so.
    record = record_trial(large, Workspace(root=tmp_path, profile="paper"), tmp_path)
    del held
    torch.cuda.empty_cache()
    assert record.status == "failed"
    assert record.reason is not None
    assert "GiB free and this trial needs at least" in record.reason


def test_another_process_on_the_gpu_stops_a_timing_unless_told(workspace: Workspace, tmp_path: Path) -> None:
    torch.cuda.synchronize()
    with subprocess.Popen([sys.executable, "-c", HELD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline().strip() == "on"
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
            if len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) < 2:
                pytest.skip("NVML does not show both processes here, as in some containers")
            with pytest.raises(Busy, match="the GPU is used by other processes"):
                exclusive("cuda", "assumed")
            record = record_trial(TRIAL, workspace, tmp_path)
            assert record.status == "failed"
            assert (record.reason or "").startswith("the GPU is used by other processes")
            assert exclusive("cuda", "waived") is False
        finally:
            other.communicate(timeout=60)


def test_this_driver_is_new_enough_for_this_torch() -> None:
    gpu = visible_gpu()
    assert gpu is not None
    assert torch.version.cuda is not None
    assert gpu.cuda[0] >= int(torch.version.cuda.split(".")[0])
    assert why_unavailable(device="cuda", attention="math", execution="eager", plan=Plan(compute_dtype="fp32")) is None


def test_a_missing_flash_attn_is_a_reason_and_no_other_kernel() -> None:
    program = (
        "import sys, importlib.util, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'flash_attn': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import torch\n"
        "from lowbit_vit.errors import Unavailable\n"
        "from lowbit_vit.model.attention import require\n"
        "try: require('fa2', device=torch.device('cuda'), dtype=torch.float16)\n"
        "except Unavailable as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert said.startswith("attention fa2 needs the flash-attn package, which cannot be imported")
    assert "\n" not in said
