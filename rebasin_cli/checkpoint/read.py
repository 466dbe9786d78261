"""Opening a checkpoint: which format a file is, by its name and by its first bytes together."""

from __future__ import annotations

from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.safetensors_file import SafetensorsCheckpoint
from rebasin_cli.checkpoint.sharded import INDEX_SUFFIX, ShardedCheckpoint, find_index
from rebasin_cli.checkpoint.sniff import hint_for, identify
from rebasin_cli.checkpoint.torch_file import TorchCheckpoint
from rebasin_cli.checkpoint.wording import size
from rebasin_cli.errors import CheckpointError

TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar", ".th"})
SAFETENSORS_SUFFIX = ".safetensors"


def open_checkpoint(path: str | Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
    """Open a checkpoint, reading and checking its header only.

    Args:
        path: a `.safetensors` file; a `*.safetensors.index.json` or its directory; or a file of torch.save.
        key: which state dict of several, as the keys that lead to it joined by dots; for safetensors a key prefix.
        ema: the averaged weights (`state_dict_ema`, `model_ema`, `ema`, …).

    Raises:
        CheckpointError: it cannot be read safely; the message says what it is instead.
        UsageError: both `key` and `ema`.
    """
    path = Path(path)
    if path.is_dir():
        found = find_index(path)
        if not found.name.endswith(INDEX_SUFFIX):
            return SafetensorsCheckpoint(found, key=key, ema=ema)
        return ShardedCheckpoint(found, path=path, key=key, ema=ema)
    if path.name.endswith(INDEX_SUFFIX):
        return ShardedCheckpoint(path, key=key, ema=ema)
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        return SafetensorsCheckpoint(path, key=key, ema=ema)
    return _by_content(path, key=key, ema=ema)


def _by_content(path: Path, *, key: str | None, ema: bool) -> Checkpoint:
    file = MappedFile(path)
    head = file.read(0, 512)
    found = identify(head)
    if found == "a safetensors file":
        if path.suffix.lower() in TORCH_SUFFIXES:
            text = f"{path}: named like a file of torch.save, but it is a safetensors file"
            raise CheckpointError(text, path=path, hint="rename it to .safetensors")
        return SafetensorsCheckpoint(path, key=key, ema=ema)
    if found is not None and ("torch.save" in found or found == "a pickle"):
        return TorchCheckpoint(path, key=key, ema=ema)
    if file.size == 0:
        raise CheckpointError(f"{path}: empty file (0 bytes), not a checkpoint", path=path)
    seen = f"it is {found}" if found else f"{size(file.size)} that begin with {head[:8]!r}"
    hint = hint_for(seen) or "a checkpoint is a .safetensors file or one of torch.save (.pt .pth .bin .ckpt)"
    raise CheckpointError(f"{path}: not a checkpoint: {seen}", path=path, hint=hint)
