"""What the demonstration says before and after its commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rebasin_cli.report.layout import Document, document, text
from rebasin_cli.report.text import seconds, share, shell


def opening(directory: Path, accuracies: Sequence[float]) -> Document:
    """The directory, and what was trained."""
    reached = " and ".join(share(accuracy) for accuracy in accuracies)
    return document(
        text(
            f"Directory: {directory}",
            "Two networks of one architecture (net.py), trained from different seeds on handwritten",
            f"digits. Their accuracy on 500 held-out images is {reached}.",
            "The commands below align the second to the first, and measure the networks on the line",
            "between them before and after: the middle of that line is the average of their weights.",
        )
    )


def closing(directory: Path, took: float) -> Document:
    """What to type next."""
    return document(text("", f"Done in {seconds(took)}. To continue: {shell(['cd', directory])}"))
