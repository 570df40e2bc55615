"""What was not run, and the command that would run it: studies without records, trials without a result, claims left open."""

from collections.abc import Sequence
from dataclasses import dataclass

from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.analysis.tables import Findings
from lowbit_vit.report.ledger import command
from lowbit_vit.schema.config import STUDIES, Profile


@dataclass(frozen=True)
class Missing:
    """One thing that is not there.

    Attributes:
        what: in a few words.
        why: the reason as recorded.
        command: what would make it; null where a skipped trial needs another machine.
        claims: ids of the claims that wait for it.
        records: trial ids of it, separated by spaces.
    """

    what: str
    why: str
    command: str | None = None
    claims: tuple[str, ...] = ()
    records: str = ""


def not_run(profile: Profile, findings: Findings, judged: Sequence[Judged]) -> list[Missing]:
    """Studies first, then claims by what they lack, then trials by study and reason."""
    records = findings.records
    studies = [
        Missing(what=f"the {study} study", why="it has no records", command=f"lowbit-vit {study} {profile.name}")
        for study in STUDIES
        if not records[study]
    ]
    return [*studies, *_arms(profile, findings), *_claims(judged), *_trials(findings)]


def _arms(profile: Profile, findings: Findings) -> list[Missing]:
    """Arms that the profile declares and that have no record, of a study that has some."""
    found = {record.trial.label for record in findings.records["variants"]}
    labels = [arm.label for arm in profile.variants.arms if arm.label not in found]
    if not found or not labels:
        return []
    why = "declared in the profile, without a record"
    return [Missing(what=f"variants: {_some(labels)}", why=why, command=f"lowbit-vit variants {profile.name}")]


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _claims(judged: Sequence[Judged]) -> list[Missing]:
    waiting: dict[tuple[str, str], list[str]] = {}
    for item in judged:
        if item.verdict == "not run":
            waiting.setdefault((item.because or item.words, command(item)), []).append(item.claim.id)
    return [
        Missing(what=f"{len(ids)} statement{'s' if len(ids) > 1 else ''}", why=why, command=how, claims=tuple(ids))
        for (why, how), ids in waiting.items()
    ]


def _trials(findings: Findings) -> list[Missing]:
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for row in findings.tables.not_successful.to_dicts():
        key = (row["study"], row["status"], row["reason"] or "no reason recorded")
        groups.setdefault(key, []).append((row["label"], row["trial_id"]))
    found = []
    for (study, status, reason), trials in groups.items():
        labels = list(dict.fromkeys(label for label, _ in trials))
        found.append(Missing(what=f"{study}: {_some(labels)}", why=f"{status}: {reason}", records=" ".join(trial for _, trial in trials)))
    return found
