"""Files <-> named tensors: checkpoints are read lazily and without trust, and written whole or not at all."""

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.checkpoint.checkpoint import Checkpoint, TensorInfo
from rebasin_cli.checkpoint.keys import KeyMap, match_keys
from rebasin_cli.checkpoint.read import open_checkpoint
from rebasin_cli.checkpoint.write import check_output, write_like

__all__ = [
    "Checkpoint",
    "KeyMap",
    "TensorInfo",
    "check_output",
    "match_keys",
    "open_checkpoint",
    "write_like",
    "write_text_atomically",
]
