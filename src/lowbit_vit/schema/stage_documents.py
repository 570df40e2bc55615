"""Reading what a stage made: the same answers wherever it is missing or damaged, with the verb that makes it. No torch."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import one_line

Document = TypeVar("Document")


def read_stage_document(path: Path, document: TypeAdapter[Document], *, advice: str) -> Document:
    """Read a JSON document.

    Args:
        path: of the file.
        document: what it must hold.
        advice: the command that makes it, such as "run lowbit-vit estimate demo".

    Raises:
        DataError: it is missing, damaged or not to be read; the message ends with the advice.
    """
    try:
        return document.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror}); {advice} again") from error
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; {advice} again") from None
