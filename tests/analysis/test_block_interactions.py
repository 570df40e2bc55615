"""Pairs of blocks: what they cost beyond their sum is measured on the selection half, and taken into the choice where it is asked for."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.mixed import block_interactions, equal_bytes, pair_terms
from lowbit_vit.analysis.mixed import mixed as mixed_table
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.cli import plans
from lowbit_vit.errors import ConfigError
from lowbit_vit.report.allocation_tables import pair_words
from lowbit_vit.schema.allocation import load_plan_file
from lowbit_vit.schema.cell_role import BlockPair, unit_role
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.workspace import Workspace

Runs = tuple[Profile, Workspace, list[Result], list[Result]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    demo = synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    asked = demo.model_copy(update={"mixed": demo.mixed.model_copy(update={"pairs": 4})})
    root = tmp_path_factory.mktemp("pairs") / "root"
    profile, workspace = synthetic.fill(root, profile=asked, studies=("sensitivity", "mixed"))
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", root / "profiles")
    return profile, workspace, load_results(workspace, "mixed"), load_results(workspace, "sensitivity")


def test_every_two_of_the_most_sensitive_blocks_are_a_cell_and_a_row(runs: Runs) -> None:
    _, _, mixed, sensitivity = runs
    alone = gather_cells(sensitivity)
    frame = block_interactions(gather_cells(mixed), alone)
    # The synthetic models' later blocks cost more.
    assert frame.select("first", "second").rows() == [(4, 5), (4, 6), (4, 7), (5, 6), (5, 7), (6, 7)]
    assert frame.select((pl.col("interaction") - (pl.col("kl") - pl.col("summed_kl"))).abs().max()).item() < 1e-12
    assert frame.select((pl.col("interaction_low") < pl.col("interaction")).all()).item()
    assert frame.select((pl.col("interaction") < pl.col("interaction_high")).all()).item()
    results = dict(alone.parts)
    singles = [results[unit_role("only", "nf4", f"blocks.{block}")].predictions for block in (4, 5)]
    summed = sum(float(np.mean(one.kl[one.selection], dtype=np.float64)) for one in singles if one is not None and one.kl is not None)
    assert frame.item(0, "summed_kl") == pytest.approx(summed)
    assert pair_words(frame).startswith("6 pairs of the most sensitive blocks: together they cost up to ")
    assert pair_words(frame.clear()) == ""


def test_a_pair_is_no_choice_of_blocks(runs: Runs) -> None:
    _, _, mixed, sensitivity = runs
    without = [result for result in mixed if not isinstance(result.record.trial.roles[0], BlockPair)]
    assert len(mixed) - len(without) == 6
    with_pairs, others = gather_cells(mixed), gather_cells(without)
    assert mixed_table(with_pairs, depth=8).equals(mixed_table(others, depth=8))
    assert equal_bytes(with_pairs, depth=8).equals(equal_bytes(others, depth=8))
    assert block_interactions(others, gather_cells(sensitivity)).is_empty()


def test_a_plan_with_pairs_predicts_their_terms(runs: Runs, tmp_path: Path) -> None:
    _, workspace, mixed, sensitivity = runs
    predicted = {}
    for asked in (True, False):
        out = tmp_path / f"{asked}.json"
        plans.allocate("demo", max_flips=1000, formats=["nf4"], pairs=asked, out=out, root=workspace.root)
        plan = load_plan_file(out)
        assert {entry.weights.name for entry in plan.entries} == {"nf4"}
        assert plan.predicted is not None
        predicted[asked] = plan.predicted.kl
    terms = pair_terms(block_interactions(gather_cells(mixed), gather_cells(sensitivity)))
    assert predicted[True] - predicted[False] == pytest.approx(sum(term.kl for term in terms))


def test_pairs_that_were_not_measured_are_asked_for_in_vain(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("sensitivity",))
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", workspace.root / "profiles")
    with pytest.raises(ConfigError, match=r"no pairs were measured; put mixed\.pairs: 4 into profiles/demo\.yaml"):
        plans.allocate("demo", budget_mib=1.0, pairs=True, root=workspace.root)
    with pytest.raises(ConfigError, match="--pairs need a budget"):
        plans.allocate("demo", pairs=True, root=workspace.root)


@pytest.mark.parametrize("count", [1, 9])
def test_blocks_that_make_no_pairs_are_refused(count: int) -> None:
    demo = synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    content = demo.model_dump()
    content["mixed"]["pairs"] = count
    with pytest.raises(ValueError, match=rf"mixed\.pairs: {count} blocks make no pairs of the backbone's 8; allowed: 0, 2\.\.8"):
        Profile.model_validate(content)
