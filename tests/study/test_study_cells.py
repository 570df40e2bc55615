"""Each study's cells are the ones that the profile declares, each once, and the same on every machine."""

import itertools
import math
from pathlib import Path
from typing import Literal

import pytest

import synthetic
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.model.vit import ARCHITECTURES
from lowbit_vit.schema.cell_role import AllBlocks, Chosen, NoneSpared, OneUnit, Random, Reference, label_of
from lowbit_vit.schema.config import TORCHVISION_DEPTH, MixedStudy, Profile, Study, Trial, load_profile
from lowbit_vit.schema.plan import SensitivityScores, linear_names, spared_blocks
from lowbit_vit.study.cells import cells, draw_blocks

PROFILES = Path(__file__).parents[2] / "profiles"
DEMO = synthetic.in_processes(load_profile(PROFILES / "demo.yaml"), 1)


def scores_of(profile: Profile) -> SensitivityScores:
    """Block b costs (5 b mod 8) nats: neither end of the network wins."""
    blocks = tuple(synthetic.block_score(b, (float(5 * b % 8),)) for b in range(profile.backbone.depth))
    return SensitivityScores(
        profile=profile.name, backbone_sha256="0" * 64, weights=profile.mixed.weights, direction="only", images=10, blocks=blocks
    )


@pytest.mark.parametrize("study", ["variants", "sensitivity", "mixed"])
@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_gives_each_study_distinct_cells(path: Path, study: Study) -> None:
    profile = load_profile(path)
    trials = cells(profile, study, scores=[scores_of(profile)])
    assert len({trial.trial_id for trial in trials}) == len(trials) > 0
    assert all(trial.study == study and trial.profile == profile.name for trial in trials)


def test_variants_are_the_arms_times_their_seeds_first_seeds_first_and_are_timed() -> None:
    arms = tuple(arm.model_copy(update={"seeds": (0, 1)}) for arm in DEMO.variants.arms)
    profile = DEMO.model_copy(update={"variants": DEMO.variants.model_copy(update={"arms": arms})})
    trials = cells(profile, "variants")
    assert [(trial.label, trial.seed) for trial in trials] == [(arm.label, seed) for seed in (0, 1) for arm in arms]
    assert all(trial.measurement is not None for trial in trials)


def test_an_arm_may_ask_for_more_samples_of_its_first_seed() -> None:
    arm = DEMO.variants.arms[0].model_copy(update={"samples": 1000, "seeds": (3, 1)})
    profile = DEMO.model_copy(update={"variants": DEMO.variants.model_copy(update={"arms": (arm,)})})
    first, second = (trial.measurement for trial in cells(profile, "variants"))
    assert first is not None
    assert second is not None
    assert (first.samples, second.samples) == (1000, DEMO.measurement.samples)
    assert first.batch_sizes == DEMO.measurement.batch_sizes


def test_repeats_come_in_rounds_of_all_timed_trials_each_in_a_drawn_order() -> None:
    arms = (DEMO.variants.arms[0].model_copy(update={"seeds": (0, 1), "samples": 1000}), *DEMO.variants.arms[1:])
    profile = synthetic.in_processes(DEMO.model_copy(update={"variants": DEMO.variants.model_copy(update={"arms": arms})}), 6)
    trials = cells(profile, "variants")
    assert trials == cells(profile, "variants")
    rounds = [[trial for trial in trials if trial.process == process] for process in range(6)]
    assert trials == [trial for found in rounds for trial in found]
    labels = [arm.label for arm in arms]
    assert [(trial.label, trial.seed) for trial in rounds[0]] == [*((label, 0) for label in labels), (labels[0], 1)]
    for found in rounds[1:]:
        assert sorted(trial.label for trial in found) == sorted(labels)
        assert {trial.seed for trial in found} == {0}
    assert len({tuple(trial.label for trial in found) for found in rounds}) == 6
    measurements = [trial.measurement for trial in trials if trial.measurement is not None]
    assert {measurement.samples for measurement in measurements} == {math.ceil(1000 / 6), math.ceil(DEMO.measurement.samples / 6)}
    assert all(
        trial.first_process == next(first for first in rounds[0] if first.label == trial.label) for trial in trials if not trial.seed
    )


def test_cells_of_mixed_that_are_timed_are_repeated_and_no_others() -> None:
    trials = cells(synthetic.in_processes(DEMO, 3), "mixed", scores=[scores_of(DEMO)])
    repeats = [trial for trial in trials if trial.process]
    timed = [trial for trial in trials if trial.measurement is not None and not trial.process]
    assert timed
    assert sorted(trial.first_process.trial_id for trial in repeats) == sorted(2 * [trial.trial_id for trial in timed])


def test_two_arms_that_are_one_trial_are_an_error_that_names_both() -> None:
    first = DEMO.variants.arms[0]
    arms = (first, first.model_copy(update={"label": "another name"}))
    profile = DEMO.model_copy(update={"variants": DEMO.variants.model_copy(update={"arms": arms})})
    with pytest.raises(ConfigError, match=f"'another name' is the same trial as '{first.label}'"):
        cells(profile, "variants")


