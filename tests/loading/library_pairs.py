"""Pairs of networks, saved as a library saves them, and how the library loads what was written from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.checkpoint import open_checkpoint
from rebasin_cli.errors import RebasinError, one_line
from rebasin_cli.execution.forward import call
from rebasin_cli.execution.pair import file_shapes
from rebasin_cli.execution.subject import ModelChoice, example_for, open_subject
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.input_guess import refusal
from rebasin_cli.model.source import import_optional
from rebasin_cli.model.transformers_inputs import transformers_inputs
from rebasin_cli.verbs.align import AlignOptions, run_align
from tests.loading.small_configs import small

MOST_PARAMETERS = 20_000_000
TASKS = ("CAUSAL_LM", "IMAGE_CLASSIFICATION", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM")
CLOSE = 1e-9
"""Largest difference of outputs in float64, relative to the largest output."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Two networks of one type.

    Args:
        name: library and type.
        needs: the package.
        make: a network, initialised from a seed.
        save: writes it as the library does, or did; returns the checkpoint.
        load: a network with the tensors of a checkpoint, by the library.
        spec: the model spec for a saved checkpoint.
        args: of the model.
        most: the number of parameters above which it is left out.
    """

    name: str
    needs: str
    make: Callable[[int], nn.Module]
    save: Callable[[nn.Module, Path], Path]
    load: Callable[[Tensors], nn.Module]
    spec: Callable[[Path], str]
    args: dict[str, Any] = field(default_factory=dict)
    most: int = MOST_PARAMETERS


@dataclass(frozen=True)
class Outcome:
    """What became of a pair.

    Args:
        kind: `same`; `not small` or `not built`; `not traced`; `nothing moves`; `failed`; `rounding` where B's own
            outputs change as much under one rounding of its weights.
        reason: why it is not `same`.
        layout: `renamed` where the file's keys are not the module's.
    """

    kind: str
    reason: str = ""
    layout: str = ""
    moved: int = 0
    units: int = 0
    error: float | None = None


def round_trip(pair: Pair, folder: Path) -> Outcome:
    """Align the two networks of a pair, and load the result by the library."""
    try:
        saved = []
        for seed, name in enumerate("ab"):
            network = noisy(pair.make(seed), seed)
            if sum(p.numel() for p in network.parameters()) > pair.most:
                return Outcome("not small", f"{sum(p.numel() for p in network.parameters()):,} parameters")
            saved.append(pair.save(network, folder / name))
        keys = set(network.state_dict())
        b = read(saved[1])
        original = pair.load(dict(b))
    except Exception as error:  # the library's own code
        return Outcome("not built", one_line(error)[:150])
    layout = "own" if set(b) <= keys else "renamed"
    choice = ModelChoice(pair.spec(saved[0]), pair.args)
    try:
        subject = open_subject(choice, file_shapes(open_checkpoint(saved[1])))
        example = example_for(choice, subject)
        before = _outputs(original, example)
    except Exception as error:
        return Outcome("not traced", one_line(error)[:150], layout)
    out = folder / f"out{saved[1].suffix}"
    try:
        options = AlignOptions(
            saved[0], saved[1], out=out, model=choice.spec, model_args=pair.args, effort="fast", cache=False
        )
        result = run_align(options)
    except RebasinError as error:
        untraced = "forward pass" in error.message or "not accept" in error.message
        return Outcome("not traced" if untraced else "failed", error.message[-150:], layout)
    written = read(out)
    if list(written) != list(b) or any(written[k].shape != b[k].shape or written[k].dtype != b[k].dtype for k in b):
        return Outcome("failed", "other keys, shapes or dtypes than B's", layout)
    after = _outputs(pair.load(dict(written)), example)
    error = _difference(before, after)
    counts = {"layout": layout, "moved": result.moved_units, "units": result.units, "error": error}
    if not error < CLOSE and result.verified.noise_floor is not None and result.verified.noise_floor > CLOSE:
        return Outcome("rounding", "one rounding of B's weights changes which queries are chosen", **counts)
    if not error < CLOSE:
        return Outcome("failed", "another function than B's", **counts)
    if not result.moved_units:
        return Outcome("nothing moves", "", **counts)
    return Outcome("same", "", **counts)


def noisy(network: nn.Module, seed: int) -> nn.Module:
    """Every parameter moved at random: initial zeros and ones would hide tensors that are not permuted."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def read(path: Path) -> Tensors:
    """All tensors of a checkpoint, by an own reader of the format."""
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors"))))
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    from safetensors.torch import load_file

    return dict(load_file(path))


