"""From a model to its permutation spec: by tracing it, or from a file that the user names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from rebasin_cli.errors import ModelError, RebasinError, UsageError, did_you_mean
from rebasin_cli.execution.narrowing import without_groups
from rebasin_cli.execution.subject import ModelChoice, Subject, example_for, passes_for
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.analysis import ASKED
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.symmetry.user_rules import user_rules
from rebasin_cli.tracing.graph import Trace
from rebasin_cli.tracing.passes import ONE_PASS, Passes
from rebasin_cli.tracing.tracer import trace_model

NOT_VERIFIED = "the verification of its group failed"


@dataclass(frozen=True, slots=True)
class Understanding:
    """What moves together in a model.

    Where the spec came from a file, `derivation` is None, and so is `trace` unless it was asked for. `passes` are those
    that were traced together; within `passes.joined(module)` a module runs all of them on `example`. `given_up` names
    the groups that were derived and did not stand the verification. `spec` is of permutations alone; `given` is the
    file's with its classes, and `settled` what was verified of them.
    """

    spec: PermutationSpec
    example: ExampleInput
    free_fraction: float
    trace: Trace | None = None
    derivation: Derivation | None = None
    unused_rules: tuple[str, ...] = ()
    passes: Passes = ONE_PASS
    given_up: tuple[str, ...] = ()
    given: PermutationSpec | None = None
    settled: PermutationSpec | None = None

    @property
    def classified(self) -> PermutationSpec:
        """The spec with the classes of the groups: verified ones if they were, else as given or derived."""
        if self.settled is not None:
            return self.settled
        found = self.given
        if found is None:
            found = self.spec if self.derivation is None else self.derivation.classified
        return without_groups(found, self.given_up, NOT_VERIFIED) if self.given_up else found

    @property
    def unknown_ops(self) -> tuple[str, ...]:
        """One sentence for each operation that no rule understands."""
        if self.derivation is None:
            return ()
        return tuple(f"{unknown.op} in {unknown.scope or 'the model'}" for unknown in self.derivation.unknown_ops)

    @property
    def unreached(self) -> tuple[str, ...]:
        """Tensors of the model of which the traced passes read no number; none are known where nothing was traced."""
        return () if self.trace is None else unreached(self.trace)


def unreached(trace: Trace) -> tuple[str, ...]:
    """Tensors of more than one element of which the trace reads no number."""
    read = trace.numbers_read
    return tuple(key for key, value in trace.state.items() if value not in read and prod(trace.values[value].shape) > 1)


def understand(
    subject: Subject,
    choice: ModelChoice,
    *,
    spec_file: Path | None = None,
    pins: Sequence[str] = (),
    strict: bool = False,
    with_trace: bool = False,
    rules: Sequence[Path] = (),
    cautious: bool = False,
) -> Understanding:
    """Find the axis groups of the model.

    Besides the forward pass, what `choice` names is traced, and the pass in training mode where it reads what no other
    does.

    Args:
        spec_file: read the spec from this file instead of tracing.
        pins: patterns of tensor names whose axes all keep their order.
        strict: an operation that no rule understands is an error.
        cautious: as for `derive`.
        with_trace: trace the model also where the spec comes from a file.
        rules: the user's files with rules for their own operations.

    Raises:
        UsageError: a pattern matches no tensor, or a file of rules is absent.
        ModelError: the model does not run, the spec does not fit it, a user's rule fails, or `strict` is violated.
    """
    _check_pins(pins, subject)
    first = example_for(choice, subject)
    passes = passes_for(choice, subject, first)
    example = passes.example(first)
    if spec_file is not None:
        spec = read_spec(spec_file)
        spec.check(subject.shapes)
        given = with_pins(spec, pins)
        spec = given.permutable
        traced, passes = _traced(subject, example, passes) if with_trace else (None, passes)
        return Understanding(spec, example, free_fraction(spec, subject), traced, passes=passes, given=given)
    with user_rules(rules) as own:
        trace, passes = _traced(subject, example, passes)
        derivation = derive(trace, pins=tuple(pins), cautious=cautious)
    understanding = Understanding(
        derivation.spec, example, derivation.free_fraction, trace, derivation, own.unused, passes
    )
    if strict and understanding.unknown_ops:
        raise ModelError(
            f"{choice.spec}: no rule for {understanding.unknown_ops[0]}",
            hint="give a rule with --rules; without --strict, the axes it touches are not permuted",
            slug="unknown-op",
        )
    return understanding


def _traced(subject: Subject, example: ExampleInput, passes: Passes) -> tuple[Trace, Passes]:
    """The trace of the passes, and of one in training mode where that reads parameters that the others do not."""
    build = subject.factory.build
    trace = trace_model(subject.module, example, with_numbers=build, passes=passes)
    left = set(unreached(trace)) & trace.trainable
    if not left or passes.training:
        return trace, passes
    more = replace(passes, training=True)
    try:
        both = trace_model(subject.module, example, with_numbers=build, passes=more)
    except RebasinError:  # in training mode it wants labels, or another input
        return trace, passes
    return (both, more) if left - set(unreached(both)) else (trace, passes)


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


def _check_pins(pins: Sequence[str], subject: Subject) -> None:
    for pattern in pins:
        if not any(fnmatchcase(key, pattern) for key in subject.shapes):
            raise UsageError(
                f"--pin {pattern}: the model has no such tensor{did_you_mean(pattern, subject.shapes)}",
                hint="patterns are matched against whole names: 'head.*', '*.bias'",
                slug="no-such-tensor",
            )


def with_pins(spec: PermutationSpec, pins: Sequence[str]) -> PermutationSpec:
    """The spec without the groups that move a tensor whose name matches; what lay in their blocks lies one level up."""
    held = {
        group.name
        for group in spec.groups
        if any(fnmatchcase(site.key, pattern) for site in group.sites for pattern in pins)
    }
    return without_groups(spec, held, ASKED)


def free_fraction(spec: PermutationSpec, subject: Subject) -> float:
    """Share of the parameters' elements that at least one group of more than one unit moves."""
    elements: dict[str, int] = {key: prod(subject.shapes[key]) for key in subject.parameters}
    moved = _moved_keys(spec)
    total = sum(elements.values())
    return sum(count for key, count in elements.items() if key in moved) / total if total else 0.0


def _moved_keys(spec: PermutationSpec) -> Collection[str]:
    return {site.key for group in spec.groups if group.size > 1 for site in group.sites}
