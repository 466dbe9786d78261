"""One module that is every interpolant in turn: weights are blended straight into its own tensors.

So memory holds one model beside the (mapped) checkpoints, however many values of lam there are, and whatever a module
derives from its parameters (flattened recurrent weights, views) stays valid, because the tensors stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError, ModelError, ResourceError, one_line
from rebasin_cli.interpolation.adjustment import NOTHING, Adjustment
from rebasin_cli.interpolation.path import Line, Point


class Body:
    """A module in eval mode on a device, that takes the weights of a point on a line.

    It computes in float32 or better, unless `widen` is off.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, amp: bool = False, widen: bool = True) -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        if widen:
            _widen(self.module)
        self.device = device
        self.amp = amp
        self.slots: dict[str, Tensor] = {
            key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
        }
        floating = (value.dtype for value in self.slots.values() if value.is_floating_point())
        self._dtype = next(floating, torch.float32)
        self.piece: int | None = None

    def place(self, line: Line, point: Point, adjustment: Adjustment = NOTHING) -> None:
        """Become the network at this point of the line.

        Raises:
            ModelError: a tensor of the line does not fit the module.
        """
        with torch.no_grad():
            for key in line.keys:
                slot = self.slots.get(key)
                if slot is None:
                    continue
                value = adjustment.apply(key, line.tensor(key, point, self.device))
                if slot.shape != value.shape:
                    raise ModelError(f"{key}: shape {tuple(value.shape)}, but the model has {tuple(slot.shape)}")
                slot.copy_(value)

    def outputs(self, batch: Batch) -> Iterator[tuple[Batch, Any]]:
        """The model's outputs, for the batch in one piece or, where that does not fit the device, in halves of halves.

        Raises:
            ResourceError: not even a single sample fits.
            DataError: the model does not accept the inputs.
        """
        if not batch.size:
            return
        size = min(self.piece or batch.size, batch.size)
        done = 0
        while done < batch.size:
            piece = batch.rows(done, min(done + size, batch.size))
            try:
                yield piece, self._run(piece)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                if size == 1:
                    raise ResourceError(
                        f"not enough memory on {self.device} for a single sample", hint="use another --device"
                    ) from error
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                self.piece = size = max(1, size // 2)
                continue
            done += piece.size

    def _run(self, batch: Batch) -> Any:
        moved = batch.to(self.device)
        args = tuple(self._fit(value) for value in moved.args)
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                return self.module(*args, **moved.kwargs)
        except Exception as error:  # the model is the user's code: what it says is told in its words
            if _is_memory(error):
                raise
            shapes = ", ".join(str(tuple(value.shape)) for value in args if isinstance(value, Tensor))
            raise DataError(
                f"the model does not accept inputs of shape {shapes or 'unknown'}: {one_line(error)}",
                hint="--transform changes the size of the images",
                slug="input_shape",
            ) from error

    def _fit(self, value: Any) -> Any:
        """Floating-point inputs in the dtype of the module's parameters."""
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self._dtype)
        return value


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text


def _widen(module: nn.Module) -> None:
    """Half-precision models compute in float32: on the CPU that is also faster, and no partial sum overflows."""
    if any(tensor.is_floating_point() and tensor.dtype.itemsize < 4 for tensor in module.state_dict().values()):
        module.float()


@contextmanager
def every_module_speaks() -> Iterator[None]:
    """While attention's fused path is off, every submodule really runs and its hooks are called."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
