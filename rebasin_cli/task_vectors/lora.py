"""LoRA adapters as PEFT saves them, permuted along with the layers that they change.

A layer's weight changes by `s B A`, with A of shape (rank, in) and B of shape (out, rank) (Hu et al. 2021). Where the
weight's units are permuted, `P_out (W + s B A) P_in^T = P_out W P_in^T + s (P_out B) (A P_in^T)`: A follows the input
axis and B the output axis. So do an embedding's factors, the magnitudes of DoRA (Liu et al. 2024), which belong to the
output axis, and whole modules that were trained beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.checkpoint.read import open_checkpoint
from rebasin_cli.errors import CheckpointError, ModelError, few, quoted
from rebasin_cli.execution.subject import Subject
from rebasin_cli.permutation import Gather, Permutations, gathers, permute_tensor
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.task_vectors.transferred import moved

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

Role = Literal["A", "B", "embedding A", "embedding B", "magnitude", "bias", "whole"]

_ROLES: Mapping[str, Role] = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_embedding_A": "embedding A",
    "lora_embedding_B": "embedding B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_WRAPPERS = {"base_model", "modules_to_save", "original_module", "base_layer"}
"""Names that PEFT inserts into those of a model."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of an adapter: its key in the file, the model's tensor that it changes, and how."""

    key: str
    target: str
    role: Role


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axis of a layer's weight has its inputs, and which its outputs."""

    inputs: int
    outputs: int


def adapter_directory(path: Path) -> Path | None:
    """The directory of an adapter that is given as this directory or as the file of its weights; None for others."""
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name in WEIGHTS
    if named and (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS):
        return folder
    return None


