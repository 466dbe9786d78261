"""The smallest input that each of torchvision's models takes as it is meant to be used."""

from __future__ import annotations

from torch import nn

from rebasin_cli.model.example_input import ExampleInput, Sampler

DEFAULT_IMAGE = 224

# (frames, side) of a clip; the rest take the default.
CLIPS = {
    "s3d": (16, 224),  # its last pooling window is 2 x 7 x 7 after a reduction by 8 x 32 x 32
    "mvit_v1_b": (16, 224),  # position tables of fixed extent
    "mvit_v2_s": (16, 224),
}
DEFAULT_CLIP = (8, 112)


def torchvision_input(name: str, family: str, module: nn.Module, seed: int) -> ExampleInput:
    """One sample for the model `name` whose builder lives in the Python module `family`.

    Images are (1, 3, H, W) and clips (1, 3, T, H, W), standard normal as after normalisation; a detector takes a list
    of (3, H, W) images in [0, 1); RAFT takes two frames in [-1, 1).
    """
    sample = Sampler(seed)
    if ".detection." in family:
        return ExampleInput(([sample.uniform(3, 320, 320)],))
    if ".optical_flow." in family:  # RAFT wants feature maps of at least 16 x 16 at an eighth of the resolution
        return ExampleInput((sample.uniform(1, 3, 128, 128) * 2 - 1, sample.uniform(1, 3, 128, 128) * 2 - 1))
    if ".video." in family:
        frames, side = CLIPS.get(name, DEFAULT_CLIP)
        return ExampleInput((sample.normal(1, 3, frames, side, side),))
    if name == "inception_v3":
        return ExampleInput((sample.normal(1, 3, 299, 299),))
    declared = getattr(module, "image_size", None)  # vision transformers: the position table decides
    side = declared if isinstance(declared, int) else DEFAULT_IMAGE
    return ExampleInput((sample.normal(1, 3, side, side),))
