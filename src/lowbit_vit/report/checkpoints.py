"""The backbones and adapters of each profile as a table for the terminal. Needs no torch."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lowbit_vit.analysis.checkpoints import Checkpoint
from lowbit_vit.report.cells import number, percent

MIB = 1 << 20


def checkpoint_table(found: Sequence[Checkpoint]) -> Table:
    """One line a file of weights: how it was made, how good it is, its hash, and what is wrong with it."""
    table = Table(caption="Top-1 in fp32; val is no held-out split where it was trained on. Licences are in the .json beside each file.")
    table.caption_justify = "left"
    for heading in ("weights", "made", "val %", "test %", "MiB", "sha256"):
        table.add_column(heading, justify="right" if heading in ("val %", "test %", "MiB") else "left", overflow="fold")
    table.add_column("state", overflow="fold")
    for checkpoint in found:
        card = checkpoint.card
        accuracy = card.accuracy if card is not None and card.accuracy is not None else {}
        tops = [percent(accuracy[split].top1 if split in accuracy else None) for split in ("val", "test")]
        size = None if checkpoint.size_bytes is None else checkpoint.size_bytes / MIB
        made, digest = ("", "") if card is None else (card.made, card.sha256[:16])
        state = checkpoint.state if checkpoint.problem is None else f"{checkpoint.state}: {checkpoint.problem}"
        style = {"present": "green", "missing": "yellow", "damaged": "red"}[checkpoint.state]
        table.add_row(checkpoint.file.as_posix(), Text(made), *tops, number(size), digest, Text(state, style=style))
    return table
