"""The line between modules in memory, under the names that the library `rebasin` and its plans have for it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, staged_file
from rebasin_cli.data import BatchSource
from rebasin_cli.data.batch_sources import IterableSource
from rebasin_cli.errors import DataError, ModelError, UsageError
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot
from rebasin_cli.execution.recalibration import Recalibration
from rebasin_cli.execution.spectral_norm import spectral_sites
from rebasin_cli.interpolation.line import MODES, Line, Mode, Point, SweepNetworks, grid, sweep_networks
from rebasin_cli.interpolation.sweep import SweepPoint, summarize

EvalMode = Literal["min", "max"]
DeviceLike = str | torch.device


class LineOfModels:
    """The networks on the line through modules of one architecture, loaded into a copy of the first one at a time."""

    def __init__(self, models: Sequence[nn.Module], device: DeviceLike | None, mode: str, steps: int) -> None:
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} is unknown", hint=f"modes are {', '.join(MODES)}")
        chosen: Mode = "slerp" if mode == "slerp" else "lerp"
        points = grid(steps, len(models))
        first = next(iter(models[0].state_dict().values()), torch.empty(0))
        self.slot = ModelSlot(copy.deepcopy(models[0]), torch.device(device or first.device), widen=False)
        states = [{k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)} for model in models]
        for number, state in enumerate(states[1:], 1):
            odd = set(state) ^ set(states[0])
            if odd:
                raise ModelError(f"model {number} and model 0 differ in the tensor {min(odd)!r}")
        parameters = [name for name, _ in models[0].named_parameters(remove_duplicate=False)]
        line = Line(states, mode=chosen, parameters=parameters, spectral=spectral_sites(models[0], states))
        self.networks: SweepNetworks = sweep_networks({"line": line}, points)
        self.adjustments: dict[str, Adjustment] = {}

    def recalibrate(self, train_dataloader: Iterable[Any]) -> None:
        """Re-estimate the BatchNorm statistics of all interpolated networks, in one pass over the loader."""
        source = loader_source(train_dataloader, "train_dataloader")
        recalibration = Recalibration(self.slot, source, self.networks.all, repair=False)
        self.adjustments = recalibration.run(RunningSums())

    def load(self, name: str) -> nn.Module:
        """The module with the weights of this network."""
        self.slot.load(self.networks.by_name[name], self.adjustments.get(name, NO_ADJUSTMENT))
        return self.slot.module.eval()  # the user's function may have changed the mode

    def copy_of(self, name: str) -> nn.Module:
        return copy.deepcopy(self.load(name))

    @property
    def row(self) -> tuple[tuple[Point, str], ...]:
        return self.networks.curves["line"]


class LerpSimple:
    """Linear interpolation between models, evaluated by a function of the user's.

    Args:
        models: two or more of one architecture; none of them is changed.
        devices: one per model; all networks are evaluated on the first. None: the device of the first model.
        eval_fn: `eval_fn(model, device)` or `eval_fn(model)` returns a number for one network.
        eval_mode: `"min"` if lower is better (a loss), `"max"` if higher is better (an accuracy).
        train_dataloader: the BatchNorm statistics of interpolated networks are re-estimated on it.
        savedir: directory for `.pt` state dicts of the best network, or with `save_all` of every one.

    Attributes:
        results: after `interpolate`, the value of `eval_fn` at each point: `{(segment, lam): value}`.
        best_model, best_point, best_value: the network with the best finite value, the given models included.

    Raises:
        UsageError: fewer than two models, `len(devices) != len(models)`, no `eval_fn`, or an unknown `eval_mode`.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        devices: Sequence[DeviceLike] | None = None,
        eval_fn: Callable[..., Any] | None = None,
        eval_mode: EvalMode = "min",
        train_dataloader: Iterable[Any] | None = None,
        savedir: str | Path | None = None,
        save_all: bool = False,
    ) -> None:
        if len(models) < 2:
            raise UsageError(f"{len(models)} model given: need at least two")
        if devices is not None and len(devices) != len(models):
            raise UsageError(f"{len(devices)} devices for {len(models)} models")
        if eval_fn is None:
            raise UsageError("eval_fn is missing: it evaluates each network")
        if eval_mode not in ("min", "max"):
            raise UsageError(f"eval_mode {eval_mode!r} is neither 'min' nor 'max'")
        self.models = tuple(models)
        self.device = None if devices is None else devices[0]
        self.eval_fn = eval_fn
        self.eval_mode: EvalMode = eval_mode
        self.train_dataloader = train_dataloader
        self.savedir = None if savedir is None else Path(savedir)
        self.save_all = save_all
        self.results: dict[tuple[int, float], float] = {}
        self.best_model: nn.Module | None = None
        self.best_point: Point | None = None
        self.best_value = math.inf if eval_mode == "min" else -math.inf

    def interpolate(self, steps: int = 10, mode: str = "lerp") -> dict[tuple[int, float], float]:
        """Evaluate `steps + 1` values of lam on each segment and keep the best network in `best_model`."""
        line = LineOfModels(self.models, self.device, mode, steps)
        if self.train_dataloader is not None:
            line.recalibrate(self.train_dataloader)
        takes_device = _takes_two(self.eval_fn)
        evaluated: dict[str, float] = {}
        for point, name in line.row:
            if name not in evaluated:
                network = line.load(name)
                with torch.no_grad():
                    value = self.eval_fn(network, line.slot.device) if takes_device else self.eval_fn(network)
                evaluated[name] = float(value)
                if self.savedir is not None and self.save_all:
                    save_network(network, self.savedir, point)
                self._keep_best(evaluated[name], point, network)
            self.results[(point.segment, point.lam)] = evaluated[name]
        if self.savedir is not None and not self.save_all and self.best_model is not None and self.best_point:
            save_network(self.best_model, self.savedir, self.best_point)
        return self.results

    def _keep_best(self, value: float, point: Point, network: nn.Module) -> None:
        better = value < self.best_value if self.eval_mode == "min" else value > self.best_value
        if better and math.isfinite(value):
            self.best_value, self.best_point, self.best_model = value, point, copy.deepcopy(network)


