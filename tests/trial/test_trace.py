import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.model import kernels
from lowbit_vit.model.precision import apply_plan
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import AttentionName
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, uniform
from lowbit_vit.schema.record import KERNEL_CLASSES
from lowbit_vit.trial.trace import confirm_attention, kernel_class, low_bit_names, own_times, trace

ARCH = Architecture(name="small", image_size=8, patch_size=2, depth=2, heads=4, width=64, mlp_width=128)
FORMATS = [HighPrecision(), NF4(format="nf4", double_quantization=True), Int8(format="int8", threshold=6.0)]

# Names as traces of torch 2.11 on an H100 show them.
CUDA_ATTENTION: dict[AttentionName, str] = {
    "flash": "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::half_t>>",
    "fa2": "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::half_t>, false, false>",
    "efficient": "fmha_cutlassF_f16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::half_t>::Params)",
    "cudnn": "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_128x64x64_4x1x1_kernel0_0",
    "coded": "attend_whole_kernel",
    "math": "void (anonymous namespace)::softmax_warp_forward<c10::Half, c10::Half, float, 8, false, false>",
}
GEMM = "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas"


def a_model(attention: AttentionName) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ARCH, num_classes=10, attention=attention, qkv="separate").eval()


@pytest.mark.parametrize("label", get_args(AttentionName))
def test_each_label_is_confirmed_by_its_own_kernel_only(label: AttentionName) -> None:
    assert confirm_attention(label, [GEMM, CUDA_ATTENTION[label], GEMM]) == (CUDA_ATTENTION[label],)
    for other in set(CUDA_ATTENTION) - {label}:
        with pytest.raises(LowbitVitError, match=f"says attention {label}, but its trace shows {other}"):
            confirm_attention(label, [GEMM, CUDA_ATTENTION[other]])


def test_two_kernels_in_one_trace_confirm_nothing() -> None:
    with pytest.raises(LowbitVitError, match=r"flash.*fa2|fa2.*flash"):
        confirm_attention("fa2", [CUDA_ATTENTION["fa2"], CUDA_ATTENTION["flash"]])


def test_a_trace_without_attention_confirms_nothing() -> None:
    with pytest.raises(LowbitVitError, match="no attention kernel at all"):
        confirm_attention("math", [GEMM])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "attention") for name in CUDA_ATTENTION.values()),
        (GEMM, "gemm"),
        ("nvjet_hsh_128x128_64x6_2x1_v_bz_coopA_TNT", "gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __half>", "gemm"),
        ("void gemm_4bit_sm80_m16n8k16<__half>", "gemm"),
        ("void kDequantizeBlockwise<__half, 512, 64, 8, 2>(float*, unsigned char*)", "quantize"),
        ("void kInt8VectorQuant<__half, 1024, 1>(__half*, signed char*, float*)", "quantize"),
        ("void kdequant_mm_int32_fp16<4, 512>(int*, float*, float*, __half*)", "quantize"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float>", "norm_elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "norm_elementwise"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", "copy"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("something_else", "other"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::addmm", "gemm"),
        ("bitsandbytes::int8_linear_matmul", "gemm"),
        ("bitsandbytes::dequantize_4bit", "quantize"),
        ("aten::native_layer_norm", "norm_elementwise"),
        ("aten::copy_", "copy"),
    ],
)
def test_kernels_fall_into_the_class_of_their_work(name: str, kind: str) -> None:
    assert kernel_class(name) == kind


def test_the_way_that_bitsandbytes_took_is_told_by_the_names_of_its_kernels() -> None:
    dequantized = ["void kDequantizeBlockwise<__half, 512, 64, 8, 2>(float*, unsigned char*)", GEMM]
    fused = ["void gemm_4bit_sm80_m16n8k16<__half>"]
    int8 = [
        "void kInt8VectorQuant<__half, 1024, 1>(__half*)",
        "sm90_xmma_gemm_i8i32_i8i32_i32_tn_n",
        "void kdequant_mm_int32_fp16<4, 512>(int*)",
    ]
    high = [GEMM, *(name for label, name in CUDA_ATTENTION.items() if label != "coded")]
    for names, expected in ((dequantized, dequantized[:1]), (fused, fused), (int8, int8), (high, [])):
        assert low_bit_names([*names, *names]) == tuple(expected)
    assert len(low_bit_names(["kDequantizeBlockwise" + "<x>" * 500])[0]) == 160


@pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)
@pytest.mark.parametrize("attention", ["flash", "math"])
def test_a_forward_on_the_cpu_splits_into_classes_and_confirms_its_label(
    attention: AttentionName, weights: HighPrecision | NF4 | Int8
) -> None:
    model = a_model(attention)
    apply_plan(model, uniform(weights, "fp32"))
    images = torch.zeros(2, 3, 8, 8)
    result = trace(torch.inference_mode()(model.eval()), images, attention=attention, device="cpu")
    assert set(result.by_class_us) == set(KERNEL_CLASSES)
    assert result.batch_size == 2
    assert all("_scaled_dot_product" in name for name in result.attention_kernels)
    assert result.by_class_us["gemm"] > 0
    assert result.by_class_us["attention"] > 0
    assert (result.by_class_us["quantize"] > 0) == (weights.name != "high")
    assert result.wall_us is not None
    assert sum(result.by_class_us.values()) <= result.wall_us
    assert (result.launches, result.host_syncs) == (None, None)
    assert bool(result.low_bit_kernels) == (weights.name != "high")


def test_a_label_that_the_trace_contradicts_fails_the_trial() -> None:
    with pytest.raises(LowbitVitError, match="says attention flash, but its trace shows math"):
        trace(torch.inference_mode()(a_model("math")), torch.zeros(1, 3, 8, 8), attention="flash", device="cpu")


KERNELS = sorted(
    name
    for path in Path(kernels.__path__[0]).glob("*.py")
    for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), flags=re.MULTILINE)
)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_of_ours_has_a_class_by_its_name(name: str) -> None:
    kind = next(
        kind
        for word, kind in (
            ("gemm", "gemm"),
            ("decode", "quantize"),
            ("quant", "quantize"),
            ("gelu", "norm_elementwise"),
            ("rotate", "norm_elementwise"),
            ("attend", "attention"),
        )
        if word in name
    )
    assert kernel_class(name) == kind
    assert low_bit_names([name]) == (() if name in ("gelu_kernel", "rotate_kernel") else (name,))


def kernel(name: str, start_us: float, end_us: float) -> FunctionEvent:
    return FunctionEvent(id=0, name=name, thread=0, start_us=start_us, end_us=end_us)  # type: ignore[no-untyped-call]


def test_what_a_kernel_waits_for_another_is_the_others_time() -> None:
    # b starts early and waits for a; c lies within b, on another stream; d comes after a pause.
    kernels = [kernel("d", 30, 34), kernel("b", 5, 20), kernel("a", 0, 10), kernel("c", 12, 18)]
    found = dict(own_times(kernels))
    assert found == {"a": 10, "b": 10, "c": 0, "d": 4}
    assert sum(found.values()) == 20 + 4  # at least one ran
