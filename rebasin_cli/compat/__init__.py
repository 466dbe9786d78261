"""Python faces of the engine for modules and state dicts in memory.

`lines`: `LerpSimple` and `Interpolation`. `coordinate_descent`: `PermutationCoordinateDescent` and `PermuteColumns`.
`rebasin`: `Rebasin`. `modules`: `align_modules`, which the others use. `task_vectors`: two functions on state dicts.
"""
