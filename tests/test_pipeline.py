"""dvc.yaml says the truth about each stage: the modules it imports, the keys it reads, the files it makes."""

import ast
import configparser
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc.repo.artifacts import check_name_format

import synthetic
from command_line import call
from lowbit_vit.cli import options
from lowbit_vit.data.remote_files import FLOWERS, WEIGHTS
from lowbit_vit.schema.code_hash import imported_files
from lowbit_vit.schema.config import STUDIES, Profile, load_profile
from lowbit_vit.schema.plan import FORMATS
from lowbit_vit.schema.stage_documents import read_estimates
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study import resume
from lowbit_vit.study.process import PRELOAD

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lowbit_vit"
PROFILES = sorted(file.stem for file in (ROOT / "profiles").glob("*.yaml"))
VERBS = ("data", "backbone", "variants", "sensitivity", "estimate", "allocate", "mixed", "report")
# Their outs are deleted and made anew, whatever changed; the studies keep what is finished.
MADE_ANEW = ("data", "backbone")
# The command line only passes arguments on; a new help text is no reason to train again.
DISPATCH = "lowbit_vit.cli"


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[str, Any]]:
    with Repo(str(ROOT)) as repo:
        yield {stage.addressing: stage for stage in repo.index.stages}


def _file(module: str) -> Path | None:
    """The file of `lowbit_vit.data.prepare`, or None for a name that is no module of ours."""
    base = SOURCE.parent / Path(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@cache
def _tree(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


@cache
def _imported_by(module: str) -> frozenset[str]:
    file = _file(module)
    assert file is not None
    return frozenset(_imported(_tree(file)))


def _imported(nodes: list[ast.stmt]) -> set[str]:
    names: set[str] = set()
    for node in (inner for statement in nodes for inner in ast.walk(statement)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("lowbit_vit.") and _file(name)}


@cache
def _reached(module: str) -> frozenset[str]:
    """A module and all that importing it imports."""
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        name = ahead.pop()
        if name in seen or name.startswith(DISPATCH):
            continue
        seen.add(name)
        ahead += _imported_by(name)
    return frozenset(seen)


@cache
def _imports_of_verb(verb: str) -> frozenset[str]:
    """What `lowbit-vit VERB` imports, in its own process and in those that it starts."""
    modules = [_tree(file) for file in (SOURCE / "cli").glob("*.py")]
    functions = {node.name: node for body in modules for node in body if isinstance(node, ast.FunctionDef)}
    called, ahead = set(), [verb]
    while ahead:
        name = ahead.pop()
        called.add(name)
        names = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        ahead += sorted(names & functions.keys() - called)
    used = [body for body in modules if any(functions[name] in body for name in called)]
    top = [node for body in used for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    direct = _imported([*top, *(functions[name] for name in called)])
    reached = set().union(*map(_reached, direct))
    if verb in STUDIES:
        reached |= _reached(PRELOAD)  # what trials are forked from
    return frozenset(reached)


def _holds_code(file: Path) -> bool:
    """Whether there is more in it than the docstring of a package."""
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in _tree(file))


def _files(verb: str) -> set[Path]:
    return {file for file in map(_file, _imports_of_verb(verb)) if file and _holds_code(file)}


def _code(stage: Any) -> list[Path]:
    paths = [ROOT / dep.def_path for dep in stage.deps]
    return [path for path in paths if path.is_relative_to(SOURCE)]


def _params(stage: Any) -> set[str]:
    return {key for dep in stage.deps for key in getattr(dep, "params", None) or ()}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("verb", VERBS)
def test_deps_name_every_module_that_the_stage_imports(verb: str, profile: str, stages: dict[str, Any]) -> None:
    code = _code(stages[f"{verb}@{profile}"])
    modules = _files(verb)
    missing = sorted(str(file.relative_to(ROOT)) for file in modules if not any(file.is_relative_to(path) for path in code))
    assert not missing, f"{verb}: not in deps: {missing}"
    idle = [str(path) for path in code if not any(file.is_relative_to(path) for file in modules)]
    assert not idle, f"{verb}: in deps, but nothing imports it: {idle}"


def _lines(verb: str) -> set[str]:
    """What deps must say of a verb: its modules, or a package's folder where the verb imports all of it."""
    files = _files(verb)
    for package in sorted(path for path in SOURCE.iterdir() if path.is_dir()):
        modules = {file for file in package.rglob("*.py") if _holds_code(file)}
        if modules and modules <= files:
            files = files - modules | {package}
    return {file.relative_to(ROOT).as_posix() for file in files}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("verb", MADE_ANEW)
def test_what_is_made_anew_depends_on_no_module_that_it_does_not_import(verb: str, profile: str, stages: dict[str, Any]) -> None:
    starts = yaml.safe_load((ROOT / "stages.yaml").read_text(encoding="utf-8"))["profiles"][profile].values()
    found = {path.relative_to(ROOT).as_posix() for path in _code(stages[f"{verb}@{profile}"])}
    expected = _lines(verb)
    lines = "\n".join(f"        - {line}" for line in sorted(expected))
    assert expected - set(starts) <= found <= expected | set(starts), f"dvc.yaml, {verb}, deps: write these lines:\n{lines}"


def test_the_codes_hashes_are_over_what_the_process_of_a_trial_really_imports() -> None:
    program = """
import json, os, sys, lowbit_vit.trial.run, lowbit_vit.trial.scan
from lowbit_vit.model.lazy_import import Deferred, load
from lowbit_vit.model.precision import format_named
for weights in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    format_named(weights)
    # A layer or a block imports its kernels when it first runs.
    for module in [module for name, module in sys.modules.items() if name.startswith("lowbit_vit.model.")]:
        for value in vars(module).values():
            if isinstance(value, Deferred) and value._package.startswith("lowbit_vit."):
                load(value._package)
    print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.split('.')[0] == 'lowbit_vit']), flush=True)
    os._exit(0)
"""
    listed = subprocess.run([sys.executable, "-c", program, *FORMATS], capture_output=True, text=True, check=True).stdout
    for weights, files in zip(FORMATS, listed.splitlines(), strict=True):
        imported = {Path(file).relative_to(SOURCE).as_posix() for file in json.loads(files)}
        assert imported == set(imported_files(SOURCE, ["trial/run.py", "trial/scan.py", f"model/formats/{weights}.py"])), weights


@pytest.mark.parametrize("profile", PROFILES)
def test_the_backbone_depends_on_no_kernel_and_no_low_bit_format(profile: str, stages: dict[str, Any]) -> None:
    deps = {path.relative_to(SOURCE).as_posix() for path in _code(stages[f"backbone@{profile}"])}
    model = {name for name in deps if name.startswith("model")}
    assert "model/vit.py" in model
    assert not {name for name in model if "kernels" in name or name in ("model", "model/formats", "model/fused.py", "model/nf4_linear.py")}
    assert {name for name in model if "formats" in name} == {"model/formats/__init__.py", "model/formats/high.py"}


def test_every_stage_is_a_verb_of_a_profile_or_a_download_of_known_content(stages: dict[str, Any]) -> None:
    for name, stage in stages.items():
        if name.split("@")[0] not in VERBS:
            assert stage.cmd.startswith("lowbit-vit fetch "), name
            assert _code(stage) == [], f"{name}: what it downloads is known beforehand, whatever the code"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("verb", STUDIES)
def test_a_study_depends_on_the_images_and_the_weights(verb: str, profile: str, stages: dict[str, Any]) -> None:
    place = Workspace(root=ROOT, profile=profile)
    deps = {ROOT / dep.def_path for dep in stages[f"{verb}@{profile}"].deps}
    assert {place.data, place.checkpoints} <= deps


# Words for people, and the file's own name.
WORDS = {"name", "description"}


class Recording(Profile):
    """A profile that remembers which of its sections were read."""

    def __getattribute__(self, name: str) -> Any:
        if name in Profile.model_fields:
            READ.add(name)
        if name in ("model_dump", "model_dump_json", "model_copy", "__dict__", "__iter__"):
            READ.update(Profile.model_fields)
        return super().__getattribute__(name)


READ: set[str] = set()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Projects with the profile `tiny`: one in which nothing was run, one with a record for every cell, one with sensitivity alone."""
    empty, full, scored = (tmp_path_factory.mktemp(name) / "root" for name in ("empty", "full", "scored"))
    tiny = empty / "profiles" / "tiny.yaml"
    tiny.parent.mkdir(parents=True)
    # Its last section is that of the mixed study, which times nothing: a run of it is to be short.
    tiny.write_text((ROOT / "tests" / "tiny.yaml").read_text() + "  timed: [milp]\n")
    for root, studies in ((full, STUDIES), (scored, ("sensitivity",))):
        synthetic.fill(root, profile=load_profile(tiny), studies=studies)
        shutil.copy(tiny, root / "profiles")
    return dict.fromkeys(("data", "backbone", "estimate"), empty) | dict.fromkeys(STUDIES, full) | {"allocate": scored}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "report"])
def test_params_are_the_sections_that_the_verb_really_reads(
    verb: str, roots: dict[str, Path], stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_recording(path: Path) -> Profile:
        read = set(READ)
        profile = Recording.model_validate_json(load_profile(path).model_dump_json())
        READ.intersection_update(read)  # less what validation read
        return profile

    monkeypatch.setattr(options, "load_profile", load_recording)
    # So that every cell has its record, and no process starts.
    monkeypatch.setattr(resume, "is_current", lambda _: True)
    monkeypatch.setattr(resume, "code_sha256", lambda: synthetic.CODE)
    if verb == "allocate":
        made, used = Workspace(roots["estimate"], "tiny"), Workspace(roots[verb], "tiny")
        estimates = read_estimates(made.estimates, profile="tiny")
        (scores, *_) = resume.load_scores(used)
        used.estimates.write_text(estimates.model_copy(update={"backbone_sha256": scores.backbone_sha256}).model_dump_json())
    READ.clear()
    run = call(verb, "tiny", "--root", str(roots[verb]))
    assert run.returncode == 0, run.stderr
    declared = _params(stages[f"{verb}@demo"])
    assert declared >= READ - WORDS, f"dvc.yaml, {verb}, params: add {sorted(READ - WORDS - declared)}"
    assert declared <= READ, f"dvc.yaml, {verb}, params: nothing reads {sorted(declared - READ)}"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_the_same_params_and_the_report_shows_the_whole_profile(profile: str, stages: dict[str, Any]) -> None:
    for verb in VERBS:
        assert _params(stages[f"{verb}@{profile}"]) == _params(stages[f"{verb}@demo"])
    assert f"profiles/{profile}.yaml" in {dep.def_path for dep in stages[f"report@{profile}"].deps}


@pytest.mark.parametrize("profile", PROFILES)
def test_outs_are_where_the_workspace_says(profile: str, stages: dict[str, Any]) -> None:
    place = Workspace(root=ROOT, profile=profile)
    made = {verb: {ROOT / out.def_path for out in stages[f"{verb}@{profile}"].outs} for verb in VERBS}
    assert made["data"] == {place.data}
    assert made["backbone"] == {place.checkpoints}
    for study in STUDIES:
        assert place.records(study) in made[study]
    assert place.sensitivity in made["sensitivity"]
    assert made["estimate"] == {place.estimates}
    assert made["allocate"] == {place.plans}
    assert all(path.parent == place.reports for path in made["report"])


def test_what_stages_make_is_cached_and_downloads_are_not_and_records_outlive_a_run(stages: dict[str, Any]) -> None:
    for stage in stages.values():
        for out in stage.outs:
            downloaded = out.def_path.startswith("data/raw/")
            assert out.use_cache == (not downloaded), out.def_path
            assert out.persist == (downloaded or "/records/" in out.def_path), out.def_path


def test_shared_settings_hold_no_remote_and_records_are_copies() -> None:
    shared = configparser.ConfigParser()
    shared.read(ROOT / ".dvc" / "config", encoding="utf-8")
    assert not [section for section in shared.sections() if "remote" in section]
    assert shared["cache"]["type"] == "reflink,copy"


def test_every_backbone_has_names_that_dvc_and_gto_take() -> None:
    with Repo(str(ROOT)) as repo:
        artifacts = repo.artifacts.read()["dvc.yaml"]
    expected: dict[str, Path] = {}
    for profile in ("demo", "paper", "scratch"):
        place = Workspace(root=ROOT, profile=profile)
        files = {"backbone": place.backbone, "adapter": place.adapter(0), "adapted": place.adapted(0)}
        expected |= {f"{profile}-{what}": path for what, path in files.items()}
    assert {name: ROOT / artifact.path for name, artifact in artifacts.items()} == expected
    for name in artifacts:
        check_name_format(name)  # gto's rule


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_starts_from_the_downloads_that_it_names(profile: str, stages: dict[str, Any]) -> None:
    report = stages[f"report@{profile}"]
    graph, before, ahead = report.repo.index.graph, set(), [report]
    while ahead:
        needed = list(graph.successors(ahead.pop()))
        ahead += needed
        before |= {stage.addressing for stage in needed}
    settings = load_profile(ROOT / "profiles" / f"{profile}.yaml")
    expected = {f"{verb}@{profile}" for verb in VERBS if verb != "report"}
    if settings.data.source == "flowers102":
        expected.add("data/dvc.yaml:flowers-102")
    if settings.backbone.checkpoint is not None:
        expected.add(f"weights@{settings.backbone.architecture}")
        assert stages[f"weights@{settings.backbone.architecture}"].outs[0].def_path == settings.backbone.checkpoint
    assert before == expected


@pytest.mark.parametrize("architecture", WEIGHTS)
def test_every_torchvision_checkpoint_has_a_stage_that_fetches_it(architecture: str, stages: dict[str, Any]) -> None:
    stage = stages[f"weights@{architecture}"]
    assert stage.cmd == f"lowbit-vit fetch {architecture} --to data/raw"
    assert [out.def_path for out in stage.outs] == [f"data/raw/{WEIGHTS[architecture].name}"]


def test_committed_lock_has_the_known_hashes_of_the_downloads() -> None:
    lock = yaml.safe_load((ROOT / "data" / "dvc.lock").read_text(encoding="utf-8"))
    outs = lock["stages"]["flowers-102"]["outs"]
    known = [{"path": f"data/raw/flowers-102/{file.name}", "hash": "md5", "md5": file.md5, "size": file.size} for file in FLOWERS]
    assert outs == known


def test_lock_with_timings_is_not_committed() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run([git, "ls-files", "dvc.lock", "data/dvc.lock"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["data/dvc.lock"]
