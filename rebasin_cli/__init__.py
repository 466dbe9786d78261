"""Compare, align, merge and interpolate trained networks.

Whatever a verb of the command line does, one import does: `from rebasin_cli import align, interpolate, verify, trace`.
Names are imported when first asked for, so `import rebasin_cli` itself costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rebasin_cli.compat import Interpolation as Interpolation
    from rebasin_cli.compat import LerpSimple as LerpSimple
    from rebasin_cli.errors import RebasinError as RebasinError
    from rebasin_cli.permutation import Permutations as Permutations
    from rebasin_cli.spec import PermutationSpec as PermutationSpec
    from rebasin_cli.verbs.align import align as align
    from rebasin_cli.verbs.align_result import AlignResult as AlignResult
    from rebasin_cli.verbs.apply import ApplyResult as ApplyResult
    from rebasin_cli.verbs.apply import apply as apply
    from rebasin_cli.verbs.coordinate_descent import PermutationCoordinateDescent as PermutationCoordinateDescent
    from rebasin_cli.verbs.inspect import InspectResult as InspectResult
    from rebasin_cli.verbs.inspect import inspect as inspect
    from rebasin_cli.verbs.interpolate import InterpolateResult as InterpolateResult
    from rebasin_cli.verbs.interpolate import interpolate as interpolate
    from rebasin_cli.verbs.trace import TraceResult as TraceResult
    from rebasin_cli.verbs.trace import trace as trace
    from rebasin_cli.verbs.verify import VerifyResult as VerifyResult
    from rebasin_cli.verbs.verify import verify as verify

_HOMES = {
    "AlignResult": "verbs.align_result",
    "ApplyResult": "verbs.apply",
    "InspectResult": "verbs.inspect",
    "InterpolateResult": "verbs.interpolate",
    "Interpolation": "compat",
    "LerpSimple": "compat",
    "PermutationCoordinateDescent": "verbs.coordinate_descent",
    "PermutationSpec": "spec",
    "Permutations": "permutation",
    "RebasinError": "errors",
    "TraceResult": "verbs.trace",
    "VerifyResult": "verbs.verify",
    "align": "verbs.align",
    "apply": "verbs.apply",
    "inspect": "verbs.inspect",
    "interpolate": "verbs.interpolate",
    "trace": "verbs.trace",
    "verify": "verbs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
