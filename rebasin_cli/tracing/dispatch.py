"""How operations reach a dispatch mode: one at a time, without fused paths, with their arguments by name.

Higher-order operators (`flex_attention`, `cond`, `scan`, …) are decomposed into the operations that they call. So are
composite operators, which arrive undecomposed in inference mode and inside higher-order operators, and those that the
operation table says are (`DECOMPOSED`).
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rebasin_cli.errors import ModelError
from rebasin_cli.tracing.operations import DECOMPOSED, has

_FLEX, _DIRECTLY = "torch.nn.attention.flex_attention", "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
"""With this switch `flex_attention` calls its operator directly, and not through the compiler, which no mode sees."""


class OperationMode(TorchDispatchMode):
    """Base of modes that see every operation: `operation` is called for each.

    Attributes:
        decomposes: whether composite operations that arrive undecomposed are decomposed.
    """

    supports_higher_order_operators = True
    decomposes = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._switches: list[bool | None] = []

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of `func` for these arguments."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            with self:
                return _written_out(func)(*args, **(kwargs or {}))
        if self.decomposes and _is_composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        into = _decomposition(func)
        if into is not None:
            with self:
                return into(*args, **(kwargs or {}))
        return self.operation(func, args, kwargs or {})

    def __enter__(self) -> Any:
        flex = sys.modules.get(_FLEX)
        self._switches.append(getattr(flex, _DIRECTLY, None))
        if self._switches[-1] is not None:
            setattr(flex, _DIRECTLY, True)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        before = self._switches.pop()
        if before is not None:
            setattr(sys.modules[_FLEX], _DIRECTLY, before)


@lru_cache(maxsize=4096)
def _is_composite(func: OpOverload) -> bool:
    if func.namespace == "prim":  # attribute queries; the dispatcher does not know them
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func._name, "CompositeImplicitAutograd"))


@lru_cache(maxsize=4096)
def _decomposition(func: OpOverload) -> Callable[..., Any] | None:
    """PyTorch's decomposition of an operation, where the operation table says that it is followed."""
    if not has(operator(func).name, DECOMPOSED):
        return None
    from torch._decomp import decomposition_table  # takes a second to import

    return decomposition_table.get(func)


def _written_out(func: HigherOrderOperator) -> Callable[..., Any]:
    """The operator's eager implementation, which calls its functions and other operators.

    Raises:
        ModelError: it has none.
    """
    name: str = func._name
    own: dict[str, Callable[..., Any]] = {"cond": _branch, "while_loop": _loop}
    kernel = own.get(name) or func.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
    if kernel is None:
        raise ModelError(f"the operator {name} takes functions, and has no eager implementation to follow")
    return kernel


def _branch(condition: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: tuple[Any, ...] = ()) -> Any:
    return (yes if condition else no)(*operands)


def _loop(
    condition: Callable[..., Any], body: Callable[..., Any], carried: tuple[Any, ...], beside: tuple[Any, ...] = ()
) -> Any:
    while condition(*carried, *beside):
        carried = body(*carried, *beside)
    return carried


@dataclass(frozen=True, slots=True)
class Operator:
    """One overload of an operator.

    Args:
        schema: the schema's own name (`aten::add_`).
        name: namespace and operator without overload and without the underscore of an in-place form (`aten.add`).
        overload: namespace, operator and overload (`aten.add_.Tensor`).
        arguments: for every argument in order, its name, whether it is keyword-only, and its default.
        mutable: whether it changes any argument.
        written: names of the arguments that it changes.
        outs: names of the output arguments.
        viewed: the argument that the results are views of; None if they are not views.
        drawn: whether it draws random numbers.
    """

    schema: str
    name: str
    overload: str
    arguments: tuple[tuple[str, bool, Any], ...]
    mutable: bool
    written: tuple[str, ...]
    outs: frozenset[str]
    viewed: str | None
    drawn: bool

    def bind(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument by its name, defaults filled in."""
        given = len(args)
        return {
            name: kwargs[name] if name in kwargs else args[place] if place < given and not by_name else default
            for place, (name, by_name, default) in enumerate(self.arguments)
        }


@lru_cache(maxsize=4096)
def operator(func: OpOverload) -> Operator:
    """The operator of `func`, read from its schema."""
    schema = func._schema
    full = schema.name.replace("::", ".")
    aliases = [(a.name, a.alias_info) for a in schema.arguments if a.alias_info is not None]
    looks = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return Operator(
        schema=schema.name,
        name=full[:-1] if full.endswith("_") and not full.endswith("__") else full,
        overload=f"{full}.{schema.overload_name or 'default'}",
        arguments=tuple(
            (a.name, a.kwarg_only, a.default_value if a.has_default_value() else None) for a in schema.arguments
        ),
        mutable=schema.is_mutable,
        written=tuple(name for name, alias in aliases if alias.is_write),
        outs=frozenset(argument.name for argument in schema.arguments if argument.is_out),
        viewed=aliases[0][0] if looks and aliases else None,
        drawn=torch.Tag.nondeterministic_seeded in func.tags,
    )


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """All tensors among an operation's arguments or results, in order, repeats kept."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from tensors_in(item)
    elif isinstance(nested, dict):
        for item in nested.values():
            yield from tensors_in(item)


def _flat_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` as one matrix product, whatever the layout of `input`.

    PyTorch takes one of three ways (`addmm`, `mm` and `add`, `bmm` and `add`), which depends on strides. A
    transposed input is contiguous in a batch of one and not in a batch of two, so a pass on another batch would not
    repeat the operations of the trace.
    """
    if (type(input) is not Tensor and not isinstance(input, FakeTensor)) or input.dim() < 3 or weight.dim() != 2:
        return _linear(input, weight, bias)
    flat = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    out = flat.mm(weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
    return out.view(*input.shape[:-1], weight.shape[0])


_linear = F.linear


class _OneHotByScattering(TorchFunctionMode):
    """`F.one_hot` with a given number of classes, as ones scattered into zeros.

    PyTorch's own first looks at the numbers, to refuse those out of range. Such a look is a decision of the model's
    code to the recorder, which pins what the numbers depend on; scattering refuses them as well.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.one_hot:
            given = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
            labels, classes = given.get("tensor"), given.get("num_classes", -1)
            if isinstance(labels, Tensor) and isinstance(classes, int) and classes > 0:
                zeros = torch.zeros((*labels.shape, classes), dtype=torch.int64, device=labels.device)
                return zeros.scatter(-1, labels.unsqueeze(-1), 1)
        return func(*args, **(kwargs or {}))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within this context what `torch.compile` wraps runs as it was written.

    Compiled code would not be seen operation by operation, and compiling costs more than running once.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def plain_operations() -> Iterator[None]:
    """Disable compilers and fused fast paths, whose parts would not be seen, and PyTorch's log of failures.

    Linear layers take one way only, see `_flat_linear`, and one-hot vectors another, see `_OneHotByScattering`.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    silent, log.disabled = log.disabled, True
    linear = F.linear
    F.linear = _flat_linear
    try:
        with torch.jit._fuser.optimized_execution(False), uncompiled(), _OneHotByScattering():
            yield
    finally:
        F.linear = linear
        log.disabled = silent
        torch._C._set_mkldnn_enabled(onednn)
        torch.backends.mha.set_fastpath_enabled(fastpath)
