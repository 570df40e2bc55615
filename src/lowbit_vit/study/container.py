"""A trial in a container: the same command in a pinned image, with nothing of this machine but what the trial needs.

Data and weights are mounted read-only, the folder of the request and its answer read-write; there is no network, no
capability, no writable root; memory and processes are bounded; a timing trial sees one GPU, by its UUID. What is inside is
`lowbit-vit trial` as in a process (`launch`), so a record differs by its provenance alone.
"""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.schema.code_hash import all_code_sha256
from lowbit_vit.schema.config import Limits
from lowbit_vit.schema.workspace import Workspace

log = logging.getLogger(__name__)

Runtime = Literal["docker", "podman"]
PROJECT = "/project"  # the image's working folder: docker/Dockerfile
_OWNER = "lowbit-vit.reports"  # label: the folder whose run started it
_PROCESSES = 1024  # enough for torch's and Ray's threads on many cores; a fork bomb ends there


@dataclass(frozen=True)
class Container:
    """The image that trials run in, found on this machine and checked against the profile's pin by `find_image`."""

    runtime: Runtime
    digest: str  # sha256:...
    pinned: bool  # whether the profile names this digest

    def command(self, name: str, workspace: Workspace, folder: Path, *, limits: Limits, environment: dict[str, str]) -> list[str]:
        """The command line up to the image; `trial FILE --out FOLDER` follows.

        Args:
            name: of the container, for `remove`.
            workspace: its data and checkpoints are mounted read-only, where the trial looks for them.
            folder: below the workspace's root, mounted read-write at the same place.
            limits: host memory of the trial.
            environment: variables set inside.
        """
        mounts = [
            f"{path}:{PROJECT}/{path.relative_to(workspace.root)}:{mode}"
            for path, mode in ((workspace.data, "ro"), (workspace.checkpoints, "ro"), (folder, "rw"))
            if path.is_dir()
        ]
        memory = f"{int(limits.memory_gib * 1024)}m"
        variables = {
            **environment,
            "LOWBIT_VIT_IMAGE_DIGEST": self.digest,
            "LOWBIT_VIT_IMAGE_PINNED": str(int(self.pinned)),
            "LOWBIT_VIT_CONTAINER_RUNTIME": self.runtime,
        }
        return [
            *_engine(self.runtime),
            *("run", "--rm", "--interactive", "--name", f"lowbit-vit-{name}", "--label", f"{_OWNER}={workspace.reports}"),
            *("--network", "none", "--read-only", "--tmpfs", "/tmp:exec,mode=1777"),  # noqa: S108  (the container's own)
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--memory", memory, "--memory-swap", memory, "--pids-limit", str(_PROCESSES)),
            *_user(self.runtime),
            *_gpu(self.runtime),
            *(part for mount in mounts for part in ("--volume", mount)),
            *(part for key, value in sorted(variables.items()) for part in ("--env", f"{key}={value}")),
            self.digest.removeprefix("sha256:"),
        ]

    def admit(self, *folders: Path) -> None:
        """Let the user inside write to folders of root's; any other caller runs as itself inside."""
        if os.getuid() == 0:
            for folder in folders:
                folder.chmod(0o777)  # below the reports folder, for as long as the trial runs

    def remove(self, name: str) -> None:
        """Stop and remove a container that its client may have left behind; nothing happens if it is gone."""
        _call(self.runtime, "rm", "--force", f"lowbit-vit-{name}")

    def remove_stale(self, workspace: Workspace) -> int:
        """Remove the containers of a run that was killed with its clients; call it while holding the folder. How many."""
        found = _call(self.runtime, "ps", "--all", "--quiet", "--filter", f"label={_OWNER}={workspace.reports}").stdout.split()
        for identity in found:
            _call(self.runtime, "rm", "--force", identity)
        return len(found)


# What starts a trial: a command of this machine, or a container.
Starter = Sequence[str] | Container


def find_image(image: str, *, runtime: Runtime, pin: str | None, unpinned: bool) -> Container:
    """Find an image on this machine and check its digest.

    Args:
        image: a name, or NAME@sha256:...
        runtime: the program that runs it.
        pin: the digest in the profile; None if it has none.
        unpinned: take another digest than the profile's, and mark the records so.

    Raises:
        Unavailable: the runtime or the image is not here.
        ConfigError: the digest is not the profile's, or the image holds other code than this program.
    """
    if shutil.which(runtime) is None:
        raise Unavailable(f"--isolation container: {runtime} is not installed; install it or choose --isolation process")
    found = _call(runtime, "image", "inspect", image)
    if found.returncode:
        raise Unavailable(f"{runtime} has no image {image}; build it (docker/README.md) or pull it, then run the same command again")
    facts = json.loads(found.stdout)[0]
    identity = "sha256:" + facts["Id"].removeprefix("sha256:")
    # The registry's digest of the manifest, where the image was pulled, and the digest of its configuration: both name it.
    digests = {identity, facts.get("Digest") or identity, *(name.partition("@")[2] for name in facts.get("RepoDigests") or [])}
    if pin is None and not unpinned:
        raise ConfigError(f"container: the profile pins no image; add `container: {{digest: {identity}}}` to it or say --unpinned")
    if pin is not None and pin not in digests and not unpinned:
        raise ConfigError(f"{image}: its digest is {identity}, the profile pins {pin}; build or pull that one, or say --unpinned")
    # Records of other code would be run again and again.
    script = "from lowbit_vit.schema.code_hash import all_code_sha256; print(all_code_sha256())"
    inside = _call(runtime, "run", "--rm", "--network", "none", "--entrypoint", "python", identity.removeprefix("sha256:"), "-c", script)
    if inside.stdout.strip() != all_code_sha256():
        raise ConfigError(f"image {identity[:19]}: it holds other code than this checkout; build it again (docker/README.md)")
    pinned = pin is not None and pin in digests
    return Container(runtime=runtime, digest=identity, pinned=pinned)


def _call(runtime: Runtime, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the runtime to its end, whatever its exit code is."""
    return subprocess.run([*_engine(runtime), *arguments], capture_output=True, text=True, check=False)


def _engine(runtime: Runtime) -> Sequence[str]:
    """The program, and podman's low-level runtime where LOWBIT_VIT_OCI_RUNTIME names one: its own choice, crun, needs cgroups v2."""
    low_level = os.environ.get("LOWBIT_VIT_OCI_RUNTIME")
    return (runtime, "--runtime", low_level) if low_level and runtime == "podman" else (runtime,)


def _user(runtime: Runtime) -> Sequence[str]:
    """The user inside: the caller, so that the caller owns the records; for root, the image's own user."""
    if os.getuid() == 0:
        return ()
    same = ("--user", f"{os.getuid()}:{os.getgid()}")
    return (*same, "--userns", "keep-id") if runtime == "podman" else same


def _gpu(runtime: Runtime) -> Sequence[str]:
    """The one GPU that Ray gave this process, by UUID; none where it gave none."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not gpu:
        return ()
    return ("--gpus", f"device={gpu}") if runtime == "docker" else ("--device", f"nvidia.com/gpu={gpu}")