class Adapter:
    """An adapter directory, held against a model.

    Attributes:
        checkpoint: the directory: weights, configuration and what lies beside them.
        parts: its tensors, in the order of the file.
        own: keys of whole modules that the model does not have in this size: heads that the fine-tuning brought.
    """

    def __init__(self, checkpoint: DirectoryCheckpoint, config: Mapping[str, Any], subject: Subject) -> None:
        self.checkpoint, self.config, self._subject = checkpoint, config, subject
        self._modules = dict(subject.module.named_modules())
        self.parts = tuple(self._part(key) for key in checkpoint.infos)
        self.own = tuple(part.key for part in self.parts if part.role == "whole" and self._other_size(part))
        self._by_target: dict[str, dict[Role, Part]] = {}
        for part in self.parts:
            self._by_target.setdefault(part.target, {})[part.role] = part
        self._check()

    @staticmethod
    def open(folder: Path, subject: Subject) -> Adapter:
        """Open an adapter by its configuration and headers.

        Raises:
            CheckpointError: a file cannot be read.
            ModelError: it is no LoRA, or it changes what the model does not have.
        """
        checkpoint = open_checkpoint(folder)
        assert isinstance(checkpoint, DirectoryCheckpoint)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG}: cannot be read as JSON: {error}", path=folder) from error
        if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
            seen = config.get("peft_type") if isinstance(config, dict) else None
            raise ModelError(
                f"{folder}: an adapter of type {quoted(seen)}; only LoRA (with DoRA) can be transferred",
                path=folder,
                hint="merge it into its base first, with PEFT's merge_and_unload, and give the merged checkpoint",
                slug="adapter",
            )
        return Adapter(checkpoint, config, subject)

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def dora(self) -> bool:
        return any(part.role == "magnitude" for part in self.parts)

    def _part(self, key: str) -> Part:
        names = [name for name in key.split(".") if name not in _WRAPPERS]
        names = names[1:] if key.startswith("base_model.") and names[:1] == ["model"] else names
        plain = ".".join(name for name in names if name != "default")
        for ending, role in _ROLES.items():
            if plain.endswith(f".{ending}"):
                module = plain.removesuffix(f".{ending}")
                return Part(key, self._model_key(f"{module}.weight", key), role)
        if "lora_" in plain:
            raise ModelError(f"{self.path}: {quoted(key)}: a tensor of an unknown kind of LoRA", slug="adapter")
        return Part(key, self._model_key(plain, key), "whole")

    def _model_key(self, name: str, key: str) -> str:
        """The model's name of a tensor, which may have other leading parts than PEFT's."""
        known = self._subject.shapes
        parts = name.split(".")
        for cut in range(len(parts) - 1):
            if ".".join(parts[cut:]) in known:
                return ".".join(parts[cut:])
        longer = [one for one in known if one.endswith(f".{name}")]
        if len(longer) == 1:
            return longer[0]
        raise ModelError(
            f"{self.path}: {quoted(key)} changes {quoted(name)}, which the model does not have",
            path=self.path,
            hint="give the --model that was fine-tuned, with its head",
            slug="keys",
        )

    def _other_size(self, part: Part) -> bool:
        return tuple(self.checkpoint.infos[part.key].shape) != tuple(self._subject.shapes[part.target])

    def _axes(self, target: str) -> Axes:
        module = self._modules.get(target.rpartition(".")[0])
        if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
            return Axes(0, 1)
        linear = isinstance(module, nn.Linear)
        return Axes(0, 1) if self.config.get("fan_in_fan_out") and not linear else Axes(1, 0)

    def _check(self) -> None:
        """Refuse shapes that do not belong to the layers.

        Raises:
            ModelError: naming the first.
        """
        for part in self.parts:
            shape = tuple(self.checkpoint.infos[part.key].shape)
            weight = tuple(self._subject.shapes[part.target])
            if part.role == "whole":
                continue
            module = self._modules.get(part.target.rpartition(".")[0])
            grouped = getattr(module, "groups", 1) != 1
            axis = self._axis(part, shape)
            wanted = weight[self._follows(part)] if len(weight) > 1 else None
            if grouped or wanted is None or axis is None or shape[axis] != wanted:
                why = "a grouped convolution" if grouped else f"the layer's weight has shape {list(weight)}"
                raise ModelError(
                    f"{self.path}: {quoted(part.key)} has shape {list(shape)}, and {why}",
                    path=self.path,
                    slug="shapes",
                )

    def _follows(self, part: Part) -> int:
        """The axis of the layer's weight that a part follows."""
        axes = self._axes(part.target)
        return axes.inputs if part.role in ("A", "embedding A") else axes.outputs

    def _axis(self, part: Part, shape: Sequence[int]) -> int | None:
        """The axis of the part that follows it."""
        if part.role in ("A", "embedding A"):
            return 1 if len(shape) > 1 else None
        if part.role == "magnitude":
            count = self._subject.shapes[part.target][self._follows(part)]
            return next((axis for axis, length in enumerate(shape) if length == count), None)
        return 0 if shape else None

    def steps(
        self, part: Part, spec: PermutationSpec, permutations: Permutations, ties: Mapping[str, str]
    ) -> list[Gather]:
        """The gathers that permute a part.

        Raises:
            ModelError: the units of the layer lie across several axes of its weight.
        """
        weight = self._subject.shapes[part.target]
        shape = self.checkpoint.infos[part.key].shape
        found = gathers(spec, permutations, part.target, shape if part.role == "whole" else weight, ties)
        if part.role == "whole":
            return found
        axes = self._axes(part.target)
        if any(step.span != 1 or step.axis not in (axes.inputs, axes.outputs) for step in found):
            raise ModelError(
                f"{self.path}: the units of {quoted(part.target)} lie across several of its axes, which an adapter "
                "cannot follow",
                path=self.path,
                hint="merge the adapter into its base first, and give the merged checkpoint",
                slug="adapter",
            )
        axis = self._axis(part, shape)
        assert axis is not None
        return [Gather(axis, 1, step.index) for step in found if step.axis == self._follows(part)]

    def permuted(
        self, spec: PermutationSpec, permutations: Permutations, ties: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """All tensors by the file's keys, permuted like the layers that they change."""
        return {
            part.key: permute_tensor(self.checkpoint.tensor(part.key), self.steps(part, spec, permutations, ties))
            for part in self.parts
        }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the file's keys, as they are."""
        return {part.key: self.checkpoint.tensor(part.key) for part in self.parts}

    def transferred(
        self, found: Mapping[str, Tensor], old: Mapping[str, Tensor], new: Mapping[str, Tensor], scale: float
    ) -> dict[str, Tensor]:
        """The adapter for the new base: `scale` multiplies B; whole modules move as `Transferred` moves tensors.

        Args:
            found: the tensors with their units in the new base's order; `old` likewise.
        """
        result = dict(found)
        for part in self.parts:
            value = found[part.key]
            if part.role in ("B", "embedding B", "bias") and scale != 1.0:
                result[part.key] = value.double() * scale
            elif part.role == "whole" and part.key not in self.own and value.is_floating_point():
                result[part.key] = moved(part.target, old[part.target], value, new[part.target], scale)
        return result

    def scaling(self, target: str, rank: int) -> float:
        """The factor of `B A` for a layer: alpha / rank, or alpha / sqrt(rank) for rank-stabilized adapters."""
        alpha = float(self.config.get("lora_alpha") or rank)
        module = target.rpartition(".")[0]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def merged(self, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A base with an adapter of these tensors merged into its weights, in float64."""
        return _Merged(self, base, tensors)

    def change(self, target: str, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """The weight of one layer with the adapter merged into it, float64."""
        roles = self._by_target[target]
        if "whole" in roles and tuple(tensors[roles["whole"].key].shape) == tuple(weight.shape):
            weight = tensors[roles["whole"].key]
        whole = weight.double()
        pair = ("embedding A", "embedding B") if "embedding A" in roles else ("A", "B")
        if pair[0] not in roles or pair[1] not in roles:
            return whole
        a, b = (tensors[roles[name].key].double() for name in pair)  # type: ignore[index]
        product = (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
        axes = self._axes(target)
        product = product if axes.outputs == 0 else product.T
        result = whole + self.scaling(target, a.shape[0]) * product
        if "magnitude" in roles:
            magnitude = tensors[roles["magnitude"].key].double().flatten()
            rest = [axis for axis in range(result.dim()) if axis != axes.outputs]
            sizes = [-1 if axis == axes.outputs else 1 for axis in range(result.dim())]
            result = result * (magnitude.view(sizes) / result.norm(dim=rest, keepdim=True).clamp(min=1e-30))
        return result

    def changes(self, key: str) -> bool:
        """Whether the adapter has anything for a tensor of the model."""
        return key in self._by_target

    def bias_of(self, key: str) -> Part | None:
        """The bias that an adapter adds to a layer's own, which has this key."""
        module, _, name = key.rpartition(".")
        return self._by_target.get(f"{module}.weight", {}).get("bias") if name == "bias" else None


class _Merged(Mapping[str, Tensor]):
    def __init__(self, adapter: Adapter, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        self._adapter, self._base, self._tensors = adapter, base, tensors

    def __getitem__(self, key: str) -> Tensor:
        weight = self._base[key]
        bias = self._adapter.bias_of(key)
        found = self._adapter.change(key, self._tensors, weight) if self._adapter.changes(key) else weight
        if bias is None:
            return found
        rank = next(
            tensor.shape[0]
            for part, tensor in ((part, self._tensors[part.key]) for part in self._adapter.parts)
            if part.target == bias.target and part.role == "A"
        )
        return found.double() + self._adapter.scaling(bias.target, rank) * self._tensors[bias.key].double()

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def check_own(adapter: Adapter, *, ignore_mismatched_sizes: bool) -> None:
    """Refuse whole modules of other sizes than the model's, unless they may differ.

    Raises:
        ModelError: naming them.
    """
    if adapter.own and not ignore_mismatched_sizes:
        raise ModelError(
            f"{adapter.path}: other sizes than the model's: {few(adapter.own)}",
            path=adapter.path,
            hint="--ignore-mismatched-sizes keeps the adapter's own, permuted like what they read",
            slug="shapes",
        )


def config_for(config: Mapping[str, Any], base: Path) -> dict[str, bytes]:
    """The configuration with the name of another base, by the name of its file."""
    document = {**config, "base_model_name_or_path": str(base)}
    return {CONFIG: (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("utf-8")}
