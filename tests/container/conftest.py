"""The image, built from a copy of the project with podman on a base that debootstrap makes: nothing is pulled."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import podman
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
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the tiny profile, its data and its weights."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    for verb in ("data", "backbone"):
        subprocess.run([sys.executable, "-m", "lowbit_vit", verb, "tiny"], cwd=folder, env=environment(folder), check=True)
    return folder


@pytest.fixture(scope="session")
def image(project: Path, podman_here: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """docker/Dockerfile's target `cpu`, built as the README says; its id."""
    if podman("image", "exists", BASE, check=False).returncode:
        _make_base(tmp_path_factory.mktemp("base"))
    arguments = [f"BASE_IMAGE={BASE}", f"REVISION={git(project, 'rev-parse', 'HEAD').strip()}"]
    volumes: list[str] = []
    if CERTIFICATES.is_file():  # pip and uv may meet a proxy with a certificate of its own
        inside = "/run/certificates.crt"
        volumes = ["--volume", f"{CERTIFICATES}:{inside}:ro"]
        arguments += [f"PIP_CERT={inside}", f"SSL_CERT_FILE={inside}"]
    build_arguments = [part for argument in arguments for part in ("--build-arg", argument)]
    file = ("--file", str(project / "docker" / "Dockerfile"), "--target", "cpu", "--tag", IMAGE)
    podman("build", "--network", "host", *volumes, *build_arguments, *file, str(project))
    return podman("image", "inspect", "--format", "{{.Id}}", IMAGE).stdout.strip()


def _make_base(folder: Path) -> None:
    root = folder / "root"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
    archive = folder / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    podman("import", str(archive), BASE)
    subprocess.run(["rm", "-rf", "--one-file-system", str(root), str(archive)], check=True)
