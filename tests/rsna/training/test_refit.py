"""One network trained on all folds in place of the mean of their models: --data_fold=holdout, --feature_refit."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import log_loss

import predict
import preprocessing
import train
from common.cli.arguments import parse_args, to_dict
from common.cli.values import HOLDOUT
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.kinds.features import read_features
from rsna.prediction.embeddings import embeddings
from rsna.prediction.trained import load_network
from rsna_dataset import LABELS, read_fold, read_holdout, read_metadata
from tests.conftest import TINY, SmallDataset, cross_validated
from tests.runs import failure

SEQUENCE = [
    "--net_kind=sequence", "--seq_features=cv", "--seq_width=16", "--tr_batch_size=2", "--tr_iteration_num=20",
    "--tr_iteration_valid=20", "--optim_lr=0.02", "--tr_report=0", "--n_jobs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def held_out(small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> SmallDataset:
    """The same phantom in three folds, with images that are kept out of them."""
    dataset = SmallDataset(tmp_path_factory.mktemp("input"))
    options = ["--pre_folds=3", "--pre_holdout=0.25", "--n_jobs=1"]
    preprocessing.main([*dataset.flags, f"--pre_source={small_dataset.source}", *options])
    return dataset


def test_all_folds_train_and_what_was_kept_out_of_them_validates(held_out: SmallDataset) -> None:
    rows = read_fold(held_out.folder, "phantom", HOLDOUT)
    train_rows, valid_rows = (rows[rows["sample_type"] == kind] for kind in ("train", "valid"))
    assert set(valid_rows.index) == set(read_holdout(held_out.folder, "phantom").index)
    valid = [read_fold(held_out.folder, "phantom", fold).query("sample_type == 'valid'").index for fold in range(3)]
    assert sorted(train_rows.index) == sorted(np.concatenate(valid))
    assert not set(train_rows["patient_id"]) & set(valid_rows["patient_id"])
    config = parse_args(TrainConfig, ["--data_fold=holdout"])
    assert config.data_fold == HOLDOUT
    assert not config.is_cross_validation
    assert parse_args(TrainConfig, [], to_dict(config)) == config


def test_without_images_that_were_kept_out_it_is_refused(small_dataset: SmallDataset, tmp_path, capsys) -> None:
    assert "--pre_holdout=0.1 makes such a split" in failure(
        train.main, [*small_dataset.flags, *TINY, "--data_fold=holdout", f"--output_dir={tmp_path}"], capsys
    )
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Trained:
    """A cross-validation ``cv`` with features by a refit network, and a sequence model on them."""

    results: Path
    before: bytes  # of features/train/features.json, before the refit

    @property
    def folds(self) -> Path:
        return self.results / "cv"

    @property
    def flags(self) -> list[str]:
        return [f"--net_weight_file={self.folds}", "--features=1", "--n_jobs=1"]


@pytest.fixture(scope="module")
def trained(held_out: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    results = tmp_path_factory.mktemp("results")
    place = f"--output_dir={results}"
    folder = cross_validated([*held_out.flags, *TINY, "--data_fold=all"], results)
    predict.main([f"--net_weight_file={folder}", "--features=1", "--n_jobs=1"])
    train.main([*held_out.flags, *SEQUENCE, place, "--data_fold=0", "--experiment_id=study"])
    train.main([*held_out.flags, *TINY, place, "--data_fold=holdout", "--experiment_id=refit"])
    made = Trained(results, (folder / "features/train/features.json").read_bytes())
    predict.main([*made.flags, f"--feature_refit={results / 'refit'}"])
    return made


@pytest.mark.slow
def test_the_refit_network_is_validated_on_the_images_kept_out(trained: Trained, held_out: SmallDataset) -> None:
    written = read_predictions(trained.results / "refit" / "predictions_valid.csv")
    assert set(written.index) == set(read_holdout(held_out.folder, "phantom").index)


@pytest.mark.slow
def test_images_in_no_fold_tell_by_how_much_a_cross_validation_flatters_itself(
    trained: Trained, held_out: SmallDataset, capsys
) -> None:
    """The weights were chosen on the images of their fold; what was kept out chose nothing."""
    path = predict.main([f"--net_weight_file={trained.folds}", "--split=holdout"])
    assert path == trained.folds / "predictions_holdout.csv"
    truth = read_metadata(held_out.folder)[list(LABELS)].astype(float)

    def loss(frame: pd.DataFrame) -> float:
        each = [log_loss(truth.loc[frame.index, name], frame[name], labels=[0, 1]) for name in LABELS]
        return float(np.average(each, weights=[1, 1, 1, 1, 1, 2]))

    held = read_holdout(held_out.folder, "phantom").index
    alone = []
    for fold in range(3):
        file = trained.folds / f"fold_{fold}" / "best.pt"
        output = trained.results / f"held_{fold}.csv"
        alone.append(loss(read_predictions(predict.main(
            [f"--net_weight_file={file}", "--split=holdout", f"--output_file={output}"]
        ))))  # fmt: skip
    found = json.loads((trained.folds / "flattery.json").read_text())
    assert found["images"] == len(held) == len(read_predictions(path))
    assert found["log_loss"] == pytest.approx(np.mean(alone), rel=1e-5)
    assert found["log_loss_of_choice"] == pytest.approx(loss(read_predictions(trained.folds / "predictions_oof.csv")))
    assert f"each of the 3 models alone scores {found['log_loss']:.5f}" in capsys.readouterr().out


@pytest.mark.slow
def test_test_features_are_the_refit_networks_in_the_common_space(
    trained: Trained, held_out: SmallDataset, tmp_path
) -> None:
    found = read_features(trained.folds / "features/test", held_out.folder, "test")
    metadata = read_metadata(held_out.folder)
    kept_out = read_holdout(held_out.folder, "phantom").index
    assert set(found.rows.index) == {*metadata.index[metadata["split"] == "test"], *kept_out}
    file = trained.results / "refit" / "best.pt"
    alone = read_predictions(predict.main([f"--net_weight_file={file}", f"--output_file={tmp_path / 'p.csv'}"]))
    own = pd.DataFrame(expit(found.logits.astype(float)), index=found.rows.index, columns=list(LABELS))
    np.testing.assert_allclose(own.loc[alone.index], alone, rtol=1e-5)
    rows = read_metadata(held_out.folder).loc[found.rows.index]
    seen, reference = (
        np.concatenate([part[1] for part in embeddings(load_network(weights), rows, "test")])
        for weights in (file, trained.folds / "fold_0" / "best.pt")
    )
    (maps,) = np.load(trained.folds / "features/refit.npy")
    np.testing.assert_allclose(found.features, seen @ maps[:-1] + maps[-1], atol=2e-3)
    spread = ((reference - reference.mean(axis=0)) ** 2).sum()
    assert ((found.features - reference) ** 2).sum() < 0.7 * spread  # nearer to the first fold's than their mean is
    assert ((seen - reference) ** 2).sum() > spread  # which it wasn't before
    assert (trained.folds / "features/train/features.json").read_bytes() == trained.before
    assert json.loads((trained.folds / "features/refit.json").read_text())["alignment_r2"] > 0.5


@pytest.mark.slow
def test_files_of_any_origin_get_what_the_datasets_test_images_get(
    trained, held_out, small_dataset, tmp_path, capsys
) -> None:
    sequence = trained.results / "study" / "best.pt"
    flags = [f"--net_weight_file={trained.folds}", f"--sequence={sequence}", "--n_jobs=1"]
    source = [f"--source={small_dataset.source / 'stage_2_test'}", f"--data_input_folder={tmp_path / 'nothing'}"]
    refit = f"--feature_refit={trained.results / 'refit'}"
    output = predict.main([*flags, *source, refit, f"--predict_output={tmp_path / 'out'}"])
    slices = pd.read_csv(output / "slices.csv", index_col="id")[list(LABELS)]
    expected = read_predictions(predict.main([f"--net_weight_file={sequence}", f"--output_file={tmp_path / 'p.csv'}"]))
    np.testing.assert_allclose(slices, expected.loc[slices.index], atol=2e-4)
    document = json.loads((output / "predictions.json").read_text())
    assert [model["name"] for model in document["models"]["slices"]] == ["refit"]
    held = predict.main([f"--net_weight_file={sequence}", "--split=holdout", f"--output_file={tmp_path / 'held.csv'}"])
    assert set(read_predictions(held).index) == set(read_holdout(held_out.folder, "phantom").index)
    mean = predict.main([*flags, *source, f"--predict_output={tmp_path / 'mean'}"])
    others = pd.read_csv(mean / "slices.csv", index_col="id")[list(LABELS)]
    assert (others - slices).abs().max(axis=None) > 1e-3


@pytest.mark.slow
def test_a_network_that_did_not_see_just_these_folds_is_refused(trained, small_dataset, held_out, tmp_path, capsys):
    line = failure(predict.main, [*trained.flags, f"--feature_refit={trained.folds / 'fold_1' / 'best.pt'}"], capsys)
    assert "was trained with --data_fold=1" in line
    contents = torch.load(trained.results / "refit" / "best.pt", weights_only=True)
    torch.save({**contents, "data_hash": "0" * 32}, tmp_path / "other.pt")
    line = failure(predict.main, [*trained.flags, f"--feature_refit={tmp_path / 'other.pt'}"], capsys)
    assert "was trained on other images or labels" in line
    copy = shutil.copytree(trained.folds, tmp_path / "cv")
    torch.save({**contents, "iteration": 3}, tmp_path / "earlier.pt")
    flags = [
        f"--source={small_dataset.source / 'stage_2_test'}", f"--net_weight_file={copy}", "--n_jobs=1",
        f"--sequence={trained.results / 'study'}", f"--data_input_folder={tmp_path / 'nothing'}",
    ]  # fmt: skip
    for number, (file, what, code, part) in enumerate(
        [
            (tmp_path / "earlier.pt", "", 2, "is of another network or of earlier features"),
            (trained.results / "refit", "damaged", 1, "refit.npy: damaged"),
            (trained.results / "refit", "gone", 2, "keeps no map of it"),
        ]
    ):
        if what == "damaged":
            np.save(copy / "features/refit.npy", np.zeros((1, 2, 2), np.float32))
        elif what == "gone":
            (copy / "features/refit.json").unlink()
        output = f"--predict_output={tmp_path / f'out{number}'}"
        line = failure(predict.main, [*flags, f"--feature_refit={file}", output], capsys, code)
        assert part in line, line


def test_the_option_alone_is_one_line(finished: Path, capsys) -> None:
    line = failure(predict.main, [f"--net_weight_file={finished}", "--feature_refit=x.pt"], capsys)
    assert "--feature_refit needs --features=1, or --sequence" in line
    line = failure(predict.main, [f"--net_weight_file={finished}", "--features=1", "--feature_refit=x.pt"], capsys)
    assert "has no features" in line
