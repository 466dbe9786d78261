"""An alignment under `torchrun`: statistics of activations are taken by all processes, all else is done by the first.

The others wait for its result, so that what follows (a sweep) can be shared again.
"""

from __future__ import annotations

from rebasin_cli.data.ranks import launched, ranks_for
from rebasin_cli.errors import RebasinError
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs.align_report import AlignRequest
from rebasin_cli.verbs.align_result import AlignResult
from rebasin_cli.verbs.alignment import Alignment


def align_among_ranks(request: AlignRequest, progress: Progress) -> AlignResult:
    """Run the alignment alone, or as one of several processes; every one returns the first one's result.

    Raises:
        RebasinError: in every process, where it fails in one.
    """
    _, world, local = launched()
    if world == 1:
        return Alignment(request, progress).run()
    device = resolve_device(request.matching.device)
    if device.type == "cuda" and device.index is None:
        device = resolve_device(f"cuda:{local}")
    ranks = ranks_for(device)
    result, error = None, None
    run = Alignment(request, progress if ranks.first else Silent(), ranks)
    try:
        if ranks.first:
            result = run.run()
        else:
            run.assist()
    except RebasinError as caught:
        if caught.agreed:
            raise
        error = caught
    ranks.agree(error)
    found: AlignResult = ranks.shared(result)
    return found
