"""The hash of the code changes with every module that a trial imports, and with nothing else."""

import shutil
from pathlib import Path

import pytest

from lowbit_vit.schema import code_hash
from lowbit_vit.schema.plan import FORMATS, FP8, NF4, W8A8, FusedNF4, HighPrecision, Int8, Plan, uniform

ROOT = Path(__file__).parents[2]
ENTRIES = ("trial/run.py", "trial/scan.py")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package, which may be a checkout's or a wheel's."""
    copy = tmp_path / "lowbit_vit"
    shutil.copytree(Path(code_hash.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def hash_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(code_hash, "_PACKAGE", package)
    code_hash._hashes.cache_clear()
    try:
        return code_hash.code_sha256()
    finally:
        code_hash._hashes.cache_clear()


def append(file: Path) -> None:
    with file.open("a") as source:
        source.write("\n# one comment more\n")


def test_the_installed_package_and_the_checkout_have_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tox environment `report` installs a wheel, the others the checkout.
    assert code_hash.code_sha256() == hash_of(ROOT / "src" / "lowbit_vit", monkeypatch)


@pytest.mark.parametrize("file", ["model/precision.py", "trial/measure.py", "trial/scan.py", "schema/plan.py", "data/arrays.py"])
def test_a_byte_of_what_a_trial_imports_changes_the_hash(file: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_of(package, monkeypatch)
    append(package / file)
    assert hash_of(package, monkeypatch) != before


@pytest.mark.parametrize(
    "file", ["report/page.py", "analysis/variants.py", "study/cells.py", "recipe/muon.py", "data/flowers.py", "cli/studies.py"]
)
def test_what_no_trial_imports_does_not_change_the_hash(file: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_of(package, monkeypatch)
    append(package / file)
    assert hash_of(package, monkeypatch) == before


PLANS: dict[str, Plan] = {
    weights.format: uniform(weights, "bf16")
    for weights in (
        HighPrecision(),
        Int8(format="int8", threshold=6.0),
        NF4(format="nf4", double_quantization=True),
        W8A8(format="w8a8"),
        FP8(format="fp8"),
        FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit"),
    )
}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("model/kernels/gemm.py", {"w8a8", "fp8", "nf4_fused"}),
        ("model/kernels/nf4.py", {"nf4_fused"}),
        ("model/nf4_prefetch.py", {"nf4_fused"}),
        ("model/fused.py", {"w8a8", "fp8", "nf4_fused"}),
        ("model/formats/fp8.py", {"fp8"}),
        ("model/formats/int8.py", {"int8"}),
        ("model/formats/nf4.py", {"nf4", "nf4_fused"}),
    ],
)
def test_what_a_format_alone_imports_changes_its_own_hash_and_no_other(
    file: str, changed: set[str], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashes() -> tuple[str, str, dict[str, str | None]]:
        every = hash_of(package, monkeypatch)
        try:
            return every, code_hash.all_code_sha256(), {name: code_hash.formats_sha256(plan) for name, plan in PLANS.items()}
        finally:
            code_hash._hashes.cache_clear()

    assert set(PLANS) == set(FORMATS)
    every, all_code, formats = hashes()
    append(package / file)
    assert hashes()[0] == every
    assert hashes()[1] != all_code
    assert {name for name, digest in hashes()[2].items() if digest != formats[name]} == changed
    assert formats["high"] is None


def test_a_plan_of_several_formats_has_the_code_of_each() -> None:
    int8, nf4 = (rule for name in ("int8", "nf4") for rule in PLANS[name].rules)
    both = code_hash.formats_sha256(Plan(compute_dtype="bf16", rules=(int8, nf4)))
    assert both == code_hash.formats_sha256(Plan(compute_dtype="bf16", rules=(nf4, int8)))
    assert len({both, *(code_hash.formats_sha256(PLANS[name]) for name in ("int8", "nf4"))}) == 3


def test_every_kind_of_import_counts(tmp_path: Path) -> None:
    package = tmp_path / "ours"
    (package / "deep" / "er").mkdir(parents=True)
    files = {
        "start.py": "import os, ours.a\nfrom ours import b\nfrom ours.c import value\ndef f():\n    from ours.deep.er import leaf\n",
        "a.py": "import torch.nn\n",
        "b.py": "from oursother import x\n",
        "c.py": "value = 1\n",
        "deep/er/leaf.py": "import ours.start\n",
        "value.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    for folder in (package, package / "deep", package / "deep" / "er"):
        (folder / "__init__.py").touch()
    expected = ("__init__.py", "a.py", "b.py", "c.py", "deep/__init__.py", "deep/er/__init__.py", "deep/er/leaf.py", "start.py")
    assert code_hash.imported_files(package, ["start.py"]) == expected


def test_the_same_files_elsewhere_have_the_same_hash(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "another place" / "lowbit_vit"
    shutil.copytree(package, other)
    assert hash_of(package, monkeypatch) == hash_of(other, monkeypatch)
    assert set(ENTRIES) <= set(code_hash.imported_files(package, ENTRIES))
