"""The part of a transform that the device does, in whole batches, gives what the whole pipeline gives."""

from __future__ import annotations

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from common.albumentations import DicomWindowShift, fixed_windows
from common.datasets.batch import collate
from common.datasets.finish import WindowNormalize
from common.datasets.images import ImageDataset
from common.datasets.samplers import SampleKey
from common.transforms import find_transform, load_pipeline
from common.transforms.device import split_for_device
from common.transforms.pipeline import Pipeline

MEAN, STD = (0.27176, 0.26492, 0.46473), (0.35144, 0.29973, 0.23607)
DRAWN = DicomWindowShift((70, 150, 350), (90, 250, 400), (30, 60, 35), (50, 100, 45))
NORMALIZE = A.Normalize(MEAN, STD, max_pixel_value=1.0)


def pipeline(*steps) -> Pipeline:
    return Pipeline("test", {}, steps, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(8):
        np.save(folder / f"ID_{index}.npy", generator.integers(-1024, 3000, (12, 16)).astype(np.int16))
    return folder


def dataset(folder: Path, transform: Pipeline) -> ImageDataset:
    return ImageDataset(folder, [f"ID_{index}" for index in range(8)], np.zeros((8, 6)), transform, 16, 5, "hu")


@pytest.mark.parametrize(
    "steps",
    [
        (fixed_windows([(40, 80), (80, 200), (40, 380)]), NORMALIZE),
        (DRAWN, NORMALIZE),
        (DRAWN, A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomRotate90(p=0.5), A.Normalize(0.3, 0.2, 1.0)),
    ],
)
def test_int16_pictures_finished_on_the_device_equal_the_whole_pipeline_draw_by_draw(folder, steps) -> None:
    transform = pipeline(*steps)
    part = split_for_device(transform)
    whole, parts = dataset(folder, transform), dataset(folder, part)
    keys = [SampleKey(index, epoch, 0) for epoch in range(3) for index in range(8)]
    expected = collate([whole[key] for key in keys])
    batch = collate([parts[key] for key in keys], part.finish)
    assert batch.inputs["image_hu"].dtype == torch.int16
    assert batch.inputs["image_hu"].shape == (24, 1, 16, 16)
    finished = batch.finished()
    assert set(finished.inputs) == {"image"}
    torch.testing.assert_close(finished.inputs["image"], expected.inputs["image"], rtol=0, atol=1e-5)


def test_neighbouring_slices_become_channels_slice_by_slice() -> None:
    generator = np.random.default_rng(1)
    hu = generator.integers(-200, 300, (2, 4, 3, 5)).astype(np.int16)
    windows = np.array([[[40, 80], [80, 200]], [[35, 70], [90, 180]]], dtype=np.float32)
    inputs = {"image_hu": torch.from_numpy(hu), "windows": torch.from_numpy(windows), "mask": torch.ones(2)}
    finished = WindowNormalize((0.2, 0.4), (0.5, 0.25))(inputs)
    for image in range(2):
        for one in range(4):
            for channel in range(2):
                center, width = windows[image, channel].astype(float)
                shown = np.clip((hu[image, one] - (center - width / 2)) / width, 0, 1)
                expected = (shown - (0.2, 0.4)[channel]) / (0.5, 0.25)[channel]
                np.testing.assert_allclose(finished["image"][image, 2 * one + channel], expected, atol=1e-5)
    assert torch.equal(finished["mask"], inputs["mask"])


@pytest.mark.parametrize(
    "steps",
    [
        (DRAWN, A.Affine(rotate=(-15, 15)), NORMALIZE),  # interpolates
        (DRAWN, A.HorizontalFlip(p=0.5)),  # nothing normalizes
        (DicomWindowShift(min_max_normalize=False), NORMALIZE),  # not on 0..1
        (DRAWN, NORMALIZE, A.HorizontalFlip(p=0.5)),
    ],
)
def test_a_pipeline_whose_parts_cannot_be_exchanged_stays_whole(steps) -> None:
    assert split_for_device(pipeline(*steps)) is None


def test_the_projects_validation_transform_can_be_finished_on_the_device() -> None:
    windows = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))
    assert split_for_device(load_pipeline(find_transform("valid_demo.json"), windows)) is not None