@torch.no_grad()
def _outputs(network: nn.Module, example: ExampleInput) -> list[Tensor]:
    found = call(network.double().eval(), example)
    return [value for value in found if value.is_floating_point()]


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    if len(before) != len(after) or not before:
        return float("inf")
    largest = max(float(value.abs().max()) for value in before if value.numel()) or 1.0
    return max(float((x - y).abs().max()) / largest for x, y in zip(before, after, strict=True) if x.numel())


def transformers_pairs() -> Iterator[Pair]:
    """Every model type that has a model."""
    package = import_optional("transformers", "transformers")
    for model_type in sorted(package.CONFIG_MAPPING.keys()):
        try:
            config = package.CONFIG_MAPPING[model_type]
            classes = _classes_for(package, config)
        except Exception:  # a part of another type, or one that needs a package of its own
            continue
        if classes:
            yield transformers_pair(model_type, classes, config)


def _classes_for(package: Any, config: Any) -> tuple[Any, ...]:
    """The classes that the library has for a type, by its own tables; first those with a head."""
    found = []
    for mapping in (*(f"MODEL_FOR_{task}_MAPPING" for task in TASKS), "MODEL_MAPPING", "MODEL_FOR_BACKBONE_MAPPING"):
        known = getattr(package, mapping)
        if config in known:
            built = known[config]
            found += built if isinstance(built, (tuple, list)) else [built]
    return tuple(dict.fromkeys(found))


def transformers_pair(model_type: str, classes: tuple[Any, ...], config_class: Any, **changes: Any) -> Pair:
    """Two networks of the first class that builds small and runs, saved by `save_pretrained`."""

    @cache
    def chosen() -> tuple[Any, Any]:
        errors: list[Exception] = []
        for refuse in (True, False):
            for built in classes:
                try:
                    config = small(config_class, partial(_is_small, built, errors=errors, runs=refuse), **changes)
                except Exception as error:
                    errors.append(error)
                    continue
                if _is_small(built, config, errors=errors, runs=refuse):
                    return built, config
        raise errors[0]

    def make(seed: int) -> nn.Module:
        built, config = chosen()
        torch.manual_seed(seed)
        return built._from_config(config)  # type: ignore[no-any-return]

    def save(network: Any, folder: Path) -> Path:
        network.save_pretrained(folder)
        return folder

    def load(tensors: Tensors) -> nn.Module:
        built, config = chosen()
        found, told = built.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
        assert not told["missing_keys"], told["missing_keys"]
        return found  # type: ignore[no-any-return]

    return Pair(f"transformers:{model_type}", "transformers", make, save, load, lambda a: f"transformers:{a}")


def _is_small(built: Any, config: Any, *, errors: list[Exception], runs: bool) -> bool:
    """Whether the class builds from the configuration, is small, and takes an input of the right shapes."""
    try:
        with torch.device("meta"):
            network = built._from_config(deepcopy(config))
        size = sum(parameter.numel() for parameter in network.parameters())
        if size > MOST_PARAMETERS:
            raise ValueError(f"{size:,} parameters")
    except Exception as error:
        errors.append(error)
        return False
    return not runs or any(refusal(network, example) is None for example in transformers_inputs(network, 0))
