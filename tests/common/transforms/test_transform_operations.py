"""Operation by operation against albumentations itself, on the same stream of random numbers."""

from __future__ import annotations

import random
import warnings

import albumentations as A
import cv2
import numpy as np
import pytest

from common.albumentations import DicomWindowShift, RandomResizedCrop, ShiftScaleRotate
from common.transforms.documents import find_transform
from common.transforms.drawing import Chance, draw_steps, row_of
from common.transforms.joining import Flip, Grid, Joiner, Move
from common.transforms.pictures import Picture
from common.transforms.pipeline import Pipeline, load_pipeline

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


def painted(compose: A.Compose, image: np.ndarray, *, fuse: bool = False) -> np.ndarray:
    picture = Picture(image)
    shape = draw_steps(compose, image.shape, picture.do, Chance(), fuse=fuse)
    assert picture.values.shape == shape
    return picture.values


def both(transforms: list, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture by ``albumentations.Compose`` and step by step."""
    compose = A.Compose(transforms)
    results = []
    for side in ("library", "ours"):
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if side == "library":
                results.append(compose(image=image)["image"])
            else:
                results.append(painted(compose, image))
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
        return painted(noise, image)

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
def test_arguments_that_no_row_tells_are_left_to_the_class_itself(transform: A.BasicTransform) -> None:
    assert row_of(transform) is None


# --- fused: compared by where points land -----------------------------------------------------------------------------

SIDE = 160
MARGIN = 4


def drawn_by(pipeline, seed: int, monkeypatch) -> list:
    """What the transforms of a pipeline draw for a seed, and the shapes before it."""
    found = []
    add = Joiner.add
    with monkeypatch.context() as patched:
        patched.setattr(
            Joiner, "add", lambda self, drawn, place: (found.append((drawn, self.shape)), add(self, drawn, place))
        )
        pipeline.set_random_seed(seed)
        draw_steps(pipeline.compose, (SIDE, SIDE, 3), lambda step: None, Chance())
    return found


def landing(points: np.ndarray, drawn: list) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N, 2) of the source land, step by step from the definitions, and which stay inside all the way."""
    inside = np.ones(len(points), dtype=bool)
    for one, (height, width, _) in drawn:
        x, y = points.T
        if isinstance(one, Flip):
            x, y = (width - 1 - x, y) if one.horizontal else (x, height - 1 - y)
        elif isinstance(one, Move) and one.box:
            top, left, rows, columns = one.box
            height, width = one.size
            x, y = (x - left + 0.5) * width / columns - 0.5, (y - top + 0.5) * height / rows - 0.5
        elif isinstance(one, Move) and not isinstance(one.links[0], Grid):
            matrix = one.links[0]  # from target to source
            x, y = np.linalg.solve(matrix[:, :2], np.stack([x, y]) - matrix[:, 2:])
        elif isinstance(one, Move):
            x = np.interp(x, one.links[0].columns, np.arange(width), -99, -99)
            y = np.interp(y, one.links[0].rows, np.arange(height), -99, -99)
        points = np.stack([x, y], axis=1)
        inside &= ((points > MARGIN) & (points < np.array([width, height]) - 1 - MARGIN)).all(axis=1)
    return points, inside


MOVING = {
    "train": [
        A.HorizontalFlip(),
        ShiftScaleRotate(0.0625, 0.0625, 0.08, 0, p=0.75),
        A.Rotate((-15, 15), border_mode=4),
    ],
    "complex": [
        A.RandomResizedCrop((144, 150), (0.7, 1.0)),
        A.HorizontalFlip(p=0.5),
        ShiftScaleRotate(0.125, 0.125, 0, 0, p=0.6),
        A.Rotate((-30, 30), border_mode=4, p=0.75),
        A.GridDistortion(normalized=False, border_mode=4, p=0.5),
    ],
    "any order": [
        A.GridDistortion(distort_limit=(-0.06, 0.06), normalized=False, border_mode=4, p=0.6),
        A.VerticalFlip(),
        A.Rotate((-20, 20), border_mode=4),
        RandomResizedCrop((150, 130), (0.6, 1.0), p=0.5),
        A.HorizontalFlip(),
        A.GridDistortion(distort_limit=(-0.06, 0.06), border_mode=4, p=0.6),
        A.Affine(scale=(0.9, 1.2), shear=(-5, 5), border_mode=4),
        A.VerticalFlip(),
    ],
    "borders that can't be joined": [
        A.Rotate((-10, 10), border_mode=0, fill=0.2, p=0.8),
        A.Rotate((-10, 10), border_mode=4, p=0.8),
        A.RandomResizedCrop((150, 130), (0.8, 1.0)),
        A.Affine(scale=(0.9, 1.2), border_mode=4),
    ],
}


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", MOVING)
def test_landmarks_land_where_the_sequence_puts_them(name: str, fuse: bool, monkeypatch) -> None:
    """The picture tells of each pixel where it comes from; it is read where a landmark must be."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    ramps = np.stack([columns, rows, columns], axis=-1)
    pipeline = Pipeline("test", {}, MOVING[name], 3, fuse=fuse)
    errors = []
    for seed in range(20):
        points = np.random.default_rng(seed).uniform(10, SIDE - 10, (200, 2))
        places, inside = landing(points, drawn_by(pipeline, seed, monkeypatch))
        pipeline.set_random_seed(seed)
        moved = pipeline(image=ramps)["image"]
        x, y = places[inside].astype(np.float32).T[..., np.newaxis]
        shown = cv2.remap(moved, x, y, cv2.INTER_LINEAR)[:, 0, :2]
        errors.append(np.abs(shown - points[inside]).max(axis=1))
    errors = np.concatenate(errors)
    assert len(errors) > 1000
    # The library's grid shows one source line twice where two cells meet; between those pixels nothing can be read.
    assert (errors if name != "any order" else np.sort(errors)[: int(0.95 * len(errors))]).max() <= 0.05
    assert errors.max() < 0.5


def test_fused_is_one_warp_until_values_change(monkeypatch) -> None:
    kinds = []
    do = Picture.do
    monkeypatch.setattr(Picture, "do", lambda self, step: (kinds.append(step.kind), do(self, step))[1])
    sure = [A.HorizontalFlip(p=1), A.Rotate((9, 9), border_mode=4, p=1), A.VerticalFlip(p=1), ShiftScaleRotate(p=1)]
    hole = A.CoarseDropout((1, 1), (5, 5), (5, 5), p=1)
    grid = A.GridDistortion(border_mode=4, p=1)
    Pipeline("test", {}, [*sure, grid, A.HorizontalFlip(p=1), hole, *sure], 3, fuse=True)(image=SMOOTH)
    assert kinds == ["sample", "holes", "sample"]
    kinds.clear()
    Pipeline("test", {}, [*sure, grid, hole, *sure], 3)(image=SMOOTH)
    assert kinds == ["sample"] * 3 + ["holes"] + ["sample"] * 2


def test_one_moving_step_is_the_same_with_and_without_fusing() -> None:
    for step in (A.Rotate(border_mode=4, p=1), A.RandomResizedCrop((40, 50), p=1), A.GridDistortion(p=1)):
        compose = A.Compose([A.HorizontalFlip(p=0.5), step, A.CoarseDropout(p=0.5)])
        for seed in range(6):
            pictures = []
            for fuse in (False, True):
                compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
                pictures.append(painted(compose, SMOOTH, fuse=fuse))
            np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-5)


def test_fused_pictures_keep_their_detail() -> None:
    """Four interpolations blur more than one does."""
    steps = [A.Rotate((7, 7), border_mode=4, p=1) for _ in range(4)]
    sharpness = []
    for fuse in (False, True):
        picture = Pipeline("test", {}, steps, 3, fuse=fuse)(image=PICTURE)["image"]
        sharpness.append(float(np.abs(np.diff(picture[20:50, 20:44], axis=1)).mean()))
    assert sharpness[1] > 1.5 * sharpness[0]
