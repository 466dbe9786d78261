"""`torchvision:CIFAR10@root`: a torchvision data set that already lies in `root`; nothing is ever downloaded.

`torchvision:CIFAR10/train@root` names a part; without one it is the test part (or the validation part).
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import Tensor

from rebasin_cli.data.folder import Unreadable
from rebasin_cli.data.transform import Transform
from rebasin_cli.errors import DataError
from rebasin_cli.model.torchvision_import import import_torchvision


class TransformedSet:
    """A data set of (PIL image, target) pairs with the transform put before each image."""

    def __init__(self, dataset: Any, transform: Transform, name: str) -> None:
        self._dataset = dataset
        self.transform = transform
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | Unreadable:
        try:
            image, target = self._dataset[index]
        except (OSError, SyntaxError, ValueError) as error:
            return Unreadable(f"{self._name}[{index}]", " ".join(str(error).split()))
        return self.transform(image), target


def open_torchvision_set(spec: str) -> Any:
    """The torchvision data set behind `torchvision:NAME[/PART]@ROOT`, without a transform.

    Raises:
        DataError: no such set or part, or it does not lie in the root.
    """
    name, _, root = spec.removeprefix("torchvision:").partition("@")
    name, _, part = name.partition("/")
    datasets = import_torchvision().datasets
    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind) or name.startswith("_"):
        near = difflib.get_close_matches(name, datasets.__all__, n=3)
        raise DataError(
            f"torchvision has no data set {name!r}", hint=f"did you mean {', '.join(near)}?" if near else None
        )
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": root or "."}
    if "download" in parameters:
        options["download"] = False
    if "train" in parameters:
        if part not in ("", "train", "test"):
            raise DataError(f"{spec}: part {part!r} of {name} is unknown", hint="parts are train and test")
        options["train"] = part == "train"
    elif "split" in parameters:
        options["split"] = part or ("val" if name in ("ImageNet", "Imagenette", "FGVCAircraft") else "test")
    try:
        return kind(**options)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).replace("You can use download=True to download it", "").split())
        raise DataError(
            f"{spec}: {name} cannot be opened in {root or '.'!r}: {reason}",
            path=root or ".",
            hint="put the set there first; nothing is downloaded",
        ) from error
