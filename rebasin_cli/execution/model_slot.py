"""One module that holds each network of a sweep in turn: weights are copied into the module's own tensors.

Memory holds one model beside the memory-mapped checkpoints, whatever the number of networks. The module's tensors stay
the same objects, so whatever it derives from them (flattened recurrent weights, views) stays valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError, ModelError, ResourceError, one_line
from rebasin_cli.model.foreign_code import own_line


class Network(Protocol):
    """The weights of one network of a sweep, computed when they are asked for.

    Attributes:
        name: unique within the sweep.
        keys: state-dict keys of the tensors that it has.
        end: the number of the checkpoint that this network is, or None for an interpolated network.
        between: the numbers of the two checkpoints that it is interpolated from.
        lam: 0 at the first of the two, 1 at the second.
        shares: the checkpoints that it is made of, by number, each with its share; REPAIR takes its targets from them.
        adjusted: statistics are measured for this network: an interpolated one, or a checkpoint treated like those.
    """

    @property
    def name(self) -> str: ...
    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def end(self) -> int | None: ...
    @property
    def between(self) -> tuple[int, int]: ...
    @property
    def lam(self) -> float: ...
    @property
    def shares(self) -> Sequence[tuple[int, float]]: ...
    @property
    def adjusted(self) -> bool: ...
    def tensor(self, key: str, device: torch.device | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class UnitAffine:
    """`new = scale * old + shift` for each unit along `axis`; no `shift` means 0. float64 vectors of length units."""

    axis: int
    scale: Tensor
    shift: Tensor | None = None

    def apply(self, tensor: Tensor) -> Tensor:
        shape = [1] * tensor.dim()
        shape[self.axis] = -1
        wide = tensor.double() * self.scale.to(tensor.device).view(shape)
        if self.shift is not None:
            wide = wide + self.shift.to(tensor.device).view(shape)
        return wide.to(tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Changes of a network, by key: statistics that are replaced, units that are rescaled and shifted.

    It acts on tensors by key, so the network that is evaluated and the file that is written hold the same numbers.
    """

    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    affine: Mapping[str, UnitAffine] = field(default_factory=dict)

    def changes(self, key: str) -> bool:
        """Whether a tensor of this key is not what it was."""
        return key in self.replaced or key in self.affine

    def apply(self, key: str, tensor: Tensor) -> Tensor:
        """The adjusted tensor; the same object where nothing is changed."""
        if key in self.replaced:
            return self.replaced[key].to(tensor.device, tensor.dtype if tensor.is_floating_point() else None)
        return self.affine[key].apply(tensor) if key in self.affine else tensor


NO_ADJUSTMENT = Adjustment()


class ModelSlot:
    """A module in eval mode on a device, into which the weights of one network at a time are loaded.

    It computes in float32 or better, unless `widen` is off.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, amp: bool = False, widen: bool = True) -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        if widen:
            _widen(self.module)
        self.device = device
        self.amp = amp
        self.tensors: dict[str, Tensor] = {
            key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
        }
        floating = (value.dtype for value in self.tensors.values() if value.is_floating_point())
        self._dtype = next(floating, torch.float32)
        self._piece: int | None = None

    def load(self, network: Network, adjustment: Adjustment = NO_ADJUSTMENT) -> None:
        """Copy the adjusted weights of this network into the module.

        Raises:
            ModelError: a tensor of the network does not fit the module.
        """
        with torch.no_grad():
            for key in network.keys:
                own = self.tensors.get(key)
                if own is None:
                    continue
                value = adjustment.apply(key, network.tensor(key, self.device))
                if own.shape != value.shape:
                    raise ModelError(f"{key}: shape {tuple(value.shape)}, but the model has {tuple(own.shape)}")
                own.copy_(value)

    def outputs(self, batch: Batch) -> Iterator[tuple[Batch, Any]]:
        """The model's outputs for the batch, which is halved until a piece fits in the device's memory.

        Raises:
            ResourceError: not even a single sample fits.
            DataError: the model does not accept the inputs.
        """
        if not batch.size:
            return
        size = min(self._piece or batch.size, batch.size)
        done = 0
        while done < batch.size:
            piece = batch.rows(done, min(done + size, batch.size))
            try:
                yield piece, self._run(piece)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise ResourceError(
                        f"not enough memory on {self.device} for a single sample", hint="use another --device"
                    ) from error
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                self._piece = size = max(1, size // 2)
                continue
            done += piece.size

    def _run(self, batch: Batch) -> Any:
        moved = batch.to(self.device)
        args = tuple(self._in_own_dtype(value) for value in moved.args)
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                return self.module(*args, **moved.kwargs)
        except Exception as error:  # the model is the user's code, so its own message is quoted
            if _is_out_of_memory(error):
                raise
            given = [value for value in tree_leaves((args, moved.kwargs)) if isinstance(value, Tensor)]
            shapes = ", ".join(str(tuple(value.shape)) for value in given)
            images = any(value.dim() == 4 for value in given)
            what = f"inputs of shape {shapes}" if given else "the inputs"
            raise DataError(
                f"the model does not accept {what}: {one_line(error)}{own_line(error)}",
                hint="check shape, dtype and range of the data"
                + ("; --transform changes the size of images" if images else ""),
                slug="input_shape",
            ) from error

    def _in_own_dtype(self, value: Any) -> Any:
        """Floating-point inputs in the dtype of the module's parameters."""
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self._dtype)
        return value


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text


def _widen(module: nn.Module) -> None:
    """Half-precision models compute in float32: on the CPU that is also faster, and no partial sum overflows."""
    if any(tensor.is_floating_point() and tensor.dtype.itemsize < 4 for tensor in module.state_dict().values()):
        module.float()


@contextmanager
def disable_mha_fastpath() -> Iterator[None]:
    """Turn off the fused path of attention, which skips submodules, so that the hooks of every submodule are called."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
