"""Whole batches by the device's code, on torch's CPU, give what the pipeline gives picture by picture, draw by draw."""

from __future__ import annotations

import pickle
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from common.albumentations import DicomWindowShift, HeadRotation, RandomResizedCrop, ShiftScaleRotate, fixed_windows
from common.datasets.batch import Batch, collate
from common.datasets.finish import KERNELS
from common.datasets.images import ImageDataset, SampleKey
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.errors import WorkError
from common.transforms.device import DevicePart, device_refusal
from common.transforms.documents import find_transform
from common.transforms.pipeline import FixedView, Pipeline, load_pipeline

MEAN, STD = (0.27176, 0.26492, 0.46473), (0.35144, 0.29973, 0.23607)
DRAWN = DicomWindowShift((70, 150, 350), (90, 250, 400), (30, 60, 35), (50, 100, 45))
NORMALIZE = A.Normalize(MEAN, STD, max_pixel_value=1.0)
WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))
SIDE = 40
KEYS = [SampleKey(index, epoch, 0) for epoch in range(4) for index in range(8)]

STEPS = {
    "window alone": [DRAWN],
    "normalization": [fixed_windows(WINDOWS), NORMALIZE],
    "one mean for all": [DRAWN, A.Normalize(0.3, 0.2, 1.0)],
    "flips": [A.VerticalFlip(p=0.5), DRAWN, A.HorizontalFlip(p=0.5), NORMALIZE],
    "affine, every border": [
        DRAWN,
        *(A.Affine(rotate=(-30, 30), scale=(0.6, 1.2), border_mode=mode, fill=0.4, p=0.6) for mode in (0, 1, 2, 4)),
    ],
    "a fill for each channel": [DRAWN, A.Rotate((-40, 40), border_mode=0, fill=(0.1, 0.5, 0.9), p=0.7)],
    "crops": [DRAWN, A.RandomResizedCrop((30, 50), (0.4, 0.9)), A.HorizontalFlip(), RandomResizedCrop((32, 32), p=1)],
    "crop that seldom comes": [DRAWN, A.RandomResizedCrop((SIDE + 8, SIDE - 8), p=0.5), A.RandomResizedCrop((32, 32))],
    "grid": [DRAWN, A.HorizontalFlip(), A.GridDistortion(normalized=False, border_mode=4, p=0.7), ShiftScaleRotate()],
    "holes": [DRAWN, A.VerticalFlip(), A.CoarseDropout((2, 9), (3, 8), (3, 8), fill=0.6, p=0.7), A.HorizontalFlip()],
    "noise": [DRAWN, A.HorizontalFlip(), A.GaussNoise((0.01, 0.2), (-0.1, 0.1), p=0.7), NORMALIZE],
    "one of": [DRAWN, A.OneOf([A.Rotate(border_mode=4), A.HorizontalFlip(), A.Sequential([ShiftScaleRotate()], p=1)])],
}


def pipeline(steps: list, *, fuse: bool = False) -> Pipeline:
    return Pipeline("test", {}, steps, 3, fuse=fuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(8):
        smooth = cv2.GaussianBlur(generator.normal(0, 400, (SIDE, SIDE)).astype(np.float32), (0, 0), 1.5)
        np.save(folder / f"ID_{index}.npy", (smooth + 40).astype(np.int16))
    return folder


def dataset(folder: Path, transform, size: int = 0) -> ImageDataset:
    return ImageDataset(folder, [f"ID_{index}" for index in range(8)], np.zeros((8, 6)), transform, size, 5, "hu")


def compare(folder: Path, transform: Pipeline) -> None:
    """The tolerance is a thousandth of the contrast, a hundredth of a pixel in these pictures."""
    assert device_refusal(transform) is None
    whole, parts = dataset(folder, transform), dataset(folder, DevicePart(transform))
    expected = collate([whole[key] for key in KEYS])
    batch = collate([parts[key] for key in KEYS])
    assert expected.plan is None
    assert batch.inputs["image"].dtype == torch.int16
    finished = batch.finished()
    assert finished.plan is None
    assert set(finished.inputs) == {"image"}
    assert finished.inputs["image"].is_contiguous()
    torch.testing.assert_close(finished.inputs["image"], expected.inputs["image"], rtol=0, atol=2e-3)
    error = (finished.inputs["image"] - expected.inputs["image"]).abs().mean()
    assert error < 2e-5


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_gives_the_pipelines_picture(folder, name: str, fuse: bool) -> None:
    compare(folder, pipeline(STEPS[name], fuse=fuse))


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    "name", ["train_intermediate_128", "train_complex_128", "test_intermediate_tta_128", "train_demo", "valid_demo"]
)
def test_the_recipes_give_the_pipelines_picture(folder, name: str, fuse: bool) -> None:
    compare(folder, load_pipeline(find_transform(f"{name}.json"), WINDOWS, fuse=fuse))


def test_every_kernel_is_tried_above(folder) -> None:
    tried = set()
    for steps in STEPS.values():
        parts = dataset(folder, DevicePart(pipeline(steps)))
        tried |= {group.kind for group in collate([parts[key] for key in KEYS]).plan.groups}
    assert tried == set(KERNELS)


def same_batches(one: Batch, other: Batch) -> bool:
    return (
        one.plan.groups == other.plan.groups
        and torch.equal(one.plan.numbers, other.plan.numbers)
        and torch.equal(one.inputs["image"], other.inputs["image"])
    )


@pytest.mark.parametrize("name", STEPS)
def test_a_copy_in_another_process_draws_the_same(folder, name: str) -> None:
    parts = dataset(folder, DevicePart(pipeline(STEPS[name])))
    copied = pickle.loads(pickle.dumps(parts))
    assert same_batches(collate([copied[key] for key in KEYS]), collate([parts[key] for key in KEYS]))


