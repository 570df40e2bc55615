"""Libraries that are imported when they are first used: a process pays only for what it needs.

bitsandbytes and peft each take seconds to import, torchvision's models and torch's compiler no less, and few processes use all of
them. A forked trial finds them imported; but on a machine with a GPU bitsandbytes and peft are left to the trial, since importing them
initialises CUDA. So the modules that need such a library name it at their top, as they would import it, and its code runs at the first
attribute:

    if TYPE_CHECKING:
        import bitsandbytes as bnb
    else:
        bnb = Deferred("bitsandbytes")

`importlib.util.LazyLoader` is not used: it puts its stand-in into `sys.modules`, and code that looks at all modules, as `inspect`
does for torch, makes it load. Here `sys.modules` says whether the library was really imported.
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

from lowbit_vit.errors import Unavailable

# On a CPU it advises at every import to install a package that fetches other kernels: with them, numbers would be others (docs/predict.md).
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class Deferred:
    """Stands for a package until an attribute of it is asked for; where nothing asks, it need not be installed.

    Args:
        package: its name.
    """

    def __init__(self, package: str) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        """The package's attribute; the first one imports it.

        Raises:
            Unavailable: the package is not installed.
        """
        return getattr(_imported(self._package), name)


def load(package: str) -> None:
    """Import a package now: before something is timed that would otherwise be the first to use it.

    Raises:
        Unavailable: it is not installed.
    """
    _imported(package)


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise Unavailable(f"{package} is not installed; run: pip install 'lowbit-vit[run]'") from None


def is_loaded(package: str) -> bool:
    """Whether the package was imported in this process: where it was not, there is no object of its classes."""
    return package in sys.modules
