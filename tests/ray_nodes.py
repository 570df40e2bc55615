"""A submitter, and a Ray cluster on this machine whose nodes see neither the submitter's disk nor each other's cache.

Every node is a `ray start` in a mount namespace of its own, in which an empty file system lies over the folder to hide. Its
processes are one group each, so that a test can kill a node as a power cut would. Needs root or user namespaces.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

import synthetic
from lowbit_vit.schema.config import Arm, Limits, Profile, load_profile
from lowbit_vit.schema.plan import HighPrecision
from lowbit_vit.schema.record import sha256
from lowbit_vit.schema.workspace import Workspace
from processes import wait_until

TESTS = Path(__file__).parent
SOURCES = str(TESTS.parent / "src")
OBEDIENT = TESTS / "study" / "obedient_child.py"
DEMO = synthetic.in_processes(load_profile(TESTS.parent / "profiles" / "demo.yaml"), 1)
PROGRAM = (
    "import sys, logging; logging.basicConfig(level=logging.INFO, format='%(message)s'); from pathlib import Path;"
    "from lowbit_vit.errors import LowbitVitError;"
    "from lowbit_vit.schema.config import Profile; from lowbit_vit.schema.workspace import Workspace;"
    "from lowbit_vit.study.sweep import run_study; root = Path(sys.argv[1]);"
    "profile = Profile.model_validate_json((root / 'profile.json').read_text());\n"
    "try: run_study(profile, 'variants', Workspace(root=root, profile='demo'), command=sys.argv[2:])\n"
    "except LowbitVitError as error: print(error, file=sys.stderr); sys.exit(error.exit_code)"
)
RAY = str(Path(sys.executable).with_name("ray"))


class Cluster:
    """A head without CPUs, and nodes that can be added and killed. A context manager: nothing is left afterwards."""

    def __init__(self, hidden: Path) -> None:
        self.hidden = hidden
        # Short: the names of Ray's sockets must stay below 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="lbc-", dir="/tmp"))
        self.token = secrets.token_hex(32)
        self.port, self.client_port, self.dashboard_port = free_port(), free_port(), free_port()
        self.head: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        self.start_head()
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.nodes):
            self.kill_node(name)
        self.kill_head()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def client(self) -> str:
        return f"ray://127.0.0.1:{self.client_port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def environment(self, **more: str) -> dict[str, str]:
        """For a submitter: the token, and nothing of the test's own settings."""
        # Importing lowbit_vit.study has set what keeps a Ray of its own on the loopback; a cluster's nodes are not to have that.
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
        return inherited | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "OMP_NUM_THREADS": "1", "COLUMNS": "300"} | more

    def start_head(self) -> None:
        ports = {
            "--port": self.port,
            "--ray-client-server-port": self.client_port,
            "--dashboard-port": self.dashboard_port,
        }
        numbers = [word for option, port in ports.items() for word in (option, str(port))]
        dashboard = ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1"]
        self.head = self._start("head", "--head", *numbers, *dashboard, "--num-cpus", "0")
        for port in ports.values():
            wait_until(partial(listens, port), seconds=90)

    def add_node(self, name: str, *, cpus: int = 2) -> None:
        resources = json.dumps({"profile_slot": 1})
        arguments = ("--address", self.address, "--num-cpus", str(cpus), "--resources", resources)
        for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine may not keep
            node = self._start(name, *arguments)
            wait_until(partial(self._has_started_or_ended, name, node), seconds=90)
            if node.poll() is None:
                self.nodes[name] = node
                return
            _kill_tree(node)
        raise AssertionError(self._log(name)[-2000:])

    def kill_node(self, name: str) -> None:
        _kill_tree(self.nodes.pop(name))

    def kill_head(self) -> None:
        if self.head is not None:
            _kill_tree(self.head)
            self.head = None
            shutil.rmtree(self.folder / "ray", ignore_errors=True)

    def cache(self, name: str) -> Path:
        """Where a node keeps what it fetched."""
        return self.folder / name / "cache"

    def running(self, name: str) -> list[Path]:
        """Units in which a trial sleeps on that node (obedient_child)."""
        return list(self.cache(name).glob("units/*/asleep-*"))

    def let_go(self) -> bool:
        """End the trials that hold on some node; True, so that it can stand in a condition."""
        for name in self.nodes:
            for asleep in self.running(name):
                with suppress(FileNotFoundError):  # the unit has just ended
                    (asleep.parent / "let-go").touch()
        return True

    def _has_started_or_ended(self, name: str, node: "subprocess.Popen[bytes]") -> bool:
        return "Ray runtime started" in self._log(name) or node.poll() is not None

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _start(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        self.cache(name).mkdir(parents=True, exist_ok=True)
        variables = self.environment(
            LOWBIT_VIT_CACHE=str(self.cache(name)),
            RAY_USAGE_STATS_ENABLED="0",
            RAY_JOB_STOP_SIGNAL="SIGINT",
            RAY_JOB_STOP_WAIT_TIME_S="8",
            RAY_memory_monitor_refresh_ms="0",
            RAY_health_check_period_ms="1000",
            RAY_health_check_timeout_ms="2000",
            RAY_health_check_failure_threshold="3",
            RAY_prestart_worker_first_driver="0",
            PYTHONWARNINGS="ignore",
        )
        for own in ("RAY_ADDRESS", "PYTHONPATH", "LOWBIT_VIT_REVISION"):
            variables.pop(own, None)
        start = [RAY, "start", "--block", "--node-ip-address", "127.0.0.1", "--object-store-memory", str(100 * 2**20)]
        start += ["--dashboard-agent-listen-port", str(free_port())]  # else all nodes of this machine want the same
        start += ["--temp-dir", str(self.folder / "ray")] if "--head" in arguments else []
        own_disk = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*own_disk, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(self.hidden), *start, *arguments],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for a node's every process at once, trials included."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Submitter:
    """Somebody's machine: a workspace that no node sees, and `run_study` in a process."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root=root, profile="demo")
        self.workspace.checkpoints.mkdir(parents=True)
        for path in (self.workspace.backbone, self.workspace.adapted(0)):
            path.write_bytes(path.name.encode())
            path.with_suffix(".json").write_text(json.dumps({"sha256": sha256(path.read_bytes())}))

    def arms(self, *labels: str) -> Profile:
        """Write the profile whose variants do what these labels say, each its own timing trial by its seed."""
        arms = tuple(
            Arm(
                label=f"{label} / {seed}",
                weights=HighPrecision(),
                compute_dtype="fp32",
                attention="math",
                adaptation="none",
                seeds=(seed,),
            )
            for seed, label in enumerate(labels)
        )
        study = DEMO.variants.model_copy(update={"arms": arms})
        profile = DEMO.model_copy(update={"variants": study, "limits": Limits(seconds=300, memory_gib=4)})
        (self.workspace.root / "profile.json").write_text(profile.model_dump_json())
        return profile

    def start(self, cluster: Cluster, address: str) -> "subprocess.Popen[str]":
        """Submit; obedient_child.py does what the labels say."""
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.workspace.root), sys.executable, str(OBEDIENT)],
            env=cluster.environment(RAY_ADDRESS=address, PYTHONPATH=SOURCES),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def files(self) -> dict[str, str]:
        """Hashes of the records and predictions that are in place."""
        return {path.name: sha256(path.read_bytes()) for path in sorted(self.workspace.records("variants").glob("[!.]*"))}
