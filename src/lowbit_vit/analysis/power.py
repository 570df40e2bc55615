"""What could have been detected: the least difference of two rates that a test of so many images finds with given power.

A study that finds no difference says nothing about differences smaller than this one.
"""

import math

from scipy.optimize import brentq
from scipy.stats import norm


def power_paired(difference: float, *, discordance: float, images: int, alpha: float = 0.05) -> float:
    """Chance that McNemar's two-sided test finds a difference of two rates on the same images.

    Source: Connor, Biometrics 43, 1987, 207-211 (the normal approximation; the exact test has a little less).

    Args:
        difference: of the two rates, at most `discordance` in size.
        discordance: share of images on which only one of the two models is right.
        images: how many.
        alpha: level of the test.

    Raises:
        ValueError: a difference larger than the discordance.
    """
    if not 0 <= abs(difference) <= discordance <= 1:
        raise ValueError(f"power_paired: a difference of {difference} cannot come from a discordance of {discordance}")
    if difference == 0:
        return alpha
    z = float(norm.ppf(1 - alpha / 2))
    error = math.sqrt(discordance - difference**2)
    if error == 0:
        return 1.0
    return float(norm.cdf((abs(difference) * math.sqrt(images) - z * math.sqrt(discordance)) / error))


def detectable_paired(discordance: float, *, images: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Least difference, as a share, that McNemar's test would show with this power at this share of discordant images.

    None where not even a difference as large as the discordance would be: too few images changed sides.

    Raises:
        ValueError: discordance outside 0..1, or no images.
    """
    if not 0 <= discordance <= 1 or images < 1:
        raise ValueError(f"detectable_paired: discordance {discordance} of {images} images")

    def short(difference: float) -> float:
        return power_paired(difference, discordance=discordance, images=images, alpha=alpha) - power

    if discordance == 0 or short(discordance) < 0:
        return None
    return float(brentq(short, discordance * 1e-9, discordance))
