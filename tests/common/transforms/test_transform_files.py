"""The files in transforms/ are what their script makes."""

from __future__ import annotations

import importlib.util
import warnings

import albumentations as A
import numpy as np
import pytest

from common.transforms.pipeline import load_pipeline
from tests import PROJECT

FOLDER = PROJECT / "transforms"
NAMES = sorted(file.name for file in FOLDER.glob("*.json"))
WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_transforms", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_makes_these_files_to_the_byte(make) -> None:
    made = {name: make.text(transforms) for name, transforms in make.recipes().items()}
    assert sorted(made) == NAMES
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", NAMES)
def test_a_file_loads_without_a_word_here_and_in_albumentations(name: str, caplog) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = load_pipeline(FOLDER / name, WINDOWS)
        A.load(FOLDER / name)
    assert not caplog.records
    assert pipeline.channels == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("valid")])
def test_validation_gives_the_same_bytes_whatever_the_seed(name: str) -> None:
    pipeline = load_pipeline(FOLDER / name, WINDOWS)
    hu = np.random.default_rng(0).integers(-1024, 300, (32, 32)).astype(np.int16)
    pictures = []
    for seed in (0, 1):
        pipeline.set_random_seed(seed)
        pictures.append(pipeline(image=hu)["image"].tobytes())
    assert pictures[0] == pictures[1]
