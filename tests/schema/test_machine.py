"""What a record says about the machine, and what the machine is known to be unable to run."""

import importlib.metadata
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lowbit_vit.errors import ConfigError
from lowbit_vit.schema import machine
from lowbit_vit.schema.config import AttentionName, Execution, load_profile
from lowbit_vit.schema.machine import Gpu, doctor, environment_number, provenance, visible_gpu, why_driver_too_old, why_unavailable
from lowbit_vit.schema.plan import FP8, W8A8, FusedNF4, Int8, Weights, uniform
from lowbit_vit.schema.record import Provenance

ROOT = Path(__file__).parents[2]
FP32 = uniform(Int8(format="int8", threshold=6.0), "fp32")

needs_no_gpu = pytest.mark.skipif(visible_gpu() is not None, reason="this machine has a GPU")


def test_provenance_names_the_machine_and_what_is_installed() -> None:
    facts = provenance("lowbit-vit trial x.json")
    assert facts.command == "lowbit-vit trial x.json"
    assert facts.cpu
    assert facts.cpu_cores >= 1
    assert facts.memory_gib > 0
    assert facts.packages["numpy"]
    assert facts.started_utc.endswith("+00:00")
    assert Provenance.model_validate_json(facts.model_dump_json()) == facts


def test_provenance_names_the_commit_of_this_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert provenance("x").git_revision == head


def test_the_machine_can_be_described_without_torch() -> None:
    program = (
        "import sys; from lowbit_vit.schema.machine import provenance; facts = provenance('x');"
        "assert 'torch' not in sys.modules; assert facts.threads is None; assert facts.cuda is None"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@needs_no_gpu
@pytest.mark.parametrize("attention", ["math", "efficient", "flash", "cudnn", "fa2"])
def test_without_a_gpu_every_cuda_arm_needs_cuda(attention: AttentionName) -> None:
    reason = why_unavailable(device="cuda", attention=attention, execution="eager", plan=FP32)
    assert reason is not None
    assert reason.startswith("needs CUDA")


@pytest.mark.parametrize("attention", ["efficient", "cudnn", "fa2"])
def test_gpu_only_kernels_are_not_run_on_the_cpu(attention: AttentionName) -> None:
    assert why_unavailable(device="cpu", attention=attention, execution="eager", plan=FP32) == f"needs CUDA (attention {attention})"


@pytest.mark.parametrize("execution", ["cuda_graph", "compile"])
def test_gpu_only_executions_are_not_run_on_the_cpu(execution: Execution) -> None:
    assert why_unavailable(device="cpu", attention="math", execution=execution, plan=FP32) == f"needs CUDA (execution {execution})"


@pytest.mark.parametrize("attention", ["math", "flash"])
def test_the_cpu_runs_its_own_kernels(attention: AttentionName) -> None:
    assert why_unavailable(device="cpu", attention=attention, execution="eager", plan=FP32) is None


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_not_seen(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert visible_gpu() is None
    reason = why_unavailable(device="cuda", attention="math", execution="eager", plan=FP32)
    assert reason is not None
    assert "needs CUDA" in reason


W8A8_INT8, E4M3 = W8A8(format="w8a8"), FP8(format="fp8")
NF4_FP8 = FusedNF4(format="nf4_fused", double_quantization=False, products="fp8")
INT8_6 = Int8(format="int8", threshold=6.0)


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton here")
@pytest.mark.parametrize(
    ("weights", "capability", "execution", "reason"),
    [
        (W8A8_INT8, (7, 5), "eager", "weights w8a8 need compute capability 8.0; a GPU has 7.5"),
        (W8A8_INT8, (8, 0), "cuda_graph", None),
        (E4M3, (8, 0), "eager", "weights fp8 need compute capability 8.9; a GPU has 8.0"),
        (NF4_FP8, (8, 6), "eager", "weights nf4-fused-fp8 need compute capability 8.9; a GPU has 8.6"),
        (NF4_FP8, (8, 9), "eager", None),
        (INT8_6, (7, 5), "eager", None),
        (INT8_6, (9, 0), "cuda_graph", "int8 threshold 6 syncs with the host in each layer; a CUDA graph cannot hold that"),
        (Int8(format="int8", threshold=0.0), (9, 0), "compile_graph", None),
    ],
)
def test_a_format_says_which_gpu_and_which_execution_it_needs(
    weights: Weights, capability: tuple[int, int], execution: Execution, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(name="a GPU", uuid="GPU-0", memory_gib=80.0, driver="590.1", capability=capability, cuda=(99, 0))
    monkeypatch.setattr(machine, "visible_gpu", lambda: gpu)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.15.0+cu132")
    assert why_unavailable(device="cuda", attention="math", execution=execution, plan=uniform(weights, "bf16")) == reason
    if weights.capability is not None:
        on_the_cpu = why_unavailable(device="cpu", attention="math", execution="eager", plan=uniform(weights, "bf16"))
        assert on_the_cpu == f"needs CUDA (weights {weights.name})"


def test_a_driver_that_is_too_old_is_named_with_the_one_that_torch_needs() -> None:
    reason = why_driver_too_old("535.104.05", supports=(12, 2), built_for="13.0")
    assert reason == "driver 535.104.05 supports CUDA 12.2, the installed torch needs CUDA 13.0: install driver 580 or newer"


@pytest.mark.parametrize("supports", [(13, 0), (13, 2), (14, 1)])
def test_a_driver_of_the_same_or_a_newer_cuda_will_do(supports: tuple[int, int]) -> None:
    # 13.0 for a torch of 13.2: minor versions are compatible.
    assert why_driver_too_old("580.1", supports=supports, built_for="13.2") is None
    assert why_driver_too_old("580.1", supports=supports, built_for=None) is None


@pytest.mark.skipif(find_spec("torch") is None, reason="there is no torch here")
def test_the_cuda_version_of_torch_is_read_without_importing_it() -> None:
    program = (
        "import sys; from lowbit_vit.schema import machine; found = machine._cuda_of_torch();"
        "assert 'torch' not in sys.modules; import torch; assert found == torch.version.cuda, (found, torch.version.cuda)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_doctor_has_a_row_for_every_arm_of_each_shipped_profile(path: Path) -> None:
    profile = load_profile(path)
    rows = doctor(profile)
    assert [row.label for row in rows if row.study == "variants"] == [arm.label for arm in profile.variants.arms]
    assert {row.study for row in rows} == {"variants", "sensitivity", "mixed"}


def test_doctor_finds_the_cpu_arms_of_demo_runnable() -> None:
    for row in doctor(load_profile(ROOT / "profiles" / "demo.yaml")):
        if row.device == "cpu" and row.execution == "eager":
            assert row.reason is None, row


@pytest.mark.parametrize(("text", "number"), [("", 7), (" ", 7), ("2", 2), ("4,2", 4), (" 3 ", 3), ("1.5", 1.5)])
def test_a_number_of_the_environment_is_read_as_openmp_does(monkeypatch: pytest.MonkeyPatch, text: str, number: float) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert environment_number("OMP_NUM_THREADS", 7, least=1) == number
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment_number("OMP_NUM_THREADS", 7, least=1) == 7


@pytest.mark.parametrize("text", ["abc", "0", "-3", "nan", "inf", "1e999", ",4", "\x1b[1m", "9" * 5_000])
def test_what_is_no_number_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(ConfigError, match=r"^environment variable OMP_NUM_THREADS='.*': expected a number, at least 1") as raised:
        environment_number("OMP_NUM_THREADS", 7, least=1)
    assert str(raised.value).isprintable()
