"""An exported cell predicts as it was measured, bit for bit, in three lines of Python where there is no Ray and no DVC."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lowbit_vit
from command_line import call
from fuzzing import EXAMPLES
from lowbit_vit.data.arrays import ImageSet, load_dataset
from lowbit_vit.data.batches import eval_batches
from lowbit_vit.errors import ConfigError, DataError, LowbitVitError, Unavailable
from lowbit_vit.export import export_model
from lowbit_vit.model import execution
from lowbit_vit.report.columns import to_terminal
from lowbit_vit.report.terminal import prediction_lines, prediction_table
from lowbit_vit.schema.config import Evaluation, Profile, Trial
from lowbit_vit.schema.model_card import ExportCard, read_export
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Plan, Rule, uniform
from lowbit_vit.schema.predictions import Predictions, load_predictions
from lowbit_vit.schema.record import sha256
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial import predictor
from lowbit_vit.trial.evaluate import predictions_of_logits
from lowbit_vit.trial.predictor import Faults, Predictor
from lowbit_vit.trial.run import run_trial

SINGLE = NF4(format="nf4", double_quantization=False)
PLANS = {
    "fp32": Plan(compute_dtype="fp32"),
    "bf16": Plan(compute_dtype="bf16"),
    "nf4": uniform(SINGLE, "fp32"),
    "int8": uniform(Int8(format="int8", threshold=6.0), "fp32"),
    "mixed": Plan(compute_dtype="fp32", rules=(Rule(pattern="blocks.*", weights=SINGLE), Rule(pattern="*.fc1", weights=HighPrecision()))),
}

Exported = tuple[Path, Predictions]


@pytest.fixture(scope="module")
def export_of(
    cell: Trial, profile: Profile, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Exported]:
    """Run a cell in batches of 128, which do not divide the 599 images, and export it: the folder, and what the record predicts."""
    made: dict[tuple[str, str], Exported] = {}

    def make(name: str, adaptation: str) -> Exported:
        if (name, adaptation) not in made:
            folder = tmp_path_factory.mktemp("export")
            place = Workspace(root=workspace.root, profile=workspace.profile, elsewhere=folder / "reports")
            changes = {"plan": PLANS[name], "adaptation": adaptation, "label": name, "evaluation": Evaluation(batch_size=128)}
            trial = Trial.model_validate(cell.model_copy(update=changes).model_dump())
            run_trial(trial, workspace, place.records("variants"))
            export_model(profile, place, name, folder / "model")
            made[name, adaptation] = folder / "model", load_predictions(place.records("variants") / f"{trial.trial_id}.npz")
        return made[name, adaptation]

    return make


@pytest.fixture(scope="module")
def exported(export_of: Callable[[str, str], Exported]) -> Path:
    return export_of("fp32", "none")[0]


@pytest.fixture(scope="module")
def held_out(profile: Profile, workspace: Workspace) -> ImageSet:
    return load_dataset(workspace.data, profile.data.views).eval_views["test"]


def opened(images: ImageSet) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in np.asarray(images.images)]


@pytest.mark.parametrize(("name", "adaptation"), [*((name, "ptq") for name in PLANS), ("nf4", "none")])
def test_an_exported_cell_predicts_what_its_record_says_bit_for_bit(
    name: str, adaptation: str, export_of: Callable[[str, str], Exported], held_out: ImageSet
) -> None:
    folder, recorded = export_of(name, adaptation)
    logits = lowbit_vit.load(folder).logits(opened(held_out))
    found = predictions_of_logits(logits, held_out.labels, selection=recorded.selection)
    for field in ("label", "best", "among5", "margin"):
        np.testing.assert_array_equal(getattr(found, field), getattr(recorded, field))


def test_files_images_and_tensors_are_one_and_the_same(exported: Path, held_out: ImageSet, profile: Profile, tmp_path: Path) -> None:
    model: Predictor = lowbit_vit.load(exported)
    images = opened(held_out)[:3]
    expected = model.logits(images)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    np.testing.assert_array_equal(model.logits(paths), expected)
    np.testing.assert_array_equal(model.logits([str(path) for path in paths]), expected)
    np.testing.assert_array_equal(model.logits([image.convert("L") for image in images]), expected)  # grey scans
    pixels = torch.from_numpy(np.array(held_out.images[:3])).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(model.logits(pixels), expected)
    part = ImageSet(np.array(held_out.images[:3]), held_out.labels[:3], held_out.ids[:3])
    normalized, _ = next(eval_batches(part, profile.data.views, batch_size=3, device="cpu"))
    np.testing.assert_array_equal(model.logits(normalized.contiguous()), expected)


def test_an_image_is_turned_upright_as_when_data_is_prepared(exported: Path, held_out: ImageSet, tmp_path: Path) -> None:
    model: Predictor = lowbit_vit.load(exported)
    image = opened(held_out)[0]
    tag = Image.Exif()
    tag[274] = 3  # stored upside down
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=tag)
    for turned in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(model.logits(turned), model.logits(image))


def test_probabilities_are_of_named_classes_best_first(exported: Path, held_out: ImageSet) -> None:
    model: Predictor = lowbit_vit.load(exported)
    logits = model.logits(opened(held_out)[0])
    (prediction,) = model.predict(opened(held_out)[0])
    assert sorted(prediction.classes) == [str(digit) for digit in range(10)]
    assert sum(prediction.probabilities) == pytest.approx(1)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert (prediction.label, prediction.probability) == prediction.top(1)[0]
    assert prediction.label == model.card.class_names[int(logits[0].argmax())]
    assert len(prediction.top(99)) == 10


# docs/predict.md's program, on a machine without the packages that are named.
WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
{program}
print([name for name in ("ray", "dvc", "bitsandbytes") if sys.modules.get(name)])
"""
NEVER_NEEDED = ["ray", "dvc", "peft", "torchvision", "sklearn", "polars", "altair", "pynvml"]


