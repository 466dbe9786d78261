"""`transfer`: carry a fine-tuning, or a LoRA adapter, over to another base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.plan import EFFORTS
from rebasin_cli.options import AnyPath, OptionalPath, argument, option, options_class, verb
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.early_checks import check_data_options, check_inputs
from rebasin_cli.verbs.generated_inputs import GeneratedSaving, check_generated, saved_output
from rebasin_cli.verbs.output_paths import check_outputs
from rebasin_cli.verbs.shared_options import DATA_HELP, DataReading, NetworkOptions, Writing

if TYPE_CHECKING:
    from rebasin_cli.data.generated_kinds import GeneratedFacts
    from rebasin_cli.execution.same_function import FunctionCheck
    from rebasin_cli.execution.scores import Values
    from rebasin_cli.matching.common_base import UnitTest


@options_class
class TransferOptions(NetworkOptions, DataReading, Writing, GeneratedSaving):
    """The options of `transfer`."""

    old_base: AnyPath = argument("The base that was fine-tuned.", metavar="OLD_BASE", kw_only=False)
    finetuned: AnyPath = argument(
        "The fine-tuning of OLD_BASE: a checkpoint, or a LoRA adapter as PEFT saves it.",
        metavar="FINETUNED",
        kw_only=False,
    )
    new_base: AnyPath = argument("The base that it is carried over to.", metavar="NEW_BASE", kw_only=False)
    out: OptionalPath = option(
        "Output file or directory. It has NEW_BASE's layout; FINETUNED's for an adapter and for a head of its own.",
        group="Output",
        short="-o",
        metavar="FILE",
        default=None,
        shown_default="required without --dry-run",
    )
    dry_run: bool = option("Run without writing files.", group="Output", default=False)
    scale: float = option("Multiply the fine-tuning's change by this.", group="Transfer", metavar="X", default=1.0)
    align: str = option(
        "Align OLD_BASE to NEW_BASE (reference), or add the change as it is (none).",
        group="Transfer",
        metavar="HOW",
        choices=("reference", "none"),
        default="reference",
    )
    effort: str = option("Search effort.", group="Matching", metavar="LEVEL", choices=EFFORTS, default="auto")
    device: str = option("Device for matching and evaluation: cpu, cuda, cuda:1, mps.", group="Matching", default="cpu")
    data: str | None = option(
        f"Evaluate the networks on this. {DATA_HELP}", group="Data", short="-d", metavar="DATA", default=None
    )
    ignore_mismatched_sizes: bool = option(
        "Where FINETUNED has a head that a base lacks, or of another size, keep FINETUNED's own.",
        group="Checkpoint",
        default=False,
    )
    progress: Progress | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class BasesAligned:
    """OLD_BASE against NEW_BASE, over the parameters that both have.

    Attributes:
        cosine, distance: before and after alignment; equal where nothing was aligned.
        already_aligned: the search found no order in which OLD_BASE is more similar to NEW_BASE than as it is.
    """

    moved_units: int
    units: int
    cosine: Mapping[str, float]
    distance: Mapping[str, float]
    already_aligned: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What the fine-tuning changed of its base, over the parameters.

    Attributes:
        cosine: between the two.
        distance: L2.
        relative: the distance divided by the norm of the base.
        common_base: the test whether the two have a common base at all, as `compare` makes it; None for an adapter.
    """

    cosine: float
    distance: float
    relative: float
    common_base: UnitTest | None


@dataclass(frozen=True, slots=True)
class TransferResult(Result):
    """What was carried over, and how well.

    Attributes:
        aligned: how the two bases were aligned.
        verified: the verification that OLD_BASE permuted computes what OLD_BASE computes.
        verified_finetuned: the same for the fine-tuning; for an adapter, of OLD_BASE with the adapter merged into it.
        change: what the fine-tuning changed.
        own: tensors that only the fine-tuning has in this size; they are its own, permuted like what they read.
        scores: loss and accuracy on the data, by network: `finetuned`, `new_base`, `naive` (the change added without
            alignment) and `transferred`; empty without data. Where the data have no labels (`labelled` is False), the
            loss is the distance from the outputs of `finetuned`, and the accuracy the agreement with it.
        generated: about inputs that are no data.
    """

    old_base: Path
    finetuned: Path
    new_base: Path
    model: str
    scale: float
    lora: bool
    aligned: BasesAligned
    change: Change
    own: tuple[str, ...]
    verified: FunctionCheck
    verified_finetuned: FunctionCheck
    data: str | None
    scores: Mapping[str, Values]
    out: Path | None
    seed: int
    sha256: Mapping[str, str | None]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    labelled: bool = True
    generated: GeneratedFacts | None = None

    def to_json(self) -> dict[str, Any]:
        """The data of the report."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "warnings"}


def run_transfer(options: TransferOptions) -> TransferResult:
    """Align OLD_BASE to NEW_BASE, and add what FINETUNED changed of the former to the latter, unit by unit.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong. Then nothing was written.
    """
    if options.out is None and not options.dry_run:
        raise UsageError("missing option -o", hint="name the output, or give --dry-run")
    inputs = (options.old_base, options.finetuned, options.new_base)
    check_inputs(
        inputs,
        model=options.model,
        data=(options.data,),
        input_file=options.input_file,
        rules=options.rules,
        others=(options.spec,),
        class_map=options.class_map,
    )
    check_data_options(options, options.data)
    check_generated(options, options.data)
    written = {"output": None if options.dry_run else options.out, "spec": options.save_spec}
    outputs = {what: path for what, path in written.items() if path is not None} | saved_output(options.save_generated)
    check_outputs(outputs, inputs, force=options.force, mkdir=options.mkdir)
    from rebasin_cli.verbs.transferring import Transfer

    return Transfer(options, options.progress or Silent()).run()


transfer = verb(TransferOptions, run_transfer)
