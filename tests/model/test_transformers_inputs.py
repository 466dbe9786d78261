"""Inputs that models of transformers may take, from what their signature and configuration say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.model.transformers_inputs import transformers_inputs

VISION = SimpleNamespace(image_size=32, patch_size=8, num_channels=3, spatial_merge_size=2, temporal_patch_size=2)


class _Shown(nn.Module):
    """What a model of transformers shows of itself."""

    def __init__(self, main: str, **config: Any) -> None:
        super().__init__()
        self.main_input_name = main
        self.config = SimpleNamespace(**config)


class _Text(_Shown):
    def forward(self, input_ids: Tensor | None = None, use_cache: bool = True) -> None: ...


class _Boxed(_Shown):
    def forward(self, input_ids: Tensor | None = None, bbox: Tensor | None = None) -> None: ...


class _Seeing(_Shown):
    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None) -> None: ...


class _Gridded(_Shown):
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
    ) -> None: ...


class _Tower(_Shown):
    def forward(self, hidden_states: Tensor, grid_thw: Tensor) -> None: ...


class _Patched(_Shown):
    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> None: ...


class _Hearing(_Shown):
    def forward(self, input_features: Tensor, input_features_mask: Tensor) -> None: ...


class _ReadingAndHearing(_Shown):
    def forward(self, input_ids: Tensor | None = None, input_features: Tensor | None = None) -> None: ...


class _Querying(_Shown):
    def forward(self, query_embeds: Tensor, encoder_hidden_states: Tensor | None = None) -> None: ...


class _Tasked(_Shown):
    def forward(self, pixel_values: Tensor, task_inputs: Tensor) -> None: ...


class _Unknown(_Shown):
    def forward(self, input_ids: Tensor, protein: Tensor) -> None: ...


def _described(module: nn.Module) -> list[str]:
    return [example.describe() for example in transformers_inputs(module, 0)]


def test_text_is_one_input_without_tokens_of_images_or_padding() -> None:
    module = _Text("input_ids", vocab_size=6, pad_token_id=1, image_token_id=3, bos_token_id=0)
    (found,) = transformers_inputs(module, 0)
    assert found.kwargs["use_cache"] is False
    ids = set(found.kwargs["input_ids"].flatten().tolist())
    assert ids <= {0, 2, 4, 5}
    assert len(ids) > 2


def test_an_image_takes_as_many_places_of_the_text_as_it_has_patches_or_fewer() -> None:
    module = _Seeing("input_ids", vocab_size=50, image_token_id=7, vision_config=VISION)
    found = transformers_inputs(module, 0)
    places = [int((example.kwargs["input_ids"] == 7).sum()) for example in found]
    assert places[:2] == [16, 4]
    assert found[0].kwargs["pixel_values"].shape == (1, 3, 32, 32)
    assert "pixel_values" not in found[-1].kwargs  # the text alone comes last
    assert places[-1] == 0


def test_two_towers_get_both_inputs() -> None:
    module = _Seeing("input_ids", vocab_size=50, vision_config=VISION)
    assert _described(module)[0] == "input_ids=1x16:int64, pixel_values=1x3x32x32"


def test_patches_come_with_their_grid() -> None:
    module = _Gridded("input_ids", vocab_size=50, image_token_id=7, vision_config=VISION)
    first = transformers_inputs(module, 0)[0].kwargs
    grid = first["image_grid_thw"]
    assert first["pixel_values"].shape == (int(grid.prod()), 3 * 2 * 8 * 8)
    assert int((first["input_ids"] == 7).sum()) == int(grid.prod()) // 4
    assert torch.equal(first["mm_token_type_ids"], (first["input_ids"] == 7).long())
    tower = _Tower("pixel_values", **vars(VISION))
    assert _described(tower)[0] == "hidden_states=16x384, grid_thw=1x3:int64"
    assert _described(_Patched("pixel_values", **vars(VISION)))[0] == (
        "pixel_values=1x16x192, pixel_attention_mask=1x16:int64, spatial_shapes=1x2:int64"
    )


def test_boxes_are_whole_numbers_within_the_page_or_shares_of_it() -> None:
    whole, shares = transformers_inputs(_Boxed("input_ids", vocab_size=50, max_2d_position_embeddings=100), 0)
    boxes = whole.kwargs["bbox"]
    assert boxes.shape == (1, 16, 4)
    assert bool((boxes[..., 2:] >= boxes[..., :2]).all())
    assert int(boxes.max()) < 100
    assert float(shares.kwargs["bbox"].max()) <= 1


def test_sound_is_offered_in_both_orders_with_its_mask() -> None:
    found = _described(_Hearing("input_features", num_mel_bins=16))
    assert found[:2] == [
        "input_features=1x16x256, input_features_mask=1x256:int64",
        "input_features=1x256x16, input_features_mask=1x256:int64",
    ]


def test_nothing_is_offered_where_a_required_argument_is_unknown() -> None:
    assert transformers_inputs(_Unknown("input_ids", vocab_size=50), 0) == ()


def test_text_is_long_enough_for_attention_that_merges_tokens() -> None:
    rates = {"compressed": 4, "heavily_compressed": 128}
    assert _described(_Text("input_ids", vocab_size=50, compress_rates=rates)) == ["input_ids=1x128:int64"]
    assert _described(_Text("input_ids", vocab_size=50, compress_rates=None)) == ["input_ids=1x16:int64"]


def test_text_alone_comes_before_text_with_sound() -> None:
    sound = SimpleNamespace(num_mel_bins=16)
    first, *others = transformers_inputs(_ReadingAndHearing("input_ids", vocab_size=9, audio_config=sound), 0)
    assert list(first.kwargs) == ["input_ids"]
    shapes = [tuple(one.kwargs["input_features"].shape) for one in others]
    assert shapes == [(1, 16, 256), (1, 256, 16), (1, 1, 256, 16), (16, 256)]
    assert all(torch.equal(one.kwargs["input_ids"], first.kwargs["input_ids"]) for one in others)


def test_sound_of_which_no_number_of_bins_is_known_has_one_of_two() -> None:
    others = transformers_inputs(_ReadingAndHearing("input_ids", vocab_size=9), 0)[1:]
    assert {one.kwargs["input_features"].shape[1] for one in others} >= {80, 128}


def test_queries_come_with_the_states_that_they_attend_to() -> None:
    (found,) = transformers_inputs(_Querying("query_embeds", hidden_size=6, encoder_hidden_size=10), 0)
    assert {name: tuple(value.shape) for name, value in found.kwargs.items()} == {
        "query_embeds": (1, 16, 6),
        "encoder_hidden_states": (1, 16, 10),
    }


def test_a_picture_with_a_task_has_the_text_of_the_task_beside_it() -> None:
    model = _Tasked("pixel_values", image_size=32, num_channels=3, task_seq_len=7, text_encoder_vocab_size=9)
    first = transformers_inputs(model, 0)[0].kwargs
    assert tuple(first["pixel_values"].shape) == (1, 3, 32, 32)
    assert tuple(first["task_inputs"].shape) == (1, 7)
    assert 0 <= int(first["task_inputs"].min()) <= int(first["task_inputs"].max()) < 9
