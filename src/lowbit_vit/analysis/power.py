"""What could have been detected: the least difference of two rates that a test of so many images finds with given power.

A study that finds no difference says nothing about differences smaller than this one.
"""

import math

from scipy.optimize import brentq
from scipy.stats import norm


def power_unpaired(difference: float, *, rate: float, images: tuple[int, int], alpha: float = 0.05) -> float:
    """Chance that the two-sided z test of two rates, `rate` and `rate + difference`, on different images, finds them to differ.

    Source: Fleiss, Levin and Paik, "Statistical Methods for Rates and Proportions", 3rd ed., chapter 4, without continuity correction.

    Args:
        difference: second rate minus first, not 0.
        rate: the first model's.
        images: of the first and of the second model.
        alpha: level of the test.
    """
    other, weights = rate + difference, (1 / images[0], 1 / images[1])
    pooled = (rate * images[0] + other * images[1]) / sum(images)
    error_of_none = math.sqrt(pooled * (1 - pooled) * sum(weights))
    error = math.sqrt(rate * (1 - rate) * weights[0] + other * (1 - other) * weights[1])
    needed = float(norm.ppf(1 - alpha / 2)) * error_of_none
    return float(norm.sf((needed - difference) / error) + norm.cdf((-needed - difference) / error))


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


def detectable_unpaired(rate: float, *, images: tuple[int, int], power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Least loss, as a share, that two rates on different images would show with this power; None: not even a loss of all.

    Raises:
        ValueError: rate outside 0..1, or no images.
    """
    if not 0 < rate <= 1 or min(images) < 1:
        raise ValueError(f"detectable_unpaired: rate {rate} of {images} images")
    least, most = 1e-9, rate * (1 - 1e-9)

    def short(loss: float) -> float:
        return power_unpaired(-loss, rate=rate, images=images, alpha=alpha) - power

    return None if short(most) < 0 else float(brentq(short, least, most))


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
