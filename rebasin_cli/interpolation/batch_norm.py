"""BatchNorm layers whose running statistics no longer fit: found, fed with the batch's own, and given new ones.

The statistics of an interpolant are not the interpolation of the ends' (Jordan et al. 2023, "variance collapse"). While
they are measured, every layer normalises by its batch, so that the layers behind it see inputs as they will be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rebasin_cli.interpolation.moments import Moments, moments


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that normalise by running statistics, by module name; frozen and synchronised kinds too."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(getattr(child, "running_mean", None), Tensor)
        and isinstance(getattr(child, "running_var", None), Tensor)
        and (isinstance(child, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(child).__name__)
    }


@contextmanager
def normalising_by_batch(layers: dict[str, nn.Module], seen: dict[str, list[Moments]]) -> Iterator[None]:
    """While active, every layer normalises by its input's own statistics, which are appended to `seen[name]`.

    The layers stay in eval mode and take the statistics as if they were the running ones: this serves every kind of
    BatchNorm alike, and nothing else of training mode (dropout, synchronisation) comes with it.
    """

    def before(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = moments(inputs[0], 1)
        running_mean, running_var = layer.running_mean, layer.running_var
        assert isinstance(running_mean, Tensor)
        assert isinstance(running_var, Tensor)
        running_mean.copy_(found.mean)
        running_var.copy_(found.variance)
        seen.setdefault(name, []).append(found)

    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: before(name, layer, inputs))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