def test_sensitivity_quantizes_and_spares_every_block_in_every_format() -> None:
    trials = cells(DEMO, "sensitivity")
    roles = [role for trial in trials for role in trial.roles]
    formats = [weights.name for weights in DEMO.sensitivity.formats]
    blocks = range(DEMO.backbone.depth)
    directions: tuple[Literal["only", "all_but"], ...] = ("only", "all_but")
    assert set(roles) == {
        Reference(),
        *(AllBlocks(weights=name) for name in formats),
        *(OneUnit(kind=kind, weights=name, block=block) for kind, name, block in itertools.product(directions, formats, blocks)),
    }
    for trial, role in zip(trials, roles, strict=True):
        assert trial.label == label_of(role)
        if isinstance(role, OneUnit):
            expected = (role.block,) if role.kind == "all_but" else tuple(b for b in blocks if b != role.block)
            assert spared_blocks(trial.plan, len(blocks)) == expected
        assert trial.measurement is None
        assert trial.adaptation == "ptq"


def test_mixed_spares_equally_many_blocks_by_heuristic_data_and_chance() -> None:
    depth = DEMO.backbone.depth
    scores = scores_of(DEMO)
    spared = {role: spared_blocks(trial.plan, depth) for trial in cells(DEMO, "mixed", scores=[scores]) for role in trial.roles}
    assert spared[Reference()] == tuple(range(depth))
    assert spared[NoneSpared(weights=DEMO.mixed.weights.name)] == ()
    for k in DEMO.mixed.spared:
        assert spared[Chosen(kind="first+last", k=k)] == (*range(k // 2), *range(depth - k // 2, depth))
        assert spared[Chosen(kind="last", k=k)] == tuple(range(depth - k, depth))
        assert spared[Chosen(kind="most sensitive", k=k)] == scores.most_sensitive(k)
        # Of 8 blocks, two can be spared in no more than 28 ways: all of them are run.
        plans = {2: 28, 4: DEMO.mixed.random_plans}[k]
        chance = [spared[Random(k=k, index=index)] for index in range(plans)]
        assert len(set(chance)) == plans
        assert Random(k=k, index=plans) not in spared
        assert {len(blocks) for blocks in chance} == {k}


def test_a_timed_plan_is_one_cell_with_the_others_that_it_is() -> None:
    scores = scores_of(DEMO)

    def timed(*kinds: str) -> list[Trial]:
        changed = DEMO.model_copy(update={"mixed": MixedStudy.model_validate({**DEMO.mixed.model_dump(), "timed": kinds})})
        trials = cells(changed, "mixed", scores=[scores])
        assert {trial.measurement for trial in trials} <= {None, DEMO.measurement}
        assert len(trials) == len(cells(DEMO, "mixed", scores=[scores]))
        return [trial for trial in trials if trial.measurement is not None]

    assert timed() == []
    both = timed("first+last", "reference")
    kinds = [{role.kind for role in trial.roles} for trial in both]
    assert len(kinds) == 1 + len(DEMO.mixed.spared)
    assert sum("first+last" in kind for kind in kinds) == len(DEMO.mixed.spared)
    # All 28 pairs are drawn: the heuristic's is one of them, and is timed under all its names.
    assert any("random" in kind and "first+last" in kind for kind in kinds)
    assert all(trial.label == " = ".join(map(label_of, trial.roles)) for trial in both)


def test_mixed_without_its_scores_says_what_to_run() -> None:
    with pytest.raises(DataError, match=r"no scores of nf4, direction only.*run lowbit-vit sensitivity demo"):
        cells(DEMO, "mixed")


def test_scores_of_another_depth_are_refused() -> None:
    scores = scores_of(DEMO)
    fewer = scores.model_copy(update={"blocks": scores.blocks[:-1]})
    with pytest.raises(DataError, match="scores 7 blocks, the backbone has 8"):
        cells(DEMO, "mixed", scores=[fewer])


def test_random_sets_are_the_same_everywhere_and_differ_by_seed() -> None:
    assert draw_blocks(24, 4, count=3, seed=0) == [(4, 11, 18, 23), (8, 9, 15, 20), (7, 13, 14, 21)]
    assert draw_blocks(24, 4, count=3, seed=1) != draw_blocks(24, 4, count=3, seed=0)


def test_every_set_can_be_drawn() -> None:
    assert sorted(draw_blocks(5, 2, count=10, seed=0)) == list(itertools.combinations(range(5), 2))


def test_depths_are_those_of_the_models() -> None:
    assert {name: arch.depth for name, arch in ARCHITECTURES.items()} == TORCHVISION_DEPTH


def test_more_spared_blocks_than_there_are_is_an_error() -> None:
    content = DEMO.model_dump()
    content["mixed"]["spared"] = (8,)
    with pytest.raises(ValueError, match=r"mixed\.spared: k = 8 must be less than the backbone's 8 blocks"):
        Profile.model_validate(content)


def test_modules_are_cells_where_the_profile_asks_for_them() -> None:
    profile = DEMO.model_copy(update={"sensitivity": DEMO.sensitivity.model_copy(update={"units": ("blocks", "modules")})})
    blocks, both = cells(DEMO, "sensitivity"), cells(profile, "sensitivity")
    formats, depth = len(DEMO.sensitivity.formats), DEMO.backbone.depth
    assert len(both) - len(blocks) == formats * 2 * 6 * depth
    assert {trial.trial_id for trial in blocks} <= {trial.trial_id for trial in both}
    names = linear_names(depth)
    for trial in both:
        (role,) = trial.roles
        if isinstance(role, OneUnit) and role.module is not None:
            name, formats_of = f"blocks.{role.block}.{role.module}", trial.plan.resolve(names)
            other = {formats_of[linear].name for linear in names if linear != name}
            assert (formats_of[name].name, other) == ((role.weights, {"high"}) if role.kind == "only" else ("high", {role.weights}))
