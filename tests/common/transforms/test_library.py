"""Each transform class that the installed albumentations exports is read as the library does, or refused by name."""

from __future__ import annotations

import inspect
import json
import logging
import random
import warnings
from typing import Any

import albumentations as A
import albumentations.pytorch
import numpy as np
import pytest
from albumentations.core.composition import BaseCompose

from common.errors import UsageError
from common.transforms.library import READ, REFUSED, TOLD
from common.transforms.pipeline import pipeline_from_dict

PICTURE = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
SIZE = {"height": 32, "width": 32}
FLIPS = {"transforms": [A.HorizontalFlip(p=1), A.VerticalFlip(p=1)]}
NEEDS: dict[str, dict[str, Any]] = {
    "AtLeastOneBBoxRandomCrop": SIZE,
    "CenterCrop": SIZE,
    "RandomCrop": SIZE,
    "Resize": SIZE,
    **{name: {"max_size": 32} for name in ("LongestMaxSize", "SmallestMaxSize")},
    "Crop": {"x_max": 60, "y_max": 60},
    "CropAndPad": {"px": 4},
    "GridElasticDeform": {"num_grid_xy": (4, 4), "magnitude": 3},
    "RandomResizedCrop": {"size": (32, 32)},
    "RandomSizedCrop": {"size": (32, 32), "min_max_height": (20, 40)},
}
OTHER_NOISE = ("GaussNoise",)  # this project draws its field from a table: see test_transform_operations.py


def exported() -> dict[str, type]:
    """The classes by the library itself: what ``albumentations`` and ``albumentations.pytorch`` show to their users."""
    kinds = (A.BasicTransform, BaseCompose)
    modules = (A, albumentations.pytorch)
    found = {name: getattr(module, name) for module in modules for name in dir(module)}
    return {name: one for name, one in found.items() if inspect.isclass(one) and issubclass(one, kinds)}


def saved(transform: Any) -> dict[str, Any]:
    return json.loads(json.dumps(A.to_dict(transform if isinstance(transform, A.Compose) else A.Compose([transform]))))


def named(name: str, **arguments: Any) -> dict[str, Any]:
    step = {"__class_fullname__": name, "p": 1.0, **arguments}
    return {"__version__": "2.0.8", "transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": [step]}}


def test_each_class_has_one_row_and_each_row_a_class() -> None:
    assert set(exported()) == READ | TOLD.keys() | REFUSED.keys()
    assert len(exported()) == len(READ) + len(TOLD) + len(REFUSED) > 120


@pytest.mark.parametrize("name", sorted(READ))
def test_what_is_read_gives_the_librarys_own_picture(name: str, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    built = exported()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the library's own about aliases
        content = saved(built(**(FLIPS if issubclass(built, BaseCompose) else {"p": 1, **NEEDS.get(name, {})})))
        theirs = A.from_dict(content)
    pipeline = pipeline_from_dict(content, "file.json")
    for seed in range(3):
        pipeline.set_random_seed(seed)
        theirs.set_random_state(np.random.default_rng(seed), random.Random(seed))
        picture, expected = (one(image=PICTURE)["image"] for one in (pipeline, theirs))
        assert picture.shape == expected.shape
        if name not in OTHER_NOISE:
            np.testing.assert_allclose(picture, expected, atol=1e-3)


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("module", ["", "albumentations.augmentations.some.module."])
def test_what_cant_work_is_refused_by_name_with_advice(name: str, module: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline_from_dict(named(module + name), "file.json")
    assert str(caught.value).startswith(f"file.json: {name} can't work here: ")
    assert any(advice in str(caught.value) for advice in ("; use ", "remove it", "write a class"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fullname", ["ToTensorV2", "albumentations.pytorch.transforms.ToTensorV2"])
def test_to_tensor_does_nothing_and_says_so_in_files_of_today_too(fullname: str, caplog) -> None:
    """``ToTensorV2`` as 2.0.8 saves it: bare, or under its module where it was not registered."""
    content = saved(A.Compose([A.HorizontalFlip(p=1), albumentations.pytorch.ToTensorV2()]))
    assert content["transform"]["transforms"][1]["__class_fullname__"] == "ToTensorV2"
    content["transform"]["transforms"][1]["__class_fullname__"] = fullname
    np.testing.assert_array_equal(pipeline_from_dict(content, "file.json")(image=PICTURE)["image"], PICTURE[:, ::-1])
    assert "file.json: ToTensorV2: the loader puts channels first by itself: it does nothing" in caplog.messages


@pytest.mark.parametrize("most", [None, 255, 1.0])
def test_to_float_does_nothing_where_pictures_come_on_0_to_1(most: float | None, caplog) -> None:
    content = saved(A.ToFloat(max_value=most))
    np.testing.assert_array_equal(pipeline_from_dict(content, "file.json")(image=PICTURE)["image"], PICTURE)
    assert "ToFloat: pictures come on 0..1" in caplog.text
    with pytest.raises(UsageError, match="remove ToFloat"):
        pipeline_from_dict(saved(A.ToFloat(max_value=65535)), "file.json")


@pytest.mark.parametrize("version", ["2.0.8", "0.4.5"])
@pytest.mark.parametrize(
    "fullname",
    ["__main__.CTWindow", "src.augment.ApplyWindowing", "windows.HU", "DicomWindow", "my.HounsfieldClip", "BrainSlope"],
)
def test_a_window_of_another_program_is_refused_with_what_to_do_instead(fullname: str, version: str) -> None:
    content = {**named(fullname, center=40, width=80), "__version__": version}
    with pytest.raises(UsageError) as caught:
        pipeline_from_dict(content, "file.json")
    said = str(caught.value)
    assert said.startswith(f"file.json: the transform {fullname.rpartition('.')[2]!r} is not known; only ")
    assert "delete the step and use --data_windows" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([named("Resize", height=40_000, width=40_000)], "Resize: height is 40000; at most 4096"),
        ([named("RandomResizedCrop", size=[64, 10**9])], "RandomResizedCrop: size is"),
        ([named("PadIfNeeded", min_height=10**6, min_width=8)], "PadIfNeeded: min_height is"),
        ([named("CropAndPad", px=[[1, 10**6], 1, 1, 1])], "CropAndPad: px is"),
        ([named("RandomScale", scale_limit=[0, 1000.0])], "RandomScale: scale_limit is 1000.0; at most 8"),
        ([named("NoOp")] * 501, "more than 500 transforms"),
    ],
)
def test_a_file_that_asks_for_huge_pictures_or_thousands_of_steps_is_refused(steps: list, said: str) -> None:
    content = named("Sequential", transforms=[step["transform"]["transforms"][0] for step in steps])
    with pytest.raises(UsageError, match=said):
        pipeline_from_dict(content, "file.json")
