"""Where REPAIR acts: every module whose output's units have a weight and, mostly, a bias that can hold the correction.

Left out, each for a reason: a module that feeds a BatchNorm directly (which undoes any rescaling), the one that makes
the network's output (its units are the classes), modules that run more than once (one correction cannot fit two
places), and modules whose weight another one shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rebasin_cli.data import Batch
from rebasin_cli.interpolation.batch_norm import batch_norms
from rebasin_cli.interpolation.body import Body
from rebasin_cli.interpolation.repair_attention import packed_units

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class RepairSite:
    """A module's output and the tensors that scale and shift its units.

    `output_axis` counts units in the output; `weight_axis` in the weight. `bias` is None where no tensor can hold a
    shift: then units are rescaled only. A `packed` site is the projection inside a module (see `repair_attention`).
    """

    name: str
    module: str
    output_axis: int
    units: int
    weight: str
    weight_axis: int
    bias: str | None
    packed: bool = False


def repair_sites(body: Body, batch: Batch) -> tuple[RepairSite, ...]:
    """The sites of a network, from one run over `batch`, in the order in which the data meets them."""
    module = body.module
    candidates = {name: child for name, child in module.named_modules() if _affine_of(name, child) is not None}
    made: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    fed_to_norm: set[str] = set()

    def after(name: str, output: Any) -> None:
        calls[name] += 1
        first = first_tensor(output)
        if first is not None:
            made[name] = first

    def before_norm(inputs: tuple[Any, ...]) -> None:
        fed_to_norm.update(name for name, tensor in made.items() if inputs and tensor is inputs[0])

    handles = [
        child.register_forward_hook(lambda _, __, output, name=name: after(name, output))
        for name, child in candidates.items()
    ]
    handles += [
        layer.register_forward_pre_hook(lambda _, inputs: before_norm(inputs)) for layer in batch_norms(module).values()
    ]
    try:
        results = [output for _, output in body.outputs(batch.rows(0, 1))]
    finally:
        for handle in handles:
            handle.remove()
    finals = {id(tensor) for output in results for tensor in _tensors(output)}
    shared = _shared_parameters(module)
    found = []
    for name in calls:
        site = _affine_of(name, candidates[name])
        if site is None or calls[name] != 1 or name in fed_to_norm or name not in made or id(made[name]) in finals:
            continue
        if {site.weight, site.bias} & shared or made[name].dim() < 2:
            continue
        if made[name].shape[site.output_axis] == site.units:
            inside = _packed_in(name, candidates[name])
            found += [one for one in (inside, site) if one is not None and not {one.weight, one.bias} & shared]
    return tuple(found)


def first_tensor(output: Any) -> Tensor | None:
    """The output, or the first of several (attention gives its weights besides)."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _affine_of(name: str, module: nn.Module) -> RepairSite | None:
    """The site that this kind of module would make; None for kinds without a unit-wise weight of their own."""
    prefix = f"{name}." if name else ""
    if isinstance(module, nn.MultiheadAttention):
        # Its last step is out_proj, which attention reads without calling it.
        return _site(name, -1, f"{prefix}out_proj.", module.out_proj, 0)
    if isinstance(module, nn.Linear):
        return _site(name, -1, prefix, module, 0)
    if isinstance(module, CONVOLUTIONS):
        return _site(name, 1, prefix, module, 0)
    if isinstance(module, TRANSPOSED) and module.groups == 1:
        return _site(name, 1, prefix, module, 1)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _site(name, -1, prefix, module, 0)
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
        return _site(name, 1, prefix, module, 0)
    return None


def _packed_in(name: str, module: nn.Module) -> RepairSite | None:
    """The projection to queries, keys and values that an attention module holds itself."""
    units, prefix = packed_units(module), f"{name}." if name else ""
    if not units:
        return None
    bias = f"{prefix}in_proj_bias" if module._parameters.get("in_proj_bias") is not None else None
    return RepairSite(f"{prefix}in_proj", name, -1, units, f"{prefix}in_proj_weight", 0, bias, packed=True)


def _site(name: str, output_axis: int, prefix: str, owner: nn.Module, axis: int) -> RepairSite | None:
    weight, bias = owner._parameters.get("weight"), owner._parameters.get("bias")
    if weight is None:  # without an affine part, or computed from other parameters at each call
        return None
    held = None if bias is None else f"{prefix}bias"
    return RepairSite(name, name, output_axis, int(weight.shape[axis]), f"{prefix}weight", axis, held)


def _shared_parameters(module: nn.Module) -> set[str | None]:
    """Names of parameters that have more than one name."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
