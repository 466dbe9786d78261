"""What the demonstration says before and after its commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from rebasin_cli.report.layout import cell
from rebasin_cli.report.text import seconds, share, shell


def opening(directory: Path, accuracies: Sequence[float]) -> Group:
    """Where it happens and what was trained."""
    reached = " and ".join(share(accuracy) for accuracy in accuracies)
    return Group(
        cell(f"In {directory}:"),
        cell("two networks of one architecture (net.py), trained from different seeds on"),
        cell(f"handwritten digits. They read {reached} of 500 images that they"),
        cell("have not seen. Each has its own order of hidden units, so their weights cannot"),
        cell("simply be averaged; reordered, they nearly can."),
    )


def closing(directory: Path, took: float) -> Group:
    """Where to go on."""
    return Group(
        Text(""),
        cell(f"That took {seconds(took)}. To go on: {shell(['cd', directory])}"),
    )
