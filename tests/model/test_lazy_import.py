"""A process imports what its trial needs, and a package that is missing is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.lazy_import import Deferred, is_loaded, load

COSTLY = ("bitsandbytes", "peft", "torchvision", "torch._dynamo", "sklearn")

# What a trial without training and timing does to its model, and what is imported ahead of one: each in a process of its own, forked
# where torch and our modules are imported and nothing was computed.
TRIALS = """
import importlib
import json
import os
import sys

import torch

import lowbit_vit.recipe.backbone
import lowbit_vit.trial.run
import lowbit_vit.trial.scan
from lowbit_vit.model import execution, lora, precision, serialization, vit
from lowbit_vit.schema.plan import HighPrecision, Int8, NF4, Plan, uniform

formats = {
    "high": HighPrecision(),
    "int8": Int8(format="int8", threshold=6.0),
    "nf4": NF4(format="nf4", double_quantization=False),
}


def trial(weights, adaptation):
    plan = uniform(formats[weights], "fp32")
    architecture = vit.Architecture(name="small", image_size=8, patch_size=4, depth=1, heads=1, width=64, mlp_width=64)
    model = vit.VisionTransformer(architecture, num_classes=3, attention="math", qkv="separate")
    precision.apply_plan(model, plan)
    precision.weight_bytes(model)
    serialization.model_bytes(model.eval(), plan, {})
    images = torch.zeros(1, 3, 8, 8)
    execution.prepare(model, "eager", images)(images)
    if adaptation == "adapted":
        lora.wrap(model, rank=2, alpha=2, dropout=0.0)


def ask(_, packages):
    precision.import_formats([Plan(compute_dtype="fp32")])
    if packages == "for nf4 and adapters":
        precision.import_formats([Plan(compute_dtype="fp32"), uniform(formats["nf4"], "fp32")])
        lora.import_peft()


def loaded():
    return [name for name in sys.argv[1:] if name in sys.modules]


print(json.dumps(["nothing", "", loaded()]), flush=True)
for do, *case in (
    (trial, "high", "as it is"),
    (ask, "asked", "for high precision"),
    (None, "torch._inductor.compile_fx"),
    (trial, "int8", "as it is"),
    (trial, "nf4", "as it is"),
    (trial, "high", "adapted"),
    (ask, "asked", "for nf4 and adapters"),
):
    if do is None:  # most of what those after it import, and nothing that is asked of them: the same seconds in each
        importlib.import_module(*case)
        continue
    child = os.fork()
    if not child:
        do(*case)
        print(json.dumps([*case, loaded()]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, case
"""


@pytest.fixture(scope="module")
def loaded() -> dict[tuple[str, str], set[str]]:
    """Of the costly packages, those that each trial has imported."""
    done = subprocess.run([sys.executable, "-c", TRIALS, *COSTLY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {(weights, adaptation): set(names) for weights, adaptation, names in map(json.loads, done.stdout.splitlines())}


def test_a_trial_in_high_precision_imports_no_library_of_another_trial(loaded: dict[tuple[str, str], set[str]]) -> None:
    assert loaded["nothing", ""] == loaded["high", "as it is"] == set()


def test_what_a_trial_imports_is_imported_before_its_parts_are_timed(loaded: dict[tuple[str, str], set[str]]) -> None:
    asked = {"bitsandbytes", "peft"}
    assert loaded["asked", "for high precision"] & asked == set()
    assert loaded["asked", "for nf4 and adapters"] & asked == asked


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_a_trial_that_quantizes_imports_bitsandbytes_and_no_adapters(weights: str, loaded: dict[tuple[str, str], set[str]]) -> None:
    found = loaded[weights, "as it is"]
    assert "bitsandbytes" in found
    assert not found & {"peft", "torchvision"}


def test_a_trial_that_trains_adapters_imports_peft(loaded: dict[tuple[str, str], set[str]]) -> None:
    assert "peft" in loaded["high", "adapted"]


def test_a_package_that_is_not_installed_is_named_when_it_is_needed() -> None:
    missing = Deferred("no_such_package")
    for need in (lambda: missing.VALUE, lambda: load("no_such_package")):
        with pytest.raises(Unavailable, match=r"^no_such_package is not installed; run: pip install 'lowbit-vit\[run\]'$"):
            need()


def test_the_first_attribute_imports_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_late.py").write_text("VALUE = 7\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    late = Deferred("imported_late")
    assert not is_loaded("imported_late")
    assert late.VALUE == 7
    assert is_loaded("imported_late")
    with pytest.raises(AttributeError, match=r"imported_late.*OTHER"):
        _ = late.OTHER
