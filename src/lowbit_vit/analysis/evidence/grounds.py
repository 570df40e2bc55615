"""What a verdict can rest on: one profile's records, the paper's printed table with its audit, and what the paper states.

A check that reads our runs first asks for an `obstacle`: why this profile's model, weights or card cannot answer, whatever it
measured. Only then is a missing record missing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import polars as pl

from lowbit_vit.analysis.audit.finding import Finding
from lowbit_vit.analysis.frames import weights_name
from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.claim import Evidence, Measured, Stated, Verdict
from lowbit_vit.schema.claim_checks import Arms
from lowbit_vit.schema.config import Profile, Study
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.record import Record

Need = Literal["vit_l_16", "flowers102", "pretrained", "cuda", "a100"]
# The obstacle is the hardware for these needs, the weights for the others.
HARDWARE_NEEDS = ("cuda", "a100")
# What makes two arms twins: alike in all of these that no selector names.
TWIN_KEYS = ("weights", "compute_dtype", "attention", "qkv", "adaptation", "execution", "device", "seed", "gpu")
SELECTOR_KEYS = tuple(Arms.model_fields)


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
class Grounds:
    """All that checks read.

    Attributes:
        profile: whose records these are.
        results: by study.
        scores: of the sensitivity study; empty unless it is complete.
        printed: the paper's table, every cell as text.
        audit: what the audit found in it.
        stated: what the paper states of what a repetition needs.
        adjusted: (id of one trial, id of its twin, expectation) -> p value after Holm over all accuracy comparisons.
    """

    profile: Profile
    results: Mapping[Study, Sequence[Result]]
    scores: Sequence[SensitivityScores]
    printed: pl.DataFrame
    audit: Sequence[Finding]
    stated: Mapping[str, Stated | None]
    adjusted: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    @cached_property
    def cards(self) -> tuple[str, ...]:
        """GPUs of the records, each once."""
        found = [_gpu(result.record) for results in self.results.values() for result in results]
        return tuple(dict.fromkeys(card for card in found if card is not None))

    @cached_property
    def device(self) -> str:
        """The card or CPU of the records, as people call it."""
        records = [result.record for results in self.results.values() for result in results]
        cpus = dict.fromkeys(record.provenance.cpu for record in records if record.provenance is not None and record.status == "success")
        return ", ".join(self.cards or cpus) or "no records"

    def obstacle(self, *needs: Need, ours: Measured | None = None, records: tuple[str, ...] = ()) -> Outcome | None:
        """Why this profile cannot answer, or None; the first reason of each kind is told."""
        failed = [need for need in needs if not self._meets(need)]
        if not failed:
            return None
        kinds = dict.fromkeys("hardware" if need in HARDWARE_NEEDS else "weights" for need in failed)
        because = ", ".join(kind for kind in ("hardware", "weights") if kind in kinds)
        words = "; ".join(self._lacks(need) for need in failed)
        return Outcome("not comparable", f"{words[0].upper()}{words[1:]}.", because=because, ours=ours, records=records)

    def _meets(self, need: Need) -> bool:
        backbone = self.profile.backbone
        match need:
            case "vit_l_16":
                return backbone.architecture == "vit_l_16"
            case "flowers102":
                return self.profile.data.source == "flowers102"
            case "pretrained":
                return backbone.weights == "torchvision"
            case "cuda":
                return self.profile.device == "cuda"
            case "a100":
                return self.profile.device == "cuda" and (not self.cards or all("A100" in card for card in self.cards))

    def _lacks(self, need: Need) -> str:
        match need:
            case "vit_l_16":
                return "the model is a small ViT, not ViT-L/16"
            case "flowers102":
                return "the images are not Flowers-102"
            case "pretrained":
                return "the weights were trained from scratch, not pretrained on ImageNet"
            case "cuda":
                return "it ran on a CPU"
            case "a100":
                return f"it ran on {self.device if self.cards else 'a CPU'}, not on an A100"

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
        return [(result, _keys(result.record)) for result in self.results["variants"] if result.record.status == "success"]

    def twins(self, of: Arms, to: Arms) -> list[tuple[Result, Result]]:
        """Pairs (of, to) that are alike in every key that neither selector names; with paper rows, in seed and card."""
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
            if result.record.status != "success" and any(_picks(values, _keys(result.record)) for values in allowed)
        ]
        words = "; ".join(dict.fromkeys(reasons)) or "No record of such arms"
        return Outcome("not run", f"{words}.", because=self.command("variants"))


def _allowed(arms: Arms) -> dict[str, Collection[object]]:
    """The values that a selector allows, by key."""
    named = {key: getattr(arms, key) for key in arms.model_fields_set}
    return {key: (value,) if key == "paper_row" else value for key, value in named.items() if value is not None}


def _picks(allowed: Mapping[str, Collection[object]], values: Mapping[str, object]) -> bool:
    return all(values[key] in wanted for key, wanted in allowed.items())


def _keys(record: Record) -> dict[str, object]:
    """What a trial is, by the keys of selectors and of twins."""
    special = {"weights": weights_name(record.trial), "compute_dtype": record.trial.plan.compute_dtype, "gpu": _gpu(record)}
    return {key: special[key] if key in special else getattr(record.trial, key) for key in (*TWIN_KEYS, *SELECTOR_KEYS)}


def _gpu(record: Record) -> str | None:
    return record.provenance.gpu if record.provenance is not None and record.status == "success" else None


def record_ids(pairs: Sequence[tuple[Result, Result]]) -> tuple[str, ...]:
    """Trial ids of all pairs, each once."""
    return tuple(dict.fromkeys(result.record.trial_id for pair in pairs for result in pair))


def printed_number(grounds: Grounds, row: int, column: str) -> float:
    """A cell of the paper's table as a number."""
    return float(grounds.printed.item(row, column))
