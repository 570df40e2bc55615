"""Profiles are strict: what is misspelt, impossible or out of range is one line that names file, key, value and what is allowed."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import synthetic
from fuzzing import EXAMPLES
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.cell_role import Reference
from lowbit_vit.schema.config import Profile, Trial, load_profile, load_trial, load_trials, read_yaml, validate
from lowbit_vit.study.cells import cells

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.yaml"))
DEMO = next(path for path in PROFILES if path.stem == "demo")


@pytest.mark.parametrize("written", ["1e-05", "1.0e-05", "1E-5", "0.00001"])
def test_a_small_number_as_dvc_writes_it_is_a_number(tmp_path: Path, written: str) -> None:
    profile = tmp_path / "demo.yaml"
    profile.write_text(DEMO.read_text().replace("learning_rate: 2.0e-3", f"learning_rate: {written}"))
    training = load_profile(profile).backbone.training
    assert training is not None
    assert training.learning_rate == 1e-5


def test_the_three_profiles_of_the_design_ship() -> None:
    assert {path.stem for path in PROFILES} >= {"demo", "paper", "scratch"}


def test_scratch_differs_from_paper_only_in_where_the_weights_come_from_and_how_long_they_are_adapted() -> None:
    paper, scratch = (load_profile(DEMO.with_name(f"{name}.yaml")) for name in ("paper", "scratch"))
    own = {"name", "description", "backbone"}
    dumps = [profile.model_dump(exclude=own) for profile in (paper, scratch)]
    for dump in dumps:
        del dump["lora"]["training"]
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_row_of_the_papers_table_is_an_arm(path: Path) -> None:
    rows = [arm.paper_row for arm in load_profile(path).variants.arms if arm.paper_row is not None]
    assert sorted(rows) == [0, 1, 2, 3, 4]


def write_changed(folder: Path, change: dict[str, object]) -> Path:
    """The demo profile with some dotted keys set."""
    content = yaml.safe_load(DEMO.read_text())
    for dotted, value in change.items():
        *parents, last = dotted.split(".")
        place = content
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora.rnak": 8}, ["lora.rnak", "unknown key", "did you mean rank?"]),
        ({"lora.rank": 0}, ["lora.rank", "greater than or equal to 1", "got 0"]),
        ({"lora.rank": "8"}, ["lora.rank", "valid integer", "'8'"]),
        ({"lora.training.learning_rate": "fast"}, ["lora.training.learning_rate", "valid number", "'fast'"]),
        ({"lora.training.warmup_epochs": 4.0}, ["lora.training", "warmup_epochs 4.0 must be less than epochs 3"]),
        ({"device": "tpu"}, ["device", "'cpu' or 'cuda'", "'tpu'"]),
        ({"data.source": "imagenet"}, ["data", "digits", "flowers102", "image_folder"]),
        ({"data.views.eval_resize": 4}, ["data", "eval_resize 4 is smaller than image_size 8"]),
        ({"mixed.spared": [3]}, ["mixed", "[3]", "even"]),
        ({"mixed.compute_dtype": "fp32", "mixed.attention": "fa2"}, ["mixed", "fa2 has no fp32 kernel", "fp16, bf16"]),
        ({"variants.arms.0.attention": "fa2"}, ["variants.arms.0 (Baseline ViT)", "fa2 has no fp32 kernel on cpu", "fp16, bf16"]),
        ({"variants.arms.0.attention": "cudnn"}, ["variants.arms.0 (Baseline ViT)", "cudnn has no gradient that repeats", "flash"]),
        ({"lora.training.attention": "cudnn"}, ["lora.training", "cudnn has no gradient that repeats", "math, efficient, flash, fa2"]),
        ({"lora.training.drop_path": 0.1}, ["lora.training.drop_path is of a backbone's training; leave it out"]),
        ({"lora.training.small_images": {"factor": 2, "epochs": 1}}, ["lora.training.small_images is of a backbone's training"]),
        ({"lora.training.patch_dropout": {"share": 0.5, "whole_epochs": 1}}, ["lora.training.patch_dropout is of a backbone's training"]),
        ({"lora.training.optimizer": "muon"}, ["lora.training.optimizer is of a backbone's training"]),
        ({"lora.training.ema_decay": 0.9}, ["lora.training.ema_decay is of a backbone's training"]),
        ({"lora.training.compile": True}, ["lora.training.compile is of a backbone's training"]),
        ({"lora.training.cuda_graph": True}, ["lora.training.cuda_graph is of a backbone's training"]),
        (
            {"lora.training.augmentation.mixing": {"mixup_share": 0.5, "mixup_alpha": 0.8, "cutmix_share": 0.4, "cutmix_alpha": 1.0}},
            ["lora.training.augmentation.mixing is of a backbone's training"],
        ),
        (
            {"lora.training.augmentation.colour": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "grey_share": 0.1}},
            ["lora.training.augmentation.colour is of a backbone's training"],
        ),
        ({"backbone.training.attention": "cudnn"}, ["backbone.training", "cudnn has no gradient that repeats"]),
        ({"variants.arms.0.compute_dtype": "tf32"}, ["variants.arms.0", "tf32 is a CUDA matmul mode"]),
        ({"variants.arms.1.weights": {"format": "nf4"}}, ["variants.arms.1.weights", "double_quantization", "required"]),
        ({"variants.arms.2.weights": {"format": "int8"}}, ["variants.arms.2.weights", "threshold", "required"]),
        (
            {"data.views.image_size": 9, "data.views.eval_resize": 9},
            ["data.views.image_size 9 is not a multiple of the backbone's patch size", "nearest: 8"],
        ),
        (
            {"lora": None, "backbone.architecture": "vit_b_32", "backbone.weights": "torchvision"}
            | {"backbone.checkpoint": "x.pth", "backbone.checkpoint_sha256": "0" * 8}
            | {"data.views.image_size": 32, "data.views.eval_resize": 32},
            ["lora: null, but weights = torchvision get a new head, which the lora section trains"],
        ),
        ({"lora": None}, ["variants.arms.0", "needs the lora section"]),
        ({"name": "demi"}, ["name", "'demi'", "'demo'"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_one_line_that_says_where_and_what_is_allowed(tmp_path: Path, change: dict[str, object], said: list[str]) -> None:
    path = write_changed(tmp_path, change)
    with pytest.raises(ConfigError) as raised:
        load_profile(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    for part in said:
        assert part in message


@pytest.mark.parametrize("label", ["NF4", " nf4", "NF4 "])
def test_two_arms_of_one_label_are_an_error_that_names_it(tmp_path: Path, label: str) -> None:
    content = yaml.safe_load(DEMO.read_text())
    content["variants"]["arms"][0]["label"], content["variants"]["arms"][2]["label"] = "NF4", label
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rf"demo\.yaml: key variants\.arms: two arms have the label '{label}'; give each its own"):
        load_profile(tmp_path / "demo.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_profile_is_read_as_editors_write_it(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "demo.yaml").write_text(DEMO.read_text(), encoding=encoding, newline=end)
    assert load_profile(tmp_path / "demo.yaml") == load_profile(DEMO)


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(DEMO.read_text() + "\ndevice: cuda\n")
    with pytest.raises(ConfigError, match=r"demo\.yaml, line \d+: not valid YAML: key device is given twice$"):
        load_profile(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a mapping of keys at the top, found NoneType"),
        (b"- a\n", "expected a mapping of keys at the top, found list"),
        (b"name: demo\na: [", "line 2: not valid YAML: expected the node content"),
        (b"name: {", "line 1: not valid YAML: expected the node content"),
        (b"a: {b: 1, b: {c: 2,\n d: 3}}\n", "line 1: not valid YAML: key b is given twice"),
        (b"a: &a {b: 1}\nc:\n  <<: *a\n  d: 1\n  d: 2\n", "line 5: not valid YAML: key d is given twice"),
        (b"1: a\n0x1: 'b\n\n  c'\n", 'line 2: not valid YAML: found duplicate key "1"'),
        (b"a: *nothing\n", "line 1: not valid YAML: found undefined alias 'nothing'"),
        (b"a: !!python/object:os.system x\n", "line 1: not valid YAML: could not determine a constructor"),
        (b"a: 2026-13-45\n", "not valid YAML: month must be in 1..12"),
        (b"a: 1\nb: \xff\n", "demo.yaml, line 2: not UTF-8; save it as UTF-8"),
        ("a: ü\n".encode("utf-16"), "demo.yaml, line 1: not UTF-8; save it as UTF-8"),
        (b"a: &a [*a]\n", "not what JSON can hold: Circular reference detected"),
        (b"a: " + 5_000 * b"9", "Exceeds the limit"),
        (b"a: \0\n", "not valid YAML: unacceptable character #x0000"),
        (b"a: " + 100_000 * b"[", "not valid YAML: maximum recursion depth exceeded"),
        (b"? [name]\n: demo\n", "keys must be str"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_one_line_that_says_where(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "demo.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_profile(path)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


SHORT = """views: &views {image_size: 8, eval_resize: 9, train_resize: 10, mean: [0.5, 5e-1, .5], std: [0.25, 0.25, 0.25]}
# a comment
arms:
- {label: "NF4, é", weights: {format: nf4, double_quantization: yes}, seeds: [0, 0x1]}
- label: >-
    folded
  <<: *views
