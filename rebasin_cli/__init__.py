"""Compare, align, merge and interpolate trained networks.

Every verb of the command line is a function with the same options: `from rebasin_cli import align, verify`. Results are
frozen dataclasses, failures are kinds of `RebasinError`. `rebasin_cli.rules` is for authors of rules for their own
operations. Names are imported on first use, so `import rebasin_cli` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "AlignResult",
    "ApplyResult",
    "CheckpointError",
    "CompareResult",
    "DataError",
    "EnvResult",
    "GateExceeded",
    "InspectResult",
    "InterpolateResult",
    "Interpolation",
    "LayerIterationOrder",
    "LerpSimple",
    "MergeResult",
    "MetricsResult",
    "ModelError",
    "ModelsResult",
    "ModuleAlignment",
    "NumericalError",
    "OutputError",
    "PermutationCoordinateDescent",
    "PermutationSpec",
    "Permutations",
    "PermuteColumns",
    "Rebasin",
    "RebasinError",
    "ResourceError",
    "TraceResult",
    "TransferResult",
    "UsageError",
    "VerifyResult",
    "align",
    "align_modules",
    "apply",
    "apply_permutation_to_task_vectors",
    "compare",
    "env",
    "inspect",
    "interpolate",
    "merge",
    "metrics",
    "models",
    "trace",
    "transfer",
    "verify",
    "weight_matching_for_task_vectors",
]

if TYPE_CHECKING:
    from rebasin_cli.compat.coordinate_descent import PermutationCoordinateDescent as PermutationCoordinateDescent
    from rebasin_cli.compat.coordinate_descent import PermuteColumns as PermuteColumns
    from rebasin_cli.compat.lines import Interpolation as Interpolation
    from rebasin_cli.compat.lines import LerpSimple as LerpSimple
    from rebasin_cli.compat.modules import ModuleAlignment as ModuleAlignment
    from rebasin_cli.compat.modules import align_modules as align_modules
    from rebasin_cli.compat.rebasin import Rebasin as Rebasin
    from rebasin_cli.compat.task_vectors import LayerIterationOrder as LayerIterationOrder
    from rebasin_cli.compat.task_vectors import apply_permutation_to_task_vectors as apply_permutation_to_task_vectors
    from rebasin_cli.compat.task_vectors import weight_matching_for_task_vectors as weight_matching_for_task_vectors
    from rebasin_cli.errors import CheckpointError as CheckpointError
    from rebasin_cli.errors import DataError as DataError
    from rebasin_cli.errors import GateExceeded as GateExceeded
    from rebasin_cli.errors import ModelError as ModelError
    from rebasin_cli.errors import NumericalError as NumericalError
    from rebasin_cli.errors import OutputError as OutputError
    from rebasin_cli.errors import RebasinError as RebasinError
    from rebasin_cli.errors import ResourceError as ResourceError
    from rebasin_cli.errors import UsageError as UsageError
    from rebasin_cli.permutation import Permutations as Permutations
    from rebasin_cli.spec import PermutationSpec as PermutationSpec
    from rebasin_cli.verbs.align import AlignResult as AlignResult
    from rebasin_cli.verbs.align import align as align
    from rebasin_cli.verbs.apply import ApplyResult as ApplyResult
    from rebasin_cli.verbs.apply import apply as apply
    from rebasin_cli.verbs.compare import CompareResult as CompareResult
    from rebasin_cli.verbs.compare import compare as compare
    from rebasin_cli.verbs.env import EnvResult as EnvResult
    from rebasin_cli.verbs.env import env as env
    from rebasin_cli.verbs.inspect import InspectResult as InspectResult
    from rebasin_cli.verbs.inspect import inspect as inspect
    from rebasin_cli.verbs.interpolate import InterpolateResult as InterpolateResult
    from rebasin_cli.verbs.interpolate import interpolate as interpolate
    from rebasin_cli.verbs.merge import MergeResult as MergeResult
    from rebasin_cli.verbs.merge import merge as merge
    from rebasin_cli.verbs.metrics import MetricsResult as MetricsResult
    from rebasin_cli.verbs.metrics import metrics as metrics
    from rebasin_cli.verbs.models import ModelsResult as ModelsResult
    from rebasin_cli.verbs.models import models as models
    from rebasin_cli.verbs.trace import TraceResult as TraceResult
    from rebasin_cli.verbs.trace import trace as trace
    from rebasin_cli.verbs.transfer import TransferResult as TransferResult
    from rebasin_cli.verbs.transfer import transfer as transfer
    from rebasin_cli.verbs.verify import VerifyResult as VerifyResult
    from rebasin_cli.verbs.verify import verify as verify

_HOMES = {
    "AlignResult": "verbs.align",
    "ApplyResult": "verbs.apply",
    "CheckpointError": "errors",
    "CompareResult": "verbs.compare",
    "DataError": "errors",
    "EnvResult": "verbs.env",
    "GateExceeded": "errors",
    "InspectResult": "verbs.inspect",
    "InterpolateResult": "verbs.interpolate",
    "Interpolation": "compat.lines",
    "LayerIterationOrder": "compat.task_vectors",
    "LerpSimple": "compat.lines",
    "MetricsResult": "verbs.metrics",
    "MergeResult": "verbs.merge",
    "ModelError": "errors",
    "ModelsResult": "verbs.models",
    "ModuleAlignment": "compat.modules",
    "NumericalError": "errors",
    "OutputError": "errors",
    "PermutationCoordinateDescent": "compat.coordinate_descent",
    "PermutationSpec": "spec",
    "Permutations": "permutation",
    "PermuteColumns": "compat.coordinate_descent",
    "Rebasin": "compat.rebasin",
    "RebasinError": "errors",
    "ResourceError": "errors",
    "TraceResult": "verbs.trace",
    "TransferResult": "verbs.transfer",
    "UsageError": "errors",
    "VerifyResult": "verbs.verify",
    "align": "verbs.align",
    "align_modules": "compat.modules",
    "apply": "verbs.apply",
    "apply_permutation_to_task_vectors": "compat.task_vectors",
    "compare": "verbs.compare",
    "env": "verbs.env",
    "inspect": "verbs.inspect",
    "interpolate": "verbs.interpolate",
    "metrics": "verbs.metrics",
    "merge": "verbs.merge",
    "models": "verbs.models",
    "trace": "verbs.trace",
    "transfer": "verbs.transfer",
    "verify": "verbs.verify",
    "weight_matching_for_task_vectors": "compat.task_vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
