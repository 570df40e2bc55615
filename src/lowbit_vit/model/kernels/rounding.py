"""Numbers to 8-bit codes, inside a kernel: the part that the passes over activations and the decoding of NF4 share."""

import triton
import triton.language as tl

# Rows whose largest magnitude is below it become zeros: a smaller scale would be a denormal number, which a card flushes.
SMALLEST = tl.constexpr(1e-30)
# Adding 1.5 x 2^23 to an fp32 number below 2^22 rounds it to the nearest integer, ties to even, as torch.round does; the integer's
# two's complement is then in the low bits.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def codes_of(scaled, LARGEST: tl.constexpr, CODES: tl.constexpr):
    """The codes of fp32 numbers that are in +-LARGEST but for a last bit, to nearest even; NaN has the code 0."""
    scaled = tl.where(scaled == scaled, scaled, 0.0)  # noqa: PLR0124  (what NaN is cast to is not defined)
    if CODES == tl.int8:  # noqa: SIM300  (the first is not a constant to Python)
        codes = (scaled + _ROUND).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        codes = tl.clamp(scaled, -LARGEST, LARGEST).to(CODES, fp_downcast_rounding="rtne")
    return codes
