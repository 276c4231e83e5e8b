"""Pointwise functions of float32 that Triton's language lacks, or does not have as torch has them.

Only what the interpreter runs too is used: no function of a device's own library.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """``x`` as float32 after rounding to ``dtype``, to nearest even, as torch casts it."""
    return cast(x, dtype).to(tl.float32)


@triton.jit
def cast(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """``x`` in ``dtype``, to nearest even, as torch casts it.

    In float8_e4m3fn, which has no infinity, too large a number becomes the largest; in float8_e5m2
    it becomes infinite, where devices would give the largest.
    """
    if dtype == tl.float8e5:
        bits = x.to(tl.float8e5).to(tl.uint8, bitcast=True)
        infinity = tl.where(x > 0, 0x7C, 0xFC).to(tl.uint8)
        # From the middle of 57344 and 65536 on.
        bits = tl.where(tl.abs(x) >= 61440.0, infinity, bits)
        result = bits.to(tl.float8e5, bitcast=True)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def larger(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """The maximum, NaN if either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """The minimum, NaN if either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(x: tl.tensor) -> tl.tensor:
    """1, -1, or 0 for zeros and NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def truncate(x: tl.tensor) -> tl.tensor:
    """The integer next to ``x`` towards zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_half_even(x: tl.tensor) -> tl.tensor:
    """The nearest integer, the even one of two; zero keeps the sign of ``x``."""
    below = tl.floor(x)
    rest = x - below
    is_odd = below - 2.0 * tl.floor(below * 0.5) == 1.0
    result = tl.where((rest > 0.5) | ((rest == 0.5) & is_odd), below + 1.0, below)
    return tl.where(result == 0.0, x * 0.0, result)


@triton.jit
def expm1(x: tl.tensor) -> tl.tensor:
    """exp(x) - 1 without cancellation: near zero its series, of which the next term is lost."""
    series = 1.0 / 40320.0
    series = series * x + 1.0 / 5040.0
    series = series * x + 1.0 / 720.0
    series = series * x + 1.0 / 120.0
    series = series * x + 1.0 / 24.0
    series = series * x + 1.0 / 6.0
    series = series * x + 0.5
    return tl.where(tl.abs(x) < 0.5, x + x * x * series, tl.exp(x) - 1.0)


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x), corrected by what 1 + x loses of x."""
    y = 1.0 + x
    corrected = tl.log(y) * (x / (y - 1.0))
    return tl.where(y == 1.0, x, tl.where(y == float("inf"), y, corrected))


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """The hyperbolic tangent; near zero the minimax polynomial of the Cephes library."""
    z = x * x
    near = -5.70498872745e-3
    near = near * z + 2.06390887954e-2
    near = near * z - 5.37397155531e-2
    near = near * z + 1.33314422036e-1
    near = near * z - 3.33332819422e-1
    shrunk = tl.exp(-2.0 * tl.abs(x))
    far = 1.0 - 2.0 * shrunk / (1.0 + shrunk)
    return tl.where(tl.abs(x) < 0.625, x + x * z * near, tl.where(x < 0, -far, far))


@triton.jit
def softplus(x: tl.tensor, beta: tl.constexpr, threshold: tl.constexpr) -> tl.tensor:
    """log(1 + exp(beta x)) / beta, and x itself from where beta x is above the threshold."""
    scaled = x * beta
    return tl.where(scaled > threshold, x, log1p(tl.exp(scaled)) * (1.0 / beta))


@triton.jit
def atan2(y: tl.tensor, x: tl.tensor) -> tl.tensor:
    """The angle of (x, y) in (-pi, pi]; the polynomial is that of the Cephes library."""
    tall, wide = tl.abs(y), tl.abs(x)
    large, small = larger(tall, wide), smaller(tall, wide)
    ratio = small / tl.where(large == 0.0, 1.0, large)
    ratio = tl.where((large == float("inf")) & (small == large), 1.0, ratio)
    is_steep = ratio > 0.4142135623730950  # tan(pi / 8)
    t = tl.where(is_steep, (ratio - 1.0) / (ratio + 1.0), ratio)
    z = t * t
    angle = 8.05374449538e-2
    angle = angle * z - 1.38776856032e-1
    angle = angle * z + 1.99777106478e-1
    angle = angle * z - 3.33329491539e-1
    angle = t + t * z * angle + tl.where(is_steep, 0.7853981633974483, 0.0)
    angle = tl.where(tall > wide, 1.5707963267948966 - angle, angle)
    angle = tl.where(x.to(tl.int32, bitcast=True) < 0, 3.141592653589793 - angle, angle)
    return tl.where(y.to(tl.int32, bitcast=True) < 0, -angle, angle)