@pytest.mark.parametrize(("name", "needed"), [("fp32", []), ("nf4", ["bitsandbytes"])])
def test_the_three_lines_of_the_documentation_predict_without_ray_or_dvc(
    name: str, needed: list[str], export_of: Callable[[str, str], Exported], held_out: ImageSet, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len([line for line in program.splitlines() if line]) == 3
    folder, recorded = export_of(name, "none")
    shutil.copytree(folder, tmp_path / "DIR")
    opened(held_out)[0].save(tmp_path / "IMAGE", "PNG")
    program = WITHOUT.format(blocked=[*NEVER_NEEDED, *({"bitsandbytes"} - set(needed))], program=program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (prediction,) = lowbit_vit.load(folder).predict(opened(held_out)[0])
    assert prediction.label == str(recorded.best[0])
    assert done.stdout.splitlines() == [str(prediction.top(5)), str(needed)]
    assert done.stderr == ""  # bitsandbytes' advice where the processor has AVX-512 included


def test_a_plan_that_quantizes_says_that_it_needs_bitsandbytes(
    export_of: Callable[[str, str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = export_of("nf4", "none")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Unavailable, match=r"^bitsandbytes is not installed; run: pip install"):
        lowbit_vit.load(folder)


# ------------------------------------------------------------------------------------------------------------------ bad input


def changed_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | changes))


def changed_model(folder: Path, key: str, **changes: object) -> None:
    model = json.loads((folder / "model.json").read_text())["model"]
    changed_card(folder, model=model | {key: model[key] | changes})


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (shutil.rmtree, DataError, "model.json: no exported model there; lowbit-vit export PROFILE PLAN DIR makes one"),
        (flip_a_byte, DataError, "model.safetensors: sha256 is "),
        (lambda folder: (folder / "model.safetensors").unlink(), DataError, "model.safetensors: cannot be read (No such file"),
        (lambda folder: (folder / "model.json").write_text("{"), DataError, "model.json: not JSON ("),
        (lambda folder: (folder / "model.json").write_text("[]"), DataError, "model.json: not the card of an exported model"),
        (lambda folder: changed_card(folder, export_version=1), DataError, "model.json: export_version 1; this program reads 2"),
        (lambda folder: changed_card(folder, class_names=["0", "1"]), DataError, "class_names: 2 names, the model has 10 classes"),
        (lambda folder: changed_card(folder, views=None), DataError, "model.json: key views: "),
        (lambda folder: changed_card(folder, model=None), DataError, "model.json: key model is missing"),
        (lambda folder: changed_model(folder, "architecture", heads=-1), DataError, "heads -1 must be a positive whole number"),
        (lambda folder: changed_model(folder, "architecture", heads=True), DataError, "heads True must be a positive whole number"),
        (lambda folder: changed_model(folder, "architecture", depth=10**9), DataError, "not a saved model (1000000000 blocks, but "),
        (
            lambda folder: changed_model(folder, "plan", compute_dtype="fp16"),
            DataError,
            "are torch.float32, the plan's compute_dtype is fp16",
        ),
        (lambda folder: (folder / "model.json").write_text("[" * 10**6), DataError, "model.json: not JSON (maximum recursion depth"),
        (lambda folder: changed_card(folder, attention="fa2"), Unavailable, "attention fa2 needs CUDA"),
    ],
)
def test_a_bad_export_is_one_line(
    harm: Callable[[Path], object], error: type[LowbitVitError], message: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    harm(tmp_path / "copy")
    with pytest.raises(error, match=re.escape(message)) as caught:
        lowbit_vit.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


VALUES: st.SearchStrategy[object] = st.sampled_from(
    [None, True, -1, 0, 1, 2**63, 10**400, 1e308, "", "x\x1b[31m\n", "cpu", [], {}, [[]], {"format": "nf4"}]
)


def mutated_json(text: str, data: st.DataObject) -> str:
    """A JSON document in which a few values are others, or gone."""
    document = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and data.draw(st.integers(0, 3)):
                place = place[key]
                continue
            if data.draw(st.booleans()):
                place[key] = deepcopy(data.draw(VALUES))
            else:
                del place[key]
            break
    return json.dumps(document)


def mutated_bytes(content: bytes, data: st.DataObject) -> bytes:
    """Bytes of which a few are others, or that end early; more often in the first 2,000, where headers are."""
    changed = bytearray(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.one_of(st.integers(0, 2000), st.integers(0, len(content))))
        changed[place : place + 1] = data.draw(st.binary(max_size=2))
    return bytes(changed)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["card", "card's bytes", "tensors"])
