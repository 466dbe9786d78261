"""Permutations planted by hand: which tensors move together is written down from each architecture's source.

Nothing here knows the spec, the tracer or the program's own gathers: tensors are NumPy arrays, moved by `numpy.take`.
A permutation `p` reads `new[i] = old[p[i]]`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Perm = NDArray[np.int64]
Arrays = dict[str, NDArray[np.float32]]


class Planter:
    """Tensors by name, and the random permutations that are planted in them."""

    def __init__(self, arrays: Arrays, seed: int) -> None:
        self.arrays = dict(arrays)
        self._random = np.random.default_rng(seed)

    def perm(self, size: int) -> Perm:
        return self._random.permutation(size)

    def size(self, key: str, axis: int = 0) -> int:
        return self.arrays[key].shape[axis]

    def move(self, key: str, axis: int, perm: Perm, *, inner: int = 1, offset: int = 0) -> None:
        """Reorder a segment of an axis, `inner` positions at a time."""
        index = np.arange(self.arrays[key].shape[axis])
        moved = (perm[:, None] * inner + np.arange(inner)).ravel()
        index[offset : offset + len(moved)] = offset + moved
        self.arrays[key] = np.take(self.arrays[key], index, axis=axis)

    def makes(self, name: str, perm: Perm, *, offset: int = 0) -> None:
        """Outputs of a layer: rows of its weight, and its bias."""
        self.move(f"{name}.weight", 0, perm, offset=offset)
        if f"{name}.bias" in self.arrays:
            self.move(f"{name}.bias", 0, perm, offset=offset)

    def norm(self, name: str, perm: Perm, *, offset: int = 0) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"{name}.{part}" in self.arrays:
                self.move(f"{name}.{part}", 0, perm, offset=offset)

    def reads(self, names: Iterable[str], perm: Perm, *, inner: int = 1, offset: int = 0) -> None:
        for name in names:
            self.move(f"{name}.weight", 1, perm, inner=inner, offset=offset)


def chain(plant: Planter, layers: list[tuple[list[str], list[str], list[str]]]) -> None:
    """For each (layers that make, norms in between, layers that read), one permutation."""
    for made, norms, read in layers:
        perm = plant.perm(plant.size(f"{made[0]}.weight"))
        for name in made:
            plant.makes(name, perm)
        for name in norms:
            plant.norm(name, perm)
        plant.reads(read, perm)


def resnet(plant: Planter, counts: tuple[int, ...], convolutions: int) -> None:
    """A ResNet of `counts` blocks a stage, each of two or three convolutions: a stream a stage, the stem's own."""
    groups: list[tuple[list[str], list[str], list[str]]] = []
    stream: tuple[list[str], list[str], list[str]] = (["conv1"], ["bn1"], [])
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stream[2].append(f"{name}.conv1")
            groups += [
                ([f"{name}.conv{place}"], [f"{name}.bn{place}"], [f"{name}.conv{place + 1}"])
                for place in range(1, convolutions)
            ]
            if f"{name}.downsample.0.weight" in plant.arrays:
                stream[2].append(f"{name}.downsample.0")
                groups.append(stream)
                stream = ([f"{name}.downsample.0"], [f"{name}.downsample.1"], [])
            stream[0].append(f"{name}.conv{convolutions}")
            stream[1].append(f"{name}.bn{convolutions}")
    stream[2].append("fc")
    chain(plant, [*groups, stream])


def vgg11_bn(plant: Planter) -> None:
    """Convolutions at 0, 4, 8, … with a norm behind each; the last one's channels are runs of 49 columns."""
    places = (0, 4, 8, 11, 15, 18, 22, 25)
    names = [f"features.{place}" for place in places]
    for place, name in zip(places, names, strict=True):
        perm = plant.perm(plant.size(f"{name}.weight"))
        plant.makes(name, perm)
        plant.norm(f"features.{place + 1}", perm)
        if name == names[-1]:
            plant.reads(["classifier.0"], perm, inner=49)
        else:
            plant.reads([names[names.index(name) + 1]], perm)
    chain(plant, [(["classifier.0"], [], ["classifier.3"]), (["classifier.3"], [], ["classifier.6"])])


