"""Operation by operation against albumentations itself, on the same stream of random numbers."""

from __future__ import annotations

import random
import warnings

import albumentations as A
import cv2
import numpy as np
import pytest

from common.albumentations import DicomWindowShift, RandomResizedCrop, ShiftScaleRotate
from common.transforms import find_transform, load_pipeline
from common.transforms.operations import SequentialCanvas, has_operation, run

PICTURE = np.random.default_rng(0).random((70, 64, 3)).astype(np.float32)
SMOOTH = cv2.GaussianBlur(PICTURE, (0, 0), 2)

MOVES = [
    A.HorizontalFlip(p=0.5),
    A.VerticalFlip(p=0.5),
    ShiftScaleRotate(p=0.7),
    A.RandomResizedCrop(size=(60, 56), scale=(0.5, 1.0), p=0.7),
    RandomResizedCrop(size=(60, 56), scale=(0.5, 1.2), p=0.7),
    A.Rotate((-40, 40), border_mode=4, p=0.7),
    A.Affine(rotate=(-20, 20), scale=(0.8, 1.2), translate_percent=(-0.1, 0.1), fill=0.3, p=0.7),
    A.GridDistortion(normalized=False, border_mode=4, p=0.7),
    A.CoarseDropout((2, 5), (4, 9), (3, 8), fill=0.4, p=0.7),
    A.Blur(p=0.4),
    A.OneOf([A.HorizontalFlip(p=0.3), A.Rotate(p=0.7), A.Transpose(p=0.2)], p=0.6),
    A.OneOrOther(A.HorizontalFlip(p=1), A.VerticalFlip(p=1), p=0.4),
    A.Sequential([A.HorizontalFlip(p=0.5), A.Rotate((10, 10), p=0.8)], p=0.5),
    A.SomeOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.Blur(p=1)], n=2, p=0.5),
]


def both(transforms: list, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture by ``albumentations.Compose`` and by the canvas."""
    compose = A.Compose(transforms)
    results = []
    for side in ("library", "ours"):
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if side == "library":
                results.append(compose(image=image)["image"])
            else:
                canvas = SequentialCanvas(image)
                run(compose, canvas)
                results.append(canvas.finish())
    return results[0], results[1]


@pytest.mark.parametrize("seed", range(25))
def test_a_random_row_of_steps_gives_the_librarys_picture(seed: int) -> None:
    """Flips wait for the next warp, so the order of steps around them matters: it is drawn anew for each seed."""
    steps = random.Random(seed).sample(MOVES, len(MOVES))
    library, ours = both(steps, SMOOTH, seed)
    assert ours.shape == library.shape
    np.testing.assert_allclose(ours, library, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 9])
def test_any_number_of_channels(channels: int) -> None:
    """The picture is very smooth: some channel counts go to code of OpenCV that rounds places to 1/32 of a pixel."""
    picture = cv2.GaussianBlur(np.random.default_rng(1).random((48, 48, channels)).astype(np.float32), (0, 0), 6)
    picture = picture.reshape(48, 48, channels)
    steps = [
        A.HorizontalFlip(p=1),
        A.Rotate((20, 20), border_mode=4, p=1),
        A.CoarseDropout((2, 2), (5, 5), (5, 5), p=1),
    ]
    library, ours = both(steps, picture, 0)
    np.testing.assert_allclose(ours.reshape(picture.shape), library.reshape(picture.shape), atol=1e-3)


@pytest.mark.parametrize("name", ["train_intermediate.json", "test_intermediate_tta_128.json", "train_demo.json"])
def test_the_recipes_without_noise_give_the_librarys_picture(name: str) -> None:
    pipeline = load_pipeline(find_transform(name))
    for seed in range(10):
        pipeline.set_random_seed(seed)
        expected = pipeline.compose(image=SMOOTH)["image"]
        pipeline.set_random_seed(seed)
        np.testing.assert_allclose(pipeline(image=SMOOTH)["image"], expected, atol=1e-3)


def test_hounsfield_units_are_windowed_and_warped_as_by_the_library() -> None:
    smoother = cv2.GaussianBlur(PICTURE[..., 0], (0, 0), 6)  # six channels end in a pair: see above
    hu = (smoother * 300 - 100).astype(np.float32)
    neighbours = np.stack([hu, hu / 2], axis=-1)
    for image in (hu, neighbours):
        steps = [
            A.HorizontalFlip(p=1),
            DicomWindowShift([80, 100, 90], [90, 200, 90], [30, 40, 40], [50, 90, 40]),
            ShiftScaleRotate(p=1),
        ]
        library, ours = both(steps, image, 3)
        np.testing.assert_allclose(ours, library, atol=1e-3)


def test_noise_is_normal_of_its_deviation_clipped_and_repeats_for_its_seed() -> None:
    grey = np.full((128, 128, 3), 0.5, np.float32)
    noise = A.Compose([A.GaussNoise(std_range=(0.05, 0.05), mean_range=(0.1, 0.1), p=1)])

    def draw(image: np.ndarray, seed: int) -> np.ndarray:
        noise.set_random_state(np.random.default_rng(seed), random.Random(seed))
        canvas = SequentialCanvas(image)
        run(noise, canvas)
        return canvas.finish()

    field = draw(grey, 0) - 0.6
    assert abs(field.std() - 0.05) < 5e-4
    assert abs(field.mean()) < 1e-3
    assert abs((np.abs(field) > 0.1).mean() - 0.0455) < 0.004  # beyond two deviations
    assert abs(np.corrcoef(field[..., 0].ravel(), field[..., 1].ravel())[0, 1]) < 0.03
    assert np.array_equal(draw(grey, 0), draw(grey, 0))
    assert not np.array_equal(draw(grey, 0), draw(grey, 1))
    assert draw(np.ones_like(grey), 0).max() == 1
    assert (grey == 0.5).all()


@pytest.mark.parametrize("transform", [step for step in MOVES if not hasattr(step, "transforms")], ids=str)
def test_the_callers_picture_is_never_changed(transform: A.BasicTransform) -> None:
    image = SMOOTH.copy()
    transform.p, before = 1.0, transform.p
    both([transform, A.Normalize((0.5,) * 3, (0.5,) * 3, max_pixel_value=1.0)], image, 0)
    transform.p = before
    np.testing.assert_array_equal(image, SMOOTH)


@pytest.mark.parametrize(
    "transform",
    [
        A.Rotate(crop_border=True),
        A.Affine(fit_output=True),
        A.CoarseDropout(fill="random"),
        A.GaussNoise(per_channel=False),
        A.Normalize(normalization="min_max"),
        DicomWindowShift(min_max_normalize=False),
        A.Transpose(),
    ],
    ids=str,
)
def test_arguments_that_no_operation_knows_are_left_to_the_class_itself(transform: A.BasicTransform) -> None:
    assert not has_operation(transform)
