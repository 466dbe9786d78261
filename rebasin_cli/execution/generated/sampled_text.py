"""Text that language models write themselves: each network samples an equal share, at temperature 1.

A sequence begins with the model's own first token where its configuration names one, and else with any token; the
first few tokens that follow a random one are left out, so that what is kept is text as the model writes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from rebasin_cli.data.outputs import logits_of
from rebasin_cli.data.text import Language
from rebasin_cli.execution.generated.arguments import Arguments

LONGEST = 128
"""Tokens of a sequence where the user states no length."""
LED_IN = 16
"""Tokens that are sampled after a random first one and left out, at most a quarter of the sequence's length."""
NUMBERS = 1 << 25
"""About so many logits are held at once."""
SAME = 1e-3
"""Difference of logits, relative to the largest, up to which those with a cache are those without."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the sequences: tokens that the model is given (one more is sampled), and how it is called.

    Attributes:
        led_in: tokens that are sampled first and left out.
        fixed: the model takes sequences of this length only; None where it takes any.
    """

    tokens: int
    led_in: int
    fixed: int | None


def is_language_model(networks: Sequence[nn.Module], arguments: Arguments, language: Language | None) -> bool:
    """Whether the networks score the next token of a sequence, from the tokens before it alone."""
    if language is None or len(arguments.batched) != 1:
        return False
    (place,) = arguments.batched
    ids = arguments.leaves[place]
    if ids.shape[1] < 2:
        return False
    half = ids.shape[1] // 2
    other = torch.cat([ids[:, :half], (ids[:, half:] + 1) % language.vocabulary], dim=1)
    for network in networks:
        try:
            one, two = (_logits(arguments, network, tokens) for tokens in (ids, other))
        except Exception:  # the model is the user's code
            return False
        if one is None or two is None or one.shape[2] < language.vocabulary:
            return False
        if float((one[:, :half] - two[:, :half]).abs().max()) > 1e-4 * float(one.abs().max()):
            return False
    return True


def shape_of(networks: Sequence[nn.Module], arguments: Arguments, language: Language) -> Shape:
    """The length of sequences: as stated, else `LONGEST`, or less where the model takes less."""
    (place,) = arguments.batched
    ids = arguments.leaves[place]
    tokens = language.length or min(language.block, LONGEST)
    led_in = min(LED_IN, tokens // 4)
    for shape in (Shape(tokens, led_in, None), Shape(tokens, 0, None), Shape(ids.shape[1], 0, None)):
        longest = ids[:, :1].expand(-1, shape.tokens + shape.led_in)
        fits = language.context is None or longest.shape[1] <= language.context
        if fits and all(_takes(arguments, network, one) for network in networks for one in (ids[:, :1], longest)):
            return shape
    return Shape(ids.shape[1], 0, ids.shape[1])


def _takes(arguments: Arguments, network: nn.Module, tokens: Tensor) -> bool:
    """Whether a sequence of this length is one for the model, which may have a fixed number of positions."""
    try:
        return _logits(arguments, network, tokens) is not None
    except Exception:  # the model is the user's code
        return False


def sampled(
    networks: Sequence[nn.Module],
    arguments: Arguments,
    language: Language,
    shape: Shape,
    count: int,
    seed: int,
    stepped: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sequences (count, tokens + 1) of token ids, int64 on the CPU, those of all networks in random order.

    Args:
        networks: in eval mode.
        stepped: called with the number of tokens that are done, and that of all.
    """
    shares = [count // len(networks) + (number < count % len(networks)) for number in range(len(networks))]
    batch = max(1, min(128, NUMBERS // (shape.tokens * language.vocabulary)))
    generator = torch.Generator().manual_seed(seed)
    found, done, of = [], 0, count * (shape.tokens + shape.led_in)
    for network, share in zip(networks, shares, strict=True):
        for start in range(0, share, batch):
            size = min(batch, share - start)
            growing = _growing(network, arguments, language, shape, size, generator)
            for _ in range(shape.tokens + shape.led_in):
                tokens = next(growing)
                done += size
                if stepped is not None:
                    stepped(done, of)
            found.append(tokens[:, shape.led_in :])
    order = torch.randperm(count, generator=generator)
    return torch.cat(found)[order]


def _growing(
    network: nn.Module, arguments: Arguments, language: Language, shape: Shape, size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """The sequences (size, length) after every token that one network adds, without end."""
    begins = getattr(getattr(network, "config", None), "bos_token_id", None)
    tokens = torch.randint(language.vocabulary, (size, 1), generator=generator)
    if isinstance(begins, int) and 0 <= begins < language.vocabulary:
        tokens[: size // 2] = begins
    writer = _Writer(network, arguments, shape)
    while True:
        scores = writer.next_scores(tokens)[:, : language.vocabulary]
        drawn = torch.multinomial(scores.double().softmax(1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
        yield tokens


class _Writer:
    """Scores of the next token, with the model's own cache where it has one that can be trusted."""

    def __init__(self, network: nn.Module, arguments: Arguments, shape: Shape) -> None:
        self._network, self._arguments, self._shape = network, arguments, shape
        names = inspect.signature(network.forward).parameters
        self._cached = shape.fixed is None and {"use_cache", "past_key_values"} <= set(names)
        self._past: Any = None

    def next_scores(self, tokens: Tensor) -> Tensor:
        """float32 (n, vocabulary) on the CPU."""
        if self._cached:
            found = self._with_cache(tokens)
            if found is not None:
                return found
            self._cached, self._past = False, None
        length, fixed = tokens.shape[1], self._shape.fixed
        if fixed is not None:
            tokens = torch.cat([tokens, tokens.new_zeros(len(tokens), max(0, fixed - length))], dim=1)
        scores = _logits(self._arguments, self._network, tokens)
        assert scores is not None
        return scores[:, length - 1].float().cpu()

    def _with_cache(self, tokens: Tensor) -> Tensor | None:
        """None where the cache is no use: the scores of the second token are compared with those without it."""
        more = {"use_cache": True, **({} if self._past is None else {"past_key_values": self._past})}
        try:
            output = _output(self._arguments, self._network, tokens if self._past is None else tokens[:, -1:], more)
        except Exception:  # the model is the user's code
            return None
        scores, self._past = logits_of(output), getattr(output, "past_key_values", None)
        if scores is None or self._past is None:
            return None
        if tokens.shape[1] == 2:
            plain = _logits(self._arguments, self._network, tokens)
            if plain is None or float((plain[:, -1] - scores[:, -1]).abs().max()) > SAME * float(plain.abs().max()):
                return None
        return scores[:, -1].float().cpu()


def _logits(arguments: Arguments, network: nn.Module, tokens: Tensor) -> Tensor | None:
    """float32 (n, tokens, vocabulary); None where the model gives something else."""
    found = logits_of(_output(arguments, network, tokens, {}))
    if found is None or found.dim() != 3 or not found.is_floating_point() or found.shape[:2] != tokens.shape:
        return None
    return found.float()


def _output(arguments: Arguments, network: nn.Module, tokens: Tensor, more: dict[str, Any]) -> Any:
    (place,) = arguments.batched
    device = next((one.device for one in network.parameters()), torch.device("cpu"))
    leaves = list(arguments.leaves)
    leaves[place] = tokens.to(device, leaves[place].dtype)
    args, kwargs = tree_unflatten(leaves, arguments.structure)
    with torch.no_grad():
        return network(*args, **{**kwargs, **more})
