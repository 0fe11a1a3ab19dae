"""rsna/prediction/write_features.py: features of all images, for a second stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

import predict
from common.errors import UsageError
from rsna.forms import read_predictions
from rsna.kinds.features import read_features
from rsna_dataset import LABELS, read_metadata
from tests.conftest import SmallDataset
from tests.runs import failure


def test_the_features_of_each_image_are_its_own_folds(with_features: Path, small_dataset: SmallDataset) -> None:
    found = read_features(with_features / "features" / "train", small_dataset.folder)
    together = read_predictions(with_features / "predictions_oof.csv")
    logits = pd.DataFrame(expit(found.logits.astype(float)), index=found.rows.index, columns=list(LABELS))
    pd.testing.assert_frame_equal(logits.loc[together.index], together, check_names=False, rtol=1e-5)
    assert sorted(found.rows.index) == sorted(together.index)


def test_the_first_folds_features_are_what_its_head_makes_its_logits_of(
    with_features: Path, small_dataset: SmallDataset
) -> None:
    found = read_features(with_features / "features" / "train", small_dataset.folder)
    state = torch.load(with_features / "fold_0" / "best.pt", weights_only=True)["model"]
    first = (found.rows["fold"] == 0).to_numpy()
    made = found.features[first].astype(np.float32) @ state["fc.weight"].numpy().T + state["fc.bias"].numpy()
    np.testing.assert_allclose(made, found.logits[first], atol=0.02)


def test_test_images_have_features_of_a_kind_of_their_own(with_features: Path, small_dataset: SmallDataset) -> None:
    folder = with_features / "features" / "test"
    found = read_features(folder, small_dataset.folder, "test")
    metadata = read_metadata(small_dataset.folder)
    assert sorted(found.rows.index) == sorted(metadata.index[metadata["split"] == "test"])
    assert (found.rows["fold"] == -1).all()
    with pytest.raises(UsageError, match="'test' where 'out_of_fold'"):
        read_features(folder, small_dataset.folder)


def test_a_fold_whose_training_differed_gives_no_features(finished: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "cv")
    path = tmp_path / "cv" / "cross_validation.json"
    document = json.loads(path.read_text())
    document["folds"][1]["hash"] = "0" * 32
    path.write_text(json.dumps(document))
    assert "fold 1's images or labels changed" in failure(
        predict.main, [f"--net_weight_file={tmp_path / 'cv'}", "--features=1"], capsys, 1
    )
    assert not (tmp_path / "cv" / "features").exists()
