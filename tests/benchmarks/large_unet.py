"""A U-Net of SDXL's shape, 2.6 billion parameters in bfloat16: random A, B = A under random permutations.

    python -m tests.benchmarks.large_unet [--shrink 1] [--threads 2] [--folder DIR] [-o FILE.json]

Prints the figures of the alignment as a whole, CPU and wall seconds of each pass, and the peaks of memory (anonymous
beyond the imports; resident, which counts pages of the mapped files too). `--shrink 4` is a quarter as wide and has two
transformer blocks where the large one has ten: quick. The pair and the output need 16 GB of disk. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.memory import measure


def config(shrink: int) -> dict[str, Any]:
    """The published configuration; a small latent, since what is run is for the proof alone."""
    return {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "attention_head_dim": [max(1, heads // shrink) for heads in (5, 10, 20)],
        "block_out_channels": [width // shrink for width in (320, 640, 1280)], "cross_attention_dim": 2048 // shrink,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4, "layers_per_block": 2, "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_num_groups": 32 // shrink, "out_channels": 4, "projection_class_embeddings_input_dim": 2816,
        "sample_size": 32, "transformer_layers_per_block": [1, 2, 10 if shrink == 1 else 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--effort", default="auto")
    parser.add_argument("--folder", help="where the pair is made")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(config(options.shrink)))
        options.model, options.kind, options.input = f"diffusers:{name}", "planted", []
        options.shards, options.share = 1, 0.0
        figures = measure(options, {})
    figures["model"] = f"U-Net of SDXL's shape, {'full size' if options.shrink == 1 else f'shrunk {options.shrink}'}"
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