def test_loading_processes_draw_what_the_calling_one_does(folder) -> None:
    for part in (DevicePart(pipeline(STEPS["one of"])), FixedView(DevicePart(pipeline(STEPS["holes"])), 2)):
        here, loaded = (
            list(make_loader(dataset(folder, part), SequentialSampler(8, 0), 4, count, drop_last=False, seed=0))
            for count in (0, 1)
        )
        assert len(loaded) == len(here) == 2
        assert all(map(same_batches, here, loaded))


def test_a_pictures_result_does_not_depend_on_its_batch(folder) -> None:
    parts = dataset(folder, DevicePart(load_pipeline(find_transform("train_complex_128.json"))))
    together = collate([parts[key] for key in KEYS]).finished().inputs["image"]
    for position in (0, 5, 17):
        alone = collate([parts[KEYS[position]]]).finished().inputs["image"][0]
        torch.testing.assert_close(alone, together[position], rtol=0, atol=1e-5)


def test_pictures_of_several_sizes_that_end_alike_stand_in_one_batch(tmp_path) -> None:
    generator = np.random.default_rng(2)
    for index, size in enumerate([(40, 40), (31, 44), (50, 28), (40, 40), (37, 37), (29, 52), (33, 40), (48, 48)]):
        smooth = cv2.GaussianBlur(generator.normal(0, 400, size).astype(np.float32), (0, 0), 1.5)
        np.save(tmp_path / f"ID_{index}.npy", smooth.astype(np.int16))
    moves = [A.HorizontalFlip(), A.VerticalFlip(), A.Rotate(border_mode=4), A.Rotate(border_mode=0, fill=0.3)]
    noise = A.GaussNoise((0.05, 0.05), p=1)
    steps = [DRAWN, *moves, A.CoarseDropout((2, 3), (5, 9), (5, 9)), noise, A.RandomResizedCrop((24, 24))]
    compare(tmp_path, pipeline(steps))
    parts = dataset(tmp_path, DevicePart(pipeline([DRAWN, *moves])))
    with pytest.raises(WorkError, match="different shapes"):
        collate([parts[0], parts[1]])


def test_windowed_pictures_need_no_window(tmp_path) -> None:
    picture = np.random.default_rng(3).random((SIDE, SIDE, 3)).astype(np.float32)
    for index in range(8):
        np.save(tmp_path / f"ID_{index}.npy", cv2.GaussianBlur(picture, (0, 0), 2))
    transform = load_pipeline(find_transform("train_intermediate_128.json"), WINDOWS, windowed=True)
    results = []
    for one in (transform, DevicePart(transform)):
        data = ImageDataset(tmp_path, [f"ID_{index}" for index in range(8)], None, one, 0, 5, "window")
        results.append(collate([data[key] for key in KEYS]).finished().inputs["image"])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-3)


def test_a_view_is_the_same_on_the_device_for_every_image(folder) -> None:
    transform = load_pipeline(find_transform("test_intermediate_tta_128.json"), WINDOWS)
    for view in range(3):
        whole, parts = (dataset(folder, FixedView(one, view)) for one in (transform, DevicePart(transform)))
        expected = collate([whole[index] for index in range(8)]).inputs["image"]
        finished = collate([parts[index] for index in range(8)]).finished().inputs["image"]
        torch.testing.assert_close(finished, expected, rtol=0, atol=2e-3)


def test_neighbouring_slices_become_channels_slice_by_slice() -> None:
    generator = np.random.default_rng(1)
    hu = generator.integers(-200, 300, (2, 4, 3, 5)).astype(np.int16)
    windows = np.array([[[40, 80], [80, 200]], [[35, 70], [90, 180]]], dtype=np.float64)
    shown = KERNELS["window"](torch.from_numpy(hu), {"windows": torch.from_numpy(windows)})
    for image in range(2):
        for one in range(4):
            for channel in range(2):
                center, width = windows[image, channel]
                expected = np.clip((hu[image, one] - (center - width / 2)) / width, 0, 1)
                np.testing.assert_allclose(shown[image, 2 * one + channel], expected, atol=1e-5)


def test_a_batch_moves_with_its_plan(folder) -> None:
    parts = dataset(folder, DevicePart(pipeline(STEPS["grid"])))
    batch = collate([parts[key] for key in KEYS])
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {moved.plan.numbers.device.type, moved.inputs["image"].device.type} == {"meta"}
    assert moved.finished().inputs["image"].shape == (len(KEYS), 3, SIDE, SIDE)  # nothing looks at a value


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([DRAWN, A.Blur(), NORMALIZE], "Blur"),
        ([DRAWN, A.SomeOf([A.HorizontalFlip(), A.VerticalFlip()], n=1), NORMALIZE], "SomeOf"),
        ([DRAWN, A.Rotate(interpolation=cv2.INTER_CUBIC)], "Rotate does not interpolate linearly"),
        ([DRAWN, A.Affine(border_mode=cv2.BORDER_WRAP)], "border mode of Affine"),
        ([HeadRotation(), DRAWN], "HeadRotation"),
        ([A.Rotate(border_mode=4), DRAWN], "Rotate stands before the window"),
        ([DicomWindowShift(min_max_normalize=False)], "DicomWindowShift"),
        ([DRAWN, A.OneOf([A.HorizontalFlip(), A.MedianBlur()])], "MedianBlur"),
    ],
)
def test_a_pipeline_that_cannot_be_done_in_batches_says_which_step_it_is(steps, named) -> None:
    assert named in device_refusal(pipeline(steps))