date: 2026-11-30
"""


MARKS = ('"', "'", ":", ": ", "- ", "\n", "\t", "  ", "&a ", "*a", "!!int ", "#", "{", "}", "[", "]", "|", "%", "---\n", "\0")
ODD_TEXTS = (".nan", "1e999", "9" * 5_000, "\x1b[1m", "\ud800")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 10**400, 1e308, float("nan"), "", "\udcff", "\x1b[1m"),
    *([], [[]], {}, {1: 2}, {"a": [None]}, {(1,): 2}),
)


def mutated(text: str, random: Random) -> bytes:
    """Characters that mean something to YAML, in other places; bytes that are no UTF-8; pieces doubled, moved or left out."""
    for _ in range(random.choice((1, 1, 2, 5))):
        start, end = sorted(random.randrange(len(text) + 1) for _ in range(2))
        piece = random.choice((random.choice(MARKS), random.choice(ODD_TEXTS), text[start : start + 30]))
        text = text[:start] + piece + text[random.choice((start, start + 1, end)) :]
    content = text.encode("utf-8", "surrogatepass")
    return content if random.random() < 0.9 else content.replace(b"a", bytes([random.randrange(256)]), 1)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["text", "values"])
def test_a_mutated_profile_is_a_value_or_is_one_line(tmp_path: Path, kind: str) -> None:
    random, path, refusals = Random(kind), tmp_path / "demo.yaml", []
    demo = json.dumps(read_yaml(DEMO))
    for _ in range(EXAMPLES // 2):
        try:
            if kind == "text":
                path.write_bytes(mutated(SHORT, random))
                validate(Profile, read_yaml(path), path)
            else:
                validate(Profile, mixed_up(json.loads(demo), random), path)
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) > EXAMPLES // 8
    assert [message for message in refusals if not (message.startswith(str(path)) and message.isprintable())] == []


def mixed_up(document: dict[Any, Any], random: Random) -> dict[Any, Any]:
    """Values of other types, ranges and places, and keys of other names and types."""
    for _ in range(random.choice((1, 2))):
        place: Any = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = random.choice(keys)
            if not isinstance(place[key], dict | list) or random.random() < 0.2:
                place[key] = random.choice((*ODD_VALUES, place, document))
                if isinstance(place, dict) and random.random() < 0.2:
                    place[random.choice((f"{key}s", 7, None, "\ud800"))] = place.pop(key)
                break
            place = place[key]
    return document


def test_a_missing_profile_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such profile; there is none; run this in the project's folder, or name it with --root"):
        load_profile(tmp_path / "profiles" / "mine.yaml")

    with pytest.raises(ConfigError, match="there are: demo, paper, scratch"):
        load_profile(DEMO.with_name("none.yaml"))


def a_trial(profile: Profile) -> Trial:
    arm = profile.variants.arms[0]
    return Trial(
        profile=profile.name,
        study="variants",
        label=arm.label,
        data=profile.data,
        backbone=profile.backbone,
        plan={"compute_dtype": "fp32"},
        attention=arm.attention,
        qkv=arm.qkv,
        adaptation=arm.adaptation,
        lora=profile.lora,
        execution=arm.execution,
        device="cpu",
        evaluation=profile.evaluation,
        measurement=None,
        limits=profile.limits,
        selection_seed=profile.selection_seed,
        seed=0,
    )


def test_a_trials_identity_follows_what_decides_its_result_and_nothing_else() -> None:
    trial = a_trial(load_profile(DEMO))
    renamed = trial.model_copy(
        update={"label": "another name", "roles": (Reference(),), "limits": trial.limits.model_copy(update={"seconds": 1.0})}
    )
    reseeded = trial.model_copy(update={"seed": 1})
    assert renamed.trial_id == trial.trial_id
    assert reseeded.trial_id != trial.trial_id
    assert trial.trial_id.startswith("fp32-flash-qlora-eager-s0-")


def test_a_trial_survives_its_json(tmp_path: Path) -> None:
    trial = a_trial(load_profile(DEMO))
    path = tmp_path / "trial.json"
    path.write_text(trial.model_dump_json())
    assert load_trial(path) == trial
    path.write_text(json.dumps([trial.model_dump(mode="json")] * 2))
    assert load_trials(path) == (trial, trial)


def test_an_impossible_trial_is_refused(tmp_path: Path) -> None:
    content = a_trial(load_profile(DEMO)).model_dump(mode="json") | {"attention": "fa2"}
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="fa2 has no fp32 kernel"):
        load_trial(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="at least 1 item"):
        load_trials(path)


@pytest.mark.parametrize(("adapted", "missing"), [([1], 0), ([0], 1), ([0, 2], 1)])
def test_every_seed_that_is_started_from_is_adapted(tmp_path: Path, adapted: list[int], missing: int) -> None:
    arms = yaml.safe_load(DEMO.read_text())["variants"]["arms"]
    ptq = next(place for place, arm in enumerate(arms) if arm["adaptation"] == "ptq")
    path = write_changed(tmp_path, {"adapted_seeds": adapted, f"variants.arms.{ptq}.seeds": [0, 1]})
    with pytest.raises(ConfigError, match=rf"adapted_seeds .* must have {missing}"):
        load_profile(path)


def test_more_seeds_may_be_adapted_than_are_started_from(tmp_path: Path) -> None:
    assert load_profile(write_changed(tmp_path, {"adapted_seeds": [0, 5]})).adapted_seeds == (0, 5)


FAST = {"label": "fast", "compute_dtype": "bf16", "attention": "cudnn", "adaptation": "ptq", "qkv": "fused", "device": "cuda"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": "separate"}, "take q, k and v as one layer; set qkv: fused"),
        ({"compute_dtype": "fp32", "attention": "efficient"}, "have no fp32 kernel; allowed compute_dtype: fp16, bf16"),
        ({"adaptation": "qlora", "attention": "flash"}, "cannot carry adapters"),
    ],
)
@pytest.mark.parametrize(
    "weights", [{"format": "w8a8"}, {"format": "fp8"}, {"format": "nf4_fused", "double_quantization": True, "products": "int8"}]
)
def test_a_format_of_our_own_kernels_says_what_it_needs(
    tmp_path: Path, weights: dict[str, object], change: dict[str, object], message: str
) -> None:
    arms = yaml.safe_load(DEMO.read_text())["variants"]["arms"]
    load_profile(write_changed(tmp_path, {"variants.arms": [*arms, {**FAST, "weights": weights}]}))
    with pytest.raises(ConfigError, match=message):
        load_profile(write_changed(tmp_path, {"variants.arms": [*arms, {**FAST, "weights": weights, **change}]}))


@pytest.mark.parametrize("double_quantization", [False, True])
def test_our_nf4_carries_adapters_unless_its_constants_are_quantized(tmp_path: Path, double_quantization: bool) -> None:
    arms = yaml.safe_load(DEMO.read_text())["variants"]["arms"]
    weights = {"format": "nf4_fused", "double_quantization": double_quantization, "products": "16-bit"}
    path = write_changed(tmp_path, {"variants.arms": [*arms, {**FAST, "weights": weights, "adaptation": "qlora", "attention": "flash"}]})
    if double_quantization:
        with pytest.raises(ConfigError, match="or nf4_fused without double quantization"):
            load_profile(path)
    else:
        assert load_profile(path).variants.arms[-1].adaptation == "qlora"


def test_scans_of_blocks_take_no_format_of_our_own_kernels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sensitivity\.formats: formats of this project's kernels are for whole models"):
        load_profile(write_changed(tmp_path, {"sensitivity.formats": [{"format": "w8a8"}]}))


def test_a_first_process_keeps_its_identity_and_a_repeat_has_its_own() -> None:
    first = synthetic.in_processes(load_profile(DEMO), 1)
    trial = cells(first, "variants")[0]
    assert trial.measurement is not None
    more = trial.model_copy(update={"measurement": trial.measurement.model_copy(update={"processes": 6})})
    # As records of before the keys were there have it: neither is in what the hash is of.
    assert trial.trial_id == more.trial_id
    repeat = more.model_copy(update={"process": 3})
    assert repeat.trial_id != more.trial_id
    assert "-s0-p3-" in repeat.trial_id
    assert repeat.first_process == more
    with pytest.raises(ValidationError, match="process 3 would repeat a timing, but measurement is null"):
        Trial.model_validate({**dict(more), "process": 3, "measurement": None})
