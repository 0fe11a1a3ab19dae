"""Files of albumentations 0.3 to 0.5. Expected numbers are from the definitions of release 0.4.5, by hand."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest

from common.errors import UsageError
from common.transforms.legacy import REFUSED, ROWS
from common.transforms.pipeline import Pipeline, load_pipeline, pipeline_from_dict
from tests import PROJECT

FILES = PROJECT / "tests" / "albumentations_files"
RELEASES = ("0.3.3", "0.4.5", "0.5.2")
NEEDS_MORE = {"Crop": {"x_max": 60, "y_max": 60}, "IAACropAndPad": {"px": [1, 4]}, "RandomSizedCrop": {}}
PICTURE = np.random.default_rng(0).random((96, 80, 3)).astype(np.float32)


def old(name: str, version: str = "0.4.5", p: float = 1.0, **arguments: Any) -> dict[str, Any]:
    """A file of one transform, in the words of a release."""
    module = "imgaug" if name.startswith("IAA") else "augmentations"
    step = {"__class_fullname__": f"albumentations.{module}.transforms.{name}", "always_apply": False, "p": p}
    return wrapped({**step, **arguments}, version=version)


def wrapped(*steps: dict[str, Any], version: str = "0.4.5") -> dict[str, Any]:
    root = {"__class_fullname__": "albumentations.core.composition.Compose", "p": 1.0, "transforms": list(steps)}
    extras = {"bbox_params": None, "keypoint_params": None, "additional_targets": {}}
    return {"__version__": version, "transform": {**root, **extras}}


def loaded(content: dict[str, Any]) -> Pipeline:
    return pipeline_from_dict(content, "old.json")


def drawn(pipeline: Pipeline, picture: np.ndarray, count: int) -> list[np.ndarray]:
    pictures = []
    for seed in range(count):
        pipeline.set_random_seed(seed)
        pictures.append(pipeline(image=picture)["image"])
    return pictures


def classes() -> list[Any]:
    found = []
    for release in RELEASES:
        steps = json.loads((FILES / f"classes_{release}.json").read_text())["classes"]
        found += [pytest.param(release, step, id=f"{release}-{step['__class_fullname__'][-24:]}") for step in steps]
    return found


@pytest.mark.parametrize(("release", "step"), classes())
def test_every_class_of_every_release_runs_or_is_refused_by_name(release: str, step: dict[str, Any], caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    name = step["__class_fullname__"].rpartition(".")[2]
    content = wrapped({**step, **NEEDS_MORE.get(name, {}), "always_apply": True}, version=release)
    if name in REFUSED:
        with pytest.raises(UsageError, match=name):
            loaded(content)
        return
    pipeline = loaded(content)
    pipeline.set_random_seed(0)
    picture = pipeline(image=PICTURE)["image"]
    assert picture.dtype == np.float32
    assert np.isfinite(picture).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A.from_dict(json.loads(json.dumps(pipeline.document)))  # the translation is what the library itself reads


@pytest.mark.parametrize("recipe", ["train_0.3.0", "train_0.4.5", "train_0.5.2", "complex_0.4.5", "complex_0.5.2"])
def test_the_recipes_as_2019_wrote_them_are_todays_recipe_files(recipe: str, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    pipeline = load_pipeline(FILES / f"old_{recipe}.json")
    name = "train_intermediate" if recipe.startswith("train") else "train_complex_512"
    today = A.load(PROJECT / "transforms" / f"{name}.json")
    assert len(pipeline.transforms) == len(today.transforms)
    for ours, theirs in zip(pipeline.transforms, today.transforms, strict=True):
        assert type(ours) is type(theirs)
        assert ours.p == theirs.p
        for key, value in theirs.to_dict()["transform"].items():
            if key in ("std_range", "scale_limit", "mean", "std"):
                np.testing.assert_allclose(getattr(ours, key), value, atol=1e-12)
            elif key not in ("__class_fullname__", "min_max_normalize", "mask_interpolation", "rotate_method"):
                assert getattr(ours, key) == (tuple(value) if isinstance(value, list) else value), (ours, key)


def test_coarse_dropout_cuts_its_number_of_holes_of_its_sizes() -> None:
    content = old("CoarseDropout", max_holes=1, min_holes=1, max_height=16, min_height=8, max_width=12, min_width=4)
    heights, widths = set(), set()
    for picture in drawn(loaded(content), np.ones((64, 64, 3), np.float32), 300):
        rows, columns = np.flatnonzero((picture == 0).any(axis=(1, 2))), np.flatnonzero((picture == 0).any(axis=(0, 2)))
        assert (picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
        heights.add(len(rows))
        widths.add(len(columns))
    assert heights == set(range(8, 17))
    assert widths == set(range(4, 13))


def test_the_recipes_4_to_8_holes_cover_what_they_must() -> None:
    """Six holes of 144 pixels on average on 512 x 512 hardly overlap: 864 pixels; the bounds are 4 · 64 and 8 · 256."""
    content = old("CoarseDropout", max_holes=8, min_holes=4, max_height=16, min_height=8, max_width=16, min_width=8)
    covered = [(one[..., 0] == 0).sum() for one in drawn(loaded(content), np.ones((512, 512, 3), np.float32), 300)]
    assert min(covered) > 150
    assert max(covered) <= 8 * 256
    assert abs(np.mean(covered) - 864) < 40  # standard error 17


def test_the_noise_has_the_variance_of_8_bit_pictures_and_says_so(caplog) -> None:
    content = old("GaussNoise", var_limit=[10.0, 50.0])
    grey = np.full((64, 64, 3), 0.5, np.float32)
    variances = [(one - 0.5).var() * 255**2 for one in drawn(loaded(content), grey, 200)]
    assert min(variances) > 9.5
    assert max(variances) < 52.5
    # sigma is drawn evenly today, the variance was then: 27.5 on average in place of 30.
    assert abs(np.mean(variances) - 27.5) < 2.5
    assert [record.message for record in caplog.records if "var_limit" in record.message] == [
        "old.json: GaussNoise: var_limit 10 to 50 is meant for 8-bit pictures: taken as variance / 255² on 0..1"
    ]


def test_a_variance_for_pictures_on_0_to_1_is_left_alone() -> None:
    pipeline = loaded(old("GaussNoise", var_limit=[0.01, 0.01]))
    grey = np.full((64, 64, 3), 0.5, np.float32)
    assert abs(np.mean([(one - 0.5).var() for one in drawn(pipeline, grey, 10)]) - 0.01) < 0.001


@pytest.mark.parametrize(("version", "said"), [("0.3.3", True), ("0.4.0", True), ("0.4.1", False), ("0.5.2", False)])
def test_the_bug_of_old_holes_is_named_for_its_releases_only(version: str, said: bool, caplog) -> None:
    loaded(old("CoarseDropout", version))
    assert ("maximum + 1" in caplog.text) is said


def test_normalize_for_8_bit_pictures_is_taken_on_0_to_1_with_a_line(caplog) -> None:
    step = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7], "max_pixel_value": 255.0}
    expected = (PICTURE - np.array([0.2, 0.3, 0.4])) / np.array([0.5, 0.6, 0.7])
    np.testing.assert_allclose(loaded(old("Normalize", **step))(image=PICTURE)["image"], expected, atol=1e-5)
    assert caplog.text.count("max_pixel_value 255 is taken as mean and std") == 1


def test_8_bit_pictures_are_put_on_0_to_1() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    expected = (picture / 255 - 0.25) / 0.5
    content = old("Normalize", mean=[0.25] * 3, std=[0.5] * 3, max_pixel_value=255.0)
    np.testing.assert_allclose(loaded(content)(image=picture)["image"], expected, atol=1e-5)


def test_shift_scale_rotate_scales_both_axes_alike_about_the_middle_and_reflects_the_border() -> None:
    limits = {"shift_limit": [0.1, 0.1], "scale_limit": [0.2, 0.2], "rotate_limit": [20, 20]}
    matrix = cv2.getRotationMatrix2D((40, 48), 20, 1.2)
    matrix[:, 2] += (8, 9.6)
    expected = cv2.warpAffine(PICTURE, matrix, (80, 96), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(loaded(old("ShiftScaleRotate", **limits))(image=PICTURE)["image"], expected, atol=1e-6)


def test_shift_scale_rotate_of_0_5_has_limits_for_each_axis() -> None:
    limits = {"shift_limit_x": [0.1, 0.1], "shift_limit_y": [0, 0], "scale_limit": [0, 0], "rotate_limit": [0, 0]}
    moved = loaded(old("ShiftScaleRotate", "0.5.2", **limits))(image=PICTURE)["image"]
    np.testing.assert_allclose(moved[:, 8:], PICTURE[:, :-8], atol=1e-6)
    np.testing.assert_allclose(moved[:, :8], PICTURE[:, 8:0:-1], atol=1e-6)  # reflected, the edge pixel once


def test_rotation_reflects_the_border_and_turns_about_half_a_pixel_beside_the_old_middle() -> None:
    """Then the middle was (W / 2, H / 2), today it is ((W - 1) / 2, (H - 1) / 2)."""
    matrix = cv2.getRotationMatrix2D((39.5, 47.5), 30, 1)
    expected = cv2.warpAffine(PICTURE, matrix, (80, 96), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(loaded(old("Rotate", limit=[30, 30]))(image=PICTURE)["image"], expected, atol=5e-3)


def box_of(crop: Any, height: int, width: int) -> tuple[int, int, int, int]:
    return crop.get_params_dependent_on_data({"shape": (height, width)}, {})["box"]


def test_a_crop_scale_above_1_is_drawn_again_until_it_fits() -> None:
    """The area is even in 0.9..1.1 of the picture; with a ratio of 1 only those up to 1 fit: 0.95 on average."""
    pipeline = loaded(old("RandomResizedCrop", height=64, width=64, scale=[0.9, 1.1], ratio=[1.0, 1.0]))
    crop = pipeline.transforms[0]
    pipeline.set_random_seed(0)
    boxes = [box_of(crop, 100, 100) for _ in range(2000)]
    areas = np.array([rows * columns / 10000 for _, _, rows, columns in boxes])
    assert (areas <= 1).all()
    assert (areas >= 0.89).all()
    assert abs(areas.mean() - 0.95) < 0.005
    assert pipeline(image=PICTURE)["image"].shape == (64, 64, 3)


def test_a_crop_that_never_fits_takes_the_whole_picture() -> None:
    crop = loaded(old("RandomResizedCrop", height=64, width=64, scale=[4, 5], ratio=[1.0, 1.0])).transforms[0]
    assert box_of(crop, 96, 80) == (8, 0, 80, 80)


def test_the_crop_keeps_its_share_of_the_area() -> None:
    pipeline = loaded(old("RandomResizedCrop", height=50, width=50, scale=[0.25, 0.25], ratio=[1.0, 1.0]))
    ramp = np.tile(np.linspace(0, 1, 100, dtype=np.float32)[:, None, None], (1, 100, 3))
    for picture in drawn(pipeline, ramp, 10):  # half of the side: 50 of 100 rows
        assert abs(picture[-1, 0, 0] - picture[0, 0, 0] - 49 / 99) < 1e-5


def test_grid_distortion_moves_as_far_as_then() -> None:
    """0.2 in each step: a cell of 16 pixels shows 19.2, so pixel 16 shows the source's 19.2."""
    ramp = np.tile(np.arange(80, dtype=np.float32)[None, :, None] / 80, (80, 1, 3))
    moved = loaded(old("GridDistortion", num_steps=5, distort_limit=[0.2, 0.2]))(image=ramp)["image"][40, :, 0] * 80
    assert abs(moved[16] - 19.2) < 0.1
    assert abs(moved[32] - 38.4) < 0.1


