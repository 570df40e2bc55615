"""Synthetic judged claims for tests of the report: one a cell of the paper's table and one a section, verdicts in turn.

Made-up verdicts, never shipped; the quotes of the cells are the paper's, the rest says that it is synthetic.
"""

from collections.abc import Sequence
from itertools import cycle

from lowbit_vit.analysis.claims.ledger import Claim, Judged, Paper
from lowbit_vit.analysis.claims.paper_checks import AuditCheck
from lowbit_vit.schema.claim import VERDICTS, Cell, Cost, Evidence, Kind, Measured, Tolerance, Verdict
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.record import Record

HOSTILE = '</script><script>alert(1)</script> & "quoted" {{ 7 * 7 }} \u2028 $x_1$ | <b>bold</b>'


def judged(paper: Paper, records: Sequence[Record], *, profile: str = "demo", quote: str = "a synthetic sentence") -> list[Judged]:
    """Every cell with a number, then two statements a section; a verdict that ran rests on one of `records`."""
    verdicts = cycle(VERDICTS)
    ids = cycle([record.trial_id for record in records if record.status == "success"])
    found = []
    for row in paper.table.rows:
        for place, (quantity, column) in enumerate(paper.table.headings.items()):
            printed = paper.table.cell(row, quantity)
            if printed is not None:
                claim = _claim(f"t1-r{row}-{place}", "Table 1", "cell", quote=printed.text, cell=Cell(row=row, column=column))
                found.append(_judge(claim, next(verdicts), next(ids), profile))
    for section in paper.ledger.sections:
        for number in range(2):
            slug = section.lower().replace(" ", "-")
            kind: Kind = "others" if section == "Others" else "number"
            claim = _claim(f"{slug}-s{number}", section, kind, quote=f"{quote} {number} of {section}")
            found.append(_judge(claim, next(verdicts), next(ids), profile))
    return found


def _claim(name: str, section: str, kind: Kind, *, quote: str, cell: Cell | None = None) -> Claim:
    return Claim(
        id=name,
        quote=quote,
        place=f"{section}, synthetic",
        section=section,
        kind=kind,
        says="whether a synthetic number is what it is",
        cell=cell,
        tests=(AuditCheck(check="audit", rules=("size",)),),
        tolerance=Tolerance(within="10 %", reason="a synthetic reason"),
        command="lowbit-vit variants PROFILE",
        cost=Cost(minutes=1.5, hardware="2 CPU cores", basis="estimated"),
        transfer="to nothing",
        figure="figure1",
        source="https://example.org/numbers" if kind == "others" else None,
    )


def _judge(claim: Claim, verdict: Verdict, record: str, profile: str) -> Judged:
    open_because = {"not comparable": "hardware", "not run": "lowbit-vit variants paper"}
    ran = verdict in ("reproduced", "not reproduced", "underpowered")
    return Judged(
        claim=claim,
        verdict=verdict,
        because=open_because.get(verdict),
        words=f"A synthetic reason for {verdict}.",
        ours=Measured(text="13.1 ms", value=13.1, unit="ms", interval=Interval(low=12.9, high=13.3)) if ran else None,
        evidence=(Evidence(says="A synthetic sum: 1 + 1 = 2.", records=(record,) if ran else (), verdict=verdict),),
        profile=profile,
        device="Synthetic CPU" if ran else "no records",
    )
