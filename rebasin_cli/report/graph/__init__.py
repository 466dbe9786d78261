"""The picture of a model as text, by the suffix of the file it goes to."""

from __future__ import annotations

from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.report.graph.build import graph_of
from rebasin_cli.report.graph.dot import dot
from rebasin_cli.report.graph.mermaid import mermaid
from rebasin_cli.report.graph.svg import svg

FORMATS = {".svg": svg, ".dot": dot, ".mmd": mermaid}


def picture(understood: Understanding, title: str, suffix: str) -> str:
    """Draw a model whose pass was recorded.

    Args:
        understood: with its trace.
        title: what stands above the picture.
        suffix: `.svg`, `.dot` (Graphviz) or `.mmd` (Mermaid).
    """
    assert understood.trace is not None
    return FORMATS[suffix](graph_of(understood.trace, understood.spec, title))
