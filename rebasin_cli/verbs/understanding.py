"""From a model to its permutation spec: by tracing it, or from a file that the user names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.trace.graph import Trace
from rebasin_cli.trace.tracer import trace_model
from rebasin_cli.verbs.subject import ModelChoice, Subject, example_for


@dataclass(frozen=True, slots=True)
class Understanding:
    """What moves together in a model. `trace` and `derivation` are None where the spec came from a file."""

    spec: PermutationSpec
    example: ExampleInput
    free_fraction: float
    trace: Trace | None = None
    derivation: Derivation | None = None

    @property
    def unknown_ops(self) -> tuple[str, ...]:
        """One sentence for each operation that no rule understands."""
        if self.derivation is None:
            return ()
        return tuple(f"{unknown.op} in {unknown.scope or 'the model'}" for unknown in self.derivation.unknown_ops)


def understand(
    subject: Subject,
    choice: ModelChoice,
    *,
    spec_file: Path | None = None,
    pins: Sequence[str] = (),
    strict: bool = False,
) -> Understanding:
    """Find the axis groups of the model.

    Args:
        spec_file: read the spec from this file instead of tracing.
        pins: patterns of tensor names whose axes all keep their order.
        strict: an operation that no rule understands is an error.

    Raises:
        ModelError: the model does not run, the spec does not fit it, or `strict` is violated.
    """
    example = example_for(choice, subject)
    if spec_file is not None:
        spec = read_spec(spec_file)
        spec.check(subject.shapes)
        return Understanding(spec, example, free_fraction(spec, subject))
    trace = trace_model(subject.module, example, with_numbers=subject.factory.build)
    derivation = derive(trace, pins=tuple(pins))
    understanding = Understanding(derivation.spec, example, derivation.free_fraction, trace, derivation)
    if strict and understanding.unknown_ops:
        raise ModelError(
            f"{choice.spec}: no rule for {understanding.unknown_ops[0]}",
            hint="without --strict, what it touches keeps its order",
            slug="unknown-op",
        )
    return understanding


def read_spec(path: Path) -> PermutationSpec:
    """Read a spec file.

    Raises:
        ModelError: it cannot be read, or is not a spec.
    """
    try:
        return PermutationSpec.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: the spec cannot be read: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: a spec is JSON text, and this is not text", path=path) from error
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", path=path, hint=error.hint) from error


def free_fraction(spec: PermutationSpec, subject: Subject) -> float:
    """Share of the parameters' elements that at least one group of more than one unit moves."""
    elements: dict[str, int] = {key: prod(subject.shapes[key]) for key in subject.parameters}
    moved = _moved_keys(spec)
    total = sum(elements.values())
    return sum(count for key, count in elements.items() if key in moved) / total if total else 0.0


def _moved_keys(spec: PermutationSpec) -> Collection[str]:
    return {site.key for group in spec.groups if group.size > 1 for site in group.sites}
