"""What holds for every test: examples of property tests are the same in each run, none has to be quick, SIGINT interrupts.

Importing what the tests import makes millions of objects, which live as long as the process: they are not searched for garbage, in
the import or later.
"""

import gc
import signal

from hypothesis import settings

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
