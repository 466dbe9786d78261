"""What a sweep costs beside its forward passes: images are decoded once, whatever the number of networks.

    python tests/benchmarks/sweep_cost.py [--images 200] [--size 256] [--model torchvision:resnet18]

Prints the CPU time of 11 values of lam on two curves over the CPU time of the forward passes in it, and what decoding
once for each network would have cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="torchvision:resnet18")
    options = parser.parse_args()
    import numpy as np
    import torch
    from PIL import Image

    from rebasin_cli.data import DataOptions, open_data
    from rebasin_cli.data.source import ModelView
    from rebasin_cli.data.transform import model_transform
    from rebasin_cli.execution.dataset_pass import RunningSums
    from rebasin_cli.execution.evaluation import Measure, evaluate
    from rebasin_cli.execution.model_slot import ModelSlot
    from rebasin_cli.interpolation.line import Line, grid, sweep_networks
    from rebasin_cli.model.factory import load_factory

    forward = 0.0

    class Timed(ModelSlot):
        def _run(self, batch: Any) -> Any:
            nonlocal forward
            began = time.process_time()
            output = super()._run(batch)
            forward += time.process_time() - began
            return output

    factory = load_factory(options.model)
    a, b, c = (dict(load_factory(options.model, seed=seed).build().state_dict()) for seed in range(3))
    slot = Timed(factory.build(), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for wnid in ("n01440764", "n01443537"):
            (Path(folder) / wnid).mkdir()
            for number in range(options.images // 2):
                pixels = generator.integers(0, 256, (options.size, options.size + 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(folder) / wnid / f"{number}.jpg", quality=90)
        view = ModelView(lambda _: 1000, transform=model_transform(options.model, slot.module)[0])
        source = open_data(folder, DataOptions(batch_size=32), view)
        began = time.process_time()
        for _ in source.batches():
            pass
        decode = time.process_time() - began
        networks = sweep_networks({"naive": Line([a, b]), "matched": Line([a, c])}, grid(10, 2))
        began = time.process_time()
        evaluate(slot, source, networks.all, Measure(), RunningSums())
        total = time.process_time() - began
    count = len(networks.all)
    print(f"{count} networks, {options.images} images: {total:.1f} s of CPU, forward passes {forward:.1f} s")
    print(f"sweep / forward passes            {total / forward:.3f}")
    print(f"decoding for each network instead {(total + (count - 1) * decode) / forward:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
