"""Python faces of the engine for modules and state dicts in memory.

`lines`: `LerpSimple` and `Interpolation`. `coordinate_descent`: `PermutationCoordinateDescent` and `PermuteColumns`.
`rebasin`: `Rebasin`. `modules`: `align_modules`, which the others use. `task_vectors`: two functions on state dicts.
"""

from rebasin_cli.compat.coordinate_descent import PermutationCoordinateDescent, PermuteColumns
from rebasin_cli.compat.lines import Interpolation, LerpSimple, LineOfModels, loader_source
from rebasin_cli.compat.modules import ModuleAlignment, align_modules
from rebasin_cli.compat.rebasin import Rebasin
from rebasin_cli.compat.task_vectors import apply_permutation_to_task_vectors, weight_matching_for_task_vectors

__all__ = [
    "Interpolation",
    "LerpSimple",
    "LineOfModels",
    "ModuleAlignment",
    "PermutationCoordinateDescent",
    "PermuteColumns",
    "Rebasin",
    "align_modules",
    "apply_permutation_to_task_vectors",
    "loader_source",
    "weight_matching_for_task_vectors",
]
