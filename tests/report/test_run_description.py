"""Every accuracy says whose weights, which images, which split, how many and which seeds."""

import pytest

import synthetic
from lowbit_vit.analysis.results import Result
from lowbit_vit.report import run_description
from lowbit_vit.schema.config import FlowersData, load_profile
from lowbit_vit.study.cells import cells


@pytest.mark.parametrize(
    ("name", "model", "images"),
    [
        ("demo", "from scratch for this run, not pretrained", "scikit-learn's 8 x 8 scanned digits, seen at 8 x 8 px"),
        ("paper", "ViT L/16, torchvision's weights vit_l_16-852ce7e3.pth", "Oxford Flowers-102 (original files), official split"),
        ("scratch", "ViT L/16, weights trained from scratch", "Oxford Flowers-102 (original files), official split"),
    ],
)
def test_each_profile_names_its_weights_and_images(name: str, model: str, images: str) -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / f"{name}.yaml")
    assert model in run_description.model_words(profile)
    assert images in run_description.image_words(profile)


def test_copies_of_the_images_are_called_copies() -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / "scratch.yaml")
    assert isinstance(profile.data, FlowersData)
    data = profile.data.model_copy(update={"images": "256-px copies"})
    assert "256-px copies, not the original files" in run_description.image_words(profile.model_copy(update={"data": data}))


def test_the_records_images_count_and_not_the_profiles() -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    record, _ = synthetic.succeeded(cells(profile, "variants")[0])
    other = profile.data.model_copy(update={"views": profile.data.views.model_copy(update={"image_size": 16})})
    seen = run_description.image_words(profile, [record.model_copy(update={"trial": record.trial.model_copy(update={"data": other})})])
    assert "16 x 16 px" in seen


def test_accuracy_names_split_images_and_seeds() -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    trial = cells(profile, "variants")[0]
    result = Result(synthetic.succeeded(trial)[0], synthetic.predictions(trial, with_kl=False))
    words = run_description.accuracy_words(profile, [result])
    assert "test split (n = 600 images) of scikit-learn" in words
    assert "seed 0" in words
    assert run_description.accuracy_words(profile, []) == "No accuracy was measured."


def test_machines_are_told_apart_by_what_decides_a_number() -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    record, _ = synthetic.succeeded(cells(profile, "variants")[0])
    assert record.provenance is not None
    other = record.model_copy(update={"provenance": record.provenance.model_copy(update={"packages": {"torch": "0.0.1"}})})
    later = record.model_copy(update={"provenance": record.provenance.model_copy(update={"started_utc": "2026-01-02T00:00:00+00:00"})})
    found = run_description.machines([record, later, other])
    assert [machine.records for machine in found] == [2, 1]
    assert ("git revision", "0" * 40) in found[0].facts
    assert run_description.weight_hashes([record, other]) == [("ab" * 32, 2)]


def test_timings_say_whether_the_gpu_was_shared() -> None:
    profile = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    record, _ = synthetic.succeeded(cells(profile, "variants")[0])
    assert run_description.exclusive_words([record]) == ""  # a CPU's timing says nothing of a GPU
    assert record.measurement is not None
    on_gpu = [
        record.model_copy(
            update={
                "trial": record.trial.model_copy(update={"device": "cuda"}),
                "measurement": record.measurement.model_copy(update={"exclusive": alone}),
            }
        )
        for alone in (True, True, None, False)
    ]
    words = run_description.exclusive_words(on_gpu)
    assert words.startswith("Timings on a GPU: 2 with the GPU alone")
    assert "1 where NVML could not tell" in words
    assert "1 beside other processes" in words
