"""Makes the inputs that `generated` names, once for each kind, and keeps them.

    maker = InputMaker(lambda: [network_a, network_b], example, device)
    made = maker.make("inverted", 512, seed=0)
    batch = made.batch(numpy.arange(64))

`pair_maker` makes them for two checkpoints; `execution.data_inputs.PairData` gives them out as any other data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.generated_kinds import AUTOMATIC, WORD, GeneratedFacts
from rebasin_cli.data.generated_source import GeneratedSet
from rebasin_cli.data.text import BYTES, Language, TextFacts, find_tokenizer
from rebasin_cli.errors import DataError, ResourceError, one_line
from rebasin_cli.execution.generated.arguments import Arguments
from rebasin_cli.execution.generated.goals import class_scores
from rebasin_cli.execution.generated.inverted import RECIPE, NotInvertible, inverted
from rebasin_cli.execution.generated.kept import KeptInputs, identity_of
from rebasin_cli.execution.generated.leaves import leaf_images
from rebasin_cli.execution.generated.noise import noise_images
from rebasin_cli.execution.generated.sampled_text import is_language_model, sampled, shape_of
from rebasin_cli.execution.model_slot import disable_mha_fastpath
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from rebasin_cli.execution.pair import Pair
    from rebasin_cli.execution.subject import Subject

FEWEST, MOST = 8, 128
NUMBERS = 1 << 21
"""Inputs are moved in batches of about so many numbers, between `FEWEST` and `MOST` of them."""


class InputMaker:
    """Makes inputs for some networks of one model, which all take part equally.

    Args:
        networks: makes the networks, in eval mode; called when the first inputs are asked for.
        example: what they are run on; None where that is unknown.
        device: where they run.
        cache: read and write the user's cache directory.

    Attributes:
        made: what was made last, by kind.
    """

    def __init__(
        self,
        networks: Callable[[], Sequence[nn.Module]],
        example: ExampleInput | None,
        device: torch.device,
        *,
        cache: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._build, self._example, self._device, self._cache = networks, example, device, cache
        self._progress: Progress = progress or Silent()
        self.made: dict[str, GeneratedSet] = {}

    @property
    def last(self) -> GeneratedSet | None:
        """The first set that was made; None where none was."""
        return next(iter(self.made.values()), None)

    @property
    def facts(self) -> GeneratedFacts | None:
        """What is told of it."""
        return None if self.last is None else self.last.facts

    @cached_property
    def _networks(self) -> list[nn.Module]:
        return [one.eval().requires_grad_(False).to(self._device) for one in self._build()]

    @cached_property
    def _arguments(self) -> Arguments:
        if self._example is None:
            raise DataError(
                f"{WORD}: the input of the model is not known", hint="state it, such as --input 1,3,32,32", slug=WORD
            )
        return Arguments(self._example)

    def make(self, kind: str, count: int, seed: int, language: Language | None = None) -> GeneratedSet:
        """So many inputs of a kind, or more where more were made before.

        Args:
            kind: `AUTOMATIC` or one of `KINDS`.
            seed: decides every random choice.
            language: what is known of a model of text.

        Raises:
            DataError: the model takes no inputs of this kind, or its inputs do not hold samples along their first axis.
        """
        kind = self._resolved(kind, language)
        before = self.made.get(kind)
        if before is not None and before.facts.count >= count:
            return before
        arguments = self._arguments
        asked = f"{kind} {count} {seed} {self._device.type} {RECIPE} {language and (language.length, language.context)}"
        identity = identity_of(self._networks, list(arguments.example.tensors()), asked)
        kept = KeptInputs(identity) if self._cache else None
        found = None if kept is None else kept.read()
        if found is None:
            self._progress.phase("generating inputs")
            found = self._new(kind, count, seed, language)
            if kept is not None:
                kept.write(*found)
        self.made[kind] = made = self._set(kind, *found, identity, language)
        return made

    def _resolved(self, kind: str, language: Language | None) -> str:
        """The kind, which the model can take.

        Raises:
            DataError: it cannot.
        """
        arguments = self._arguments
        if kind in (AUTOMATIC, "text") and is_language_model(self._networks, arguments, language):
            return "text"
        if kind == "text":
            raise DataError(f"{WORD}:text: the networks are not language models", hint=f"give {WORD}", slug=WORD)
        if kind == AUTOMATIC:
            return "inverted" if arguments.real else "noise"
        if kind == "inverted" and not arguments.real:
            raise DataError(
                f"{WORD}:inverted: the model takes no real numbers, which could be moved",
                hint=f"give {WORD} or {WORD}:noise",
                slug=WORD,
            )
        if kind == "leaves" and arguments.image is None:
            raise DataError(
                f"{WORD}:leaves: leaves are images, and the model takes {arguments.example.describe()}",
                hint=f"give {WORD}",
                slug=WORD,
            )
        return kind

    def _new(
        self, kind: str, count: int, seed: int, language: Language | None
    ) -> tuple[dict[str, Tensor], GeneratedFacts, tuple[str, ...]]:
        """Tensors by place, the classes among them, with what is told of them."""
        began = time.perf_counter()
        notes: tuple[str, ...] = ()
        if kind == "text" and language is not None:
            shape = shape_of(self._networks, self._arguments, language)
            tokens = sampled(
                self._networks,
                self._arguments,
                language,
                shape,
                count,
                seed,
                lambda done, of: self._progress.step(done, of, "tokens"),
            )
            return {"tokens": tokens}, self._facts_of_text(tokens, count, began), notes
        leaves = self._start(kind, count, seed)
        if kind == "inverted":
            leaves, notes = self._inverted(leaves, count, seed)
        tensors = {str(place): _rounded(leaves[place]) for place in self._arguments.batched}
        agreement, classes = self._classes(tensors, count)
        if classes is not None:
            tensors["classes"] = classes
        seen = None if classes is None else len(torch.unique(classes[classes != IGNORED]))
        return tensors, GeneratedFacts(kind, count, agreement, seen, time.perf_counter() - began), notes

    def _start(self, kind: str, count: int, seed: int) -> list[Any]:
        """Random inputs: images as the kind has them, others like the example."""
        arguments, place = self._arguments, self._arguments.image
        if place is None:
            return arguments.random(count, seed, self._networks)
        draw = noise_images if kind == "noise" else leaf_images
        channels, height, width = arguments.shape(place)
        images = draw(count, (channels, height, width), torch.Generator().manual_seed(seed))
        leaves = list(arguments.leaves)
        leaves[place] = arguments.real[place].scaled(images).to(leaves[place].dtype)
        return leaves

    def _inverted(self, start: list[Any], count: int, seed: int) -> tuple[list[Any], tuple[str, ...]]:
        """The inputs moved, batch by batch; as they are, with a note, where no gradient leads to them."""
        arguments = self._arguments
        numbers = sum(start[place].numel() for place in arguments.batched) // count
        size = max(FEWEST, min(MOST, NUMBERS // max(1, numbers), count))
        done, parts, words = 0, [], ""
        while done < count:
            part = self._rows(start, done, min(done + size, count))
            generator = torch.Generator().manual_seed(seed + 1 + done)
            here = min(size, count - done)
            try:
                with disable_mha_fastpath():
                    moved, words = inverted(
                        self._networks,
                        arguments,
                        part,
                        generator,
                        self._device,
                        stepped=lambda share, done=done, here=here: self._progress.step(  # type: ignore[misc]
                            done + here * share, count, "inputs"
                        ),
                    )
            except NotInvertible as error:
                return start, (f"{WORD}: the inputs stay random, because {error}",)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise ResourceError(
                        f"not enough memory on {self._device} for a single input", hint="use another --device"
                    ) from error
                size = max(1, size // 2)
                continue
            parts.append(moved)
            done += here
        leaves = list(start)
        for place in arguments.batched:
            leaves[place] = torch.cat([part[place] for part in parts])
        notes = (f"{WORD}: the outputs do not score classes: the inputs were moved towards {words}",)
        return leaves, notes if "class" not in words else ()

    def _rows(self, leaves: Sequence[Any], start: int, stop: int) -> list[Any]:
        batched = self._arguments.batched
        return [leaf[start:stop] if place in batched else leaf for place, leaf in enumerate(leaves)]

    def _classes(self, tensors: dict[str, Tensor], count: int) -> tuple[float | None, Tensor | None]:
        """On how many inputs the networks agree, and the class that all give, `IGNORED` where they differ."""
        leaves = list(self._arguments.leaves)
        for place in self._arguments.batched:
            leaves[place] = tensors[str(place)].to(leaves[place].dtype)
        found = []
        for start in range(0, count, MOST):
            part = self._moved(self._rows(leaves, start, min(start + MOST, count)))
            given = []
            for network in self._networks:
                try:
                    with torch.no_grad():
                        output = self._arguments.call(network, part)
                except Exception as error:  # the model is the user's code
                    raise DataError(
                        f"{WORD}: the model does not accept several inputs at once: {one_line(error)}",
                        hint="state an input with more than one sample, such as --input 2,3,32,32, or give data",
                        slug="input_shape",
                    ) from error
                scores = class_scores(output, min(start + MOST, count) - start)
                if scores is None:
                    return None, None
                given.append(scores.argmax(1).cpu())
            every = torch.stack(given)
            found.append(every[0].masked_fill(~(every == every[0]).all(0), IGNORED))
        classes = torch.cat(found)
        return float((classes != IGNORED).float().mean()), classes

    def _moved(self, leaves: Sequence[Any]) -> list[Any]:
        return [leaf.to(self._device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def _facts_of_text(self, tokens: Tensor, count: int, began: float) -> GeneratedFacts:
        """The share of next tokens that all networks find the likeliest, over a part of the text."""
        from rebasin_cli.data.outputs import logits_of

        (place,) = self._arguments.batched
        same, total = 0, 0
        for start in range(0, min(MOST, len(tokens)), 8):
            leaves = list(self._arguments.leaves)
            leaves[place] = tokens[start : start + 8, :-1].to(leaves[place].dtype)
            given = []
            for network in self._networks:
                with torch.no_grad():
                    scores = logits_of(self._arguments.call(network, self._moved(leaves)))
                assert scores is not None
                given.append(scores.argmax(-1))
            every = torch.stack(given)
            same += int((every == every[0]).all(0).sum())
            total += every[0].numel()
        return GeneratedFacts("text", count, same / max(1, total), None, time.perf_counter() - began)

    def _set(
        self,
        kind: str,
        tensors: dict[str, Tensor],
        facts: GeneratedFacts,
        notes: tuple[str, ...],
        identity: str,
        language: Language | None,
    ) -> GeneratedSet:
        arguments = self._arguments
        leaves, target, text = list(arguments.leaves), None, None
        if kind == "text":
            (place,) = arguments.batched
            tokens = tensors["tokens"]
            leaves[place] = tokens[:, :-1].to(leaves[place].dtype)
            target = tokens[:, 1:].clone()
            text = _bytes_of(target, language)
        for place in arguments.batched:
            if str(place) in tensors:
                leaves[place] = tensors[str(place)].to(leaves[place].dtype)
        real = arguments.real.get(arguments.image) if arguments.image is not None else None
        return GeneratedSet(
            facts,
            tuple(leaves),
            arguments.batched,
            arguments.structure,
            target,
            tensors.get("classes"),
            text,
            notes,
            identity,
            unit_range=real is not None and real.high is not None,
        )


def pair_maker(
    pair: Pair,
    example: ExampleInput,
    device: torch.device,
    *,
    cache: bool = True,
    progress: Progress | None = None,
) -> InputMaker:
    """Of A and B as they are in their files."""
    return maker_of(pair.subject, (pair.a, pair.b), example, device, cache=cache, progress=progress)


def maker_of(
    subject: Subject,
    networks: Sequence[Any],
    example: ExampleInput | None,
    device: torch.device,
    *,
    cache: bool = True,
    progress: Progress | None = None,
) -> InputMaker:
    """Of networks given by their tensors, each a mapping by state-dict key."""

    def build() -> list[nn.Module]:
        return [load_state(subject.factory.build_weightless(), one, dtype=torch.float32) for one in networks]

    return InputMaker(build, example, device, cache=cache, progress=progress)


def _rounded(value: Tensor) -> Tensor:
    """Real numbers as float16, in which they are kept, so that inputs from the cache equal new ones."""
    if not value.is_floating_point():
        return value.clone()
    narrow = value.to(torch.float16)
    return narrow if bool(torch.isfinite(narrow).all()) else value.float()


def _bytes_of(target: Tensor, language: Language | None) -> TextFacts | None:
    """The length of text whose tokens are bytes; None for other tokens."""
    if language is None or language.vocabulary != BYTES:
        return None
    try:
        tokenizer = find_tokenizer(language).name
    except DataError:
        return None
    count = int(np.prod(target.shape))
    return TextFacts(count, count, tokenizer) if tokenizer == "bytes" else None