def mobilenet_v2(plant: Planter) -> None:
    """Inverted residuals: a stream from one change of width to the next, hidden channels through a depthwise kernel."""
    stream: tuple[list[str], list[str], list[str]] = (["features.0.0"], ["features.0.1"], [])
    for block in range(1, 18):
        name = f"features.{block}.conv"
        expands = f"{name}.3.weight" in plant.arrays
        depth, norm, back, back_norm = (
            f"{name}.{part}" for part in (("1.0", "1.1", "2", "3") if expands else ("0.0", "0.1", "1", "2"))
        )
        if expands:
            stream[2].append(f"{name}.0.0")
            hidden = plant.perm(plant.size(f"{name}.0.0.weight"))
            plant.makes(f"{name}.0.0", hidden)
            plant.norm(f"{name}.0.1", hidden)
            plant.makes(depth, hidden)
            plant.norm(norm, hidden)
            plant.reads([back], hidden)
        else:
            stream[0].append(depth)
            stream[1].append(norm)
            stream[2].append(back)
        if block in (1, 2, 4, 7, 11, 14, 17):  # no addition around it: a stream of another width begins
            chain(plant, [stream])
            stream = ([back], [back_norm], [])
        else:
            stream[0].append(back)
            stream[1].append(back_norm)
    stream[2].append("features.18.0")
    chain(plant, [stream, (["features.18.0"], ["features.18.1"], ["classifier.1"])])


def densenet121(plant: Planter) -> None:
    """Every layer's growth of 32 channels keeps its offset in all later norms and kernels of its block."""
    source, width = "features.conv0", 64
    for block, count in enumerate((6, 12, 24, 16), start=1):
        made = [(source, 0, width)]
        made += [
            (f"features.denseblock{block}.denselayer{n}.conv2", width + 32 * (n - 1), 32) for n in range(1, count + 1)
        ]
        after = f"features.transition{block}" if block < 4 else "features"
        readers = [
            (f"features.denseblock{block}.denselayer{n}.norm1", f"features.denseblock{block}.denselayer{n}.conv1")
            for n in range(1, count + 1)
        ]
        last = (f"{after}.norm", f"{after}.conv") if block < 4 else ("features.norm5", "classifier")
        for name, offset, size in made:
            perm = plant.perm(size)
            plant.makes(name, perm)
            if name == "features.conv0":
                plant.norm("features.norm0", perm)
            for norm, conv in (*readers, last):
                if plant.size(f"{norm}.weight") >= offset + size:
                    plant.norm(norm, perm, offset=offset)
                    plant.reads([conv], perm, offset=offset)
        for n in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{n}"
            chain(plant, [([f"{name}.conv1"], [f"{name}.norm2"], [f"{name}.conv2"])])
        source, width = f"{after}.conv", (width + 32 * count) // 2


def vit_b_16(plant: Planter, layers: int = 12, heads: int = 12, dim: int = 768) -> None:
    """One stream; in each layer heads as blocks, inside them q with k and v with the projection back, and an MLP."""
    stream = plant.perm(dim)
    plant.makes("conv_proj", stream)
    plant.move("class_token", 2, stream)
    plant.move("encoder.pos_embedding", 2, stream)
    plant.norm("encoder.ln", stream)
    plant.reads(["heads.head"], stream)
    for layer in range(layers):
        name = f"encoder.layers.encoder_layer_{layer}"
        plant.norm(f"{name}.ln_1", stream)
        plant.norm(f"{name}.ln_2", stream)
        plant.makes(f"{name}.mlp.3", stream)
        plant.reads([f"{name}.mlp.0"], stream)
        chain(plant, [([f"{name}.mlp.0"], [], [f"{name}.mlp.3"])])
        attend = f"{name}.self_attention"
        plant.makes(f"{attend}.out_proj", stream)
        plant.move(f"{attend}.in_proj_weight", 1, stream)
        _plant_heads(plant, attend, heads, dim)


def _plant_heads(plant: Planter, attend: str, heads: int, dim: int) -> None:
    size = dim // heads
    packed = (f"{attend}.in_proj_weight", f"{attend}.in_proj_bias")
    for head in range(heads):
        with_k, with_out = plant.perm(size), plant.perm(size)
        for key in packed:
            plant.move(key, 0, with_k, offset=head * size)
            plant.move(key, 0, with_k, offset=dim + head * size)
            plant.move(key, 0, with_out, offset=2 * dim + head * size)
        plant.reads([f"{attend}.out_proj"], with_out, offset=head * size)
    blocks = plant.perm(heads)
    for key in packed:
        for part in range(3):
            plant.move(key, 0, blocks, inner=size, offset=part * dim)
    plant.reads([f"{attend}.out_proj"], blocks, inner=size)
