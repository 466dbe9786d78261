"""Every kind of data gives its batches by number, and every fault is one line that names the thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rebasin_cli.data import Batch, BatchSource, DataOptions, open_data
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import CIFAR
from rebasin_cli.errors import DataError


def view(classes: int | None = 3) -> ModelView:
    return ModelView(classes_of=lambda batch: classes)


def folder(root: Path, per_class: int = 4, classes: tuple[str, ...] = ("a", "b", "c")) -> Path:
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpeg")
    return root


def labels(source: BatchSource, **sharing: int) -> list[int]:
    return [int(label) for batch in source.batches(**sharing) for label in batch.target]


def test_a_folder_gives_every_image_with_its_class(tmp_path: Path) -> None:
    source = open_data(str(folder(tmp_path / "d")), DataOptions(batch_size=5), view())
    assert labels(source) == [0] * 4 + [1] * 4 + [2] * 4
    assert [batch.index for batch in source.batches()] == [0, 1, 2]
    assert source.batch_count == 3


def test_batches_can_be_taken_up_and_shared(tmp_path: Path) -> None:
    source = open_data(str(folder(tmp_path / "d")), DataOptions(batch_size=2), view())
    assert [batch.index for batch in source.batches(3)] == [3, 4, 5]
    shares = [[batch.index for batch in source.batches(1, rank=rank, world=2)] for rank in (0, 1)]
    assert shares == [[2, 4], [1, 3, 5]]


def test_the_limit_is_drawn_from_the_seed(tmp_path: Path) -> None:
    root = str(folder(tmp_path / "d"))
    one, same, other = (open_data(root, DataOptions(limit=6, seed=seed), view()) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert labels(one) == labels(same)
    assert len(labels(one)) == 6


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    root = str(folder(tmp_path / "d"))
    alone, helped = (list(open_data(root, DataOptions(batch_size=5, workers=n), view()).batches()) for n in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.args[0], other.args[0])
        assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(tmp_path: Path, workers: int) -> None:
    root = folder(tmp_path / "d")
    bad = root / "b" / "1.jpeg"
    bad.write_bytes(bad.read_bytes()[:-200])
    source = open_data(str(root), DataOptions(batch_size=4, workers=workers), view())
    with pytest.raises(DataError, match=r"b/1\.jpeg") as caught:
        list(source.batches())
    assert "\n" not in str(caught.value)
    skipping = open_data(str(root), DataOptions(batch_size=4, workers=workers, skip_corrupt=True), view())
    found = list(skipping.batches())
    assert sum(batch.skipped for batch in found) == 1
    assert sum(batch.size for batch in found) == 11


def test_a_batch_of_nothing_but_bad_images_is_empty(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", per_class=2)
    for name in ("0.jpeg", "1.jpeg"):
        (root / "b" / name).write_bytes(b"no image")
    source = open_data(str(root), DataOptions(batch_size=2, skip_corrupt=True), view())
    assert [(batch.size, batch.skipped) for batch in source.batches()] == [(2, 0), (0, 2), (2, 0)]


def test_folders_without_classes_or_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty") as caught:
        open_data(str(tmp_path / "empty"), DataOptions(), view())
    assert ".jpg" in str(caught.value.hint)
    (folder(tmp_path / "d") / "void").mkdir()
    with pytest.raises(DataError, match="void"):
        open_data(str(tmp_path / "d"), DataOptions(), view())


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_data("nowhere/val", DataOptions(), view())


def test_arrays_are_read_and_scaled(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.full((5, 4, 4, 3), 255, np.uint8), y=np.array([0, 1, 2, 0, 1]))
    source = open_data(str(path), DataOptions(batch_size=2), view())
    first = next(iter(source.batches()))
    assert first.args[0].shape == (2, 3, 4, 4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CIFAR)
    torch.testing.assert_close(first.args[0][0], ((1 - mean) / std).expand(3, 4, 4))
    assert "uint8, pixels from 0 to 255, channels last; resize 4x4, guessed CIFAR-10" in source.description
    assert labels(source) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((5, 2)), "y": np.zeros(4, np.int64)}, r"5 .*4"),
        ({"x": np.zeros((5, 2)), "y": np.array([0, 1, 2, 7, 1])}, r"7 .*3 classes"),
        ({"x": np.zeros((5, 2)), "y": np.array([0, 1, -1, 2, 1])}, r"-1 .*3 classes"),
        ({"inputs": np.zeros((5, 2))}, "'x'.*'inputs'"),
    ],
)
def test_arrays_that_do_not_fit_name_both_numbers(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        open_data(str(path), DataOptions(), view())


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([Trap(marker)], dtype=object), y=np.zeros(1, np.int64))
    with pytest.raises(DataError, match="pickled"):
        open_data(str(path), DataOptions(), view())
    assert not marker.exists()


def test_what_is_no_archive_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        open_data(str(path), DataOptions(), view())


LOADER = """
import torch
def batches():
    return [(torch.ones(4, 2) * i, torch.tensor([0, 1, 2, 0])) for i in range(3)]
def dataset():
    return torch.utils.data.TensorDataset(torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64))
def shuffled():
    return torch.utils.data.DataLoader(dataset(), batch_size=2, shuffle=True)
def stream():
    yield from batches()
def mappings():
    return [{"ids": torch.zeros(2, 3), "labels": torch.tensor([1, 2])}]
def fails():
    raise RuntimeError("no disk here")
"""


def open_loader(tmp_path: Path, name: str, **options: int) -> BatchSource:
    (tmp_path / "mine.py").write_text(LOADER)
    return open_data(f"{tmp_path / 'mine.py'}:{name}", DataOptions(**options), view())


@pytest.mark.parametrize("name", ["batches", "stream"])
def test_the_users_batches_can_be_read_twice_and_shared(tmp_path: Path, name: str) -> None:
    source = open_loader(tmp_path, name)
    for _ in range(2):
        assert [float(batch.args[0][0, 0]) for batch in source.batches()] == [0.0, 1.0, 2.0]
    assert [batch.index for batch in source.batches(1, rank=0, world=2)] == [2]


def test_a_loader_that_shuffles_gives_one_order(tmp_path: Path) -> None:
    source = open_loader(tmp_path, "shuffled")
    orders = [torch.cat([batch.args[0] for batch in source.batches()]) for _ in range(2)]
    assert torch.equal(*orders)


def test_the_users_data_set_is_batched(tmp_path: Path) -> None:
    source = open_loader(tmp_path, "dataset", batch_size=4)
    assert [batch.size for batch in source.batches()] == [4, 4, 2]


def test_mappings_become_keyword_inputs(tmp_path: Path) -> None:
    batch: Batch = next(iter(open_loader(tmp_path, "mappings").batches()))
    assert list(batch.kwargs) == ["ids"]
    assert batch.target.tolist() == [1, 2]


def test_the_users_failure_is_told_in_their_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.py.*no disk here"):
        open_loader(tmp_path, "fails")
    with pytest.raises(DataError, match="missing"):
        open_loader(tmp_path, "missing")


def test_a_torchvision_set_that_is_not_there_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CIFAR10"):
        open_data(f"torchvision:CIFAR10@{tmp_path}", DataOptions(), view())
    with pytest.raises(DataError, match="CIFAR11"):
        open_data(f"torchvision:CIFAR11@{tmp_path}", DataOptions(), view())
    assert not list(tmp_path.iterdir())
