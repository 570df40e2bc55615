"""What a check is, and all that it can read: one profile's records, the paper's table with its audit, what the paper states.

A check that reads our runs is first asked whether this profile's model, weights and GPU can answer, whatever they measured;
missing records are reported for those that can.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, ClassVar, Literal

from pydantic import Field

from lowbit_vit.analysis.audit import Finding, ResultsTable
from lowbit_vit.analysis.audit.table import Cell as PrintedCell
from lowbit_vit.analysis.block_cells import BlockCells, gather_cells
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.claim import Cell, Evidence, Measured, Setup, Stated, Verdict
from lowbit_vit.schema.config import AdaptationMethod, AttentionName, Execution, Profile, Study
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import ComputeDtype, Frozen, SensitivityScores
from lowbit_vit.schema.record import Record

# What has to be the paper's for our number to be comparable; `cuda`: any GPU.
Need = Literal["model", "images", "weights", "cuda", "gpu"]
# The obstacle is the hardware for these needs, the weights for the others.
HARDWARE_NEEDS = ("cuda", "gpu")
# What makes two arms twins: alike in all of these that no selector names.
TWIN_KEYS = ("weights", "compute_dtype", "attention", "qkv", "adaptation", "execution", "device", "seed", "gpu")


class Arms(Frozen):
    """Arms of the variants study by what they are; a key that is left out may be anything."""

    paper_row: int | None = Field(default=None, ge=0)
    weights: tuple[str, ...] | None = Field(default=None, description="none, nf4, nf4-dq, int8-6, int8-0")
    compute_dtype: tuple[ComputeDtype, ...] | None = None
    attention: tuple[AttentionName, ...] | None = None
    adaptation: tuple[AdaptationMethod, ...] | None = None
    execution: tuple[Execution, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one check says.

    Attributes:
        verdict: of this check alone.
        words: one sentence, with the numbers.
        because: of not comparable and not run.
        ours: our value, if there is one.
        records: trial ids that it rests on.
    """

    verdict: Verdict
    words: str
    because: str | None = None
    ours: Measured | None = None
    records: tuple[str, ...] = ()

    @property
    def evidence(self) -> Evidence:
        """As the judged claim keeps it."""
        return Evidence(says=self.words, records=self.records, verdict=self.verdict)


