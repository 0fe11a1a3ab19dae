"""rsna/prediction/fold_models.py and common/models/embedding.py: mean predictions, and embeddings in one space."""

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
from common.models.backbone import create_model
from common.models.embedding import head_input
from rsna.forms import read_predictions
from rsna.kinds.features import read_features
from rsna.prediction.alignment import fit_alignment
from rsna_dataset import LABELS, read_metadata
from tests.conftest import SmallDataset
from tests.runs import failure

MODELS = [("resnet10t", None), ("resnet10t", "gem"), ("vit_tiny_patch16_224", None), ("convnext_atto", None)]


@pytest.mark.parametrize(("name", "pool"), MODELS)
def test_the_embedding_is_what_the_head_makes_the_logits_of(name: str, pool: str | None) -> None:
    torch.manual_seed(0)
    model = create_model(name, 6, 3, image_size=32, pool=pool).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), head_input(model) as seen:
        logits = model(images)
        torch.testing.assert_close(model.get_classifier()(seen[0]), logits)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(seen[0], expected)
    assert seen[0].shape == (2, model.num_features)


def test_a_model_without_a_linear_head_has_no_embedding() -> None:
    with (
        pytest.raises(UsageError, match="head is no linear layer"),
        head_input(create_model("resnet10t", 6, 3).reset_classifier(0) or torch.nn.Flatten()),
    ):
        pass


def test_new_images_get_the_mean_of_the_folds_probabilities(finished: Path, tmp_path: Path) -> None:
    together = predict.main([f"--net_weight_file={finished}", f"--output_file={tmp_path / 'mean.csv'}", "--n_jobs=1"])
    frames = []
    for fold in (0, 1, 2):
        file, output = finished / f"fold_{fold}" / "best.pt", tmp_path / f"{fold}.csv"
        frames.append(read_predictions(predict.main([f"--net_weight_file={file}", f"--output_file={output}"])))
    found = read_predictions(together)
    expected = sum(frame.loc[found.index] for frame in frames) / 3
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


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


def test_a_linear_map_brings_one_models_features_into_the_others_space() -> None:
    """Two networks whose features are different mixtures of the same facts: exactly what such a map can undo."""
    random = np.random.default_rng(0)
    facts = random.normal(size=(600, 8)).astype(np.float32)
    one, other = (2 * facts @ np.linalg.qr(random.normal(size=(8, 8)))[0].astype(np.float32) + 3 for _ in range(2))
    patients = np.repeat(np.arange(60), 10).astype(str)
    alignment = fit_alignment(one[:500], other[:500], patients[:500])
    assert alignment.r2 > 0.99
    np.testing.assert_allclose(alignment(one[500:]), other[500:], atol=0.05)
    unrelated = fit_alignment(one, random.normal(size=one.shape).astype(np.float32), patients)
    assert unrelated.r2 < 0.05


def test_what_is_not_finished_or_no_cross_validation_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "cv")
    (tmp_path / "cv" / "cross_validation.json").unlink()
    shutil.copytree(tmp_path / "cv", tmp_path / "two")  # not trained to their end, and too few
    config = (tmp_path / "two" / "config.yaml").read_text()
    assert "data_fold: 0,1,2" in config
    (tmp_path / "two" / "config.yaml").write_text(config.replace("data_fold: 0,1,2", "data_fold: 0,1"))
    for folder, flag, said in [
        (tmp_path / "cv", "--split=test", "is not finished"),
        (tmp_path / "two", "--features=1", "needs 3 folds or more"),
        (finished / "fold_0", "--features=1", "is no cross-validation's folder"),
        (finished, "--split=valid", "predictions_oof.csv has"),
        (finished, "--calibrate=1", "needs one model's weights"),
    ]:
        assert said in failure(predict.main, [f"--net_weight_file={folder}", flag], capsys)


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