class Interpolation:
    """The line through two or more models, evaluated on a loader by loss and accuracy.

    Args:
        models: of one architecture; none of them is changed.
        train_dataloader: the BatchNorm statistics of interpolated networks are re-estimated on it; None: they are
            interpolated.
        val_dataloader: batches `(inputs, class numbers)`.
        savedir: directory for `.pt` state dicts of the best network, or with `save_all` of every one.

    Attributes:
        results: after `interpolate`, the metric at each point, in order: a float64 vector.
        points: loss, accuracy and top-5 at each point. best_model: the network with the best metric.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        train_dataloader: Iterable[Any] | None,
        val_dataloader: Iterable[Any],
        savedir: str | Path | None = None,
        save_all: bool = False,
    ) -> None:
        if len(models) < 2:
            raise UsageError(f"{len(models)} model given: need at least two")
        self.models = tuple(models)
        self.train_dataloader = train_dataloader
        self.val_dataloader = val_dataloader
        self.savedir = None if savedir is None else Path(savedir)
        self.save_all = save_all
        self.results = torch.zeros(len(self.models), dtype=torch.float64)
        self.points: tuple[SweepPoint, ...] = ()
        self.best_model: nn.Module | None = None

    def interpolate(self, mode: str = "lerp", steps: int = 10, metric: str = "accuracy") -> None:
        """Evaluate `steps + 1` networks on each segment; `metric` is `"accuracy"` or `"loss"`."""
        if metric not in ("accuracy", "loss"):
            raise UsageError(f"metric {metric!r} is neither 'accuracy' nor 'loss'")
        line = LineOfModels(self.models, None, mode, steps)
        if self.train_dataloader is not None:
            line.recalibrate(self.train_dataloader)
        source = loader_source(self.val_dataloader, "val_dataloader")
        measure, networks = Measure(), line.networks
        sums = evaluate(line.slot, source, networks.all, measure, RunningSums(), adjustments=line.adjustments)
        self.points = summarize(networks, sums).curves["line"]
        found = [point.loss if metric == "loss" else point.accuracy for point in self.points]
        values = [math.nan if value is None else value for value in found]
        self.results = torch.tensor(values, dtype=torch.float64)
        ranked = [value if metric == "loss" else -value for value in values]
        best = min(range(len(ranked)), key=lambda i: (math.isnan(ranked[i]), ranked[i]))
        self.best_model = line.copy_of(line.row[best][1])
        if self.savedir is not None:
            for number, (point, name) in enumerate(line.row):
                if self.save_all or number == best:
                    save_network(line.load(name), self.savedir, point)


def loader_source(loader: Iterable[Any], name: str) -> BatchSource:
    """A loader as numbered batches; an iterator, which can be read only once, is copied to a list."""
    batches = list(loader) if iter(loader) is loader else loader
    source = IterableSource(lambda: batches, batches, limit=None, seed=0, classes=None, origin=name)
    if next(iter(source.batches()), None) is None:
        raise DataError(f"{name}: the loader has no batches")
    return source


def save_network(network: nn.Module, savedir: Path, point: Point) -> Path:
    """Write the state dict to `interpolated-<segment>-<lam>.pt`, atomically."""
    savedir.mkdir(parents=True, exist_ok=True)
    path = savedir / f"interpolated-{point.segment}-{point.lam:.4f}.pt"
    with staged_file(path) as staged:
        torch.save({key: value.cpu() for key, value in network.state_dict().items()}, staged.handle)
        flush_to_disk(staged)
        commit_file(staged, path, force=True)
    return path


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether the function takes a device besides the model; assumed where its signature is unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