def test_whatever_an_export_holds_it_predicts_or_says_one_line(
    kind: str, export_of: Callable[[str, str], Exported], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, _ = export_of("mixed" if kind == "card" else "fp32", "ptq")
    card, tensors = (folder / "model.json").read_text(), (folder / "model.safetensors").read_bytes()
    copy = tmp_path_factory.mktemp("copy")
    image = Image.new("RGB", (9, 9))

    @settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content, text = tensors, card.encode()
        if kind == "card":
            text = mutated_json(card, data).encode()
        elif kind == "tensors":
            content = mutated_bytes(tensors, data)
            text = json.dumps(json.loads(card) | {"sha256": sha256(content)}).encode()
        else:
            text = mutated_bytes(text, data)
        (copy / "model.json").write_bytes(text)
        (copy / "model.safetensors").write_bytes(content)
        said = ""
        try:
            lowbit_vit.load(copy).predict(image)
        except LowbitVitError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 600

    check()


def test_bad_images_are_one_line(exported: Path, tmp_path: Path) -> None:
    model: Predictor = lowbit_vit.load(exported)
    (tmp_path / "words.txt").write_text("no image")
    Image.new("RGB", (30, 30)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    bad = {
        tmp_path / "none.png": r"none\.png: No such file",
        tmp_path / "words.txt": r"words\.txt: not an image$",
        tmp_path / "half.png": r"half\.png: .*trunc",
        tmp_path: "Is a directory",
    }
    for path, message in bad.items():
        with pytest.raises(DataError, match=message) as caught:
            model.predict([tmp_path / "whole.png", path])
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="image 2: floating-point pixels have no fixed range"):
        model.predict([Image.new("RGB", (9, 9)), Image.new("F", (9, 9))])
    with pytest.raises(DataError, match="no image was given"):
        model.predict([])
    for tensor in (torch.zeros(1, 3, 9, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.zeros(3, 8, 8)):
        with pytest.raises(DataError, match=r"give \[N, 3, 8, 8\], uint8 pixels or normalized floating point"):
            model.predict(tensor)
    with pytest.raises(ConfigError, match="device 'tpu' is not known; allowed: cpu, cuda"):
        lowbit_vit.load(exported, device="tpu")
    with pytest.raises(ConfigError, match="execution 'fast' is not known; allowed: eager, cuda_graph, compile, compile_graph"):
        lowbit_vit.load(exported, execution="fast")
    with pytest.raises(Unavailable, match="execution cuda_graph needs CUDA, the model is on cpu; use execution: eager"):
        lowbit_vit.load(exported, execution="cuda_graph")


def test_batches_of_one_size_are_prepared_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def counted(*given: Any) -> Any:
        made.append(given[1:])
        return execution.prepare(*given)

    monkeypatch.setattr(predictor, "prepare", counted)
    model: Predictor = lowbit_vit.load(exported)
    pixels = torch.zeros(2, 3, 8, 8)
    first = model.logits(pixels)
    assert (model.logits(pixels) == first).all()
    model.logits(pixels[:1])
    assert [(name, len(images)) for name, images in made] == [("eager", 2), ("eager", 1)]


# -------------------------------------------------------------------------------------------------------------------- the verb


def predict_verb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lowbit_vit", "predict", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verb_prints_a_line_an_image(export_of: Callable[[str, str], Exported], held_out: ImageSet, tmp_path: Path) -> None:
    folder, recorded = export_of("fp32", "none")
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, image in zip(paths, opened(held_out), strict=False):
        image.save(path)
    done = predict_verb(str(folder), *paths, paths[0])
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [*paths, paths[0]]
    assert [line[1] for line in lines[:3]] == recorded.best[:3].astype(str).tolist()
    assert [str(label) in line[1::2] for label, line in zip(recorded.label, lines[:3], strict=False)] == recorded.among5[:3].tolist()
    assert all(0 <= float(share) <= 1 for line in lines for share in line[2::2])


def test_bad_images_are_counted_and_listed_while_the_rest_is_predicted(exported: Path, held_out: ImageSet, tmp_path: Path) -> None:
    good = [tmp_path / "photos" / name for name in ("a.png", "b.JPG", "deep/er/c.png")]
    for path, image in zip(good, opened(held_out), strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG")
    (tmp_path / "photos" / "broken.png").write_bytes(good[0].read_bytes()[:60])
    (tmp_path / "photos" / "dangling.png").symlink_to("nowhere")
    (tmp_path / "photos" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / ".hidden.png").write_bytes(good[0].read_bytes())
    os.mkfifo(tmp_path / "photos" / "pipe.bmp")
    (tmp_path / "photos" / "@eaDir").mkdir()
    (tmp_path / "photos" / "@eaDir" / "THUMB.jpg").write_bytes(good[0].read_bytes())
    (tmp_path / "none").mkdir()
    whole = call("predict", str(exported), *map(str, good))
    assert (whole.returncode, whole.stderr) == (0, "")
    for places in (["photos"], ["photos/*.png", "photos/*.JPG", "photos/d*/**/c.png"]):
        run = call("predict", str(exported), *places, "none", "x" * 300, cwd=tmp_path)
        assert run.returncode == 3
        assert run.stdout == whole.stdout.replace(f"{tmp_path}/", "")
        *listed, last = run.stderr.splitlines()
        assert [line.removeprefix("lowbit-vit: ").split(":")[0] for line in listed if "passed over" not in line] == [
            "none",
            "photos/broken.png",
            "photos/dangling.png",
        ]
        assert last == f"lowbit-vit: {'x' * 300}: File name too long; images not predicted: 4 of 7"
        assert ("passed over 2 files" in run.stderr) == (places == ["photos"])
    bad = call("predict", str(exported), str(tmp_path / "none.png"))
    assert (bad.returncode, bad.stdout) == (3, "")
    assert bad.stderr == f"lowbit-vit: {tmp_path}/none.png: No such file or directory; images not predicted: 1 of 1\n"


def test_images_that_cannot_be_read_leave_the_others_logits_as_they_are(exported: Path, held_out: ImageSet, tmp_path: Path) -> None:
    model: Predictor = lowbit_vit.load(exported)
    images = opened(held_out)[: 2 * model.card.batch_size]
    faults: Faults = {}
    mixed: list[Image.Image | Path] = [*images[:5], tmp_path / "none.png", *images[5:], Image.new("F", (9, 9))]
    np.testing.assert_array_equal(model.logits(mixed, faults=faults), model.logits(images))
    assert {place: "none.png" in str(fault) for place, fault in faults.items()} == {5: True, len(mixed) - 1: False}
    assert model.predict([tmp_path / "none.png"], faults={}) == []


def test_lines_survive_any_name(exported: Path, held_out: ImageSet, tmp_path: Path) -> None:
    names = ["tab\tbed.png", "two\nlines.png", "back\\slash.png", "esc\x1b[31m.png", "caf\udce9.png", "caf\xe9.png", "\u202egnp.png"]
    for name in names:
        opened(held_out)[0].save(tmp_path / "image.png")
        (tmp_path / "image.png").rename(tmp_path / name)
    run = call("predict", str(exported), *names, "miss\x1bing\n.png", cwd=tmp_path)
    assert run.returncode == 3
    lines = [line.split("\t") for line in run.stdout.splitlines()]
    shown = ["tab\\tbed.png", "two\\nlines.png", "back\\\\slash.png", "esc\\x1b[31m.png", "caf\\xe9.png", "caf\xe9.png", "\\u202egnp.png"]
    assert [line[0] for line in lines] == shown
    assert {len(line) for line in lines} == {11}
    assert run.stderr == "lowbit-vit: miss\\x1bing\\n.png: No such file or directory; images not predicted: 1 of 8\n"
    # `printf %b` gives the bytes back.
    printed = subprocess.run(["bash", "-c", 'printf "%b\\0" "$@"', "-", *shown], capture_output=True, check=True)
    assert printed.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in names]
    run = call("predict", str(exported), "--json", "--top", "2", *names, "missing.png", cwd=tmp_path)
    *found, missing = map(json.loads, run.stdout.splitlines())
    assert [line["image"] for line in found] == names
    assert [[(one["class"], round(one["probability"], 6)) for one in line["classes"]] for line in found] == [
        [(line[1], float(line[2])), (line[3], float(line[4]))] for line in lines
    ]
    assert missing == {"image": "missing.png", "error": "No such file or directory"}


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "caf\\xe9 \u2192 \xe9"), ("latin-1", "caf\\xe9 \\u2192 \xe9"), ("ascii", "caf\\xe9 \\u2192 \\xe9")]
)
def test_no_name_is_too_much_for_stdout(encoding: str, shown: str, exported: Path, held_out: ImageSet, tmp_path: Path) -> None:
    with (tmp_path / "caf\udce9 \u2192 \xe9").open("wb") as file:
        opened(held_out)[0].save(file, format="PNG")
    run = call("predict", str(exported), "caf\udce9 \u2192 \xe9", cwd=tmp_path, encoding=encoding)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split("\t")[0] == shown


