"""What a stage made is read, or one line says what is wrong with it and what to run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lowbit_vit.errors import DataError
from lowbit_vit.schema.stage_documents import read_stage_document

NUMBERS = TypeAdapter(tuple[int, ...])
ADVICE = "run lowbit-vit estimate demo"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "made.json"
    made.write_text("[1, 2]")
    return made


def test_what_was_made_is_read(path: Path) -> None:
    assert read_stage_document(path, NUMBERS, advice=ADVICE) == (1, 2)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, f"no such file; {ADVICE}"),
        (folder_instead, f"could not be read (Is a directory); {ADVICE} again"),
        (lambda path: path.write_text("[1,"), f"; {ADVICE} again"),
        (lambda path: path.write_text('["x"]'), f"; {ADVICE} again"),
    ],
    ids=["missing", "a folder", "cut short", "of another kind"],
)
def test_what_cannot_be_read_is_answered_with_the_verb_that_makes_it(path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(path)
    with pytest.raises(DataError) as raised:
        read_stage_document(path, NUMBERS, advice=ADVICE)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert said.endswith(message)
    assert "\n" not in said
