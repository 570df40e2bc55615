"""The integer programme behind `allocate`: each unit takes one format, a total stays within a budget, another is least.

scipy's MILP (HiGHS), solved to a gap of 0. Of equally good plans the one of fewer bytes is taken, then the one that quantizes later
units, so the choice is the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from lowbit_vit.errors import ConfigError, LowbitVitError
from lowbit_vit.schema.allocation import Optimum
from lowbit_vit.schema.plan import WeightFormat

MIB = 2**20
Quantity = Literal["weight_bytes", "kl", "flips", "ms", "gradient"]
Floats = npt.NDArray[np.float64]


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
            ConfigError: the limit is not positive.
        """
        if not (self.limit > 0 or (self.quantity in ("flips", "kl") and self.limit == 0)):
            raise ConfigError(f"allocate: a budget of {self.words} is none; give a positive number")


def _words(quantity: Limited, value: float) -> str:
    return _WORDS[quantity].format(value / MIB if quantity == "weight_bytes" else value)


def solve(problem: Problem, budget: Budget, *, minimize: Quantity) -> tuple[list[Choice], Optimum]:
    """The best plan within the budget, one choice a unit in order.

    Raises:
        ConfigError: the budget is not positive, or below what any plan needs (the message says how much that is).
        LowbitVitError: the solver gave no proven optimum.
    """
    least = problem.least(budget.quantity)
    budget.require_some()
    if budget.limit < least:
        nearest = _round_up(budget.quantity, least)
        raise ConfigError(f"allocate: no plan keeps within {budget.words}; the nearest budget that one does is {nearest}")
    programme = _Programme(problem)
    programme.limit(budget.quantity, budget.limit - problem.total([], budget.quantity))
    value, bound = programme.minimize(minimize)
    # Of equally good plans, the smaller one, and then that of the later units: no choice is left to the solver.
    programme.limit(minimize, value + 1e-9 * max(abs(value), programme.scale(minimize)))
    if minimize != "weight_bytes":
        smallest, _ = programme.minimize("weight_bytes")
        programme.limit("weight_bytes", smallest + 0.5)
    chosen = programme.settle()
    within = problem.total(chosen, budget.quantity)
    if within > budget.limit * (1 + 1e-9):
        raise LowbitVitError(f"allocate: the solver's plan takes {_words(budget.quantity, within)}, more than the budget of {budget.words}")
    base = problem.total([], minimize)
    named: Literal["kl", "flips", "gradient", "weight_bytes"] = "kl" if minimize == "ms" else minimize
    gap = abs(value - bound) / max(abs(value + base), 1e-300)
    return chosen, Optimum(minimized=named, value=value + base, bound=bound + base, gap=0.0 if gap < 1e-9 else gap)


def _round_up(quantity: Limited, least: float) -> str:
    """A budget in words that is surely enough: four digits, rounded up."""
    unit = MIB if quantity == "weight_bytes" else 1
    return _words(quantity, np.ceil(least / unit * 1e4) / 1e4 * unit)


class _Programme:
    """The binary programme: one variable a choice, one of each unit's is 1; then one a pair, the product of two of those.

    A product p of binary a and b is linear: p <= a, p <= b, p >= a + b - 1 (Fortet, Revue francaise de recherche operationnelle 4, 1960).
    """

    def __init__(self, problem: Problem) -> None:
        self._units, self._choices = problem.units, problem.choices
        self._pair_kl = np.array([pair.kl for pair in problem.pairs], dtype=np.float64)
        width = len(self._choices) + len(problem.pairs)
        unit = np.repeat(np.arange(len(self._units)), list(map(len, self._units)))
        one_each = csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))), shape=(len(self._units), width))
        self._constraints = [LinearConstraint(one_each, lb=1, ub=1)]
        place = {(choice.unit, choice.weights.name): index for index, choice in enumerate(self._choices)}
        for index, pair in enumerate(problem.pairs):
            row = np.zeros((3, width))
            both = [place[name, pair.weights] for name in pair.units]
            row[0, both[0]] = row[1, both[1]] = -1
            row[2, both] = 1
            row[:, len(self._choices) + index] = (1, 1, -1)
            self._constraints.append(LinearConstraint(row, ub=(0, 0, 1)))

    def scale(self, quantity: Quantity) -> float:
        """The greatest that one choice has of a quantity; 1 if none has any."""
        return float(np.abs(self._values(quantity)).max()) or 1.0

    def limit(self, quantity: Quantity, most: float) -> None:
        """Add a row: the sum over what is chosen is at most `most`. Scaled, for the solver's tolerance is absolute: 1e-6."""
        scale = self.scale(quantity) / 1e4
        self._constraints.append(LinearConstraint(self._values(quantity)[None, :] / scale, ub=most / scale))

    def minimize(self, quantity: Quantity) -> tuple[float, float]:
        """The least sum, and its lower bound."""
        scale = self.scale(quantity) / 1e4
        solution, bound = self._solve(self._values(quantity) / scale)
        return float(self._values(quantity) @ solution), bound * scale

    def settle(self) -> list[Choice]:
        """What is chosen where all else is equal: high precision for earlier units, formats in the order that they were given in."""
        order = [place * (len(self._units) - at) for at, choices in enumerate(self._units) for place in range(len(choices))]
        solution, _ = self._solve(np.append(order, np.zeros_like(self._pair_kl)))
        return [choice for choice, taken in zip(self._choices, solution, strict=False) if taken > 0.5]

    def _values(self, quantity: Quantity) -> Floats:
        own = np.array([getattr(choice, quantity) for choice in self._choices], dtype=np.float64)
        return np.concatenate([own, self._pair_kl if quantity == "kl" else np.zeros_like(self._pair_kl)])

    def _solve(self, costs: Floats) -> tuple[Floats, float]:
        result = milp(
            costs,
            integrality=np.ones(len(costs), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=self._constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.status != 0 or result.x is None:
            raise LowbitVitError(f"allocate: the solver found no proven optimum: {str(result.message).splitlines()[0]}")
        return np.round(result.x), float(result.mip_dual_bound)
