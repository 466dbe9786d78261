"""`Rebasin`: align several modules to one, then evaluate the line through all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.compat.lines import Interpolation, loader_source
from rebasin_cli.compat.modules import ModuleAlignment, align_modules, first_input
from rebasin_cli.errors import UsageError
from rebasin_cli.interpolation.sweep import SweepPoint

METHODS = {"weight": "weight", "activation": "activation", "straight through": "learned"}
"""The names of the planned class, and those of `rebasin help methods`."""


class Rebasin:
    """Aligns models to a target, and interpolates between them.

    Args:
        model_target: the reference; not modified.
        models: of the same architecture; changed in place by `rebasin`.
        train_dataloader: batches `(inputs, class numbers)`. Activation matching and the straight-through estimator
            run on them, and the running statistics of interpolated networks are re-estimated on them.
        val_dataloader: the same, for the evaluation.

    Attributes:
        alignments: after `rebasin`, the matching of each model, with its verification.
        results: after `interpolate`, the metric at each point, in order: a float64 vector.
        points, best_model: as in `Interpolation`.

    Raises:
        UsageError: there is no model.
    """

    def __init__(
        self,
        model_target: nn.Module,
        models: Sequence[nn.Module],
        train_dataloader: Iterable[Any],
        val_dataloader: Iterable[Any],
    ) -> None:
        if isinstance(models, nn.Module):
            raise UsageError("models is one module", hint="give a list of modules")
        if not models:
            raise UsageError("models is empty: there is nothing to align")
        self.model_target, self.models = model_target, list(models)
        self.train_dataloader, self.val_dataloader = train_dataloader, val_dataloader
        self.alignments: tuple[ModuleAlignment, ...] = ()
        self.results: Tensor = torch.zeros(len(models) + 1, dtype=torch.float64)
        self.points: tuple[SweepPoint, ...] = ()
        self.best_model: nn.Module | None = None

    def rebasin(self, method: str = "weight") -> None:
        """Permute each model, in place, to match the target; `method` is weight, activation or straight through.

        Raises:
            UsageError: an unknown method.
            NumericalError: a check failed; models that were not reached are unchanged.
        """
        if method not in METHODS:
            raise UsageError(f"method {method!r} is unknown", hint=f"methods are {', '.join(map(repr, METHODS))}")
        example = first_input(loader_source(self.train_dataloader, "train_dataloader"))
        data = None if method == "weight" else self.train_dataloader
        self.alignments = tuple(
            align_modules(self.model_target, model, example, method=METHODS[method], data=data, in_place=True)
            for model in self.models
        )

    def interpolate(
        self,
        savedir: str | Path | None = None,
        save_all: bool = False,
        mode: str = "lerp",
        steps: int = 10,
        metric: str = "accuracy",
    ) -> None:
        """Evaluate the line through the target and the models; see `Interpolation`.

        Args:
            savedir: directory for `.pt` state dicts of the best network, or with `save_all` of every one.
        """
        line = Interpolation(
            [self.model_target, *self.models], self.train_dataloader, self.val_dataloader, savedir, save_all
        )
        line.interpolate(mode, steps, metric)
        self.results, self.points, self.best_model = line.results, line.points, line.best_model