@dataclass(frozen=True)
class ClaimContext:
    """All that checks read.

    Attributes:
        profile: whose records these are.
        results: by study.
        scores: of the sensitivity study; empty unless it is complete.
        table: the paper's, as printed.
        audit: what the audit found in it.
        setup: what the paper's numbers are of.
        stated: what the paper states of what a repetition needs.
        adjusted: (id of one trial, id of its twin, expectation) -> p value after Holm over all accuracy comparisons.
    """

    profile: Profile
    results: Mapping[Study, Sequence[Result]]
    scores: Sequence[SensitivityScores]
    table: ResultsTable
    audit: Sequence[Finding]
    setup: Setup
    stated: Mapping[str, Stated | None]
    adjusted: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    @cached_property
    def gpus(self) -> tuple[str, ...]:
        """GPUs of the records, each once."""
        found = [_gpu(result.record) for results in self.results.values() for result in results]
        return tuple(dict.fromkeys(gpu for gpu in found if gpu is not None))

    @cached_property
    def _rows(self) -> dict[tuple[str, int | None], dict[str, Any]]:
        frames = Frames(self.results["variants"])
        of_trials = {row["trial"]: row for row in frames.trials.to_dicts()}
        timings = frames.timings.drop("samples_ms").to_dicts()
        return {(row["trial_id"], None): row for row in of_trials.values()} | {
            (of_trials[row["trial"]]["trial_id"], row["batch_size"]): of_trials[row["trial"]] | row for row in timings
        }

    def row(self, result: Result, batch: int | None) -> Mapping[str, Any]:
        """The columns of `Frames.trials`, and of `Frames.timings` where that batch size was timed."""
        return self._rows.get((result.record.trial_id, batch)) or self._rows[result.record.trial_id, None]

    @cached_property
    def mixed(self) -> BlockCells:
        """The cells of the mixed study."""
        return gather_cells(self.results["mixed"])

    @cached_property
    def device(self) -> str:
        """The GPU or CPU of the records, by its product name."""
        records = [result.record for results in self.results.values() for result in results]
        cpus = dict.fromkeys(record.provenance.cpu for record in records if record.provenance is not None and record.status == "success")
        return ", ".join(self.gpus or cpus) or "no records"

    def printed(self, cell: Cell) -> PrintedCell:
        """A number of the paper's table; `load_paper` has checked that it is there."""
        return next(found for found in self.table.cells.values() if (found.row, found.heading) == (cell.row, cell.column))

    def obstacle(self, needs: Sequence[Need], found: Outcome | None = None) -> Outcome | None:
        """Why this profile cannot answer, or None; `found` is what was measured all the same."""
        lacking = {need: words for need in needs if (words := self._lacks(need)) is not None}
        if not lacking:
            return None
        kinds = {"hardware" if need in HARDWARE_NEEDS else "weights" for need in lacking}
        words = "; ".join(lacking.values())
        found = found or Outcome("not run", "Nothing was measured.")
        because = ", ".join(sorted(kinds))
        return Outcome("not comparable", f"{words[0].upper()}{words[1:]}.", because=because, ours=found.ours, records=found.records)

    def _lacks(self, need: Need) -> str | None:
        """What is not the paper's, in words; None where it is."""
        backbone, on_gpu, setup = self.profile.backbone, self.profile.device == "cuda", self.setup
        model = backbone.architecture if isinstance(backbone.architecture, str) else "a small ViT"
        weights = {"scratch": "were trained from scratch", "torchvision": "are torchvision's", "ours": "are those of a given file"}
        same, words = {
            "model": (backbone.architecture == setup.architecture.value, f"the model is {model}, not {setup.architecture.name}"),
            "images": (self.profile.data.source == setup.images.value, f"the images are not {setup.images.name}"),
            "weights": (backbone.weights == setup.weights.value, f"the weights {weights[backbone.weights]}, not {setup.weights.name}"),
            "cuda": (on_gpu, "it ran on a CPU"),
            "gpu": (
                on_gpu and all(setup.gpu.value in gpu for gpu in self.gpus),
                f"it ran on {self.device if self.gpus else 'a CPU'}, not on {setup.gpu.name}",
            ),
        }[need]
        return None if same else words

    def command(self, study: Study) -> str:
        """What would make the records that are missing."""
        return f"lowbit-vit {study} {self.profile.name}"

    def select(self, arms: Arms) -> list[Result]:
        """Successful trials of the variants study that a selector picks."""
        return [result for result, _ in self._select(arms)]

    def _select(self, arms: Arms) -> list[tuple[Result, Mapping[str, object]]]:
        allowed = _allowed(arms)
        return [(result, values) for result, values in self._finished if _picks(allowed, values)]

    @cached_property
    def _finished(self) -> list[tuple[Result, Mapping[str, object]]]:
        """Successful trials of the variants study with their keys, which a hundred checks ask for."""
        return [(result, self._keys(result)) for result in self.results["variants"] if result.record.status == "success"]

    def _keys(self, result: Result) -> Mapping[str, object]:
        """What a trial is, by the keys of selectors and of twins."""
        return {**self.row(result, None), "gpu": _gpu(result.record)}

    def twins(self, of: Arms, to: Arms) -> list[tuple[Result, Result]]:
        """Pairs (of, to) that are alike in every key that neither selector names; with paper rows, in seed and GPU."""
        named = {key for arms in (of, to) for key in arms.model_fields_set}
        alike = ("seed", "gpu") if "paper_row" in named else tuple(key for key in TWIN_KEYS if key not in named)
        # A key that both selectors hold to one and the same value is no difference; one with several values must still agree.
        shared = tuple(key for key in TWIN_KEYS if key in named and getattr(of, key, None) == getattr(to, key, None))
        keys = (*alike, *shared)
        # By their keys: each against each would take minutes for thousands of trials.
        peers: dict[tuple[object, ...], list[Result]] = {}
        for other, values in self._select(to):
            peers.setdefault(tuple(values[key] for key in keys), []).append(other)
        return [
            (one, other)
            for one, values in self._select(of)
            for other in peers.get(tuple(values[key] for key in keys), ())
            if one is not other
        ]

    def missing_arms(self, *selectors: Arms) -> Outcome:
        """The outcome where no trial is there to look at: which arms, and why."""
        allowed = [_allowed(arms) for arms in selectors]
        reasons = [
            f"{result.record.trial.label}: {result.record.status}"
            + (f" ({result.record.reason})" if result.record.reason is not None else "")
            for result in self.results["variants"]
            if result.record.status != "success" and any(_picks(values, self._keys(result)) for values in allowed)
        ]
        words = "; ".join(dict.fromkeys(reasons)) or "No record of such arms"
        return Outcome("not run", f"{words}.", because=self.command("variants"))


