"""What trials start from: a small profile with its data and its backbone."""

import functools
from collections.abc import Iterator

import pytest

from lowbit_vit.schema.config import Profile, Trial
from lowbit_vit.schema.plan import Plan
from lowbit_vit.trial import measure
from small_profile import profile, workspace

__all__ = ["profile", "workspace"]


@pytest.fixture(scope="session", autouse=True)
def ceilings_once() -> Iterator[None]:
    """The machine's own, taken once: they are four fifths of the seconds of a small timing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_ceilings", functools.cache(measure.measure_ceilings))
        yield


@pytest.fixture(scope="session")
def cell(profile: Profile) -> Trial:
    """A trial in high precision that trains and measures nothing; tests change what they are about."""
    return Trial(
        profile=profile.name,
        study="variants",
        label="a cell",
        data=profile.data,
        backbone=profile.backbone,
        plan=Plan(compute_dtype="fp32"),
        attention="flash",
        qkv="separate",
        adaptation="none",
        lora=profile.lora,
        execution="eager",
        device="cpu",
        evaluation=profile.evaluation,
        measurement=None,
        limits=profile.limits,
        selection_seed=profile.selection_seed,
        seed=0,
    )
