"""podman, as the container tests call it."""

import subprocess

# podman's own choice, crun, needs cgroups v2 and limits that a container in a container has not.
PODMAN = ("podman", "--runtime", "runc")


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman; with `check`, a failure raises with the end of its stderr."""
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done