def test_cutout_boxes_are_cut_off_at_the_border() -> None:
    pictures = drawn(
        loaded(old("Cutout", num_holes=1, max_h_size=20, max_w_size=20)), np.ones((24, 24, 1), np.float32), 60
    )
    areas = {int((picture == 0).sum()) for picture in pictures}
    assert max(areas) == 400
    assert min(areas) < 300


def test_flip_is_one_of_three_evenly() -> None:
    turned = {"v": PICTURE[::-1], "h": PICTURE[:, ::-1], "both": PICTURE[::-1, ::-1]}
    counts = dict.fromkeys(turned, 0)
    for picture in drawn(loaded(old("Flip")), PICTURE, 150):
        counts[next(key for key, value in turned.items() if np.array_equal(picture, value))] += 1
    assert min(counts.values()) > 25  # 50 expected of each


def test_always_apply_means_a_probability_of_1_but_not_another_weight() -> None:
    content = old("HorizontalFlip", p=0.1)
    content["transform"]["transforms"][0]["always_apply"] = True
    assert np.array_equal(loaded(content)(image=PICTURE)["image"], PICTURE[:, ::-1])
    choices = [old(name, p=0.25)["transform"]["transforms"][0] for name in ("HorizontalFlip", "VerticalFlip")]
    choices[0]["always_apply"] = True
    one_of = {"__class_fullname__": "albumentations.core.composition.OneOf", "p": 1.0, "transforms": choices}
    assert loaded(wrapped(one_of)).transforms[0].transforms_ps == [0.5, 0.5]


