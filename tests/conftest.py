"""What holds for every test: examples of property tests are the same in each run, none has to be quick, SIGINT interrupts.

Real Flowers-102 images, where this machine has them.

Importing what the tests import makes millions of objects, which live as long as the process: they are not searched for garbage, in
the import or later.
"""

import gc
import signal
import tarfile
from pathlib import Path

import pytest
from hypothesis import settings

FLOWERS_TARS = Path(__file__).parents[2] / "shared" / "flowers-102"

settings.register_profile("lowbit-vit", deadline=None, derandomize=True)
settings.load_profile("lowbit-vit")

# Whoever starts pytest with `&` in a script has made it ignore SIGINT, and with it all programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()


def pytest_collection_finish() -> None:
    """All is imported."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """At its end the interpreter takes all of it apart."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def flowers_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds flowers-102/ with all images, as 256-px copies."""
    if not FLOWERS_TARS.is_dir():
        pytest.skip("no Flowers-102 images in ../shared/flowers-102")
    root = tmp_path_factory.mktemp("flowers")
    for path in sorted(FLOWERS_TARS.glob("*.tar")):
        with tarfile.open(path) as archive:
            archive.extractall(root, filter="data")
    return root