def test_a_terminal_shows_a_row_an_image_and_names_as_they_are() -> None:
    predictions = [("[b]rose[/b].jpg", [("rose", 0.75), ("tulip", 0.25)]), ("two.jpg", [("tulip", 1.0)])]
    table = to_terminal(prediction_table(predictions))
    assert table.row_count == 2
    assert [str(cell) for cell in table.columns[0].cells] == ["[b]rose[/b].jpg", "two.jpg"]
    assert [str(cell) for cell in table.columns[1].cells] == ["rose 75.0 %", "tulip 100.0 %"]
    assert prediction_lines(predictions[1:]) == "two.jpg\ttulip\t1.000000\n"


def test_the_card_says_where_the_model_comes_from(exported: Path, workspace: Workspace, profile: Profile) -> None:
    card, converted = read_export(exported)
    weights = json.loads(workspace.backbone.with_suffix(".json").read_text())
    assert (card.backbone_sha256, card.base_sha256) == (weights["sha256"], weights["sha256"])
    assert (card.licence, card.made, card.views) == (weights["licence"], weights["made"], profile.data.views)
    assert card.data_sha256 == weights["content_sha256"]
    assert converted.plan == PLANS["fp32"]
    assert card.measured is not None
    assert card.measured.test.images == 599
    assert set(ExportCard.model_fields) | {"sha256"} == set(json.loads((exported / "model.json").read_text()))
