"""The ledger's documents: what a claims file may not hold, and how a judged claim names itself."""

import pytest
from pydantic import ValidationError

import synthetic
from lowbit_vit.analysis.claims.ledger import Claim, Judged, Ledger
from lowbit_vit.analysis.claims.paper_checks import SumCheck
from lowbit_vit.schema.claim import VERDICT_MEANS, VERDICTS, Cell, Cost, Evidence, Stated, Tolerance

CLAIM = Claim(
    id="a-claim",
    quote="1.02",
    place="Table 9",
    section="Others",
    kind="others",
    says="Two numbers and their quotient.",
    tests=(SumCheck(check="sum", formula="quotient", numbers=(2.97, 2.91), printed=1.02, digits=2),),
    tolerance=Tolerance(within="the last printed digit", reason="Rounding."),
    command="lowbit-vit claims demo",
    cost=Cost(minutes=0.1, hardware="a laptop", basis="measured"),
    transfer="Everywhere.",
)


def _ledger(*claims: Claim, stated: dict[str, Stated | None] | None = None) -> Ledger:
    whole = synthetic.paper().ledger
    return Ledger(
        title=whole.title, setup=whole.setup, notes=whole.notes, sections={"Others": "Others"}, stated=stated or {}, claims=claims
    )


def test_every_verdict_says_what_it_means() -> None:
    assert set(VERDICTS) == set(VERDICT_MEANS)
    assert len(VERDICTS) == len(set(VERDICTS))


def test_a_claim_cannot_bring_its_verdict() -> None:
    with pytest.raises(ValidationError, match="verdict"):
        Claim.model_validate(CLAIM.model_dump() | {"verdict": "holds"})


def test_ids_are_unique() -> None:
    with pytest.raises(ValidationError, match="given twice"):
        _ledger(CLAIM, CLAIM)


def test_a_need_must_be_a_key_of_stated() -> None:
    claim = Claim.model_validate(CLAIM.model_dump() | {"tests": [{"check": "stated", "what": "method", "needs": ["lora.rank"]}]})
    with pytest.raises(ValidationError, match=r"lora\.rank"):
        _ledger(claim)
    assert _ledger(claim, stated={"lora.rank": None}).claims == (claim,)


def test_a_check_of_a_cell_needs_the_cell() -> None:
    tests = [{"check": "cell", "within": 0.1}]
    with pytest.raises(ValidationError, match="no cell"):
        _ledger(Claim.model_validate(CLAIM.model_dump() | {"tests": tests}))
    placed = Claim.model_validate(CLAIM.model_dump() | {"tests": tests, "cell": Cell(row=0, column="Latency (ms)").model_dump()})
    assert _ledger(placed).claims[0].cell == Cell(row=0, column="Latency (ms)")


def test_a_judged_claim_names_its_reason_and_its_records_once() -> None:
    evidence = (
        Evidence(says="One.", records=("a", "b"), verdict="not comparable"),
        Evidence(says="Two.", records=("b", "c"), verdict="not run"),
    )
    judged = Judged(
        claim=CLAIM,
        verdict="not comparable",
        because="hardware",
        words="One.",
        ours=None,
        evidence=evidence,
        profile="demo",
        device="a CPU",
    )
    assert judged.verdict_words == "not comparable (hardware)"
    assert judged.record_ids == ("a", "b", "c")
