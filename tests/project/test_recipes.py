"""The recipes for the competition's data in experiments/: options that fit together, and models that train."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import train
from common.cli.arguments import parse_args
from common.cli.choices import load
from common.transforms.documents import find_transform
from config import COMMANDS, TrainConfig
from tests import PROJECT

RECIPES = sorted((PROJECT / "experiments").glob("rsna_*.yaml"))
SLICES = [path for path in RECIPES if "net_kind" not in path.read_text()]


def options(recipe: Path, *flags: str) -> TrainConfig:
    return parse_args(TrainConfig, [f"--config={recipe}", *flags])


def test_every_recipe_stands_in_the_folders_readme_and_its_options_fit_together() -> None:
    text = (PROJECT / "experiments" / "README.md").read_text()
    assert RECIPES
    for recipe in RECIPES:
        assert f"`{recipe.name}`" in text
        config = options(recipe, *([] if recipe in SLICES else ["--seq_features=any"]))
        assert config.is_cross_validation
        assert config.tr_iteration_num % config.tr_iteration_valid == 0
        for name in (config.data_train_transform, config.data_valid_transform):
            assert find_transform(name).is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_a_recipe_are_commands_of_this_project(recipe: Path) -> None:
    commands = re.findall(r"^#\s+python (\S+\.py)(.*)$", recipe.read_text(), re.MULTILINE)
    assert commands
    for script, flags in commands:
        known = load(COMMANDS[script.removesuffix(".py")]).__dataclass_fields__.keys()
        assert (PROJECT / script).is_file()
        assert set(re.findall(r"--(\w+)=", flags)) <= known | {"config"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SLICES, ids=lambda path: path.stem)
def test_a_slice_recipe_trains_its_own_model_and_transforms_on_small_pictures(recipe, small_dataset, tmp_path) -> None:
    flags = ["--data_fold=0", "--net_pretrained=0", "--data_image_size=64", "--tr_batch_size=2", "--tr_report=0"]
    budget = ["--tr_iteration_num=1", "--tr_iteration_valid=1", "--n_jobs=1", "--dev_enabled=1"]
    place = [*small_dataset.flags, f"--output_dir={tmp_path}"]
    folder = train.main([f"--config={recipe}", *place, *flags, *budget])
    assert (folder / "best.pt").is_file()
