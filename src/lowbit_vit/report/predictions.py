"""What a model says of images, for a terminal and for a pipe."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

Prediction = tuple[str, Sequence[tuple[str, float]]]  # an image, and its most likely classes with their probabilities


def prediction_table(predictions: Sequence[Prediction]) -> Table:
    """One line an image: its most likely classes with their probabilities in percent, best first."""
    table = Table()
    table.add_column("image", overflow="fold")
    for rank in range(1, 1 + max(len(classes) for _, classes in predictions)):
        table.add_column(f"{rank}", overflow="fold")
    for image, classes in predictions:
        table.add_row(Text(image), *(Text(f"{name} {100 * probability:.1f} %") for name, probability in classes))
    return table


def prediction_lines(predictions: Sequence[Prediction]) -> str:
    """One line an image, by tabs: the image, then each class and its probability."""
    lines = ("\t".join([image, *(f"{name}\t{probability:.6f}" for name, probability in classes)]) for image, classes in predictions)
    return "".join(f"{line}\n" for line in lines)
