"""The picture of a model as text, by the suffix of the file it goes to.

A picture format is a module in this folder with `SUFFIX` and `draw(graph) -> str`; it is found by these names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.report.graph.build import graph_of
from rebasin_cli.report.graph.model import Graph


def _picture(draw: Callable[[Graph], str], understood: Understanding, title: str) -> str:
    """Draw a model whose pass was recorded; the title stands above the picture."""
    assert understood.trace is not None
    return draw(graph_of(understood.trace, understood.spec, title))


def _drawings() -> Mapping[str, Callable[[Understanding, str], str]]:
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    return {module.SUFFIX: partial(_picture, module.draw) for module in modules if hasattr(module, "SUFFIX")}


DRAWINGS = _drawings()
"""Functions from an understood model and a title to a picture, by suffix."""