def _allowed(arms: Arms) -> dict[str, Collection[object]]:
    """The values that a selector allows, by key."""
    named = {key: getattr(arms, key) for key in arms.model_fields_set}
    return {key: (value,) if key == "paper_row" else value for key, value in named.items() if value is not None}


def _picks(allowed: Mapping[str, Collection[object]], values: Mapping[str, object]) -> bool:
    return all(values[key] in wanted for key, wanted in allowed.items())


def _gpu(record: Record) -> str | None:
    return record.provenance.gpu if record.provenance is not None and record.status == "success" else None


def record_ids(*results: Result) -> tuple[str, ...]:
    """Trial ids, each once."""
    return tuple(dict.fromkeys(result.record.trial_id for result in results))


# ------------------------------------------------------------------------------------------------------- kinds of checks


class Check(Frozen):
    """One test of a claim. A subclass is a kind: its name in the key `check`, its parameters, and `evaluate`.

    It names no verdict. What it takes from our runs it takes from arms picked by what they are, so that the same claim can be
    judged on any profile and GPU.
    """

    of_print: ClassVar[bool] = False  # it needs no run
    check: str

    @abstractmethod
    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome | None:
        """What this check says of a claim, whose cell of the table is `cell`; None where it has nothing to say."""


class RunCheck(Check):
    """A check of our runs that looks at what was measured first, then at whether it is comparable."""

    needs: ClassVar[tuple[Need, ...]]

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """`measure`, unless this profile cannot answer or nothing was measured."""
        found = self.measure(context)
        return self.obstacle(context, found) or found or self.missing(context)

    def obstacle(self, context: ClaimContext, found: Outcome | None) -> Outcome | None:
        """Why this profile cannot answer, or None."""
        return context.obstacle(self.needs, found)

    @abstractmethod
    def measure(self, context: ClaimContext) -> Outcome | None:
        """The outcome as if our runs were comparable; None where nothing was measured."""

    @abstractmethod
    def missing(self, context: ClaimContext) -> Outcome:
        """The outcome where nothing was measured."""


class TwinCheck(RunCheck):
    """An arm against its twin: alike in all that neither selector names; with paper rows, in the seed."""

    of: Arms
    to: Arms

    def missing(self, context: ClaimContext) -> Outcome:
        """Which arms are missing, and why."""
        return context.missing_arms(self.of, self.to)


def spread_of(found: Sequence[tuple[float, Interval | None]], unit: str, *, sign: Literal["", "+"] = "") -> Measured:
    """One value with its interval, or the range and the median of several."""
    if len(found) == 1:
        value, interval = found[0]
        between = f" ({interval.low:{sign}.2f} to {interval.high:{sign}.2f})" if interval is not None else ""
        return Measured(text=f"{value:{sign}.2f} {unit}{between}", value=value, unit=unit, interval=interval)
    values = [value for value, _ in found]
    return Measured(text=f"{min(values):{sign}.2f} to {max(values):{sign}.2f} {unit}", value=median(values), unit=unit)


def within(value: float, at_least: float | None, at_most: float | None) -> bool:
    """Whether a value lies in the range of a check; None: no bound."""
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def bounds(at_least: float | None, at_most: float | None) -> str:
    """The range of a check in words."""
    if at_least is None:
        return f"at most {at_most:g}"
    return f"at least {at_least:g}" if at_most is None else f"{at_least:g} to {at_most:g}"
