"""ARTIFACT.md from the ledger: claim -> figure -> command -> minutes and hardware -> expected value and tolerance.

Expected values come from the committed reference runs, each judged with the profile that its records name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lowbit_vit.analysis.claims import gather, judge, load_claims
from lowbit_vit.analysis.results import read_results
from lowbit_vit.errors import DataError
from lowbit_vit.report.columns import escape_markdown
from lowbit_vit.report.ledger import ours_words
from lowbit_vit.schema.claim import VERDICT_MEANS, VERDICTS, Claim, Judged
from lowbit_vit.schema.config import STUDIES, load_profile

SECTION_TITLES = {
    "Table 1": "Table 1",
    "Abstract": "Abstract",
    "I": "I. Introduction",
    "II": "II. Literature review",
    "III": "III. Methodology",
    "IV": "IV. Results",
    "V": "V. Discussion",
    "VI": "VI. Conclusion",
    "Others": "Numbers of others that the study leans on",
}


@dataclass(frozen=True)
class Reference:
    """A committed run and what the ledger says of it.

    Attributes:
        name: its folder's.
        title: first heading of its README.
        profile: that its records name.
        device: card or CPU.
        trial_minutes: sum over its trials.
        judged: every claim.
    """

    name: str
    title: str
    profile: str
    device: str
    trial_minutes: float
    judged: tuple[Judged, ...]

    @property
    def path(self) -> str:
        """Relative to the project."""
        return f"reports/reference/{self.name}"

    def count(self, verdict: str) -> int:
        """Claims with this verdict."""
        return sum(item.verdict == verdict for item in self.judged)

    def expected(self, index: int) -> str:
        """Verdict and value of the ledger's claim `index`."""
        item = self.judged[index]
        return item.verdict_words if item.ours is None else f"{item.verdict_words}; {ours_words(item)}"


def artifact_markdown(root: Path) -> str:
    """The text of ARTIFACT.md.

    Raises:
        ConfigError, DataError: the ledger, a profile or a reference run is missing or wrong.
    """
    document = load_claims(root)
    references = load_references(root)
    # Table 1 first; the rest as the paper goes.
    sections = {section: [pair for pair in enumerate(document.claims) if pair[1].section == section] for section in SECTION_TITLES}
    grouped = [(SECTION_TITLES[section], _by_cost(items)) for section, items in sections.items()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lowbit_vit.report", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  (Markdown; `cell` escapes what comes from data)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = escape_markdown
    environment.filters["cost"] = cost_words
    return environment.get_template("artifact.md.jinja").render(
        claims=document.claims,
        cells=[claim for claim in document.claims if claim.cell is not None],
        grouped=grouped,
        references=references,
        verdicts=[verdict for verdict in VERDICTS if any(reference.count(verdict) for reference in references)],
        means=VERDICT_MEANS,
    )


def _by_cost(items: Sequence[tuple[int, Claim]]) -> list[tuple[Claim, list[tuple[int, Claim]]]]:
    """Claims of one command and cost together, in the order in which each first comes; with one claim to speak for them."""
    groups: dict[tuple[str, str], list[tuple[int, Claim]]] = {}
    for index, claim in items:
        groups.setdefault((claim.command, cost_words(claim)), []).append((index, claim))
    return [(group[0][1], group) for group in groups.values()]


def cost_words(claim: Claim) -> str:
    """`60 min (estimate), one CUDA GPU, 16 GB`."""
    estimate = " (estimate)" if claim.cost.basis == "estimated" else ""
    return f"{claim.cost.minutes:g} min{estimate}, {claim.cost.hardware}"


def load_references(root: Path) -> list[Reference]:
    """Every committed reference run, by name, with its claims judged.

    Raises:
        DataError: there is none, or one has no records or no README.
    """
    folders = sorted(path for path in (root / "reports" / "reference").glob("*") if path.is_dir())
    if not folders:
        raise DataError(f"{root / 'reports' / 'reference'}: no reference run; git checkout reports/reference")
    return [_reference(root, folder) for folder in folders]


def _reference(root: Path, folder: Path) -> Reference:
    results = read_results(folder, STUDIES)
    records = [result.record for study in STUDIES for result in results[study]]
    readme = folder / "README.md"
    if not records or not readme.is_file():
        raise DataError(f"{folder}: a reference run needs records/ and a README.md; git checkout it")
    profile = load_profile(root / "profiles" / f"{records[0].trial.profile}.yaml")
    judged = judge(load_claims(root), gather(profile, results, root=root))
    return Reference(
        name=folder.name,
        title=readme.read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
        profile=profile.name,
        device=judged[0].device,
        trial_minutes=sum(sum(record.durations_s.values()) for record in records) / 60,
        judged=judged,
    )
