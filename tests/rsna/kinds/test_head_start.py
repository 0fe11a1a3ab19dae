"""Where a new head begins: at the labels' shares among the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from scipy.special import expit

import train
from common.cli.arguments import parse_args
from common.models.backbone import create_model
from common.models.layers import start_head
from config import TrainConfig
from rsna.kinds.kind import kind_of
from rsna_dataset import LABELS, read_fold
from tests.conftest import TINY, SmallDataset

UNTRAINED = ["--optim=sgd", "--optim_lr=0", "--tr_iteration_num=1", "--tr_iteration_valid=1"]
LOGITS = [-4.0, -2.0, -1.0, -3.0, -2.5, 0.5]


def shares(dataset: SmallDataset, fold: int) -> np.ndarray:
    """The share of positives of each label, counted from the fold's table; half an image where there is none."""
    rows = read_fold(dataset.folder, "phantom", fold).query("sample_type == 'train'")
    counts = [sum(rows[label] == 1) for label in LABELS]
    return np.array([count / len(rows) if count else 0.5 / (len(rows) + 1) for count in counts])


def predicted(dataset: SmallDataset, results: Path, *flags: str) -> np.ndarray:
    """The validation images' probabilities (N, 6) of a run whose weights never move."""
    folder = train.main([*dataset.flags, *TINY, *UNTRAINED, f"--output_dir={results}", *flags])
    return pd.read_csv(folder / "predictions_valid.csv", index_col="id")[list(LABELS)].to_numpy()


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the default model for three classes."""
    path = tmp_path_factory.mktemp("weights") / "three.pt"
    torch.save(create_model("resnet10t", 3).state_dict(), path)
    return path


@pytest.mark.parametrize("fold", [0, 1])
def test_a_new_network_predicts_the_shares_of_its_own_folds_training_images(small_dataset, tmp_path, fold) -> None:
    found = predicted(small_dataset, tmp_path, f"--data_fold={fold}")
    np.testing.assert_allclose(found, np.broadcast_to(shares(small_dataset, fold), found.shape), rtol=1e-5)


def test_a_head_that_a_file_brings_is_kept_and_one_that_it_lacks_begins_at_the_shares(
    small_dataset, tmp_path, other_classes
) -> None:
    model = create_model("resnet10t")
    torch.nn.init.zeros_(model.fc.weight)
    torch.nn.init.constant_(model.fc.bias, 1.0)
    torch.save(model.state_dict(), tmp_path / "own.pt")
    found = predicted(small_dataset, tmp_path, f"--net_weight_file={tmp_path / 'own.pt'}")
    np.testing.assert_allclose(found, expit(1.0), rtol=1e-5)
    found = predicted(small_dataset, tmp_path, f"--net_weight_file={other_classes}", "--net_weight_adapt=1")
    np.testing.assert_allclose(found, np.broadcast_to(shares(small_dataset, 0), found.shape), rtol=1e-5)


def test_a_network_over_whole_series_begins_there_too_where_its_slice_networks_head_is_new(
    small_dataset, tmp_path, other_classes
) -> None:
    new = [f"--net_weight_file={other_classes}", "--net_weight_adapt=1", "--tr_batch_size=2"]
    found = predicted(small_dataset, tmp_path, "--net_kind=study", *new)
    np.testing.assert_allclose(found, np.broadcast_to(shares(small_dataset, 0), found.shape), rtol=1e-5)


def test_the_rest_of_a_model_is_the_same_wherever_its_head_begins(small_dataset) -> None:
    states = []
    for start in ("prevalence", "random"):
        config = parse_args(TrainConfig, [*small_dataset.flags, *TINY, f"--net_head_init={start}"])
        torch.manual_seed(3)
        states.append(kind_of(config).build_model(config, 3, [0.1] * 6).state_dict())
    torch.manual_seed(3)
    plain = create_model("resnet10t", image_size=32).state_dict()
    differing = [name for name in plain if not torch.equal(states[0][name], plain[name])]
    assert differing == ["fc.weight", "fc.bias"]
    assert all(torch.equal(states[1][name], plain[name]) for name in plain)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "levit_128s", "resnetv2_50", "crossvit_9_240"])
def test_heads_of_all_forms_give_the_asked_logits(name) -> None:
    model = timm.create_model(name, num_classes=6).eval()
    start_head(model, LOGITS)
    with torch.inference_mode():
        found = model(torch.randn(2, *model.pretrained_cfg["input_size"]))
    torch.testing.assert_close(found, torch.tensor([LOGITS, LOGITS]))


def test_a_model_of_ones_own_keeps_the_start_that_its_author_made() -> None:
    torch.manual_seed(3)
    model = create_model("examples.model.resnet10t_any")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_head(model, LOGITS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
