"""A paper as data, and each claim of its ledger with the verdict that the printed numbers and a profile's records give it.

Verdicts are computed here and nowhere typed. A claim's checks are of two sorts. Those of the printed numbers need no run; a
contradiction among them no run can mend. Those of our runs agree only if every one of them does. `combine` has the order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lowbit_vit.analysis.audit import Finding, ResultsTable, audit, load_context, load_table
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.claims.accuracy_checks import PredictionCheck, family
from lowbit_vit.analysis.claims.block_checks import RankCheck
from lowbit_vit.analysis.claims.context import ClaimContext, Outcome
from lowbit_vit.analysis.claims.paper_checks import PaperCheck, StatedCheck, TableCheck
from lowbit_vit.analysis.claims.performance_checks import COLUMNS, CellCheck, PerformanceCheck
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.sensitivity import scores_if_complete
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.claim import Cell, Cost, Evidence, Kind, Measured, Setup, Stated, Tolerance, Verdict
from lowbit_vit.schema.config import Profile, Study, read_yaml, validate
from lowbit_vit.schema.plan import Frozen

AnyCheck = Annotated[PaperCheck | PerformanceCheck | PredictionCheck | RankCheck, Field(discriminator="check")]
# What no run can mend.
_FINAL: tuple[Verdict, ...] = ("contradicts itself", "impossible", "understated")
# Our runs speak with the first of these that any of them says.
_OF_RUNS: tuple[Verdict, ...] = ("not reproduced", "underpowered", "not run", "not comparable", "reproduced")
_DECIDED: tuple[Verdict, ...] = ("not reproduced", "underpowered", "reproduced")


# --------------------------------------------------------------------------------------------------------- the documents


class Claim(Frozen):
    """One checkable statement of the paper, or of somebody whose number is leaned on. It holds no verdict."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="stable; links point at it")
    quote: str = Field(min_length=1, description="verbatim; of a cell: what is printed in it")
    place: str = Field(min_length=1, description="such as 'IV-B, Latency trade-offs' or 'Table 1, row 0'")
    section: str = Field(min_length=1, description="one of the ledger's sections")
    kind: Kind
    says: str = Field(min_length=1, description="what is tested, in plain words")
    cell: Cell | None = Field(default=None, description="of kind cell only")
    tests: tuple[AnyCheck, ...] = Field(min_length=1)
    tolerance: Tolerance
    command: str = Field(min_length=1, description="that makes the evidence; PROFILE stands for the profile's name")
    cost: Cost
    transfer: str = Field(min_length=1, description="to which GPUs, weights and images the verdict carries over")
    figure: str | None = Field(default=None, description="of the report, where the answer is seen")
    source: str | None = Field(default=None, description="public address of somebody else's number")


class Notes(Frozen):
    """What the report and ARTIFACT.md say of this paper beside its claims."""

    table: str = Field(min_length=1, description="sentences below the paper's table beside ours")
    audit: str = Field(min_length=1, description="what the audit of the table finds, in a few words")
    figures: dict[str, str] = Field(default={}, description="by a figure of the report: a sentence on the paper's own")


class Ledger(Frozen):
    """A paper's `claims.yaml`: what its numbers are of, what it states of what a repetition needs (null: nowhere), its claims."""

    title: str = Field(min_length=1, description="the paper's")
    setup: Setup
    notes: Notes
    sections: dict[str, str] = Field(min_length=1, description="titles by the names that claims give, in the order of ARTIFACT.md")
    stated: dict[str, Stated | None]
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        ids = [claim.id for claim in self.claims]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"claim id {twice[0]!r} is given twice")
        for claim in self.claims:
            if claim.section not in self.sections:
                raise ValueError(f"claim {claim.id!r} is of section {claim.section!r}, which is no key of sections")
            for check in claim.tests:
                if isinstance(check, CellCheck) and claim.cell is None:
                    raise ValueError(f"claim {claim.id!r} has a check of kind cell but no cell")
                unknown = [need for need in check.needs if need not in self.stated] if isinstance(check, StatedCheck) else []
                if unknown:
                    raise ValueError(f"claim {claim.id!r} needs {unknown[0]!r}, which is no key of stated")
        return self


class Judged(Frozen):
    """A claim with the verdict that a profile's records and the paper's own numbers give it."""

    claim: Claim
    verdict: Verdict
    because: str | None = Field(description="of not comparable: 'hardware', 'weights' or both; of not run: what is missing; else null")
    words: str = Field(min_length=1, description="the reason in one sentence")
    ours: Measured | None = Field(description="null: nothing of ours bears on it")
    evidence: tuple[Evidence, ...] = Field(description="all that was looked at, the decisive one first")
    profile: str
    device: str = Field(description="the GPU or CPU of the records; 'no records' without any")

    @property
    def verdict_words(self) -> str:
        """The verdict with its reason: `not comparable (hardware)`, `not run (lowbit-vit mixed paper)`."""
        return self.verdict if self.because is None else f"{self.verdict} ({self.because})"

    @property
    def record_ids(self) -> tuple[str, ...]:
        """Every trial that the verdict rests on, each once."""
        return tuple(dict.fromkeys(record for item in self.evidence for record in item.records))


# ------------------------------------------------------------------------------------------------------------- the paper


