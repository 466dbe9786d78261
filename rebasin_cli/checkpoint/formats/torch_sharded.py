"""Sharded files of torch.save: an index beside its shards, as transformers wrote large models before safetensors."""

from __future__ import annotations

from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import OneFileCheckpoint
from rebasin_cli.checkpoint.formats import torch_legacy, torch_zip
from rebasin_cli.checkpoint.formats._sharded import ShardedFormat
from rebasin_cli.checkpoint.formats._torch_checkpoint import TorchCheckpoint
from rebasin_cli.checkpoint.mapped_file import MappedFile


class ShardedTorchFormat(ShardedFormat):
    """An index and files of torch.save."""

    name = "sharded-torch"
    help = "the index of a sharded PyTorch checkpoint"
    suffixes = (".bin.index.json",)
    shard_suffix = ".bin"
    shard_format = torch_zip.FORMAT

    def open_shard(self, path: Path) -> OneFileCheckpoint:
        zipped = torch_zip.FORMAT.recognises(path, MappedFile(path).read(0, 512))
        form = torch_zip if zipped else torch_legacy
        return TorchCheckpoint(path, form.FORMAT, form.take_apart)


FORMAT = ShardedTorchFormat()
