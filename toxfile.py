"""A tox runner for environments that share one installation, because torch with its CUDA libraries takes 7 GB.

tox remembers in an environment's folder which environment made it, and removes the folder when another name comes along.
Environments with `runner = shared` and one `env_dir` are remembered under that folder's name, so whichever runs first
installs and the others find everything in place. What they install must be the same: it stands once, in tox.ini's section
`shared`. tox loads this file by its name.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class SharedInfo(Info):
    """What tox remembers of an environment, under the folder's name instead of the environment's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._shared_name = path.name

    @contextmanager
    def compare(self, value: Any, section: str, sub_section: str | None = None) -> Generator[tuple[bool, Any], None, None]:
        """Compare as tox does, with the one value that tells environments apart replaced."""
        if section == "ToxEnv":
            value = {**value, "name": self._shared_name}
        with super().compare(value, section, sub_section) as compared:
            yield compared


class SharedRunner(VirtualEnvRunner):
    """tox's own runner in a folder that several environments use."""

    _cleaned: set[Path] = set()  # noqa: RUF012 - of this process, so that `tox run -r` installs once

    @staticmethod
    def id() -> str:
        """The name in tox.ini: `runner = shared`."""
        return "shared"

    @property
    def cache(self) -> Info:
        """What tox remembers of this environment."""
        return SharedInfo(self.env_dir)

    def _clean(self, transitive: bool = False) -> None:  # noqa: FBT001, FBT002 - tox's signature
        if self.env_dir not in self._cleaned:
            super()._clean(transitive)
            self._cleaned.add(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Tell tox about the runner."""
    register.add_run_env(SharedRunner)
