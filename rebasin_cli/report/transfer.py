"""A transfer as a report: the bases, the fine-tuning, the checks, the scores, the file."""

from __future__ import annotations

from rebasin_cli.report.align import function_in_words
from rebasin_cli.report.guidance import after_transfer
from rebasin_cli.report.layout import Document, Part, Rows, document, facts, rows, text
from rebasin_cli.report.text import counted, number, seconds, share
from rebasin_cli.verbs.transfer import TransferResult

NETWORKS = {
    "finetuned": "FINETUNED",
    "new_base": "NEW_BASE",
    "naive": "NEW_BASE + change, not aligned",
    "transferred": "NEW_BASE + change, aligned",
}


def transfer_table(result: TransferResult) -> Document:
    """The report."""
    bases, change = result.aligned, result.change
    entries: list[tuple[str, object]] = [
        ("bases", f"{result.old_base} -> {result.new_base}"),
        ("fine-tuning", f"{result.finetuned}{' (LoRA)' if result.lora else ''}"),
        ("its change", f"{number(100 * change.relative)} % of the norm of OLD_BASE, cosine {number(change.cosine)}"),
        ("scale", f"{result.scale:g}"),
        ("permuted", f"{bases.moved_units:,} of {counted(bases.units, 'unit')}"),
        ("bases' similarity", f"cosine {number(bases.cosine['before'])} -> {number(bases.cosine['after'])}"),
        ("OLD_BASE", function_in_words(result.verified)),
        ("FINETUNED", function_in_words(result.verified_finetuned)),
        ("time", seconds(result.seconds["total"])),
    ]
    if result.generated is not None:
        entries.append(("data", f"generated:{result.generated.kind}: {result.generated.describe()}"))
    if result.scores and not result.labelled:
        entries.append(("compared with", "the outputs of FINETUNED, for want of labels"))
    if result.out is not None:
        entries.append(("written", result.out))
    parts: list[Part | None] = [facts(entries), _scores(result), text(sentence(result)), after_transfer(result)]
    return document(*parts)


def sentence(result: TransferResult) -> str:
    """What was done, in one sentence; it does not say how well the result works, which only data show."""
    what = "The adapter" if result.lora else "The change of the fine-tuning"
    if result.change.distance == 0:
        return "No parameter of FINETUNED differs from OLD_BASE's: there is no change to carry over."
    if result.aligned.moved_units == 0:
        why = "no better order was found" if result.aligned.already_aligned else "nothing was permuted"
        return f"{what} is added to NEW_BASE in its own order: {why}."
    if result.aligned.distance["after"] <= 1e-6 * max(result.aligned.distance["before"], 1e-30):
        return f"NEW_BASE is a permuted copy of OLD_BASE: {what.lower()} is carried over exactly, up to rounding."
    return f"{what} is carried over to NEW_BASE, unit by unit."


def _scores(result: TransferResult) -> Rows | None:
    if not result.scores:
        return None
    lines = [
        (NETWORKS[name], number(found.loss), share(found.accuracy), found.n) for name, found in result.scores.items()
    ]
    exact = [(name, found.loss, found.accuracy, found.n) for name, found in result.scores.items()]
    measures = ("loss", "accuracy", "samples") if result.labelled else ("distance", "agreement", "samples")
    return rows(("network", *measures), lines, numbers=(1, 2, 3), exact=exact)
