"""A model with a head of its own, named by its path: it trains, and its checkpoint is predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import predict
import train
from common.models.backbone import create_model
from common.models.sequence import build_sequence_model
from common.models.study_layers import StudyNetwork
from rsna.forms import read_predictions
from rsna_dataset import LABELS
from tests.conftest import TINY, SmallDataset

NAME = "examples.model.resnet10t_any"


def test_the_logit_of_any_is_never_below_the_highest_kind() -> None:
    model = create_model(NAME, len(LABELS), 3).eval()
    with torch.no_grad():
        logits = model(torch.randn(5, 3, 32, 32))
    assert logits.shape == (5, len(LABELS))
    assert (logits[:, -1] >= logits[:, :-1].amax(dim=1)).all()
    plain = create_model("resnet10t", len(LABELS), 3)
    assert plain.state_dict().keys() == model.state_dict().keys()  # so that timm's weights fit it


def test_a_study_network_keeps_the_head_of_an_own_model() -> None:
    slices = create_model(NAME, len(LABELS), 3).eval()
    study = StudyNetwork(slices, build_sequence_model("gru", {"seq_width": 4}, slices.num_features, len(LABELS)), 2)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features, logits = study.see(pictures)
        assert torch.equal(logits, slices(pictures))
    assert features.shape == (3, slices.num_features)


def test_an_own_model_trains_and_is_predicted_from_its_checkpoint(small_dataset: SmallDataset, tmp_path: Path) -> None:
    folder = train.main([*small_dataset.flags, *TINY, f"--net_model={NAME}", f"--output_dir={tmp_path}"])
    logged = read_predictions(folder / "predictions_valid.csv")
    again = predict.main([f"--net_weight_file={folder}", "--split=valid", f"--output_file={tmp_path / 'again.csv'}"])
    found = read_predictions(again).loc[logged.index]
    assert np.allclose(found, logged, rtol=0, atol=1e-6)
    assert (found["any"] >= found.drop(columns="any").max(axis=1)).all()
