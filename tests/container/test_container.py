"""Trials in a real container: what they get, what they cannot reach, and what is left of them."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from engine import podman
from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.config import Trial, load_profile
from lowbit_vit.schema.predictions import load_predictions
from lowbit_vit.schema.record import read_records
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.container import Container, find_image
from lowbit_vit.study.launch import scratch_folder
from processes import launched
from projects import environment, make_project

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
USER = "10001"


@pytest.fixture(scope="session")
def container(image: str) -> Container:
    return find_image(image, runtime="podman", pin=f"sha256:{image}", unpinned=False)


@pytest.fixture
def workspace(project: Path) -> Workspace:
    return Workspace(root=project, profile="tiny")


@pytest.fixture
def trial(project: Path) -> Trial:
    profile = load_profile(project / "profiles" / "tiny.yaml")
    return next(cell for cell in cells(profile, "variants") if cell.label == "NF4")


def limited(trial: Trial, **limits: float) -> Trial:
    return trial.model_copy(update={"limits": trial.limits.model_copy(update=limits)})


def inside(container: Container, workspace: Workspace, trial: Trial, *command: str) -> subprocess.CompletedProcess[str]:
    """Run another program in the very surroundings of a trial."""
    folder = scratch_folder(workspace) / "look"
    folder.mkdir(parents=True, exist_ok=True)
    container.admit(folder)
    line = container.command("look", workspace, folder, limits=trial.limits, environment={})
    return subprocess.run([*line[:-1], "--entrypoint", command[0], line[-1], *command[1:]], capture_output=True, text=True, check=False)


def left_behind(workspace: Workspace) -> list[str]:
    return podman("ps", "--all", "--quiet", "--filter", f"label=lowbit-vit.reports={workspace.reports}").stdout.split()


def test_the_image_says_what_it_is_and_keeps_nothing_of_the_build(image: str, project: Path) -> None:
    facts = json.loads(podman("image", "inspect", image).stdout)[0]["Config"]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    assert facts["Labels"]["org.opencontainers.image.revision"] == revision
    assert facts["User"] == f"{USER}:{USER}"
    assert facts["Entrypoint"] == ["lowbit-vit"]
    assert not [line for line in facts["Env"] if line.partition("=")[0] in ("PIP_CERT", "SSL_CERT_FILE", "PIP_INDEX_URL")]


def test_the_entry_point_is_the_command_line(image: str) -> None:
    assert "sensitivity" in podman("run", "--rm", "--network", "none", "--read-only", image, "--help").stdout


def test_dvc_repro_runs_inside_on_a_checkout_of_the_caller(image: str, tmp_path: Path) -> None:
    """As docker/compose.yaml has it: the root read-only, the checkout mounted."""
    checkout = make_project(tmp_path)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(checkout)], check=True)
    box = ("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec,mode=1777", "--volume", f"{checkout}:/project")
    done = podman("run", *box, "--entrypoint", "dvc", image, "repro", "data@demo")
    assert "Running stage 'data@demo'" in done.stdout
    assert (checkout / "dvc.lock").is_file()
    assert (checkout / "data" / "prepared" / "demo" / "manifest.json").is_file()


def test_a_trial_sees_only_what_it_was_given(container: Container, workspace: Workspace, trial: Trial) -> None:
    script = (
        "import json, os, socket\n"
        "from pathlib import Path\n"
        "def writable(path):\n"
        "    try:\n"
        "        (Path(path) / 'probe').touch()\n"
        "        return True\n"
        "    except OSError:\n"
        "        return False\n"
        "print(json.dumps({'user': os.getuid(), 'net': [name for _, name in socket.if_nameindex()],\n"
        "  'writable': [p for p in ('/', '/project', '/project/data/prepared/tiny', '/project/checkpoints/tiny', '/opt/venv',\n"
        "               '/project/reports/tiny/.scratch/look') if writable(p)],\n"
        "  'tests': Path('/project/tests').exists(), 'data': Path('/project/data/prepared/tiny/manifest.json').is_file(),\n"
        "  'capabilities': [l.split()[1] for l in Path('/proc/self/status').read_text().splitlines() if l.startswith('CapEff')]}))\n"
    )
    done = inside(container, workspace, trial, "python", "-c", script)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen == {
        "user": int(USER),
        "net": ["lo"],
        "writable": ["/project/reports/tiny/.scratch/look"],
        "tests": False,
        "data": True,
        "capabilities": ["0000000000000000"],
    }


def test_a_trial_gives_the_same_predictions_as_in_a_process(container: Container, workspace: Workspace, trial: Trial) -> None:
    alone = launched([trial], workspace)[0]
    assert (alone.status, alone.reason) == ("success", None)
    predictions = workspace.records("variants") / f"{trial.trial_id}.npz"
    expected = load_predictions(predictions)
    boxed = launched([trial], workspace, command=container)[0]
    assert (boxed.status, boxed.reason) == ("success", None)
    assert (boxed.code_sha256, boxed.trial) == (alone.code_sha256, alone.trial)
    found = load_predictions(predictions)
    assert (found.best == expected.best).all()
    assert boxed.provenance is not None
    assert (boxed.provenance.image_digest, boxed.provenance.image_pinned, boxed.provenance.container_runtime) == (
        container.digest,
        True,
        "podman",
    )
    assert left_behind(workspace) == []


def test_a_trial_that_takes_too_long_is_stopped_with_its_container(container: Container, workspace: Workspace, trial: Trial) -> None:
    record = launched([limited(trial, seconds=1.0)], workspace, command=container)[0]
    assert record.status == "timeout"
    assert left_behind(workspace) == []


def test_a_trial_that_needs_too_much_memory_is_stopped_with_its_container(container: Container, workspace: Workspace, trial: Trial) -> None:
    record = launched([limited(trial, memory_gib=0.1)], workspace, command=container)[0]
    assert (record.status, record.reason) == (
        "oom",
        "the container was killed: it held more than limits.memory_gib, or it was killed by hand",
    )
    assert left_behind(workspace) == []


@pytest.mark.parametrize("whom", ["launcher", "launcher and its client"])
def test_a_killed_launcher_leaves_no_container(whom: str, container: Container, workspace: Workspace, trial: Trial, project: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from lowbit_vit.schema.config import Trial\nfrom lowbit_vit.schema.workspace import Workspace\n"
        "from lowbit_vit.study.container import Container\nfrom lowbit_vit.study.launch import launch\n"
        "trial = Trial.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "container = Container(runtime='podman', digest=sys.argv[2], pinned=True)\n"
        "list(launch([trial], Workspace(root=Path.cwd(), profile='tiny'), verb='trial', threads=1, command=container))\n"
    )
    request = project / "request.json"
    request.write_text(trial.model_dump_json())
    launcher = subprocess.Popen([sys.executable, "-c", script, str(request), container.digest], cwd=project, env=environment(project))
    deadline = time.monotonic() + 60
    while not left_behind(workspace):
        assert time.monotonic() < deadline, "no container was started"
        time.sleep(0.05)
    clients = [child for child in psutil.Process(launcher.pid).children(recursive=True) if child.name() == "podman"]
    assert clients
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    if whom != "launcher":
        for client in clients:
            with suppress(psutil.NoSuchProcess):
                client.kill()
        assert container.remove_stale(workspace) <= 1
    while left_behind(workspace):
        assert time.monotonic() < deadline, "the container lives on"
        time.sleep(0.1)


def test_another_image_than_the_pinned_one_is_refused_or_marked(image: str) -> None:
    other = "sha256:" + "0" * 64
    with pytest.raises(ConfigError, match=f"its digest is sha256:{image}, the profile pins {other}"):
        find_image(image, runtime="podman", pin=other, unpinned=False)
    with pytest.raises(ConfigError, match="the profile pins no image"):
        find_image(image, runtime="podman", pin=None, unpinned=False)
    assert not find_image(image, runtime="podman", pin=other, unpinned=True).pinned
    with pytest.raises(Unavailable, match="podman has no image localhost/nothing"):
        find_image("localhost/nothing", runtime="podman", pin=other, unpinned=False)


def test_a_study_runs_in_containers_under_ray_tune(image: str, project: Path, workspace: Workspace) -> None:
    command = [sys.executable, "-m", "lowbit_vit", "sensitivity", "tiny", "--isolation", "container", "--runtime", "podman"]
    done = subprocess.run(
        [*command, "--image", image, "--unpinned"], cwd=project, env=environment(project), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    records = read_records(workspace.records("sensitivity"))
    assert len(records) >= 5
    assert {record.status for record in records} == {"success"}
    assert {record.provenance and record.provenance.image_digest for record in records} == {f"sha256:{image}"}
    assert {record.provenance and record.provenance.image_pinned for record in records} == {False}
    assert left_behind(workspace) == []
