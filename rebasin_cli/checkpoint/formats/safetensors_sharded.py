"""Sharded safetensors: an index beside its shards, as transformers and diffusers write large models."""

from __future__ import annotations

from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import OneFileCheckpoint
from rebasin_cli.checkpoint.formats import safetensors
from rebasin_cli.checkpoint.formats._sharded import ShardedFormat


class ShardedSafetensorsFormat(ShardedFormat):
    """An index and safetensors files."""

    name = "sharded-safetensors"
    help = "the index of a sharded safetensors checkpoint"
    suffixes = (".safetensors.index.json",)
    shard_suffix = ".safetensors"
    shard_format = safetensors.FORMAT

    def open_shard(self, path: Path) -> OneFileCheckpoint:
        return safetensors.SafetensorsCheckpoint(path)


FORMAT = ShardedSafetensorsFormat()
