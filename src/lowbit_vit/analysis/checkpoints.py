"""Checkpoints as versions: which backbones and adapters are there, whole, missing or damaged, by their cards and hashes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from rich.console import Console
from rich.progress import wrap_file

from lowbit_vit.schema.config import Profile, one_line
from lowbit_vit.schema.model_card import ModelCard, weight_files
from lowbit_vit.schema.workspace import Workspace

SHOWN_FROM = 1 << 28  # bytes; hashing less takes no second


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights as it is on disk.

    Attributes:
        file: relative to the project.
        state: `missing` if neither weights nor card are there, `damaged` if they do not fit each other.
        problem: what is wrong and what to do; None if nothing.
        card: None if it is missing or cannot be read.
        size_bytes: of the weights; None if they are missing.
    """

    file: Path
    state: Literal["present", "missing", "damaged"]
    problem: str | None
    card: ModelCard | None
    size_bytes: int | None


def list_checkpoints(profile: Profile, workspace: Workspace) -> list[Checkpoint]:
    """Read the card of every file of weights that the profile has, and hash the file. Needs no torch."""
    return [_look(path, workspace) for path in weight_files(profile, workspace)]


def _look(path: Path, workspace: Workspace) -> Checkpoint:
    file = path.relative_to(workspace.root)
    card_file = path.with_suffix(".json")
    again = f"dvc pull backbone@{workspace.profile}, or dvc repro backbone@{workspace.profile}"
    size = path.stat().st_size if path.is_file() else None
    if size is None and not card_file.is_file():
        return Checkpoint(file=file, state="missing", problem=again, card=None, size_bytes=None)

    def damaged(what: str, card: ModelCard | None = None) -> Checkpoint:
        advice = f"{what}; delete checkpoints/{workspace.profile}, then {again}"
        return Checkpoint(file=file, state="damaged", problem=advice, card=card, size_bytes=size)

    if not card_file.is_file():
        return damaged(f"{card_file.name} is missing")
    try:
        card = ModelCard.model_validate_json(card_file.read_bytes())
    except ValidationError as error:
        return damaged(f"{card_file.name}: {one_line(error)}")
    if size is None:
        return damaged("the card is there, the weights are not", card)
    found = _sha256(path, size)
    if found != card.sha256:
        return damaged(f"sha256 is {found[:16]}, its card says {card.sha256[:16]}", card)
    return Checkpoint(file=file, state="present", problem=None, card=card, size_bytes=size)


def _sha256(path: Path, size: int) -> str:
    title, quiet = f"check {path.name}", size < SHOWN_FROM
    digest = hashlib.sha256()
    with path.open("rb") as raw, wrap_file(raw, size, description=title, console=Console(stderr=True), disable=quiet) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
