"""The choice behind `allocate`: each unit takes one format, a total stays within a budget, another is least.

Dynamic programming over the units: of the plans for the units so far, those are kept than which no other takes less of the budget and is
better. Sums are of whole numbers, so nothing is rounded, however many decades the losses span. Of equally good plans the one of fewer
bytes is taken (of equally small ones that of less KL), then the one that quantizes later units: the choice is the same everywhere.

Source: Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, 11.5, the multiple-choice knapsack problem.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, product
from math import ceil, floor, inf, lcm, prod
from operator import attrgetter
from typing import Literal

from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.allocation import Optimum
from lowbit_vit.schema.plan import WeightFormat

MIB = 2**20
Quantity = Literal["weight_bytes", "kl", "flips", "ms", "gradient"]


@dataclass(frozen=True)
class Choice:
    """One unit in one format: what it adds to the model in high precision. `ms` and `gradient`: 0 where they play no part."""

    unit: str
    weights: WeightFormat
    weight_bytes: int
    kl: float
    flips: float
    ms: float = 0.0
    gradient: float = 0.0


@dataclass(frozen=True)
class PairTerm:
    """What two units in one format (its name) add to the KL beyond their sum; negative where they cost less together."""

    units: tuple[str, str]
    weights: str
    kl: float


@dataclass(frozen=True)
class Problem:
    """Every choice, units in order of the forward pass, each unit's high precision first.

    Attributes:
        base_bytes: of the model in high precision.
        base_ms: its latency; None: not asked for.
        pairs: terms of the KL, each once.
    """

    choices: tuple[Choice, ...]
    base_bytes: int
    base_ms: float | None
    pairs: tuple[PairTerm, ...] = ()

    def total(self, chosen: Sequence[Choice], quantity: Quantity) -> float:
        """Of the whole model."""
        base = {"weight_bytes": float(self.base_bytes), "ms": self.base_ms or 0.0}.get(quantity, 0.0)
        taken = {(choice.unit, choice.weights.name) for choice in chosen}
        terms = [pair.kl for pair in self.pairs if {(unit, pair.weights) for unit in pair.units} <= taken] if quantity == "kl" else []
        return base + sum(float(getattr(choice, quantity)) for choice in chosen) + sum(terms)

    def least(self, quantity: Quantity) -> float:
        """The least total that any plan has; of KL, that of high precision: a measured KL is never less than 0."""
        return self.total([min(choices, key=attrgetter(quantity)) for choices in self.units], quantity)

    @property
    def units(self) -> list[list[Choice]]:
        """The choices of each unit."""
        return [list(group) for _, group in groupby(self.choices, key=attrgetter("unit"))]


Limited = Literal["weight_bytes", "ms", "flips", "kl"]
_WORDS: dict[Limited, str] = {
    "weight_bytes": "{:.4f} MiB",
    "ms": "{:.4f} ms",
    "flips": "{:g} flips in 1,000 images",
    "kl": "{:.4g} nats of KL",
}


@dataclass(frozen=True)
class Budget:
    """An upper limit of one total."""

    quantity: Limited
    limit: float

    @property
    def words(self) -> str:
        """With its unit."""
        return _words(self.quantity, self.limit)

    def require_some(self) -> None:
        """No flips and no KL may be asked for: high precision has none.

        Raises:
            ConfigError: the limit is not a positive number.
        """
        if not (0 < self.limit < inf or (self.quantity in ("flips", "kl") and self.limit == 0)):
            raise ConfigError(f"allocate: a budget of {self.words} is none; give a positive number")


def _words(quantity: Limited, value: float) -> str:
    return _WORDS[quantity].format(value / MIB if quantity == "weight_bytes" else value)


def solve(problem: Problem, budget: Budget, *, minimize: Quantity) -> tuple[list[Choice], Optimum]:
    """The best plan within the budget, one choice a unit in order.

    Raises:
        ConfigError: the budget is not a positive number, or below what any plan needs (the message says how much that is), or pairs
            link too many units.
    """
    budget.require_some()
    units, factor = _options(problem, budget.quantity, minimize)
    rounding = Fraction(1, 10**9) if budget.quantity == "ms" else 0  # shares of a measured latency were rounded when it was divided
    limit = floor((Fraction(budget.limit) * (1 + rounding) - Fraction(problem.total([], budget.quantity))) * factor)
    least = [min(weight for weight, _, _ in options) for options in units]
    plans: list[_Plan] = [(0, 0, ())]
    for at, options in enumerate(units, start=1):
        room = limit - sum(least[at:])
        grown = (
            (weight + more, rank + worse, chosen + added)
            for weight, rank, chosen in plans
            for more, worse, added in options
            if weight + more <= room
        )
        plans = _undominated(grown)
    if not plans:
        nearest = _round_up(budget.quantity, problem.least(budget.quantity))
        raise ConfigError(f"allocate: no plan keeps within {budget.words}; the nearest budget that one does is {nearest}")
    chosen = [problem.choices[index] for index in sorted(plans[-1][2])]
    named: Literal["kl", "flips", "gradient", "weight_bytes"] = "kl" if minimize == "ms" else minimize
    value = problem.total(chosen, minimize)
    return chosen, Optimum(minimized=named, value=value, bound=value, gap=0.0)


def _round_up(quantity: Limited, least: float) -> str:
    """A budget in words that is surely enough: four digits, rounded up."""
    unit = MIB if quantity == "weight_bytes" else 1
    return _words(quantity, ceil(least / unit * 1e4) / 1e4 * unit)


# Of a plan for some units: what it takes of the budget, its rank (the less, the better), and the places of its choices. The first two are
# whole numbers, whose sums are exact.
_Plan = tuple[int, int, tuple[int, ...]]
_MOST_LINKED = 100_000  # plans for the units that pairs link: all are tried, some 10 us each


def _undominated(plans: Iterable[_Plan]) -> list[_Plan]:
    """The plans than which no other takes as little and is as good, from the one that takes least to the best."""
    kept: list[_Plan] = []
    for plan in sorted(plans):
        if not kept or plan[1] < kept[-1][1]:
            kept.append(plan)
    return kept


def _options(problem: Problem, limited: Quantity, minimize: Quantity) -> tuple[list[list[_Plan]], int]:
    """What each unit may be, and what the budget's quantity is multiplied by. Units that pairs link come first, as if they were one.

    Raises:
        ConfigError: pairs link too many units.
    """
    weights, factor = _whole(problem, limited)
    first, _ = _whole(problem, minimize)
    second, _ = _whole(problem, limited if minimize == "weight_bytes" else "weight_bytes")
    above = 2 * sum(map(abs, second)) + 1  # the second decides where the first is equal, and nowhere else
    ranks = [one * above + other for one, other in zip(first, second, strict=True)]
    place = {(choice.unit, choice.weights.name): index for index, choice in enumerate(problem.choices)}
    terms = {
        index: {place[unit, pair.weights] for unit in pair.units} for index, pair in enumerate(problem.pairs, start=len(problem.choices))
    }
    units = [[place[choice.unit, choice.weights.name] for choice in choices] for choices in problem.units]
    linked = [unit for unit in units if any(both & set(unit) for both in terms.values())]
    count = prod(map(len, linked))
    if count > _MOST_LINKED:
        raise ConfigError(
            f"allocate: pairs link {len(linked)} units, {count:,} plans, at most {_MOST_LINKED:,} are tried; give one --format"
        )
    joint: list[_Plan] = []
    for chosen in product(*linked):
        parts = [*chosen, *(index for index, both in terms.items() if both <= set(chosen))]
        joint.append((sum(weights[part] for part in parts), sum(ranks[part] for part in parts), chosen))
    alone: list[list[_Plan]] = [[(weights[index], ranks[index], (index,)) for index in unit] for unit in units if unit not in linked]
    return [joint, *alone], factor


def _whole(problem: Problem, quantity: Quantity) -> tuple[list[int], int]:
    """What each choice, then each pair, has of a quantity, all multiplied by one number that makes them whole, and that number."""
    pairs = [pair.kl if quantity == "kl" else 0.0 for pair in problem.pairs]
    values = [Fraction(value) for value in (*map(attrgetter(quantity), problem.choices), *pairs)]
    factor = lcm(*(value.denominator for value in values))
    return [int(value * factor) for value in values], factor
