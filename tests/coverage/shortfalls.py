"""Why rows of the coverage ledger fall short of what is possible, or seem to: one reason for each, written by hand.

Every row of which more than one hundredth of the elements keeps its order needs one (`test_ledger.py`).
"""

from __future__ import annotations

_STREAM_IS_OUTPUT = "it has no classifier by default: its output is the stream itself, whose order is the caller's"
_PLACES = "mixes the places of the picture by weights of their own: places keep their order, and rightly"
_AUXILIARY = "its auxiliary classifiers are read in training only, and stay as they are"
_WEIGHT_NORM = "weight norm on a grouped convolution: units inside the stream's groups move alike"

SHORTFALLS = {
    "modules:experts in a loop, all hit": "experts that code tells apart by number keep their order; their units move",
    "modules:experts in a loop, some never hit": "the units of experts that were not reached follow the others'",
    "modules:nn.RNN": "so small that the bias of its output is more than a hundredth: it keeps its order, rightly",
    "timm:aimv2_large_patch14_224": _STREAM_IS_OUTPUT,
    "timm:deepseek_vit_412m": _STREAM_IS_OUTPUT,
    "timm:ecaresnet26t": "a convolution runs along the channels of each stage: they keep their order, rightly",
    "timm:eva02_tiny_patch14_224": _STREAM_IS_OUTPUT,
    "timm:gemma4_vit_167m": f"{_STREAM_IS_OUTPUT}; and with it the table of places, half of its numbers",
    "timm:gmlp_ti16_224": _PLACES,
    "timm:qwen3_vit_88m": _STREAM_IS_OUTPUT,
    "timm:resmlp_12_224": _PLACES,
    "torchvision:googlenet": _AUXILIARY,
    "torchvision:inception_v3": _AUXILIARY,
    "transformers:fnet": "a Fourier transform mixes all units of the stream: it is pinned, and rightly",
    "transformers:hubert": _WEIGHT_NORM,
    "transformers:longformer": "windows are strided views, which no rule follows: heads and stream are pinned",
    "transformers:switch_transformers": "experts that the example did not reach are pinned, and the stream with them",
    "transformers:wav2vec2": _WEIGHT_NORM,
}
