"""`align`: bring checkpoint B into the basin of checkpoint A, prove that it is still B's function, and write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rebasin_cli.execution.pair import Source
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.matching.search import Effort
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_among_ranks import align_among_ranks
from rebasin_cli.verbs.align_result import AlignResult
from rebasin_cli.verbs.alignment import AlignRequest
from rebasin_cli.verbs.find_permutations import Matching
from rebasin_cli.verbs.output_paths import OutputFiles, optional_path
from rebasin_cli.verbs.straight_through import RATE, STEPS


def align(
    a: str | Path,
    b: str | Path,
    *,
    model: str,
    out: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    input_file: str | Path | None = None,
    method: str = "weight",
    effort: Effort = "auto",
    starts: Sequence[str] | None = None,
    restarts: int | None = None,
    max_passes: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    data: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    mix: float = 1.0,
    objective: str = PLAIN,
    learning_steps: int = STEPS,
    learning_rate: float = RATE,
    keep_similarity: float | None = None,
    spec: str | Path | None = None,
    pins: Sequence[str] = (),
    rules: Sequence[str | Path] = (),
    save_spec: str | Path | None = None,
    save_permutations: str | Path | None = None,
    key_a: str | None = None,
    key_b: str | None = None,
    ema_a: bool = False,
    ema_b: bool = False,
    ignore_extra: bool = False,
    strict: bool = False,
    dry_run: bool = False,
    force: bool = False,
    mkdir: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
) -> AlignResult:
    """Match B to A, verify the result and write B permuted, with a report beside it.

    Args:
        a, b: checkpoints of the same model. A is kept as it is; both are only read.
        model: `torchvision:NAME`, `path/file.py:callable` or `package.module:callable`.
        out: where B permuted is written; by default `<B's stem>-aligned<suffix>` beside B.
        model_args: keyword arguments for the model.
        inputs, input_file: what the model is run on where no zoo knows it; texts such as `1,3,224,224`.
        method: how the permutations are looked for: `weight` matching, `activation` matching, or `straight-through`,
            which learns on from weight matching.
        objective: what of the weights is maximised: the `plain` inner product, or as `matrices`, `tensors` or `rows`
            count it (docs/matching.md). The plain one is reported in any case.
        effort: how much is tried: `fast`, `standard`, `thorough`, or `auto`: `standard` where that costs seconds.
        starts: where the search starts from instead (`identity`, `forward`, `annealing`, `barycentre`, `random`); the
            best end wins.
        restarts: how often it is taken up again instead of the effort's own number.
        max_passes, time_limit: bounds for the matching, in passes over all groups and in seconds.
        seed: decides every random choice.
        device: where the matching's products are computed.
        data: what the networks are run on, for `straight-through` and `activation` (which else goes by noise), and for
            one more start of `weight`.
        limit, batch_size: how many samples of the data are used, and how many at a time.
        mix: share of the activations against the weights in `activation` matching, above 0 and at most 1.
        learning_steps, learning_rate: batches that `straight-through` learns from, and its way in one step in units of
            the weights' norms.
        keep_similarity: the share of weight matching's similarity that `straight-through` must keep, at most 1; by
            default no less than B as it is.
        spec: take the groups from this file instead of tracing the model.
        pins: patterns of tensor names, such as `head.*`, whose axes all keep their order.
        rules: Python files that register rules for the model's own operations.
        save_spec, save_permutations: also write the groups, or all that `apply` needs, to these files.
        key_a, key_b, ema_a, ema_b: which state dict inside a file.
        ignore_extra: tensors that the model does not have are passed on instead of refused.
        strict: an operation that no rule understands is an error.
        dry_run: do everything but write.
        force, mkdir: overwrite what exists; make the output's directory.
        cache: take a verification of the spec that an earlier run passed from the user's cache directory, and keep one.
        progress: is told where the work is.

    Raises:
        RebasinError: of the kind, and with the exit code, that fits what went wrong. Then nothing was written.
    """
    path_a, path_b = Path(a), Path(b)
    chosen_starts = None if starts is None else tuple(starts)
    request = AlignRequest(
        a=Source(path_a, key_a, ema_a),
        b=Source(path_b, key_b, ema_b),
        choice=ModelChoice(model, dict(model_args or {}), tuple(inputs), optional_path(input_file), seed),
        matching=Matching(
            method,
            effort,
            chosen_starts,
            restarts,
            max_passes,
            time_limit,
            seed,
            device,
            data,
            limit,
            batch_size,
            mix,
            objective,
            learning_steps,
            learning_rate,
            keep_similarity,
        ),
        files=OutputFiles.plan(path_b, out, permutations=save_permutations, spec=save_spec),
        spec_file=optional_path(spec),
        pins=tuple(pins),
        rules=tuple(Path(file) for file in rules),
        ignore_extra=ignore_extra,
        strict=strict,
        dry_run=dry_run,
        force=force,
        mkdir=mkdir,
        cache=cache,
    )
    return align_among_ranks(request, progress or Silent())
