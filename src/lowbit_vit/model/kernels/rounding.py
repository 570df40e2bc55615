"""Numbers to 8-bit codes, inside a kernel: the part that quantizing passes and quantizing epilogues share."""

import triton
import triton.language as tl

# Rows and groups whose largest magnitude is below it become zeros: a smaller scale would be a denormal number, which a card flushes.
SMALLEST = tl.constexpr(1e-30)
# Adding and subtracting 1.5 x 2^23 rounds an fp32 number below 2^22 to the nearest integer, ties to even, as torch.round does.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def scale_of(magnitude, poison, LARGEST: tl.constexpr):
    """The scale under which `magnitude` has the code LARGEST; NaN where `poison` is, which else is 0."""
    # No code says that a value was NaN or infinite, so the scale does, and the row's products are NaN.
    return tl.maximum(magnitude, SMALLEST) / LARGEST + poison


@triton.jit
def codes_of(values, scales, LARGEST: tl.constexpr, CODES: tl.constexpr):
    """The codes of values in fp32, value / scale to nearest even, within +-LARGEST; NaN has the code 0."""
    scaled = values / scales
    scaled = tl.where(scaled == scaled, scaled, 0.0)  # noqa: PLR0124  (what NaN is cast to is not defined)
    scaled = tl.clamp(scaled, -LARGEST, LARGEST)  # the division may end a hair above
    if CODES == tl.int8:  # noqa: SIM300  (the first is not a constant to Python)
        codes = ((scaled + _ROUND) - _ROUND).to(tl.int8)
    else:
        codes = scaled.to(CODES, fp_downcast_rounding="rtne")
    return codes