@dataclass(frozen=True)
class Paper:
    """A published paper as data: the folder `papers/<name>`.

    Attributes:
        name: of its folder, which a profile's key `paper` gives.
        table: its table of results, MB read as the context says.
        audit: what the audit finds in that table.
        ledger: its claims.
    """

    name: str
    table: ResultsTable
    audit: tuple[Finding, ...]
    ledger: Ledger


def load_paper(root: Path, name: str) -> Paper:
    """Read `papers/<name>`: table.csv, context.yaml and claims.yaml.

    Raises:
        ConfigError, DataError: there is no such paper; a file is missing or wrong; a claim is of a cell that the table has not.
    """
    folder = root / "papers" / name
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such paper; there are: {', '.join(paper_names(root)) or 'none'}")
    path = folder / "claims.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: missing; a paper's folder holds table.csv, context.yaml and claims.yaml")
    # Keys that start with a dot only hold anchors.
    ledger = validate(Ledger, {key: value for key, value in read_yaml(path).items() if not str(key).startswith(".")}, path)
    table, context = load_table(folder / "table.csv"), load_context(folder / "context.yaml")
    for claim in ledger.claims:
        _require_cells(claim, table, path)
    return Paper(
        name=name,
        table=table.binary if context.megabyte == "MiB" else table,
        audit=tuple(audit(table, context)),
        ledger=ledger,
    )


def paper_names(root: Path) -> list[str]:
    """The papers of a project."""
    return sorted(path.name for path in (root / "papers").glob("*") if path.is_dir())


def _require_cells(claim: Claim, table: ResultsTable, path: Path) -> None:
    """The cells that a claim needs are numbers of the table, and one that a check holds against ours is of a quantity that we measure."""
    known = {(cell.row, cell.heading): quantity for (_, quantity), cell in table.cells.items()}
    needed = [cell for check in claim.tests if isinstance(check, TableCheck) for cell in check.cells]
    for cell in [*needed, *([] if claim.cell is None else [claim.cell])]:
        if (cell.row, cell.column) not in known:
            raise ConfigError(f"{path}: claim {claim.id}: the table has no number in row {cell.row}, column {cell.column!r}")
    compared = claim.cell if any(isinstance(check, CellCheck) for check in claim.tests) else None
    if compared is not None and known[compared.row, compared.column] not in COLUMNS:
        raise ConfigError(
            f"{path}: claim {claim.id}: column {compared.column!r} is nothing that a trial measures; leave the check cell out"
        )


# ------------------------------------------------------------------------------------------------------------ the verdicts


def gather(profile: Profile, results: Mapping[Study, Sequence[Result]], paper: Paper) -> ClaimContext:
    """All that checks read: a profile's results, and the paper's table with what the audit finds in it.

    Raises:
        ConfigError: an arm repeats a row that the paper's table has not.
    """
    for arm in profile.variants.arms:
        if arm.paper_row is not None and arm.paper_row not in paper.table.rows:
            rows = f"0 to {len(paper.table.rows) - 1}"
            raise ConfigError(f"profile {profile.name}: arm {arm.label}: paper_row {arm.paper_row} is no row of {paper.name}: {rows}")
    return ClaimContext(
        profile=profile,
        results=results,
        scores=scores_if_complete(gather_cells(results["sensitivity"]), profile),
        table=paper.table,
        audit=paper.audit,
        setup=paper.ledger.setup,
        stated=paper.ledger.stated,
    )


def judge(claims: Sequence[Claim], context: ClaimContext) -> tuple[Judged, ...]:
    """Every claim, in its order, with its verdict; the p values of all their accuracy comparisons are one family."""
    adjusted = family((check for claim in claims for check in claim.tests), context)
    known = replace(context, adjusted=adjusted)
    return tuple(_judged(claim, known) for claim in claims)


def _judged(claim: Claim, context: ClaimContext) -> Judged:
    found = [(check, outcome) for check in claim.tests if (outcome := check.evaluate(context, claim.cell)) is not None]
    of_print = [outcome for check, outcome in found if check.of_print]
    of_runs = [outcome for check, outcome in found if not check.of_print]
    first = combine(of_print, of_runs)
    rest = [outcome for outcome in (*of_print, *of_runs) if outcome is not first]
    ours = first.ours or next((outcome.ours for outcome in rest if outcome.ours is not None), None)
    return Judged(
        claim=claim,
        verdict=first.verdict,
        because=first.because,
        words=first.words,
        ours=ours,
        evidence=tuple(outcome.evidence for outcome in (first, *rest)),
        profile=context.profile.name,
        device=context.device,
    )


def combine(of_print: Iterable[Outcome], of_runs: Iterable[Outcome]) -> Outcome:
    """The outcome that decides.

    First a contradiction in print. Then our runs, where they decide: one that disagrees is enough, all must agree. Then the
    lesser faults in print, then print that holds, and last why our runs say nothing.
    """
    printed_ones, runs = list(of_print), list(of_runs)
    ours = [outcome for verdict in _OF_RUNS for outcome in runs if outcome.verdict == verdict]
    decided = [outcome for outcome in ours[:1] if outcome.verdict in _DECIDED]
    order = [
        *(outcome for outcome in printed_ones if outcome.verdict in _FINAL),
        *decided,
        *sorted(printed_ones, key=lambda outcome: outcome.verdict == "holds"),
        *ours,
        Outcome("not supported", "Nothing printed and nothing measured bears on it."),
    ]
    return order[0]
