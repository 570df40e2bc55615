"""Which model to deploy: the best of those that were run, or a plan of `allocate`, beside high precision from the same weights.

Chosen on the selection half of the test images, reported on the other half. Candidates are the models that `export` writes (eager, or as
they are to be timed, without adapters on low-bit weights); random plans are controls, not candidates. A model is compared with the
high-precision model of the same weights whose compute dtype and attention are its own, or else come nearest.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from lowbit_vit.analysis.latencies import Ratio, latency_ratio
from lowbit_vit.analysis.programme import Budget, Limited
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import Comparison, compare, wilson
from lowbit_vit.analysis.timed_plans import predicted_ms
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.allocation import PlanFile
from lowbit_vit.schema.cell_role import Random
from lowbit_vit.schema.config import Execution, Profile, Study, Trial
from lowbit_vit.schema.metrics import Interval, LatencySummary
from lowbit_vit.schema.plan import HighPrecision, Plan, linear_names, spared_blocks, uniform


@dataclass(frozen=True)
class Speed:
    """Median latency of one batch.

    Attributes:
        ms: of the model.
        faster: the reference's median over it; the interval is None where it is predicted or the samples are too few.
        predicted: from the arms of one format throughout, for this model was not timed.
        processes: that each of the two was measured in, at least.
    """

    ms: float
    faster: Ratio
    predicted: bool
    batch_size: int
    execution: Execution
    processes: int = 1


@dataclass(frozen=True)
class Recommendation:
    """One model beside its reference.

    Attributes:
        plan: its formats.
        depth: blocks of the model.
        weight_bytes: of all its weights, constants of the formats included.
        reference: high precision of the same weights, which was run.
        result: that it was run; None: a plan that was not, so that the rest is predicted.
        selected: share of the selection half whose Top-1 class it changes.
        changed: the same of the report half, or as predicted.
        interval: 95 % of `changed`.
        top1: against the reference, image by image of the report half; None: not run.
        speed: None: neither timed nor predictable.
    """

    plan: Plan
    depth: int
    weight_bytes: int
    reference: Result
    result: Result | None
    selected: float
    changed: float
    interval: Interval
    top1: Comparison | None
    speed: Speed | None

    @property
    def low_bit(self) -> bool:
        """Whether anything is quantized."""
        return _is_low_bit(self.plan, self.depth)


def measured_models(
    profile: Profile, results: Mapping[Study, Sequence[Result]], *, batch: int | None = None, execution: Execution = "eager"
) -> list[Recommendation]:
    """Every candidate that was run, high precision included; none where high precision of the same weights was not run.

    `batch` and `execution` are of the latency; None: the largest batch size of the profile.
    """
    every = [result for found in results.values() for result in found if result.predictions is not None]
    usable = [result for result in every if _usable(result.record.trial, execution)]
    first = min((result.record.trial.seed for result in usable), default=None)
    usable = [result for result in usable if result.record.trial.seed == first]
    high = [result for result in usable if not _is_low_bit(result.record.trial.plan, profile.backbone.depth)]
    timings = _Timings(profile, every, batch or max(profile.measurement.batch_sizes), execution)
    pairs = [(result, _reference(result, high)) for result in usable]
    return [_measured(result, reference, timings) for result, reference in pairs if reference is not None]


def choose(models: Sequence[Recommendation], budget: Budget) -> Recommendation:
    """The best within a budget, by the selection half: for flips the fewest bytes, else the fewest changed predictions.

    Raises:
        ConfigError: no model keeps within it; the message says which comes nearest.
        DataError: a budget of milliseconds, and nothing was timed.
    """
    measures: dict[Limited, Callable[[Recommendation], float]] = {
        "weight_bytes": lambda model: float(model.weight_bytes),
        "flips": lambda model: 1000 * model.selected,
        "ms": lambda model: float("inf") if model.speed is None else model.speed.ms,
    }
    of_each = measures[budget.quantity]
    budget.require_some()
    within = [model for model in models if of_each(model) <= budget.limit]
    if budget.quantity == "ms" and all(model.speed is None for model in models):
        name = models[0].reference.record.trial.profile
        raise DataError(f"recommend: nothing was timed at this batch size and execution; lowbit-vit variants {name} does")
    if not within:
        nearest = Budget(budget.quantity, min(map(of_each, models))).words
        raise ConfigError(f"recommend: no model that was run keeps within {budget.words}; the nearest has {nearest}")
    order = ("weight_bytes", "selected") if budget.quantity == "flips" else ("selected", "weight_bytes")
    # One model may be there as an arm and as a cell: the one that was timed says more.
    return min(within, key=lambda model: (*attrgetter(*order)(model), model.speed is None or model.speed.predicted))


def as_planned(
    plan: PlanFile,
    profile: Profile,
    results: Mapping[Study, Sequence[Result]],
    models: Sequence[Recommendation],
    *,
    batch: int | None,
    execution: Execution,
) -> Recommendation:
    """A plan of `allocate` with what was measured of it if it was run, else as predicted."""
    study, depth = profile.sensitivity, profile.backbone.depth
    settings = (plan.compute_dtype, study.attention, "separate")
    trials = [(model, model.result.record.trial) for model in models if model.result is not None]
    alike = [model for model, trial in trials if (trial.plan.compute_dtype, trial.attention, trial.qkv) == settings]
    formats = plan.plan(depth).resolve(linear_names(depth))
    run = [model for model in alike if model.plan.resolve(linear_names(depth)) == formats]
    if run:
        return run[0]
    assert plan.predicted is not None and plan.predicted.flips_interval is not None  # noqa: S101, PT018  (allocate gives them)
    every = [result for found in results.values() for result in found]
    timings = _Timings(profile, every, batch or max(profile.measurement.batch_sizes), execution)
    low, high = plan.predicted.flips_interval
    return Recommendation(
        plan=plan.plan(depth),
        depth=depth,
        weight_bytes=plan.predicted.weight_bytes,
        reference=(alike or models)[0].reference,
        result=None,
        selected=plan.predicted.flips_per_1000 / 1000,
        changed=plan.predicted.flips_per_1000 / 1000,
        interval=Interval(low=low / 1000, high=high / 1000),
        top1=None,
        speed=timings.predicted(plan.plan(depth)),
    )


def _usable(trial: Trial, execution: Execution) -> bool:
    random = any(isinstance(role, Random) for role in trial.roles)
    return trial.execution in ("eager", execution) and trial.adaptation != "qlora" and not random


def _is_low_bit(plan: Plan, depth: int) -> bool:
    # A plan's rules may give high precision back to what an earlier one took it from.
    return bool(plan.rules) and len(spared_blocks(plan, depth)) < depth


def _reference(result: Result, high: Sequence[Result]) -> Result | None:
    """High precision of the same weights on the same device, as like it as there is."""
    trial, model = result.record.trial, result.record.model

    def unlike(other: Result) -> tuple[bool, ...]:
        its = other.record.trial
        names = ("execution", "attention", "study")
        return (its.plan.compute_dtype != trial.plan.compute_dtype, *(getattr(its, name) != getattr(trial, name) for name in names))

    same = [other for other in high if model and other.record.model and other.record.model.backbone_sha256 == model.backbone_sha256]
    return min((other for other in same if other.record.trial.device == trial.device), key=unlike, default=None)


def _measured(result: Result, reference: Result, timings: "_Timings") -> Recommendation:
    ours, theirs, model = result.predictions, reference.predictions, result.record.model
    assert ours is not None and theirs is not None and model is not None  # noqa: S101, PT018  (both succeeded)
    changed, half = ours.best != theirs.best, ours.selection
    report = changed[~half]
    return Recommendation(
        plan=result.record.trial.plan,
        depth=result.record.trial.backbone.depth,
        weight_bytes=model.weight_bytes,
        reference=reference,
        result=result,
        selected=float(changed[half].mean()),
        changed=float(report.mean()),
        interval=wilson(int(report.sum()), len(report)),
        top1=compare(theirs.right[~half], ours.right[~half]),
        speed=timings.of(result, reference),
    )


@dataclass(frozen=True)
class _Timings:
    """What was timed, at one batch size and execution."""

    profile: Profile
    results: Sequence[Result]
    batch_size: int
    execution: Execution

    def of(self, result: Result, reference: Result) -> Speed | None:
        """Of a model that was run, from the samples of the trials that timed it and its reference, else predicted."""
        ours, theirs = (self._timed.get(self._key(each)) for each in (result, reference))
        if ours and theirs:
            faster = latency_ratio(ours, theirs, one_run=True)
            return Speed(
                ours.p50_ms,
                faster,
                predicted=False,
                batch_size=self.batch_size,
                execution=self.execution,
                processes=min(ours.processes, theirs.processes),
            )
        trial, study = result.record.trial, self.profile.sensitivity
        as_studied = (trial.plan.compute_dtype, trial.attention, trial.qkv) == (study.compute_dtype, study.attention, "separate")
        return self.predicted(trial.plan) if as_studied else None

    def predicted(self, plan: Plan) -> Speed | None:
        """Of a plan, from the arms that hold one format throughout."""
        both, timed = (plan, uniform(HighPrecision(), plan.compute_dtype)), [result for result in self.results if result.latency]
        ours, theirs = (predicted_ms(each, self.profile, timed, batch_size=self.batch_size, execution=self.execution) for each in both)
        if ours is None or theirs is None:
            return None
        return Speed(ours, Ratio(theirs / ours, None), predicted=True, batch_size=self.batch_size, execution=self.execution)

    @cached_property
    def _timed(self) -> dict[Hashable, LatencySummary]:
        """By what was timed: an arm and a cell may be one model."""
        timed = [result for result in self.results if self.batch_size in result.latency and result.record.trial.execution == self.execution]
        return {self._key(result): result.latency[self.batch_size] for result in timed}

    def _key(self, result: Result) -> Hashable:
        trial = result.record.trial
        formats = trial.plan.resolve(linear_names(self.profile.backbone.depth, fused=trial.qkv == "fused"))
        settings = (trial.plan.compute_dtype, trial.attention, trial.qkv, trial.adaptation, trial.device, trial.seed)
        return (*settings, *(weights.name for weights in formats.values()))
