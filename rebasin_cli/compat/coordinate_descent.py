"""Classes that permute one module in memory to match another one, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rebasin_cli.compat.lines import loader_source
from rebasin_cli.compat.modules import ModuleAlignment, align_modules, first_input, recalibrate
from rebasin_cli.errors import UsageError
from rebasin_cli.matching.methods import weight
from rebasin_cli.matching.plan import Effort
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state, parameter_keys, state_tensors
from rebasin_cli.permutation import apply
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model


class PermutationCoordinateDescent:
    """Permutes the units of `model_b` to match `model_a`; its function does not change.

    Args:
        model_a: the reference; not modified.
        model_b: of the same architecture; changed in place by `rebasin`.
        input_data: an input of the model, or a tuple of its positional inputs.
        effort: search effort: `fast`, `standard`, `thorough` or `auto`.
        seed: random seed.

    Attributes:
        spec: the axis groups.
        result: the matching; None before `rebasin` was called.

    Raises:
        ModelError: the model does not run on this input.
    """

    def __init__(
        self, model_a: nn.Module, model_b: nn.Module, input_data: Any, *, effort: Effort = "auto", seed: int = 0
    ) -> None:
        self.model_a, self.model_b = model_a, model_b
        self.effort, self.seed = effort, seed
        args = tuple(input_data) if isinstance(input_data, (list, tuple)) else (input_data,)
        self.spec: PermutationSpec = derive(trace_model(model_b, ExampleInput(args, {}))).spec
        self.result: MatchResult | None = None

    def rebasin(self) -> MatchResult:
        """Find the permutations and apply them to `model_b`, parameters and buffers alike.

        Raises:
            ModelError: the models have different tensors.
            NumericalError: a weight is not finite.
        """
        a, b = (
            {key: tensor.detach() for key, tensor in state_tensors(model).items()}
            for model in (self.model_a, self.model_b)
        )
        found = search(self.spec, a, b, parameters=parameter_keys(self.model_b), effort=self.effort, seed=self.seed)
        self.result = replace(found, method=weight.METHOD.name)
        trained = {key: tensor.requires_grad for key, tensor in self.model_b.named_parameters()}
        load_state(self.model_b, apply(self.spec, self.result.permutations, b))
        for key, parameter in self.model_b.named_parameters():
            parameter.requires_grad_(trained[key])
        return self.result


class PermuteColumns:
    """Permutes the units of `model_b`, rows and columns alike, then re-estimates its running statistics.

    Args:
        model_a: the reference; not modified.
        model_b: of the same architecture; changed in place by `permute`.
        train_dataloader: batches `(inputs, …)`. `permute` runs `model_b` on all of them, so that layers with running
            statistics (BatchNorm) have those of these data; LayerNorm has none. None: the statistics move with their
            units, and are exact as they are.
        permutations: those to apply, by group name, such as `PermutationCoordinateDescent(…).rebasin().permutations`;
            None to match `model_b` to `model_a` by weights.
        input_data: an input of the model, or a tuple of its positional inputs; None: the first batch's.

    Attributes:
        alignment: after `permute`, the matching and its verification.

    Raises:
        UsageError: neither `train_dataloader` nor `input_data`.
    """

    def __init__(
        self,
        model_a: nn.Module,
        model_b: nn.Module,
        train_dataloader: Iterable[Any] | None = None,
        permutations: Mapping[str, Tensor] | None = None,
        input_data: Any = None,
        *,
        effort: Effort = "auto",
        seed: int = 0,
    ) -> None:
        if train_dataloader is None and input_data is None:
            raise UsageError("PermuteColumns needs train_dataloader or input_data: the model is run on an input")
        self.model_a, self.model_b, self.permutations = model_a, model_b, permutations
        self.effort, self.seed = effort, seed
        self.source = None if train_dataloader is None else loader_source(train_dataloader, "train_dataloader")
        self.input_data = input_data
        self.alignment: ModuleAlignment | None = None

    def permute(self) -> ModuleAlignment:
        """Permute `model_b` in place, and re-estimate its running statistics.

        Raises:
            ModelError: the models have different tensors, or do not run.
            NumericalError: a weight is not finite, or the function has changed.
        """
        example = first_input(self.source) if self.input_data is None else self.input_data
        self.alignment = align_modules(
            self.model_a,
            self.model_b,
            example,
            permutations=self.permutations,
            effort=self.effort,
            seed=self.seed,
            in_place=True,
        )
        if self.source is not None:
            recalibrate(self.model_b, self.source)
        return self.alignment
