"""A model spec and its arguments -> modules, with weights or without, and the input to run them on."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rebasin_cli.errors import ModelError, UsageError, one_line
from rebasin_cli.model.adaptation import Shapes, adapted_arguments, unshared
from rebasin_cli.model.diffusers_zoo import diffusers_source
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.foreign_code import failed, foreign_code
from rebasin_cli.model.input_guess import candidates, first_accepted
from rebasin_cli.model.loading import Loaded, Loader, Tensors, tolerant_loading
from rebasin_cli.model.model_spec import ModelSpec, check_class_counts, parse_model_spec
from rebasin_cli.model.open_clip_zoo import open_clip_source
from rebasin_cli.model.source import ModelSource, refuse_unknown_arguments, unknown_argument
from rebasin_cli.model.state import Shape, state_shapes
from rebasin_cli.model.timm_zoo import timm_source
from rebasin_cli.model.torchvision_zoo import torchvision_source
from rebasin_cli.model.transformers_zoo import transformers_source
from rebasin_cli.model.user_code import user_source
from rebasin_cli.model.weightless import copied, leaked, weightless_construction, without_weights

# A user's callable may return the same module every time; every build must give a new one.
_handed_out: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class ModelFactory:
    """Makes one model as often as needed; every module is in eval mode and initialised from the same seed."""

    source: ModelSource
    args: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def name(self) -> str:
        """The model spec as the user wrote it."""
        return self.source.name

    def with_args(self, **extra: Any) -> ModelFactory:
        """The same model with further arguments, or with other values of those given."""
        return replace(self, args={**self.args, **extra})

    def build(self) -> nn.Module:
        """A new module, with memory for every parameter.

        Raises:
            ModelError: the code failed, or returned something else than an `nn.Module`.
        """
        module = self._construct()
        if any(parameter.is_meta for parameter in module.parameters()):  # created so by the user's code
            module = _with_memory(module)
        return module.eval()

    def build_weightless(self) -> nn.Module:
        """A module whose parameters are on the meta device: their shapes and dtypes, without memory.

        Buffers are real. If the constructor reads weights, they are allocated while it runs.

        Raises:
            ModelError: as `build`.
        """
        try:
            with weightless_construction():
                module = self._construct()
            needed = leaked(module) is not None
        except ModelError:
            needed = True  # perhaps because there were no values; if not, the same error is raised again below
        if needed:
            module = self._construct()
        return without_weights(module).eval()

    def load(self, loader: Loader, tensors: Tensors, prepare: Callable[[nn.Module], None]) -> Loaded:
        """Run a way of loading on these tensors; keys that are absent, unknown or of other shape do not stop it.

        Args:
            prepare: called with each module before tensors are loaded into it.
        """
        quiet = self.source.root is None
        with foreign_code(self.seed, quiet=quiet), tolerant_loading(prepare) as seen, torch.no_grad():
            return seen.of(loader(self.build_weightless, tensors))

    def example_input(self, module: nn.Module | None = None) -> ExampleInput:
        """The input known for this model, or else the first guess that the module accepts.

        Raises:
            ModelError: none is known and no guess is accepted; the hint is to pass `--input`.
        """
        module = self.build_weightless() if module is None else module
        known = self.source.example(module, self.seed)
        if known is not None:
            return known
        guess, error = first_accepted(module, self.seed)
        if guess is not None:
            return guess
        seen = f"; the likeliest guess failed: {one_line(error)}" if error else ""
        raise ModelError(
            f"cannot infer an input shape for {self.name}{seen}",
            hint="pass it with --input, for example --input 1,3,224,224 or --input ids=1,16:int64",
            slug="unknown-input",
        )

    def input_candidates(self, module: nn.Module) -> tuple[ExampleInput, ...]:
        """The known inputs, or every guess in order; for callers that try them themselves."""
        return self.source.examples(module, self.seed) or candidates(module, self.seed)

    def adapt_to(self, shapes: Mapping[str, Shape]) -> tuple[ModelFactory, str | None]:
        """This factory with the class count and auxiliary parts of a checkpoint, and a sentence about the change.

        Unchanged, with None, if nothing differs, if the argument was given, or if a class count explains only a part
        of the differences.
        """
        args, said = adapted_arguments(self.source, self.args, shapes, self._shapes_with)
        if said is None and self.source.class_count_names():
            arrived = self._arriving(shapes)
            if arrived:
                args, said = adapted_arguments(
                    self.source, self.args, {**(self._shapes_with(self.args) or {}), **arrived}, self._shapes_with
                )
        return (self if said is None else replace(self, args=args)), said

    def _arriving(self, shapes: Mapping[str, Shape]) -> Shapes:
        """The shapes in which tensors arrive in the module, where its loader renames them and their sizes differ."""
        own = self._shapes_with(self.args) or {}
        if not unshared(own, shapes):
            return {}
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        for loader in self.source.loaders(self.args):
            try:
                with foreign_code(self.seed, quiet=self.source.root is None), tolerant_loading() as seen:
                    loader(self.build_weightless, dict(tensors))
            except Exception:  # it wants values; the loading itself will tell
                continue
            if seen.mismatched:
                return seen.mismatched
        return {}

    def _shapes_with(self, args: Mapping[str, Any]) -> Shapes | None:
        """The shapes of the model with these arguments; None if they are not the factory's own and it fails."""
        try:
            return state_shapes(replace(self, args=args).build_weightless())
        except ModelError:
            if args == self.args:
                raise
            return None

    def _construct(self) -> nn.Module:
        """Call the source, check what it raises and returns, and make sure that the result is not shared."""
        refuse_unknown_arguments(self.name, self.source.signature(), self.args)
        try:
            with foreign_code(self.seed, quiet=self.source.root is None):
                made = self.source.construct(self.args)
        except (Exception, SystemExit) as error:
            raise self._explained(error) from error
        if not isinstance(made, nn.Module):
            raise ModelError(
                f"{self.name} returned {_type_name(made)}, not an nn.Module",
                path=self.source.root,
                hint=_hint_for(made),
                slug="not-a-module",
            )
        if made in _handed_out:
            made = copied(made)
        _handed_out.add(made)
        return made

    def _explained(self, error: BaseException) -> Exception:
        """The error for an exception of the constructor, with its arguments."""
        if isinstance(error, TypeError):
            match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if match and match[1] in self.args:
                signature = self.source.signature()
                return unknown_argument(self.name, match[1], list(signature.parameters) if signature else [])
        given = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        return failed(f"{self.name} with {given}" if given else self.name, error, self.source.root)


