"""common/datasets: images.py, batch.py, loaders.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.datasets.batch import collate
from common.datasets.images import ImageDataset, SampleKey
from common.datasets.loaders import make_loader
from common.datasets.samplers import RandomSampler
from common.errors import WorkError
from common.transforms.documents import find_transform
from common.transforms.pipeline import load_pipeline

WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))
COUNT = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        rows, columns = (40, 30) if index % 2 else (32, 32)
        np.save(folder / f"ID_{index}.npy", generator.integers(-1024, 200, (rows, columns)).astype(np.int16))
    return folder


def dataset(folder: Path, transform: str = "train_demo.json", image_size: int = 24, seed: int = 0) -> ImageDataset:
    pipeline = load_pipeline(find_transform(transform), WINDOWS)
    targets = np.arange(COUNT * 6).reshape(COUNT, 6) % 2
    return ImageDataset(folder, [f"ID_{i}" for i in range(COUNT)], targets, pipeline, image_size, seed, "hu")


def epoch_of(
    folder: Path, *, workers: int, batch_size: int = 4, epoch: int = 0, offset: int = 0
) -> dict[str, torch.Tensor]:
    data = dataset(folder)
    sampler = RandomSampler(COUNT, 3)
    loader = make_loader(data, sampler, batch_size, workers, drop_last=False, seed=0)
    sampler.seek(epoch, offset)
    return {
        image_id: image
        for batch in loader
        for image_id, image in zip(batch.image_id, batch.inputs["image"], strict=True)
    }


def test_pictures_of_all_sizes_come_out_square_float32_with_a_channel_for_each_window(folder) -> None:
    data = dataset(folder)
    for index in range(COUNT):
        sample = data[index]
        assert sample.image.shape == (3, 24, 24)
        assert sample.image.dtype == np.float32
        assert sample.image.flags.c_contiguous
    assert data[1].target.tolist() == [0, 1, 0, 1, 0, 1]


def test_validation_pictures_are_the_windows_on_one_fixed_scale(folder) -> None:
    """By hand: window, then subtract the mean and divide by the standard deviation of valid_demo.json."""
    hu = np.load(folder / "ID_0.npy").astype(np.float64)
    mean, std = (0.27176, 0.26492, 0.46473), (0.35144, 0.29973, 0.23607)
    image = dataset(folder, "valid_demo.json", image_size=0)[0].image
    for channel, (center, width) in enumerate(WINDOWS):
        expected = (np.clip((hu - center + width / 2) / width, 0, 1) - mean[channel]) / std[channel]
        np.testing.assert_allclose(image[channel], expected, atol=1e-5)


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 5), (1, 4), (2, 3)])
def test_augmentation_and_order_do_not_depend_on_processes_or_batch_size(folder, workers: int, batch_size: int) -> None:
    reference = epoch_of(folder, workers=0)
    found = epoch_of(folder, workers=workers, batch_size=batch_size)
    assert list(found) == list(reference)
    assert all(torch.equal(found[name], reference[name]) for name in reference)


def test_starting_in_the_middle_of_an_epoch_gives_the_same_pictures(folder) -> None:
    reference, rest = epoch_of(folder, workers=0, epoch=2), epoch_of(folder, workers=0, epoch=2, offset=5)
    assert list(rest) == list(reference)[5:]
    assert all(torch.equal(rest[name], reference[name]) for name in rest)


def test_epochs_occurrences_and_seeds_are_augmented_differently(folder) -> None:
    data = dataset(folder)
    first = data[SampleKey(0, 0, 0)].image
    assert np.array_equal(first, data[SampleKey(0, 0, 0)].image)
    others = (data[SampleKey(0, 1, 0)], data[SampleKey(0, 0, 1)], dataset(folder, seed=1)[SampleKey(0, 0, 0)])
    for other in others:
        assert not np.array_equal(first, other.image)


def test_workers_that_stay_alive_take_the_next_epoch_from_the_sampler(folder) -> None:
    sampler = RandomSampler(COUNT, 3)
    loader = make_loader(dataset(folder), sampler, 4, 2, drop_last=True, seed=0)
    orders = []
    for epoch in range(2):
        sampler.seek(epoch, 0)
        orders.append([image_id for batch in loader for image_id in batch.image_id])
        assert len(orders[-1]) == 8
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_that_names_the_file(folder, tmp_path, workers: int) -> None:
    data = dataset(folder)
    data.image_folder = tmp_path
    whole = (folder / "ID_0.npy").read_bytes()
    for index in range(COUNT):
        (tmp_path / f"ID_{index}.npy").write_bytes(whole[:-100])
    loader = make_loader(data, RandomSampler(COUNT, 3), 4, workers, drop_last=False, seed=0)
    with pytest.raises(WorkError) as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/ID_")
    assert "cut or damaged" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "is missing"),
        (np.zeros((4, 4, 3), np.int16), "has shape"),
        (np.zeros((4, 4), np.float64), "float64"),
        (np.zeros((0, 4), np.int16), "has shape"),
        (np.array([{}], dtype=object), "cut or damaged"),
    ],
)
def test_a_file_that_is_no_image_of_the_dataset_is_refused(tmp_path, content, part: str) -> None:
    if content is not None:
        np.save(tmp_path / "ID_0.npy", content, allow_pickle=True)
    data = dataset(tmp_path)
    with pytest.raises(WorkError, match=part) as caught:
        data[0]
    assert "ID_0.npy" in str(caught.value)


def test_images_without_a_file_are_counted_before_the_work(folder, tmp_path) -> None:
    data = dataset(folder)
    data.check_files()
    for index in (0, 3):
        (tmp_path / f"ID_{index}.npy").write_bytes(b"")
    data.image_folder = tmp_path
    with pytest.raises(WorkError, match=rf"ID_1\.npy: the image is missing \({COUNT - 2} of {COUNT} images are\)"):
        data.check_files()
    data.image_folder = tmp_path / "nowhere"
    with pytest.raises(WorkError, match=rf"{COUNT} of {COUNT}"):
        data.check_files()


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_of_different_sizes_in_a_batch_are_one_line_that_names_them(folder, workers: int) -> None:
    data = dataset(folder, image_size=0)
    loader = make_loader(data, RandomSampler(COUNT, 3), COUNT, workers, drop_last=False, seed=0)
    with pytest.raises(WorkError, match=r"^images ID_\d+ and ID_\d+ .*--data_image_size") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_windowed_pictures_are_taken_as_they_are_on_0_to_1(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.save(tmp_path / "ID_0.npy", picture)
    pipeline = load_pipeline(find_transform("valid_demo.json"), WINDOWS, windowed=True)
    data = ImageDataset(tmp_path, ["ID_0"], None, pipeline, 0, 0, "window")
    mean = np.array([0.27176, 0.26492, 0.46473])
    std = np.array([0.35144, 0.29973, 0.23607])
    np.testing.assert_allclose(data[0].image.transpose(1, 2, 0), (picture / 255 - mean) / std, atol=1e-5)
    assert data[0].target is None


def test_a_batch_keeps_rows_together(folder) -> None:
    data = dataset(folder)
    batch = collate([data[3], data[7]])
    assert len(batch) == 2
    assert batch.image_id == ["ID_3", "ID_7"]
    assert batch.inputs["image"].shape == (2, 3, 24, 24)
    np.testing.assert_array_equal(batch.inputs["image"][1].numpy(), data[7].image)
    np.testing.assert_array_equal(batch.target.numpy(), [data[3].target, data[7].target])
