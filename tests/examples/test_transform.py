"""A transform of one's own, named by its path in a transform file: one file for pictures and for batches."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from common.datasets.finish import KERNELS, collect, execute
from common.errors import UsageError
from common.transforms.describe import describe
from common.transforms.device import DevicePart, device_refusal
from common.transforms.documents import find_class
from common.transforms.drawing import DRAWS, Row, add_transform
from common.transforms.joining import Change
from common.transforms.pictures import FORMS
from common.transforms.pipeline import pipeline_from_dict

WINDOWS = ((40.0, 80.0), (80.0, 200.0))
HU = np.random.default_rng(0).integers(-100, 200, (24, 20)).astype(np.int16)


@pytest.fixture(autouse=True)
def tables_as_before(monkeypatch) -> Iterator[None]:
    tables = (DRAWS, FORMS, KERNELS)
    before = [dict(table) for table in tables]
    monkeypatch.delitem(sys.modules, "examples.transform", raising=False)
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def document(*steps: dict[str, Any]) -> dict[str, Any]:
    root = {"__class_fullname__": "Compose", "p": 1.0, "transforms": list(steps)}
    return {"__version__": A.__version__, "transform": root}


def named(name: str, **arguments: Any) -> dict[str, Any]:
    return {"__class_fullname__": name, **arguments}


def in_batch(pipeline: Any, seeds: range) -> torch.Tensor:
    part = DevicePart(pipeline)
    results = []
    for seed in seeds:
        part.set_random_seed(seed)
        results.append(part(image=HU))
    plan = collect([one["steps"] for one in results], results[0]["size"])
    return execute(plan, torch.from_numpy(np.stack([HU[np.newaxis]] * len(seeds))))


def test_a_file_with_it_gives_the_same_pixels_in_a_picture_in_a_batch_and_by_itself() -> None:
    gain = named("examples.transform.Gain", gain_range=[0.8, 1.25], p=0.7)
    content = document(named("HorizontalFlip", p=0.5), gain, named("VerticalFlip", p=0.5))
    pipeline = pipeline_from_dict(content, "f.json", WINDOWS)
    assert json.loads(json.dumps(A.to_dict(pipeline.transforms[2])))["transform"] == gain
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


def test_a_copy_in_another_process_draws_the_same() -> None:
    part = DevicePart(pipeline_from_dict(document(named("examples.transform.Gain", p=1.0)), "f.json", WINDOWS))
    steps = []
    for one in (part, pickle.loads(pickle.dumps(part))):
        one.set_random_seed(4)
        steps.append(one(image=HU)["steps"])
    assert [step.kind for step in steps[0]] == [step.kind for step in steps[1]] == ["window", "gain"]
    assert steps[0][1].numbers == steps[1][1].numbers


def test_a_kind_of_step_that_exists_is_refused() -> None:
    gain = find_class("examples.transform.Gain")
    with pytest.raises(ValueError, match="a step of the kind holes exists"):
        add_transform(gain, Row("holes", lambda transform, shape: Change("holes")), lambda picture, numbers: None)
    add_transform(gain, Row("alone", lambda transform, shape: Change("alone")), lambda picture, numbers: None)
    pipeline = pipeline_from_dict(document(named("examples.transform.Gain")), "f.json", WINDOWS)
    assert device_refusal(pipeline) == "Gain is not among the transforms that work on batches"


@pytest.mark.parametrize("name", ["examples.transform.draw", "examples.transform.Nothing", "examples.none.Gain"])
def test_a_path_that_names_no_transform_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"f\.json: the transform .* is not known"):
        pipeline_from_dict(document(named(name)), "f.json", WINDOWS)
