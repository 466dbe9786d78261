"""Images go through one transform, whatever they come in, and what is said of it is what was applied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rebasin_cli.data import Batch, BatchSource, DataOptions, open_data
from rebasin_cli.data.contract import Takes
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import parse_transform, user_transform
from rebasin_cli.errors import DataError, NumericalError

TAKES = Takes(1, ("x",), integers=False)


def view(
    shape: tuple[int, ...] | None = (1, 3, 8, 8), transform: str | None = None, *, certain: bool = True
) -> ModelView:
    asked = None if transform is None else parse_transform(transform)
    return ModelView(lambda batch: 3, None, asked, shape, certain, TAKES, asked is not None)


def pictures(count: int = 6, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def folder(root: Path, images: np.ndarray) -> str:
    for number, pixels in enumerate(images):
        place = root / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return str(root)


def saved(path: Path, x: np.ndarray) -> str:
    np.savez(path, x=x, y=np.arange(len(x)) % 3)
    return str(path)


def inputs(source: BatchSource) -> Tensor:
    return torch.cat([batch.args[0] for batch in source.batches()])


def opened(data: str, model: ModelView) -> BatchSource:
    return open_data(data, DataOptions(), model)


def in_order(images: np.ndarray) -> list[int]:
    return sorted(range(len(images)), key=lambda number: (number % 3, number))


@pytest.mark.parametrize("transform", [None, "resize=6x6,mean=0.5/0.4/0.3,std=0.2/0.3/0.4", "resize=12,crop=8"])
def test_uint8_images_in_an_array_are_what_the_same_images_in_a_folder_are(tmp_path: Path, transform: str) -> None:
    images = pictures()
    model = view(transform=transform)
    files = opened(folder(tmp_path / "images", images), model)
    arrays = opened(saved(tmp_path / "last.npz", images), model)
    first = opened(saved(tmp_path / "first.npz", images.transpose(0, 3, 1, 2)), model)
    assert torch.equal(inputs(files), inputs(arrays)[in_order(images)])
    assert torch.equal(inputs(first), inputs(arrays))
    assert files.description.partition("; ")[2] == arrays.description.rpartition("; ")[2]
    assert "channels last" in arrays.description
    assert "channels first" in first.description


def test_a_guessed_normalisation_is_called_a_guess_with_what_to_type(tmp_path: Path) -> None:
    source = opened(saved(tmp_path / "d.npz", pictures()), view())
    assert "guessed CIFAR-10 mean and std" in source.description
    (note,) = source.notes
    assert "--transform resize=8x8,mean=0.5/0.5/0.5,std=0.5/0.5/0.5" in note
    assert not opened(saved(tmp_path / "d.npz", pictures()), view(transform="mean=0/0/0,std=1/1/1")).notes


def test_a_preset_is_applied_to_an_array_as_to_files(tmp_path: Path) -> None:
    images = pictures(3, 40, 48)
    preset = user_transform("IMAGENET1K_V1", "torchvision:resnet18")
    model = ModelView(lambda batch: 3, None, preset, (1, 3, 224, 224), True, TAKES, True)
    found = inputs(opened(saved(tmp_path / "d.npz", images), model))
    assert found.shape == (3, 3, 224, 224)
    assert torch.equal(found[0], preset(Image.fromarray(images[0])))


def test_a_preset_is_refused_where_floats_would_have_to_be_rounded(tmp_path: Path) -> None:
    preset = user_transform("IMAGENET1K_V1", "torchvision:resnet18")
    model = ModelView(lambda batch: 3, None, preset, (1, 3, 224, 224), True, TAKES, True)
    data = saved(tmp_path / "d.npz", np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32))
    with pytest.raises(DataError, match="takes images of 8 bits"):
        opened(data, model)


def test_floats_from_0_to_255_are_pixels(tmp_path: Path) -> None:
    images = pictures()
    whole = opened(saved(tmp_path / "whole.npz", images.astype(np.float32)), view())
    exact = inputs(opened(saved(tmp_path / "bytes.npz", images), view()))
    assert torch.equal(inputs(whole), exact)
    assert "float32, pixels from 0 to 255" in whole.description
    between = opened(saved(tmp_path / "between.npz", images.astype(np.float64) * 0.999), view())
    torch.testing.assert_close(inputs(between), exact, atol=0.01, rtol=0)
    assert not torch.equal(inputs(between), exact)


def test_normalised_floats_are_taken_as_they_are_and_permuted_where_channels_are_last(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    last = opened(saved(tmp_path / "last.npz", x), view())
    assert torch.equal(inputs(last), torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    assert "as they are, channels last" in last.description
    first = opened(saved(tmp_path / "first.npz", x.transpose(0, 3, 1, 2)), view())
    assert torch.equal(inputs(first), inputs(last))


def test_a_transform_for_floats_from_0_to_1_is_applied_and_for_normalised_ones_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 3, 8, 8), dtype=np.float32)
    model = view(transform="mean=0.5/0.4/0.3,std=0.2/0.3/0.4")
    found = inputs(opened(saved(tmp_path / "unit.npz", x), model))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(found, (torch.from_numpy(x) - mean) / std)
    with pytest.raises(DataError, match=r"x goes from -0\.5 "):
        opened(saved(tmp_path / "normal.npz", x - x.min() - 0.5), model)
    shrunk = inputs(opened(saved(tmp_path / "unit.npz", x), view(transform="resize=4x4")))
    assert shrunk.shape == (6, 3, 4, 4)


def test_raw_takes_the_numbers_as_they_are(tmp_path: Path) -> None:
    images = pictures()
    found = opened(saved(tmp_path / "d.npz", images), view(transform="raw"))
    assert torch.equal(inputs(found), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float())
    files = inputs(opened(folder(tmp_path / "images", images), view(transform="raw")))
    assert torch.equal(files, inputs(found)[in_order(images)])


def test_an_axis_of_channels_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 9, 3)).astype(np.float32)
    with pytest.raises(DataError, match="cannot be told"):
        opened(saved(tmp_path / "d.npz", x), view())


def test_normalised_floats_with_other_channels_than_the_model_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)
    with pytest.raises(DataError, match="x has 1 channels, and the model takes 3"):
        opened(saved(tmp_path / "d.npz", x), view())


def test_a_transform_for_something_that_is_no_image_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", np.zeros((4, 7), np.float32))
    with pytest.raises(DataError, match="--transform is for images"):
        opened(data, view((1, 7), "resize=8x8"))


def test_indices_stay_integers_and_floats_are_refused_where_the_model_takes_integers(tmp_path: Path) -> None:
    model = ModelView(lambda batch: 3, input_shape=(1, 5), takes=Takes(1, ("ids",), integers=True))
    ids = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert torch.equal(inputs(opened(saved(tmp_path / "d.npz", ids), model)), torch.arange(20).view(4, 5))
    with pytest.raises(DataError, match="the model takes integers"):
        opened(saved(tmp_path / "f.npz", ids.astype(np.float32)), model)


def test_nan_in_an_array_is_a_fault_of_the_data_and_its_place_is_said(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    x[4, 1, 2, 3] = np.nan
    with pytest.raises(NumericalError, match=r"d\.npz: x is non-finite.*sample 4"):
        opened(saved(tmp_path / "d.npz", x), view())


def test_16_bit_images_are_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "a.png")
    source = opened(str(tmp_path / "images"), view((1, 1, 8, 8), "channels=1"))
    expected = np.rint(values / 257).astype(np.float32) / 255
    torch.testing.assert_close(inputs(source)[0, 0], torch.from_numpy(expected))
    assert "images with 16 bits a channel are reduced to 8 bits" in source.notes


def test_16_bit_arrays_are_not_clipped(tmp_path: Path) -> None:
    x = np.linspace(0, 65535, 6 * 64).astype(np.uint16).reshape(6, 1, 8, 8)
    found = inputs(opened(saved(tmp_path / "d.npz", x), view((1, 1, 8, 8), "channels=1")))
    torch.testing.assert_close(found, torch.from_numpy(x.astype(np.float32) / 65535))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_are_read_as_torchvision_reads_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pictures(1)[0]).convert(mode)
    (tmp_path / "images").mkdir()
    name = "a.tiff" if mode == "CMYK" else "a.png"
    image.save(tmp_path / "images" / name)
    source = opened(str(tmp_path / "images"), view(transform="mean=0/0/0,std=1/1/1"))
    with Image.open(tmp_path / "images" / name) as again:
        expected = torch.from_numpy(np.array(again.convert("RGB"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(inputs(source)[0], expected)
    assert ("the alpha channel of images is dropped" in source.notes) == (mode in ("RGBA", "LA"))


def test_colour_images_for_a_grey_model_are_converted_and_that_is_said(tmp_path: Path) -> None:
    source = opened(folder(tmp_path / "images", pictures()), view((1, 1, 8, 8)))
    assert inputs(source).shape == (6, 1, 8, 8)
    assert any("converted to grey" in note for note in source.notes)


def test_an_exif_orientation_is_not_applied_and_that_is_said(tmp_path: Path) -> None:
    image = Image.fromarray(pictures(1)[0])
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.png", exif=exif)
    source = opened(str(tmp_path / "images"), view(transform="mean=0/0/0,std=1/1/1"))
    torch.testing.assert_close(inputs(source)[0], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert any("EXIF orientation, which is not applied" in note for note in source.notes)


def mixed_sizes(root: Path) -> str:
    images = root / "images"
    for number, size in enumerate(((8, 8), (16, 12), (8, 8))):
        (images / "abc"[number]).mkdir(parents=True)
        Image.fromarray(pictures(1, *size)[0]).save(images / "abc"[number] / "0.png")
    return str(images)


def test_images_of_different_sizes_get_the_size_that_the_model_takes_and_that_is_said(tmp_path: Path) -> None:
    source = opened(mixed_sizes(tmp_path), view((1, 3, 16, 16)))
    assert inputs(source).shape == (3, 3, 16, 16)
    assert "images of 8x8 to 16x12 are brought to one size: resize 16x16, guessed CIFAR-10 mean and std" in source.notes


def test_images_of_different_sizes_are_refused_where_the_models_size_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images differ in size") as caught:
        opened(mixed_sizes(tmp_path), view((1, 3, 16, 16), certain=False))
    assert "--input" in str(caught.value.hint)


def test_a_transform_that_leaves_sizes_different_is_refused_in_one_line(tmp_path: Path) -> None:
    source = opened(mixed_sizes(tmp_path), view(transform="mean=0/0/0"))
    with pytest.raises(DataError, match="different shapes") as caught:
        inputs(source)
    assert "--transform resize" in str(caught.value.hint)


def test_images_of_a_users_dataset_are_transformed_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from PIL import Image\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)\n"
        "class Pictures:\n"
        "    def __len__(self): return 6\n"
        "    def __getitem__(self, i): return Image.fromarray(pixels[i]), i % 3\n"
        "def pictures(): return Pictures()\n"
        "def tensors(): return [(__import__('torch').zeros(2, 3, 8, 8), __import__('torch').zeros(2).long())]\n"
    )
    source = opened(f"{tmp_path / 'mine.py'}:pictures", view())
    assert torch.equal(inputs(source), inputs(opened(saved(tmp_path / "d.npz", pictures()), view())))
    assert "guessed CIFAR-10" in source.description
    with pytest.raises(DataError, match="--transform has no effect"):
        opened(f"{tmp_path / 'mine.py'}:tensors", view(transform="resize=8x8"))


def test_a_flattened_grey_model_gets_grey_images(tmp_path: Path) -> None:
    source = opened(folder(tmp_path / "images", pictures()), view((1, 64)))
    assert inputs(source).shape == (6, 1, 8, 8)


def test_large_images_of_an_unstated_model_are_cropped_as_on_imagenet(tmp_path: Path) -> None:
    source = opened(saved(tmp_path / "d.npz", pictures(2, 120, 100)), view(None, certain=False))
    found: Batch = next(iter(source.batches()))
    assert found.args[0].shape == (2, 3, 224, 224)
    assert "guessed ImageNet mean and std" in source.description
