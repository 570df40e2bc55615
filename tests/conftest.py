"""What holds for every test: examples of property tests are the same in each run, none has to be quick, SIGINT interrupts."""

import signal

from hypothesis import settings

settings.register_profile("lowbit-vit", deadline=None, derandomize=True)
settings.load_profile("lowbit-vit")

# Whoever starts pytest with `&` in a script has made it ignore SIGINT, and with it all programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
