"""ARTIFACT.md from the ledger: claim -> figure -> command -> minutes and hardware -> expected value and tolerance.

Expected values come from the committed reference runs, each judged with the profile that its records name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lowbit_vit.analysis.claims.ledger import Claim, Judged, Paper, gather, judge, load_paper
from lowbit_vit.analysis.results import Result, read_results
from lowbit_vit.errors import DataError
from lowbit_vit.report.columns import escape_markdown
from lowbit_vit.report.ledger import ours_words
from lowbit_vit.schema.claim import VERDICT_MEANS, VERDICTS
from lowbit_vit.schema.config import STUDIES, Profile, Study, load_profile


@dataclass(frozen=True)
class Reference:
    """A committed run and what the ledger says of it.

    Attributes:
        name: its folder's.
        title: first heading of its README.
        profile: that its records name.
        device: GPU or CPU.
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
    paper, references = load_references(root)
    claims = paper.ledger.claims
    grouped = [
        (title, _by_cost([pair for pair in enumerate(claims) if pair[1].section == section]))
        for section, title in paper.ledger.sections.items()
    ]
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
        paper=paper,
        cells=[claim for claim in claims if claim.cell is not None],
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


def load_references(root: Path) -> tuple[Paper, list[Reference]]:
    """The paper that the committed reference runs repeat, and every one of them, by name, with its claims judged.

    Raises:
        DataError: there is none, one has no records or no README, or they are not of one paper.
    """
    folders = sorted(path for path in (root / "reports" / "reference").glob("*") if path.is_dir())
    if not folders:
        raise DataError(f"{root / 'reports' / 'reference'}: no reference run; git checkout reports/reference")
    runs = {folder: _run(root, folder) for folder in folders}
    name, *others = dict.fromkeys(profile.paper for profile, _ in runs.values())
    if name is None or others:
        raise DataError(f"{folders[0].parent}: runs of {', '.join(map(str, (name, *others)))}; ARTIFACT.md is about runs of one paper")
    paper = load_paper(root, name)
    return paper, [_reference(folder, profile, results, paper) for folder, (profile, results) in runs.items()]


def _run(root: Path, folder: Path) -> tuple[Profile, dict[Study, list[Result]]]:
    """The results of a reference run with the profile that its records name."""
    results = read_results(folder, STUDIES)
    records = [result.record for study in STUDIES for result in results[study]]
    if not records or not (folder / "README.md").is_file():
        raise DataError(f"{folder}: a reference run needs records/ and a README.md; git checkout it")
    return load_profile(root / "profiles" / f"{records[0].trial.profile}.yaml"), results


def _reference(folder: Path, profile: Profile, results: Mapping[Study, Sequence[Result]], paper: Paper) -> Reference:
    records = [result.record for study in STUDIES for result in results[study]]
    judged = judge(paper.ledger.claims, gather(profile, results, paper))
    return Reference(
        name=folder.name,
        title=(folder / "README.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
        profile=profile.name,
        device=judged[0].device,
        trial_minutes=sum(sum(record.durations_s.values()) for record in records) / 60,
        judged=judged,
    )
