"""The image, built from a copy of the project with podman on a base that debootstrap makes: nothing is pulled."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import podman
from once import once
from projects import environment, git, make_project

BASE = "localhost/lowbit-vit-base:bookworm"
IMAGE = "localhost/lowbit-vit:test"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="session", autouse=True)
def podman_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(Path(__file__).parent / "containers.conf"))
        patch.setenv("LOWBIT_VIT_OCI_RUNTIME", "runc")
        yield


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy of the project with the tiny profile, as the image gets it. Not to be changed."""
    return once(tmp_path_factory, worker_id, "source", make_project)


@pytest.fixture(scope="session")
def building(source: Path, podman_here: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Future[Path]]:
    """docker/Dockerfile's target `cpu` in the making, as the README says; a file with its id. Meanwhile `project` is made."""

    def build(file: Path) -> None:
        if podman("image", "exists", BASE, check=False).returncode:
            _make_base(tmp_path_factory.mktemp("base"))
        _build(source)
        file.write_text(podman("image", "inspect", "--format", "{{.Id}}", IMAGE).stdout.strip())

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(once, tmp_path_factory, worker_id, "image", build)


@pytest.fixture(scope="session")
def image(building: Future[Path], project: Path) -> str:
    """The image's id."""
    return building.result().read_text()


@pytest.fixture(scope="session")
def project(source: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A copy of the source with its data and its weights, for the tests of this process."""

    def make(folder: Path) -> None:
        shutil.copytree(source, folder)
        for verb in ("data", "backbone"):
            subprocess.run([sys.executable, "-m", "lowbit_vit", verb, "tiny"], cwd=folder, env=environment(folder), check=True)

    return Path(shutil.copytree(once(tmp_path_factory, worker_id, "prepared", make), tmp_path_factory.mktemp("project") / "project"))


def _build(source: Path) -> None:
    arguments = [f"BASE_IMAGE={BASE}", f"REVISION={git(source, 'rev-parse', 'HEAD').strip()}"]
    volumes: list[str] = []
    if CERTIFICATES.is_file():  # pip and uv may meet a proxy with a certificate of its own
        inside = "/run/certificates.crt"
        volumes = ["--volume", f"{CERTIFICATES}:{inside}:ro"]
        arguments += [f"PIP_CERT={inside}", f"SSL_CERT_FILE={inside}"]
    build_arguments = [part for argument in arguments for part in ("--build-arg", argument)]
    file = ("--file", str(source / "docker" / "Dockerfile"), "--target", "cpu", "--tag", IMAGE)
    podman("build", "--network", "host", *volumes, *build_arguments, *file, str(source))


def _make_base(folder: Path) -> None:
    root = folder / "root"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
    archive = folder / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    podman("import", str(archive), BASE)
    subprocess.run(["rm", "-rf", "--one-file-system", str(root), str(archive)], check=True)