def load_factory(
    text: str, model_args: Mapping[str, Any] | None = None, *, seed: int = 0, trust_remote_code: bool = False
) -> ModelFactory:
    """Find the model that a spec names.

    Args:
        trust_remote_code: run Python code that lies in a directory of transformers.

    Raises:
        ModelError: the spec, the name or the user's code cannot be used.
        UsageError: an argument has an impossible value.
        ResourceError: the zoo's package is absent or broken.
    """
    args = dict(model_args or {})
    check_class_counts(args)
    spec = parse_model_spec(text)
    if not trust_remote_code:
        return ModelFactory(_source(spec), args, seed)
    if spec.kind != "transformers":
        raise UsageError("--trust-remote-code has no effect: it is for directories of transformers")
    return ModelFactory(transformers_source(spec.text, spec.target, trust_remote_code=True), args, seed)


_ZOOS: Mapping[str, Callable[[str, str], ModelSource]] = {
    "torchvision": torchvision_source,
    "timm": timm_source,
    "open_clip": open_clip_source,
    "transformers": transformers_source,
    "diffusers": diffusers_source,
}


def _source(spec: ModelSpec) -> ModelSource:
    return _ZOOS[spec.kind](spec.text, spec.target) if spec.kind in _ZOOS else user_source(spec)


def published_source(text: str) -> ModelSource | None:
    """The source of a zoo's model, which may have published weights; None if the text names the user's code."""
    try:
        spec = parse_model_spec(text)
    except ModelError:
        return None
    return _source(spec) if spec.kind in _ZOOS else None


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _hint_for(value: object) -> str:
    if isinstance(value, tuple) and any(isinstance(item, nn.Module) for item in value):
        return "return the module alone, not in a tuple"
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"return an instance, {value.__name__}(), not the class"
    if isinstance(value, Mapping):
        return "a state dict is a checkpoint; --model names the code that builds the module"
    return "name a callable that takes no required arguments and returns the module"


def _with_memory(module: nn.Module) -> nn.Module:
    """A copy with real parameters in place of meta ones: small seeded normal values, ties kept."""
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if parameter.is_meta:
            values = torch.empty(parameter.shape, dtype=parameter.dtype)
            if parameter.is_floating_point():
                values.normal_(0, 0.02, generator=generator)
            else:
                values.zero_()
            memo[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    return copied(module, memo)
