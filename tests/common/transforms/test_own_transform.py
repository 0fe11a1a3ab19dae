"""examples/transform.py: one file makes a transform known to files, to pictures and to batches."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from common.albumentations import OWN_CLASSES, fixed_windows
from common.datasets.finish import KERNELS, collect, execute
from common.transforms import pipeline_from_dict
from common.transforms.describe import describe
from common.transforms.device import DevicePart, device_refusal
from common.transforms.drawing import DRAWS, Row, add_transform
from common.transforms.joining import Change
from common.transforms.pictures import FORMS

EXAMPLE = Path(__file__).parents[3] / "examples" / "transform.py"
WINDOWS = ((40.0, 80.0), (80.0, 200.0))
HU = np.random.default_rng(0).integers(-100, 200, (24, 20)).astype(np.int16)


@pytest.fixture(autouse=True)
def tables_as_before() -> Iterator[None]:
    tables = (OWN_CLASSES, DRAWS, FORMS, KERNELS)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture
def gain() -> type:
    return runpy.run_path(str(EXAMPLE))["Gain"]


def document(*transforms: Any) -> dict[str, Any]:
    return json.loads(json.dumps(A.to_dict(A.Compose(list(transforms)))))


def in_batch(pipeline: Any, seeds: range) -> torch.Tensor:
    part = DevicePart(pipeline)
    results = []
    for seed in seeds:
        part.set_random_seed(seed)
        results.append(part(image=HU))
    plan = collect([one["steps"] for one in results], results[0]["size"])
    return execute(plan, torch.from_numpy(np.stack([HU[np.newaxis]] * len(seeds))))


def test_a_file_with_it_gives_the_same_pixels_in_a_picture_in_a_batch_and_by_itself(gain: type) -> None:
    content = document(A.HorizontalFlip(p=0.5), gain(p=0.7), A.VerticalFlip(p=0.5))
    assert content["transform"]["transforms"][1]["__class_fullname__"] == "common.albumentations.Gain"
    pipeline = pipeline_from_dict(content, "f.json", WINDOWS)
    assert device_refusal(pipeline) is None
    assert "Gain, probability 0.7: gain_range (0.8, 1.25)" in describe(pipeline)
    batch = in_batch(pipeline, range(12))
    plain = pipeline_from_dict(document(), "f.json", WINDOWS)(image=HU)["image"]
    changed = 0
    for seed in range(12):
        pipeline.set_random_seed(seed)
        picture = pipeline(image=HU)["image"]
        np.testing.assert_array_equal(batch[seed].permute(1, 2, 0).numpy(), picture)
        pipeline.set_random_seed(seed)
        np.testing.assert_array_equal(picture, pipeline.compose(image=HU)["image"])
        changed += not np.isin(picture, plain).all()
    assert 0 < changed < 12


def test_one_without_a_form_for_batches_is_computed_on_the_cpu(gain: type) -> None:
    class Louder(gain):
        pass

    add_transform(
        Louder, Row("louder", lambda transform, shape: Change("louder")), picture=lambda picture, numbers: None
    )
    pipeline = pipeline_from_dict(document(Louder()), "f.json", WINDOWS)
    assert device_refusal(pipeline) == "Louder is not among the transforms that work on batches"


def test_a_name_or_a_kind_of_step_that_is_taken_is_refused(gain: type) -> None:
    namesake = type("DicomWindowShift", (), {})
    with pytest.raises(ValueError, match="DicomWindowShift is taken"):
        add_transform(namesake, Row("mine", lambda transform, shape: Change("mine")))
    with pytest.raises(ValueError, match="holes is taken"):
        add_transform(
            gain, Row("holes", lambda transform, shape: Change("holes")), picture=lambda picture, numbers: None
        )
    assert OWN_CLASSES["DicomWindowShift"] is type(fixed_windows(WINDOWS))
