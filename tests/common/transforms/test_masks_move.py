"""Masks move with their pictures: as albumentations moves them, and alike one by one and in batches."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from common.albumentations import RandomResizedCrop, ShiftScaleRotate
from common.datasets.finish import collect, execute_masks
from common.datasets.steps import Step
from common.errors import UsageError
from common.transforms.__main__ import main
from common.transforms.device import DevicePart
from common.transforms.documents import find_transform
from common.transforms.drawing import Chance, draw_steps
from common.transforms.pictures import Picture
from common.transforms.pipeline import load_pipeline

SHAPE = (70, 64)
IMAGE = np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32)


def drawn_mask(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Three blobs of one bit each, which overlap."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for bit in (1, 2, 16):
        blob = np.zeros(shape, np.uint8)
        centre = tuple(int(side * rng.uniform(0.35, 0.65)) for side in shape[::-1])
        mask |= cv2.circle(blob, centre, int(rng.integers(9, 20)), bit, -1)
    return mask


def both(transforms: list, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask by ``albumentations.Compose`` and step by step, on the same stream of random numbers."""
    compose, mask = A.Compose(transforms), drawn_mask(seed)
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = compose(image=IMAGE, mask=mask)["mask"]
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        picture = Picture(IMAGE, mask)
        draw_steps(compose, IMAGE.shape, picture.do, Chance())
    assert np.array_equal(mask, drawn_mask(seed))  # the caller's own stays
    return library, picture.mask


@pytest.mark.parametrize(
    "steps",
    [
        [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)],
        [A.CoarseDropout((2, 5), (4, 9), (3, 8), fill=0.4, p=1), A.GaussNoise(p=1), A.HorizontalFlip(p=1)],
        [A.OneOf([A.HorizontalFlip(p=0.3), A.Transpose(p=0.7)], p=1), A.Blur(p=1)],
        [A.SomeOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.Blur(p=1)], n=2, p=1)],
    ],
)
def test_flips_and_changes_of_values_give_the_librarys_mask_exactly(steps: list) -> None:
    for seed in range(5):
        library, ours = both(steps, seed)
        assert ours.dtype == np.uint8
        assert np.array_equal(library, ours)


@pytest.mark.parametrize(
    "step",
    [
        ShiftScaleRotate(p=1),
        A.Rotate((-40, 40), border_mode=4, p=1),
        A.Rotate((-40, 40), p=1),
        A.Affine(rotate=(-20, 20), scale=(0.8, 1.2), translate_percent=(-0.3, 0.3), fill=0.3, p=1),
        A.GridDistortion(normalized=False, border_mode=4, p=1),
        A.RandomResizedCrop(size=(60, 56), scale=(0.5, 1.0), p=1),
        RandomResizedCrop(size=(60, 56), scale=(0.5, 1.2), p=1),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_warped_mask_is_the_librarys_up_to_its_edges(step: A.DualTransform) -> None:
    for seed in range(5):
        library, ours = both([A.HorizontalFlip(p=0.5), step], seed)
        assert ours.shape == library.shape
        assert set(np.unique(ours)) <= set(np.unique(drawn_mask(seed)))
        # The library enlarges a crop by the pixel before the place, not the nearest: up to an enlarged pixel apart.
        reach = 2 if "Crop" in type(step).__name__ else 1
        near = range(-reach, reach + 1)
        for bit in (1, 2, 16):  # one by one: where edges cross, a combination of bits may be gone
            shifted = [np.roll(library & bit, (dy, dx), (0, 1)) for dy in near for dx in near]
            within = np.any([ours & bit == one for one in shifted], axis=0)
            assert within[reach:-reach, reach:-reach].all()
        assert (ours != library).mean() < 0.08


@pytest.mark.parametrize("fuse", [False, True])
def test_a_batch_moves_each_mask_as_its_picture_alone_does(fuse: bool) -> None:
    """The pictures differ in size and in which steps are drawn; what becomes of them has one size."""
    path = find_transform("train_complex_512.json")
    pipeline = load_pipeline(path, fuse=fuse)
    shapes = [(70, 64), (64, 64), (70, 64), (50, 61), (64, 80), (70, 64)]
    masks = np.zeros((len(shapes), 1, 70, 80), np.uint8)
    steps, alone = [], []
    for seed, shape in enumerate(shapes):
        image, mask = np.full(shape, 40, np.int16), drawn_mask(seed, shape)
        masks[seed, 0, : shape[0], : shape[1]] = mask
        pipeline.set_random_seed(seed)
        alone.append(pipeline(image=image, mask=mask)["mask"])
        pipeline.set_random_seed(seed)
        part = DevicePart(pipeline)(image=image)
        steps.append(part["steps"])
    moved = execute_masks(collect(steps, part["size"]), torch.from_numpy(masks))
    assert moved.dtype is torch.uint8
    assert np.array_equal(moved[:, 0].numpy(), np.stack(alone))
    assert all(mask.any() for mask in alone)


def test_a_mask_changes_nothing_about_the_picture() -> None:
    pipeline = load_pipeline(find_transform("train_complex_512.json"))
    image = np.random.default_rng(1).integers(-1024, 300, SHAPE).astype(np.int16)
    pictures = []
    for given in ({}, {"mask": drawn_mask(0)}):
        pipeline.set_random_seed(3)
        result = pipeline(image=image, **given)
        assert result.keys() == {"image", *given}
        pictures.append(result["image"])
    assert np.array_equal(*pictures)


def test_a_step_that_does_not_say_how_it_moves_masks_is_refused() -> None:
    plan = collect([[Step((0,), "swirl", (), {})]], SHAPE)
    with pytest.raises(UsageError, match="the transform step swirl doesn't say how it moves masks"):
        execute_masks(plan, torch.zeros(1, 1, *SHAPE, dtype=torch.uint8))


def test_preview_draws_the_outline_of_a_mask_where_the_moved_mask_lies(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name in "abc":
        np.save(tmp_path / "images" / f"{name}.npy", np.full((64, 64), -1000, np.int16))  # black in each window
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 8:24] = 4
    np.save(tmp_path / "masks" / "b.npy", mask)
    A.save(A.Compose([A.VerticalFlip(p=1)]), tmp_path / "flip.json")
    flags = [f"--dataset={tmp_path}", f"--output={tmp_path / 'sheet.png'}", "--images=1", "--views=1"]
    main(["preview", str(tmp_path / "flip.json"), *flags])
    sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)[20 + 196 : 20 + 2 * 196]  # second window
    for tile, top in ((sheet[20:192, :192], 48 - 20), (sheet[:192, 196:388], 96)):  # 16:32 x 3, and 32:48 x 3
        rows, columns = np.nonzero(tile > 128)
        assert abs(rows.max() - (top + 47)) <= 1
        assert (columns.min(), columns.max()) == (24, 71)
        assert tile[top + 10 : top + 40, 30:65].max() == 0
