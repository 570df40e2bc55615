"""What stands beside a latency on a real GPU: ceilings, memory apart from the past, batch invariance."""

import gc
import threading
from functools import partial

import numpy as np
import pytest
import torch

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.precision import apply_plan, compute_dtype, matmul_mode, weight_bytes
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import Execution, Views
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Plan, uniform
from lowbit_vit.trial.energy import find_counter, measure_energy
from lowbit_vit.trial.measure import measure_ceilings, measure_invariance
from lowbit_vit.trial.memory import measure_memory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

ARCH = Architecture(name="small", image_size=64, patch_size=4, depth=4, heads=4, width=256, mlp_width=1024)
VIEWS = Views(image_size=64, eval_resize=64, train_resize=64, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
NF4_PLAIN = NF4(format="nf4", double_quantization=False)
INT8_0 = Int8(format="int8", threshold=0.0)
FORMATS = pytest.mark.parametrize("weights", [HighPrecision(), NF4_PLAIN, INT8_0], ids=lambda weights: weights.name)


def a_model(plan: Plan) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(ARCH, num_classes=10, attention="flash", qkv="separate").cuda()
    apply_plan(model, plan)
    return model.eval()


def images(plan: Plan, batch_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 3, 64, 64, generator=generator).to("cuda", compute_dtype(plan))


def use_the_gpu_for_something_else() -> None:
    """What training and evaluation leave: workspaces of two streams and of another thread, freed memory, a convolution's."""

    def work() -> None:
        left = torch.randn(2048, 2048, device="cuda", requires_grad=True)
        (left @ left).square().sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.functional.conv2d(torch.randn(8, 64, 64, 64, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda"))

    work()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        work()
    other = threading.Thread(target=work)
    other.start()
    other.join()
    torch.cuda.synchronize()


@FORMATS
@pytest.mark.parametrize("execution", ["eager", "cuda_graph"])
def test_a_memory_peak_does_not_depend_on_what_ran_before(weights: HighPrecision | NF4 | Int8, execution: Execution) -> None:
    plan = uniform(weights, "fp16")
    model, example = a_model(plan), images(plan, 4)
    ready = partial(prepare, model, execution)
    measure_memory(ready, example, "cuda")  # kernels and generators that are made once
    first = measure_memory(ready, example, "cuda")
    use_the_gpu_for_something_else()
    second = measure_memory(ready, example, "cuda")
    # Freed memory may stay with the process, and in other pieces.
    apart = {"process_bytes", "peak_reserved_bytes"}
    assert first.model_dump(exclude=apart) == second.model_dump(exclude=apart)


@FORMATS
def test_a_peak_is_weights_one_batch_workspaces_and_activations(weights: HighPrecision | NF4 | Int8) -> None:
    plan = uniform(weights, "fp16")
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    held = torch.cuda.memory_allocated()
    model, example = a_model(plan), images(plan, 4)
    ready = partial(prepare, model, "eager")
    measure_memory(ready, example, "cuda")
    memory = measure_memory(ready, example, "cuda")
    assert memory.before_bytes is not None
    assert memory.workspace_bytes is not None
    assert memory.peak_allocated_bytes is not None
    rest = memory.before_bytes - held - weight_bytes(model) - example.numel() * example.element_size()
    assert abs(rest) < 2**20  # constants of the formats, and rounding to 512 bytes a tensor
    assert memory.workspace_bytes >= 0
    activations = memory.peak_allocated_bytes - memory.before_bytes - memory.workspace_bytes
    one = 4 * ARCH.tokens * ARCH.width * 2
    assert 4 * one < activations < 40 * one + 2**26  # scratch of a convolution or a product may come on top


def test_ceilings_follow_the_compute_dtype() -> None:
    found = {}
    for dtype in ("fp32", "tf32", "bf16"):
        plan = Plan.model_validate({"compute_dtype": dtype})
        with matmul_mode(plan):
            found[dtype] = measure_ceilings("cuda", compute_dtype(plan))
    assert 0 < found["fp32"].matmul_flops_per_s < found["tf32"].matmul_flops_per_s < found["bf16"].matmul_flops_per_s
    assert all(ceilings.copy_bytes_per_s > 1e10 for ceilings in found.values())


@FORMATS
@pytest.mark.parametrize("execution", ["eager", "cuda_graph"])
def test_invariance_is_measured_in_the_arms_own_execution(weights: HighPrecision | NF4 | Int8, execution: Execution) -> None:
    plan = uniform(weights, "fp16")
    model = a_model(plan)
    pixels = np.random.default_rng(0).integers(0, 255, size=(12, 64, 64, 3), dtype=np.uint8)
    some = ImageSet(pixels, np.zeros(12, dtype=np.int64), tuple(map(str, range(12))))
    ready = partial(prepare, model, execution)
    found = measure_invariance(ready, some, VIEWS, count=8, batch_sizes=(1, 4), device="cuda", dtype=torch.float16)
    assert found.images == 8
    assert found.max_abs_logit_difference < 0.1
    assert found.bit_equal == (found.max_abs_logit_difference == 0)
    same = measure_invariance(ready, some, VIEWS, count=8, batch_sizes=(4, 4), device="cuda", dtype=torch.float16)
    assert same.bit_equal


def test_the_energy_counter_agrees_with_sampled_power_and_one_variant_with_itself() -> None:
    counter = find_counter("cuda")
    if counter is None:
        pytest.skip("NVML gives no total energy of this GPU")
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    call = partial(torch.mm, left, right)
    first, second = (measure_energy(call, counter, batch_size=1, seconds=3, device="cuda") for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.joules / first.images == pytest.approx(second.joules / second.images, rel=0.05)
    for found in (first, second):
        assert found.sampled_watts is not None
        assert found.joules / found.seconds == pytest.approx(found.sampled_watts, rel=0.08)
        assert found.idle_watts_before < 0.8 * found.joules / found.seconds
