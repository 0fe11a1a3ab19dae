from __future__ import annotations

import json
import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest

from common.albumentations import DicomWindowShift, HounsfieldContrast, SliceThickness
from common.errors import UsageError
from common.transforms.documents import find_transform
from common.transforms.pipeline import FixedView, check_same_scale, load_pipeline, pipeline_from_dict

WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))
NORMALIZE = {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7), "max_pixel_value": 1.0}
HU = np.random.default_rng(0).integers(-1024, 300, (24, 20)).astype(np.int16)


def document(*transforms: Any) -> dict[str, Any]:
    """What ``albumentations.save`` would write."""
    return json.loads(json.dumps(A.to_dict(A.Compose(list(transforms)))))


def pipeline(*transforms: Any, **options: Any) -> Any:
    return pipeline_from_dict(document(*transforms), "file.json", WINDOWS, **options)


def refusal(content: dict[str, Any], **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        pipeline_from_dict(content, "file.json", WINDOWS, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("file.json: ")
    return message


def test_a_file_without_a_window_gets_the_given_ones_in_front() -> None:
    built = pipeline(A.Normalize(**NORMALIZE))
    picture = built(image=HU)["image"]
    assert picture.dtype == np.float32
    assert picture.flags.c_contiguous
    for channel, (center, width) in enumerate(WINDOWS):
        windowed = np.clip((HU.astype(float) - center + width / 2) / width, 0, 1)
        expected = (windowed - NORMALIZE["mean"][channel]) / NORMALIZE["std"][channel]
        np.testing.assert_allclose(picture[..., channel], expected, atol=1e-5)


def test_a_window_in_the_file_replaces_the_given_ones() -> None:
    built = pipeline(DicomWindowShift([100, 200], [100, 200], [50, 0], [50, 0]))
    assert built.channels == 2
    np.testing.assert_allclose(built(image=HU)["image"][..., 0], np.clip(HU.astype(float) / 100, 0, 1), atol=1e-5)


def test_what_stands_before_the_window_works_on_hounsfield_units() -> None:
    seen = pipeline(A.HorizontalFlip(p=1), DicomWindowShift())(image=HU)["image"]
    np.testing.assert_array_equal(seen, pipeline(DicomWindowShift())(image=HU[:, ::-1].copy())["image"])


def test_three_slices_that_are_moved_before_the_window_stay_three() -> None:
    """A warp of three channels computes with a fourth beside them."""
    steps = [HounsfieldContrast(p=1), A.Rotate((9, 9), border_mode=4, p=1), DicomWindowShift()]
    picture = pipeline(*steps, slices=3)(image=np.stack([HU] * 3, axis=-1))["image"]
    assert picture.shape == (24, 20, 9)
    np.testing.assert_array_equal(picture[..., :3], picture[..., 3:6])
    np.testing.assert_array_equal(picture[..., :3], picture[..., 6:])


def test_one_window_gives_one_channel() -> None:
    built = pipeline_from_dict(document(A.HorizontalFlip(p=1)), "file.json", WINDOWS[:1])
    assert built(image=HU)["image"].shape == (24, 20, 1)


def test_the_seed_of_a_call_decides_all_its_draws() -> None:
    built = load_pipeline(find_transform("train_demo.json"), WINDOWS)

    def draw(seed: int) -> np.ndarray:
        built.set_random_seed(seed)
        return built(image=HU)["image"]

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    first = draw(5)
    draw(6)
    assert np.array_equal(draw(5), first)


def test_transforms_of_equal_probability_are_drawn_apart() -> None:
    """albumentations' own seeding gives every transform the same stream: both flips or none."""
    built = pipeline(A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5))
    plain = pipeline()(image=HU)["image"]
    turned = {
        (True, True): plain[::-1, ::-1],
        (True, False): plain[:, ::-1],
        (False, True): plain[::-1],
        (False, False): plain,
    }
    counts = dict.fromkeys(turned, 0)
    for seed in range(200):
        built.set_random_seed(seed)
        picture = built(image=HU)["image"]
        counts[next(key for key, value in turned.items() if np.array_equal(picture, value))] += 1
    assert min(counts.values()) > 20  # 50 expected of each; under 20 has a chance of 1e-7


def test_a_pipeline_survives_pickling() -> None:
    built = load_pipeline(find_transform("train_demo.json"), WINDOWS)
    copy = pickle.loads(pickle.dumps(built))
    for one in (built, copy):
        one.set_random_seed(3)
    assert np.array_equal(built(image=HU)["image"], copy(image=HU)["image"])


def test_a_pipeline_can_be_built_again_from_its_document() -> None:
    built = load_pipeline(find_transform("train_demo.json"), WINDOWS)
    again = pipeline_from_dict(json.loads(json.dumps(built.document)), "again", WINDOWS)
    for one in (built, again):
        one.set_random_seed(3)
    assert np.array_equal(built(image=HU)["image"], again(image=HU)["image"])


@pytest.mark.parametrize("name", ["train_demo.json", "valid_demo.json"])
def test_the_projects_own_files_load_without_a_word(name: str, caplog) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pipeline(find_transform(name), WINDOWS)
    assert not caplog.records


def test_air_comes_in_where_a_rotation_uncovers_the_border() -> None:
    built = pipeline(A.Affine(rotate=(45, 45), p=1))
    built.set_random_seed(0)
    bright = np.full((24, 24), 1000, dtype=np.int16)
    assert np.array_equal(built(image=bright)["image"][0, 0], [0, 0, 0])


def test_max_pixel_value_255_means_mean_and_std_on_0_to_1_and_says_so(caplog) -> None:
    meant, written = (
        pipeline(A.Normalize(**NORMALIZE)),
        pipeline(A.Normalize(**{**NORMALIZE, "max_pixel_value": 255.0})),
    )
    np.testing.assert_array_equal(written(image=HU)["image"], meant(image=HU)["image"])
    assert [record.message for record in caplog.records] == [
        "file.json: Normalize with max_pixel_value 255 is taken as mean and std of pictures on 0..1"
    ]
    assert written.document["transform"]["transforms"][0]["max_pixel_value"] == 1.0


def test_a_missing_normalization_is_a_warning(caplog) -> None:
    caplog.set_level(logging.WARNING)
    pipeline()
    assert "has no Normalize" in caplog.text


def test_files_of_one_run_must_end_on_the_same_scale() -> None:
    first, second = pipeline(A.Normalize(**NORMALIZE)), pipeline(A.Normalize(**{**NORMALIZE, "std": (1, 1, 1)}))
    check_same_scale(first, pipeline(A.HorizontalFlip(), A.Normalize(**NORMALIZE)))
    for other in (second, pipeline()):
        with pytest.raises(UsageError, match="must agree"):
            check_same_scale(first, other)
    one_window = pipeline_from_dict(document(), "other.json", WINDOWS[:1])
    with pytest.raises(UsageError, match="1"):
        check_same_scale(pipeline(), one_window)


def test_windowed_pictures_pass_without_a_window() -> None:
    picture = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(pipeline(windowed=True)(image=picture)["image"], picture)
    assert "windowed already" in refusal(document(DicomWindowShift()), windowed=True)


def test_an_image_that_a_transform_cannot_take_is_one_line() -> None:
    built = pipeline(A.RandomCrop(100, 100, p=1))
    with pytest.raises(UsageError, match=r"^file.json: RandomCrop fails on an image of shape \(24, 20, ") as caught:
        built(image=HU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([A.RandomCrop(10, 10, p=0.001)], r"pictures become 10 x 10 or 24 x 20 pixels"),
        ([A.OneOf([A.HorizontalFlip(p=1), A.CenterCrop(8, 8, p=1)], p=1)], r"pictures become 24 x 20 or 8 x 8 pixels"),
        (
            [A.OneOf([A.Sequential([A.RandomCrop(10, 10, p=0.5)], p=1)], p=1)],
            r"pictures become 10 x 10 or 24 x 20 pixels",
        ),
        ([A.RandomCrop(100, 100, p=0.001)], r"^file.json: RandomCrop fails on an image"),
        ([A.ToGray(1, p=0.001), A.Normalize(**NORMALIZE)], r"Normalize has 3 values, and the pictures .* 1 channels"),
    ],
)
def test_the_trial_finds_what_is_seldom_drawn(steps: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline(*steps).trial(HU)


def test_the_trial_lets_pass_what_ends_alike_whatever_is_drawn() -> None:
    pipeline(A.RandomCrop(10, 10, p=0.5), A.OneOf([A.Rotate(), A.Blur()]), A.Resize(12, 12)).trial(HU)
    pipeline(A.RandomCrop(100, 100, p=0)).trial(HU)


def test_slices_are_not_averaged_where_images_come_one_at_a_time() -> None:
    built = pipeline(SliceThickness(p=0.01))
    with pytest.raises(UsageError, match=r"^file.json: SliceThickness takes neighbouring slices.*take it out of the"):
        built.trial(HU)


def edited(change: Any, *transforms: Any) -> dict[str, Any]:
    content = document(*transforms)
    change(content)
    return content


def set_in_first(key: str, value: Any) -> Any:
    return lambda content: content["transform"]["transforms"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({}, ["'transform'"]),
        ([], ["'transform'"]),
        ({"__version__": "1.3.1", "transform": document()["transform"]}, ["1.3.1", "save the transforms again"]),
        ({"__version__": "2.0.8", "transform": {}}, ["without '__class_fullname__'"]),
        (edited(set_in_first("__class_fullname__", "HorizontlFlip"), A.HorizontalFlip()), ["'HorizontalFlip'"]),
        (edited(set_in_first("__class_fullname__", "os.system"), A.HorizontalFlip()), ["'system'", "not known"]),
        (edited(set_in_first("max_holes", 8), A.CoarseDropout()), ["CoarseDropout", "'max_holes'"]),
        (edited(set_in_first("std_range", [0.5, 3.0]), A.GaussNoise()), ["GaussNoise", "std_range"]),
        (edited(set_in_first("p", 2), A.HorizontalFlip()), ["HorizontalFlip", "p"]),
        (edited(lambda content: content["transform"].update(p=0.5)), ["p=0.5"]),
        (document(A.Normalize(**NORMALIZE), DicomWindowShift()), ["Normalize", "before DicomWindowShift"]),
        (document(DicomWindowShift(), DicomWindowShift()), ["DicomWindowShift", "twice"]),
        (document(A.OneOf([A.Normalize(**NORMALIZE), A.HorizontalFlip()])), ["Normalize inside OneOf"]),
        (document(A.Normalize(**{**NORMALIZE, "mean": (0.1, 0.2), "std": (1, 1)})), ["2 values", "3 windows"]),
        (document(A.Normalize(**NORMALIZE, p=0.5)), ["Normalize has p=0.5"]),
        (edited(set_in_first("window_width_mins", [0, 1, 1]), DicomWindowShift()), ["DicomWindowShift", "above 0"]),
        (edited(set_in_first("transforms", 3), A.OneOf([A.HorizontalFlip()])), ["not a list"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(content: Any, parts: list[str]) -> None:
    message = refusal(content)
    assert all(part in message for part in parts), message


def test_a_class_name_never_imports_anything(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    refusal(edited(set_in_first("__class_fullname__", "evil.Evil"), A.HorizontalFlip()))
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_lists_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        find_transform("train_demoo.json")
    assert "valid_demo.json" in str(caught.value)
    assert "did you mean 'train_demo.json'?" in str(caught.value)


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text("{")
    with pytest.raises(UsageError, match="not a JSON file") as caught:
        load_pipeline(file, WINDOWS)
    assert str(file) in str(caught.value)


def test_a_view_is_the_same_for_every_image_model_and_run_and_views_differ() -> None:
    built = load_pipeline(find_transform("test_intermediate_tta_128.json"), WINDOWS)
    image = np.random.default_rng(0).integers(-100, 300, (96, 96)).astype(np.int16)

    def picture(view: int, seed: int) -> np.ndarray:
        one = FixedView(built, view)
        one.set_random_seed(seed)
        return one(image=image)["image"]

    assert np.array_equal(picture(0, seed=1), picture(0, seed=2))
    assert np.array_equal(picture(3, seed=1), picture(3, seed=2))
    assert len({picture(view, 0).tobytes() for view in range(8)}) == 8
