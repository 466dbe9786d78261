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
    from rebasin_cli.execution.measure import Measure
    from rebasin_cli.interpolation.body import Body
    from rebasin_cli.interpolation.evaluate import evaluate
    from rebasin_cli.interpolation.ledger import Ledger
    from rebasin_cli.interpolation.path import Line, grid
    from rebasin_cli.interpolation.places import lay_out
    from rebasin_cli.model.factory import load_factory

    forward = 0.0

    class Timed(Body):
        def _run(self, batch: Any) -> Any:
            nonlocal forward
            began = time.process_time()
            output = super()._run(batch)
            forward += time.process_time() - began
            return output

    factory = load_factory(options.model)
    a, b, c = (dict(load_factory(options.model, seed=seed).build().state_dict()) for seed in range(3))
    body = Timed(factory.build(), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for wnid in ("n01440764", "n01443537"):
            (Path(folder) / wnid).mkdir()
            for number in range(options.images // 2):
                pixels = generator.integers(0, 256, (options.size, options.size + 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(folder) / wnid / f"{number}.jpg", quality=90)
        view = ModelView(lambda _: 1000, transform=model_transform(options.model, body.module)[0])
        source = open_data(folder, DataOptions(batch_size=32), view)
        began = time.process_time()
        for _ in source.batches():
            pass
        decode = time.process_time() - began
        places = lay_out({"naive": Line([a, b]), "matched": Line([a, c])}, grid(10, 2))
        began = time.process_time()
        evaluate(body, source, places, Measure(), Ledger())
        total = time.process_time() - began
    networks = len(places.all)
    print(f"{networks} networks, {options.images} images: {total:.1f} s of CPU, forward passes {forward:.1f} s")
    print(f"sweep / forward passes            {total / forward:.3f}")
    print(f"decoding for each network instead {(total + (networks - 1) * decode) / forward:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
