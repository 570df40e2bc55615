"""Sensitivity scores: seeded draws of the selection half alone, every block scored, anything missing an error."""

import dataclasses

import numpy as np
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.intervals import simultaneous_intervals
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.sensitivity import draw_images, scores, write_scores
from lowbit_vit.errors import DataError
from lowbit_vit.schema.cell_role import OneUnit
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.workspace import Workspace


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Workspace]:
    return synthetic.fill(tmp_path_factory.mktemp("scores") / "root", studies=("sensitivity",))


@pytest.fixture(scope="module")
def results(study: tuple[Profile, Workspace]) -> list[Result]:
    return load_results(study[1], "sensitivity")


def test_draws_are_seeded_halves_of_the_selection_half() -> None:
    draws = draw_images(51, draws=5, seed=3)
    assert [len(draw) for draw in draws] == [25] * 5
    assert all(set(draw) <= set(range(51)) and len(set(draw)) == 25 for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 5
    assert all(np.array_equal(a, b) for a, b in zip(draws, draw_images(51, draws=5, seed=3), strict=True))
    assert not np.array_equal(draws[0], draw_images(51, draws=1, seed=4)[0])


def test_more_draws_leave_the_first_ones_as_they_are() -> None:
    assert np.array_equal(draw_images(40, draws=2, seed=0)[1], draw_images(40, draws=9, seed=0)[1])


def test_a_selection_half_of_one_image_is_refused() -> None:
    with pytest.raises(DataError, match="selection half has 1 images"):
        draw_images(1, draws=2, seed=0)


def test_each_format_and_direction_scores_every_block(study: tuple[Profile, Workspace], results: list[Result]) -> None:
    profile, _ = study
    found = scores(gather_cells(results), profile)
    assert [(score.weights.name, score.direction) for score in found] == [
        ("nf4", "only"),
        ("nf4", "all_but"),
        ("int8-0", "only"),
        ("int8-0", "all_but"),
    ]
    for score in found:
        assert [block.block for block in score.blocks] == list(range(8))
        assert all(len(block.kl) == len(block.flips) == 5 for block in score.blocks)
        assert score.images == 150
    # The synthetic models suffer most from their last blocks.
    assert found[0].most_sensitive(2) == (6, 7)


def test_the_report_half_decides_nothing(study: tuple[Profile, Workspace], results: list[Result]) -> None:
    profile, _ = study
    changed = []
    for result in results:
        assert result.predictions is not None
        assert result.predictions.kl is not None
        kl = np.where(result.predictions.selection, result.predictions.kl, 99.0).astype(np.float32)
        changed.append(dataclasses.replace(result, predictions=dataclasses.replace(result.predictions, kl=kl)))
    assert scores(gather_cells(changed), profile) == scores(gather_cells(results), profile)


@pytest.mark.parametrize(
    ("label", "message"),
    [("high precision", "high-precision reference did not succeed"), ("nf4, only block 3", "nf4, only block 3: no successful")],
)
def test_a_missing_cell_is_named(study: tuple[Profile, Workspace], results: list[Result], label: str, message: str) -> None:
    profile, _ = study
    with pytest.raises(DataError, match=message):
        scores(gather_cells([result for result in results if result.record.trial.label != label]), profile)


def test_the_file_is_the_same_for_the_same_records(study: tuple[Profile, Workspace]) -> None:
    profile, workspace = study
    first = write_scores(profile, workspace).read_bytes()
    assert write_scores(profile, workspace).read_bytes() == first


def test_a_block_is_called_sensitive_only_if_it_surely_costs_more_than_the_mean_block(
    study: tuple[Profile, Workspace], results: list[Result]
) -> None:
    found = scores(gather_cells(results), study[0])
    for score in found:
        for block in score.blocks:
            assert block.kl_interval[0] <= np.mean(block.kl) <= block.kl_interval[1]
            assert block.sensitive == (block.excess_interval[0] > 0)
            assert len(block.margin) == len(block.top1) == 5
    # The synthetic models suffer most from their last blocks, least from their first.
    only, all_but = found[0], found[1]
    assert only.blocks[7].sensitive
    assert all_but.blocks[7].sensitive
    assert not only.blocks[0].sensitive
    assert not all_but.blocks[0].sensitive


def test_blocks_that_are_alike_are_rarely_called_sensitive_even_once() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        kl = random.lognormal(0, 1, (24, 300))
        intervals = simultaneous_intervals(kl - kl.mean(axis=0), resamples=200)
        wrong += any(low > 0 or high < 0 for low, high in intervals)
    # 5 % in theory; 13 of 100 or more would come once in 1,000 times.
    assert wrong <= 13


def test_a_quantity_without_spread_gets_an_interval_without_width() -> None:
    varied = np.random.default_rng(0).normal(size=50)
    assert simultaneous_intervals(np.stack([np.zeros(50), varied]))[0].tolist() == [0.0, 0.0]


def test_each_linear_is_scored_where_the_profile_asks_for_modules(study: tuple[Profile, Workspace], results: list[Result]) -> None:
    profile, _ = study
    asks = profile.model_copy(update={"sensitivity": profile.sensitivity.model_copy(update={"units": ("blocks", "modules")})})
    with pytest.raises(DataError, match=r"nf4, only block 0 attention\.q: no successful record"):
        scores(gather_cells(results), asks)
    linears = []
    for result in results:
        (role,) = result.record.trial.roles
        for module in ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.fc1", "mlp.fc2"):
            if isinstance(role, OneUnit):
                trial = result.record.trial.model_copy(update={"roles": (role.model_copy(update={"module": module}),)})
                linears.append(dataclasses.replace(result, record=result.record.model_copy(update={"trial": trial})))
    found = scores(gather_cells([*results, *linears]), asks)
    assert [len(score.modules) for score in found] == [48] * 4
    assert found[0].modules[7].name == "blocks.1.attention.k"
    assert found[0].blocks == scores(gather_cells(results), profile)[0].blocks
    assert SensitivityScores.model_validate_json(found[0].model_dump_json()) == found[0]


def test_predictions_without_kl_are_named(results: list[Result]) -> None:
    predictions = results[0].predictions
    assert predictions is not None
    without = dataclasses.replace(results[0], predictions=dataclasses.replace(predictions, kl=None))
    with pytest.raises(DataError, match=f"^{results[0].record.trial.label}: its predictions hold no KL; delete its record"):
        gather_cells([without, *results[1:]])
