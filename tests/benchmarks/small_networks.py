"""Small image classifiers of several architectures and norms: each function returns an `nn.Module` giving 10 logits.

Named as `--model small_networks.py:NAME --model-arg side=8 …`; inputs are (n, channels, side, side).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Norm] = {
    "batch": nn.BatchNorm2d,
    "layer": ChannelLayerNorm,
    "group": lambda channels: nn.GroupNorm(4, channels),
    "none": lambda channels: nn.Identity(),
}


def mlp(side: int, channels: int, width: int = 128, norm: str = "none") -> nn.Module:
    """Three hidden layers of ReLU units on the flattened image, with LayerNorm if `norm` is not `none`."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((side * side * channels, width, width, width)):
        layers += [nn.Linear(fan_in, fan_out), nn.Identity() if norm == "none" else nn.LayerNorm(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def plain(side: int, channels: int, width: int = 12, norm: str = "batch") -> nn.Module:
    """Six convolutions and a linear layer on what they leave, flattened."""
    layers: list[nn.Module] = []
    fan_in = channels
    for number, times in enumerate((1, 1, 2, 2, 4, 4)):
        layers += [nn.Conv2d(fan_in, width * times, 3, padding=1), NORMS[norm](width * times), nn.ReLU()]
        fan_in = width * times
        if number in (1, 3):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(fan_in * (side // 4) ** 2, 10))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), norm(fan_out)
        self.conv2, self.norm2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), norm(fan_out)
        self.shortcut = nn.Sequential()
        if fan_in != fan_out:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), norm(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of blocks, the mean over the image, a linear layer."""

    def __init__(self, channels: int, width: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, width, 3, 1, 1, bias=False), norm(width)
        stages, fan_in = [], width
        for stage, times in enumerate((1, 2, 4)):
            for number in range(blocks):
                stages.append(Block(fan_in, width * times, 2 if stage and not number else 1, norm))
                fan_in = width * times
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(fan_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def resnet(side: int, channels: int, width: int = 8, norm: str = "batch", blocks: int = 2) -> nn.Module:
    """A residual network of 6 * blocks + 2 layers."""
    return ResNet(channels, width, blocks, NORMS[norm])


class ViT(nn.Module):
    """A pre-norm vision transformer, mean over the patches."""

    def __init__(self, side: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, side // 4, side // 4)
        self.position = nn.Parameter(nn.init.normal_(self.patch.weight.new_empty(1, 16, width), std=0.02))
        layer = nn.TransformerEncoderLayer(width, heads, width * 4, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.encoder(x)).mean(1))


def vit(side: int, channels: int, width: int = 32, depth: int = 3, heads: int = 4) -> nn.Module:
    """A vision transformer on 16 patches."""
    return ViT(side, channels, width, depth, heads)
