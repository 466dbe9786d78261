"""From the name of a device to the device, or one line that says which there are."""

from __future__ import annotations

import torch

from rebasin_cli.errors import ResourceError, UsageError


def available_devices() -> tuple[str, ...]:
    """Names of the devices that can be used here, the CPU first."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return tuple(names)


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: no kind of device has this name.
        ResourceError: there is such a kind of device, but not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"unknown device {name!r}", hint=f"available devices: {', '.join(available_devices())}"
        ) from error
    if device.type in ("cpu", "mps") or device.index is not None:
        wanted = device.type if device.type in ("cpu", "mps") else str(device)
        found = wanted in available_devices()
    else:
        found = any(candidate.startswith(f"{device.type}:") for candidate in available_devices())
    if not found:
        raise ResourceError(
            f"device {name!r} is not available here",
            hint=f"available devices: {', '.join(available_devices())}",
            slug="device",
        )
    return device
