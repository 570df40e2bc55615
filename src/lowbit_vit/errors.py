"""The errors that a user can act on: each message is one line that names the thing and says what to do.

`cli` prints the message without a traceback and exits with the class's code. Anything else that escapes is a
defect of ours and keeps its traceback (exit code 1, which `check` has for a miss as well).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Line ends and other control characters, those that turn the direction of writing, and bytes of file names that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def escape_controls(text: str, *, keep: str = "") -> str:
    r"""The text without what a terminal would obey or cannot show: ESC becomes \x1b, a byte that is not UTF-8 \xe9, for instance.

    Args:
        text: any string, such as the name of a file.
        keep: control characters that stay.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds such a byte
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


def first_line(error: Exception) -> str:
    """The first line of another library's error, at most 120 characters; the class's name where it says nothing."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return escape_controls(line)


class LowbitVitError(Exception):
    """Base of every error whose message is meant for the user. Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, in which names and values that it quotes hold no line end and no other control character."""
        return escape_controls(super().__str__())


class ConfigError(LowbitVitError):
    """A profile, plan or trial file is wrong: names file, key, value and what is allowed. Exit code 2."""

    exit_code = 2


class DataError(LowbitVitError):
    """An image, label, split file, checkpoint or record is missing, damaged or not what it should be. Exit code 3."""

    exit_code = 3


class Unavailable(LowbitVitError):
    """This machine cannot run what was asked (no CUDA, package missing). The message is the reason. Exit code 4.

    A trial that raises it is recorded as `skipped` with that reason; nothing else is run in its place.
    """

    exit_code = 4


class TrialsFailed(LowbitVitError):
    """A study finished but some of its trials did not succeed; the message names them. Exit code 5."""

    exit_code = 5


class OutOfTolerance(LowbitVitError):
    """A run does not repeat its reference; the message names what is off. Exit code 1, as of a test that fails."""

    exit_code = 1


class Busy(LowbitVitError):
    """Another run holds the folder, or another process the device. Exit code 6."""

    exit_code = 6


@contextmanager
def reading(path: Path, what: str, advice: str) -> Iterator[None]:
    """Around a library that reads a file which people bring: whatever it raises is one line that names the file.

    Args:
        path: the file.
        what: what it is not; the library's first line follows in brackets.
        advice: what to do.

    Raises:
        DataError: in place of any other exception.
    """
    try:
        yield
    except LowbitVitError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from error
    except Exception as error:
        raise DataError(f"{path}: {what} ({first_line(error)}); {advice}") from error
