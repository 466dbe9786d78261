"""The names of models as a report; a module of its own, so that listing names does not import torch."""

from __future__ import annotations

from rebasin_cli.report.layout import Document, document, text
from rebasin_cli.verbs.models import ModelsResult


def models_table(result: ModelsResult) -> Document:
    """One name per line, so that other programs can read it."""
    return document(text(*result.models, *result.unavailable))
