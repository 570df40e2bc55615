"""A study on one machine opens no port to another machine: whoever reaches Ray can run programs."""

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import psutil

from ray_nodes import OBEDIENT, PROGRAM, SOURCES, Submitter, wait_until


def test_a_local_ray_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    submitter = Submitter(tmp_path / "project")
    submitter.arms("sleep 120")
    root = submitter.workspace.root
    variables = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), sys.executable, str(OBEDIENT)],
        env=variables | {"PYTHONPATH": SOURCES},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as study:
        try:
            wait_until(lambda: any(root.glob("asleep-*")), seconds=200)
            processes = [psutil.Process(study.pid), *psutil.Process(study.pid).children(recursive=True)]
            listening = [
                (process.name(), connection.laddr)
                for process in processes
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            ]
        finally:
            study.terminate()
            study.wait(timeout=60)
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert not [(name, at) for name, at in listening if not is_loopback(at.ip)]


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