def test_brightness_by_the_mean_up_to_0_3_and_by_the_maximum_since() -> None:
    picture = np.full((4, 4, 3), 0.5, np.float32)
    results = [loaded(old("RandomBrightness", v, limit=[0.1, 0.1]))(image=picture)["image"] for v in ("0.3.2", "0.4.5")]
    np.testing.assert_allclose([one[0, 0, 0] for one in results], [0.55, 0.6], atol=1e-6)


def test_the_gaussian_blur_has_opencvs_sigma() -> None:
    expected = cv2.GaussianBlur(PICTURE, (7, 7), 0)
    blurred = loaded(old("GaussianBlur", blur_limit=[7, 7]))(image=PICTURE)["image"]
    np.testing.assert_allclose(blurred, expected, atol=0.02)  # of noise of 0..1


def test_the_window_of_2019_loads_by_its_full_name_with_one_line(caplog) -> None:
    pipeline = load_pipeline(FILES / "old_complex_0.4.5.json")
    assert pipeline.channels == 3
    assert sum("deliberate departure" in record.message for record in caplog.records) == 1
    hu = np.full((600, 600), 40, np.int16)
    assert pipeline(image=hu)["image"].shape == (512, 512, 3)


def test_a_window_without_min_max_normalize_gives_clipped_hounsfield_units() -> None:
    step = {"__class_fullname__": "common.albumentations.DicomWindowShift", "always_apply": True, "p": 0.5}
    windows = {
        "window_width_mins": [80],
        "window_width_maxs": [80],
        "window_center_mins": [40],
        "window_center_maxs": [40],
    }
    content = wrapped({**step, **windows, "min_max_normalize": False})
    hu = np.array([[-1024, 0, 50, 80, 3000]], np.int16)
    np.testing.assert_array_equal(loaded(content)(image=hu)["image"][0, :, 0], [0, 0, 50, 80, 80])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (old("CoarseDropout", hole_height_range=[1, 2]), ["CoarseDropout had no argument 'hole_height_range'"]),
        (old("GaussNoise", var_limits=[1, 2]), ["did you mean 'var_limit'"]),
        (old("RandomResizdCrop"), ["'RandomResizdCrop' is not known", "RandomResizedCrop"]),
        (old("RandomResizedCrop", width=8), ["RandomResizedCrop", "'height' is missing"]),
        (old("CoarseDropout", max_holes="many"), ["CoarseDropout"]),
        (old("Flip", p="often"), ["Flip: p is 'often'"]),
        (old("ShiftScaleRotate", scale_limit=None), ["ShiftScaleRotate", "wrong kind"]),
        (old("OpticalDistortion", shift_limit=[-3, 3]), ["OpticalDistortion", "shift_limit"]),
        ({**old("Flip"), "__version__": "0.2.0"}, ["0.2.0"]),
        ({**old("Flip"), "__version__": None}, ["__version__"]),
        (wrapped({"p": 1}), ["without '__class_fullname__'"]),
        (old("GaussNoise", p=1.0)["transform"], ["'__version__' and 'transform'"]),
    ],
)
def test_what_no_release_had_is_refused_in_one_line(content: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(content)
    message = str(caught.value)
    assert message.startswith("old.json: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_no_class_is_both_translated_and_refused() -> None:
    assert not set(ROWS) & set(REFUSED)
