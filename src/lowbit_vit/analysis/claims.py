"""The ledger: each claim of `paper/claims.yaml` with the verdict that the printed numbers and a profile's records give it.

Verdicts are computed here and nowhere typed. A claim's checks are of two sorts. Those of the printed numbers need no run; a
contradiction among them no run can mend. Those of our runs agree only if every one of them does. `combine` has the order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowbit_vit.analysis.audit import CHECKS, audit, load_context, load_table
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.evidence import measured, predicted, printed, spared
from lowbit_vit.analysis.evidence.grounds import Grounds, Outcome
from lowbit_vit.analysis.results import Result, load_all_results
from lowbit_vit.analysis.sensitivity import scores_if_complete
from lowbit_vit.analysis.tables import read_paper_table
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.claim import Claim, Judged, Ledger, Verdict
from lowbit_vit.schema.claim_checks import (
    AccuracyCheck,
    AgreeCheck,
    AuditCheck,
    BlocksCheck,
    CellCheck,
    Check,
    FlipsCheck,
    FrontierCheck,
    PairedCheck,
    RandomCheck,
    RatioCheck,
    RunsCheck,
    ShareCheck,
    SparedCheck,
    StabilityCheck,
    StatedCheck,
    SumCheck,
    TableCheck,
)
from lowbit_vit.schema.config import Profile, Study, read_yaml, validate
from lowbit_vit.schema.workspace import Workspace

# What findings of the audit are called: by its checks, one of which says two things.
RULES = (*CHECKS, "size-constants")
OF_PRINT = (AuditCheck, TableCheck, SumCheck, StatedCheck, AgreeCheck)
# What no run can mend.
_FINAL: tuple[Verdict, ...] = ("contradicts itself", "impossible", "understated")
# Our runs speak with the first of these that any of them says.
_OF_RUNS: tuple[Verdict, ...] = ("not reproduced", "underpowered", "not run", "not comparable", "reproduced")
_DECIDED: tuple[Verdict, ...] = ("not reproduced", "underpowered", "reproduced")


def load_claims(root: Path) -> Ledger:
    """Read and validate `paper/claims.yaml`.

    Raises:
        ConfigError: the file is missing or not YAML, a key or value is wrong, or a claim names an audit check that there is not.
    """
    path = root / "paper" / "claims.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: missing; it is part of the project: git checkout paper/claims.yaml")
    # Keys that start with a dot only hold anchors.
    content = {key: value for key, value in read_yaml(path).items() if not str(key).startswith(".")}
    document = validate(Ledger, content, path)
    for claim in document.claims:
        for check in claim.tests:
            unknown = [rule for rule in check.rules if rule not in RULES] if isinstance(check, AuditCheck) else []
            if unknown:
                raise ConfigError(f"{path}: claim {claim.id}: no audit check is called {unknown[0]!r}; there are: {', '.join(RULES)}")
    return document


def gather(profile: Profile, results: Mapping[Study, Sequence[Result]], *, root: Path) -> Grounds:
    """All that checks read: a profile's results, and the paper's table with what the audit finds in it.

    Raises:
        ConfigError, DataError: a file of `paper/` is missing or wrong.
    """
    table = load_table(root / "paper" / "table1.csv")
    return Grounds(
        profile=profile,
        results=results,
        scores=scores_if_complete(gather_cells(results["sensitivity"]), profile),
        printed=read_paper_table(root),
        audit=audit(table, load_context(root / "paper" / "context.yaml")),
        stated={},
    )


def ledger(profile: Profile, workspace: Workspace) -> tuple[Judged, ...]:
    """Every claim, judged on the records of a profile.

    Raises:
        ConfigError, DataError: as `load_claims` and `gather`; a record is damaged.
    """
    return judge(load_claims(workspace.root), gather(profile, load_all_results(workspace), root=workspace.root))


def judge(document: Ledger, grounds: Grounds) -> tuple[Judged, ...]:
    """Every claim of the ledger, in its order, with its verdict on these grounds."""
    stated = replace(grounds, stated=document.stated)
    family = predicted.family((check for claim in document.claims for check in claim.tests), stated)
    known = replace(stated, adjusted=family)
    return tuple(_judged(claim, known) for claim in document.claims)


def _judged(claim: Claim, grounds: Grounds) -> Judged:
    of_print: list[Outcome] = []
    of_runs: list[Outcome] = []
    for check in claim.tests:
        outcome = carry_out(check, claim, grounds)
        if outcome is not None:
            (of_print if isinstance(check, OF_PRINT) else of_runs).append(outcome)
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
        profile=grounds.profile.name,
        device=grounds.device,
    )


def combine(of_print: Iterable[Outcome], of_runs: Iterable[Outcome]) -> Outcome:
    """The outcome that decides.

    First a contradiction in print. Then our runs, where they decide: one that disagrees is enough, all must agree. Then the
    lesser faults in print, then print that holds, and last why our runs say nothing.
    """
    printed_ones, runs = list(of_print), list(of_runs)
    ours = next((outcome for verdict in _OF_RUNS for outcome in runs if outcome.verdict == verdict), None)
    final = [outcome for outcome in printed_ones if outcome.verdict in _FINAL]
    faults = [outcome for outcome in printed_ones if outcome.verdict not in (*_FINAL, "holds")]
    holds = [outcome for outcome in printed_ones if outcome.verdict == "holds"]
    decided = [ours] if ours is not None and ours.verdict in _DECIDED else []
    silent = [ours] if ours is not None else []
    nothing = Outcome("not supported", "Nothing printed and nothing measured bears on it.")
    return next(iter([*final, *decided, *faults, *holds, *silent, nothing]))


def carry_out(check: Check, claim: Claim, grounds: Grounds) -> Outcome | None:  # noqa: C901, PLR0911, PLR0912  (one case a kind)
    """What one check says; None where an audit found nothing to say."""
    match check:
        case AuditCheck():
            return printed.audited(check, claim, grounds)
        case TableCheck():
            return printed.sentence_against_table(check, grounds)
        case SumCheck():
            return printed.sum_of(check)
        case StatedCheck():
            return printed.is_stated(check, grounds)
        case AgreeCheck():
            return printed.agree(check)
        case CellCheck():
            return None if claim.cell is None else measured.cell(check, claim.cell, grounds)
        case RatioCheck():
            return measured.ratio(check, grounds)
        case ShareCheck():
            return measured.share(check, grounds)
        case RunsCheck():
            return measured.runs(check, grounds)
        case PairedCheck():
            return predicted.paired(check, grounds)
        case FlipsCheck():
            return predicted.flips(check, grounds)
        case FrontierCheck():
            return predicted.frontier(check, grounds)
        case AccuracyCheck():
            return predicted.accuracy(check, grounds)
        case BlocksCheck():
            return spared.most_sensitive(check, grounds)
        case StabilityCheck():
            return spared.stability(check, grounds)
        case SparedCheck():
            return spared.spared(check, grounds)
        case RandomCheck():
            return spared.beats_random(check, grounds)
