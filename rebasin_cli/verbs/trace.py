"""`trace`: what a model is made of, which units move together, and why the others may not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rebasin_cli.errors import UsageError
from rebasin_cli.options import OptionalPath, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.document import Result, envelope, pretty
from rebasin_cli.verbs.early_checks import check_inputs
from rebasin_cli.verbs.output_paths import check_outputs
from rebasin_cli.verbs.shared_options import MODEL_HELP, Derivation, ModelInput, Seed, Writing

if TYPE_CHECKING:
    from rebasin_cli.execution.soundness import SoundnessCheck
    from rebasin_cli.execution.understanding import Understanding

Drawing = Callable[["Understanding", str], str]
"""From an understood model and its name to the text of a picture."""


@dataclass(frozen=True, slots=True)
class TracedModule:
    """One module, its class, and how often it was called."""

    name: str
    type: str
    calls: int


@dataclass(frozen=True, slots=True)
class UnknownOperation:
    """An operation that no rule understands, and the axes that keep their order because of it."""

    op: str
    scope: str
    pinned_axes: int


@dataclass(frozen=True, slots=True)
class Soundness:
    """Random permutations of every group at once, in float64: how much the outputs moved, relative to their size.

    Args:
        max_relative_error, max_in_noise_floors, noise_floor: the largest difference of any output.
        seed, draws: of the random permutations.
        silent: there was no output, or all of it was zero, so that nothing was shown.
        sizes: the inputs on which they were tried.
        without_power: groups of which a tensor could be left behind without a visible effect.
    """

    max_relative_error: float
    noise_floor: float | None
    seed: int
    silent: bool = False
    max_in_noise_floors: float = 0.0
    draws: int = 0
    sizes: tuple[str, ...] = ()
    without_power: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TraceResult(Result):
    """Field for field the `data` of `rebasin trace --json`; `verified` is None where it was not asked for.

    `spec` has the groups with their classes; `units` are those that are permuted. `verified_classes` is None where no
    group has more than permutations, too.
    """

    model: str
    input: str
    spec: PermutationSpec
    modules: tuple[TracedModule, ...]
    paths: tuple[tuple[str, ...], ...]
    ops: Mapping[str, int]
    unknown_ops: tuple[UnknownOperation, ...]
    units: int
    parameters: int
    free_fraction: float
    verified: Soundness | None
    verified_classes: Soundness | None
    seconds: Mapping[str, float]
    peak_rss_bytes: int | None
    out: Path | None
    warnings: tuple[str, ...]


@options_class
class TraceOptions(ModelInput, Derivation, Writing, Seed):
    """The options of `trace`."""

    model: str = option(MODEL_HELP, group="Model", short="-m", metavar="SPEC", completes="model", kw_only=False)
    out: OptionalPath = option(
        "Output file: .json for the data, .svg, .dot or .mmd for a picture.",
        group="Output",
        short="-o",
        metavar="FILE",
        default=None,
    )
    check: bool = option(
        "Skip the check that the groups keep the function, which runs the model on random weights.",
        group="Model",
        flag="--no-verify",
        default=True,
    )
    drawings: Mapping[str, Drawing] = field(default_factory=dict, repr=False, compare=False)
    progress: Progress | None = field(default=None, repr=False, compare=False)


def run_trace(options: TraceOptions) -> TraceResult:
    """Trace a model, derive its axis groups, and verify them by execution.

    `drawings` are the picture formats by suffix: `rebasin_cli.report.graph.DRAWINGS`.

    Raises:
        ModelError: the model cannot be built or run, or `strict` is violated.
        NumericalError: the groups do not keep the model's function: a rule, or the spec file, is wrong.
        OutputError: an output cannot be written.
    """
    check_inputs(model=options.model, input_file=options.input_file, rules=options.rules, others=(options.spec,))

    from rebasin_cli.checkpoint.atomic import write_text_atomically
    from rebasin_cli.execution.subject import open_subject
    from rebasin_cli.execution.understanding import understand
    from rebasin_cli.verbs.class_verification import class_warnings, settle_classes
    from rebasin_cli.verbs.cost import PhaseClock, peak_rss_bytes
    from rebasin_cli.verbs.networks import model_choice
    from rebasin_cli.verbs.verification import narrows, spec_warnings, verify_groups

    listener = options.progress or Silent()
    clock = PhaseClock("build", "trace", "verify", "classes")
    outputs = {"output": options.out, "spec": options.save_spec}
    wanted = {what: path for what, path in outputs.items() if path is not None}
    suffix = "" if outputs["output"] is None else outputs["output"].suffix
    known = (".json", *options.drawings)
    if outputs["output"] is not None and suffix not in known:
        more = "" if options.drawings else "; pictures need drawings=rebasin_cli.report.graph.DRAWINGS"
        raise UsageError(
            f"{options.out}: unknown format {suffix!r}", hint=f"name a file that ends in {', '.join(known)}{more}"
        )
    check_outputs(wanted, [], force=options.force, mkdir=options.mkdir)
    choice = model_choice(options)
    listener.phase("building")
    with clock.phase("build"):
        subject = open_subject(choice)
    listener.phase("tracing")
    with clock.phase("trace"):
        understood = understand(
            subject,
            choice,
            spec_file=options.spec,
            pins=options.pins,
            rules=options.rules,
            strict=options.strict,
            with_trace=True,
        )
    traced = understood.trace
    assert traced is not None
    verified: Soundness | None = None
    verified_classes: Soundness | None = None
    notes: tuple[str, ...] = ()
    if options.check:
        listener.phase("verifying")
        with clock.phase("verify"):
            understood, soundness = verify_groups(
                subject,
                understood,
                None,
                str(options.spec or options.model),
                seed=options.seed,
                cache=options.cache,
                narrow=narrows(options),
            )
            verified, notes = _in_short(soundness), spec_warnings(soundness, understood.given_up)
        with clock.phase("classes"):
            understood, of_classes, broken = settle_classes(
                subject,
                understood,
                None,
                str(options.spec or options.model),
                seed=options.seed,
                cache=options.cache,
                narrow=narrows(options),
            )
        verified_classes = None if of_classes is None else _in_short(of_classes)
        notes += class_warnings(broken)
    result = TraceResult(
        model=options.model,
        input=understood.example.describe(),
        spec=understood.classified,
        modules=tuple(TracedModule(m.name, m.type, m.calls) for m in traced.modules),
        paths=tuple(tuple(path) for path in traced.paths),
        ops=dict(traced.op_counts),
        unknown_ops=_unknown(understood),
        units=understood.spec.units,
        parameters=subject.elements,
        free_fraction=understood.free_fraction,
        verified=verified,
        verified_classes=verified_classes,
        seconds=clock.seconds(),
        peak_rss_bytes=peak_rss_bytes(),
        out=outputs["output"],
        warnings=(
            *(f"no rule for {op}: the axes it touches are not permuted" for op in understood.unknown_ops),
            *understood.unused_rules,
            *_unreached(understood, subject.shapes, options.model),
            *notes,
        ),
    )
    if options.mkdir:
        for path in wanted.values():
            path.parent.mkdir(parents=True, exist_ok=True)
    if outputs["spec"] is not None:
        write_text_atomically(outputs["spec"], json.dumps(result.spec.to_json(), indent=1) + "\n", options.force)
    if outputs["output"] is not None:
        text = (
            options.drawings[suffix](understood, options.model)
            if suffix in options.drawings
            else pretty(envelope("trace", result, warnings=result.warnings))
        )
        write_text_atomically(outputs["output"], text, options.force)
    return result


def _unreached(understood: Understanding, shapes: Mapping[str, tuple[int, ...]], model: str) -> tuple[str, ...]:
    from rebasin_cli.verbs.leftovers import find_leftovers

    left = find_leftovers({}, {key: shapes[key] for key in understood.unreached}, understood.spec, shapes)
    return left.warnings(model, ignore_extra=False)


def _unknown(understood: Understanding) -> tuple[UnknownOperation, ...]:
    found = () if understood.derivation is None else understood.derivation.unknown_ops
    return tuple(UnknownOperation(op.op, op.scope, op.pinned_axes) for op in found)


def _in_short(check: SoundnessCheck) -> Soundness:
    return Soundness(
        check.max_relative_error,
        check.noise_floor,
        check.seed,
        check.silent,
        check.floors,
        check.draws,
        tuple(size for size in (check.traced, check.larger) if size is not None),
        check.power.groups,
    )


trace = verb(TraceOptions, run_trace)
