"""`rebasin transfer`."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.transfer import TransferOptions, run_transfer


def _run(options: TransferOptions, output: Output) -> None:
    with output.working() as progress:
        result = run_transfer(replace(options, progress=progress))
    from rebasin_cli.report.transfer import transfer_table

    output.finish(result, lambda: transfer_table(result), short=result.out, warnings=result.warnings)


COMMAND = VerbCommand(
    name="transfer",
    place=36,
    summary="Carry a fine-tuning, or a LoRA adapter, over to another base.",
    details="OLD_BASE is aligned to NEW_BASE. What FINETUNED changed of OLD_BASE is moved along and added to NEW_BASE.",
    options=TransferOptions,
    run=_run,
    examples=(
        (
            "rebasin transfer base-v1.pt tuned.pt base-v2.pt -m net.py:build -o tuned-v2.pt",
            "a fine-tuning to a later release of its base",
        ),
        (
            "rebasin transfer base-v1 my-lora base-v2 -m transformers:base-v2 -o my-lora-v2",
            "a LoRA adapter: directories, as PEFT saves them",
        ),
        (
            "rebasin transfer a.pt tuned.pt b.pt -m net.py:build --data test.npz --dry-run",
            "evaluate before writing anything",
        ),
    ),
)
