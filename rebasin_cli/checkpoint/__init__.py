"""Files <-> named tensors: checkpoints are read on demand, never run code, and are written atomically.

Nothing here imports torch before a tensor is read.
"""

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.checkpoint.checkpoint import Checkpoint, TensorInfo
from rebasin_cli.checkpoint.formats import Format, all_formats, split_name
from rebasin_cli.checkpoint.keys import KeyMap, match_keys
from rebasin_cli.checkpoint.read import check_present, open_checkpoint
from rebasin_cli.checkpoint.write import check_output, write_like

__all__ = [
    "Checkpoint",
    "Format",
    "KeyMap",
    "TensorInfo",
    "all_formats",
    "check_output",
    "check_present",
    "match_keys",
    "open_checkpoint",
    "split_name",
    "write_like",
    "write_text_atomically",
]
