"""Sequence models from features to submission by command line: train, resume, evaluate, predict, refusals."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evaluate
import export
import predict
import train
from common.cli.arguments import parse_args
from common.errors import UsageError
from common.lineage import Images, Lineage
from common.trackers.jsonl import read_metrics
from config import TrainConfig
from rsna.kinds.features import Block, write_features
from rsna.training.lineage import dataset_images
from rsna.training.provenance import lineage_file, written_provenance
from rsna_dataset import LABELS, fold_hash, read_dataset_info, read_fold, read_metadata
from tests.conftest import cross_validated
from tests.runs import assert_alike, assert_same_run, failure, open_runs

KEY = "valid/weighted_log_loss"
WIDTH = 12
OPTIONS = [
    "--net_kind=sequence",
    "--seq_features=folds",
    "--seq_width=16",
    "--tr_batch_size=2",
    "--tr_iteration_num=14",
    "--tr_iteration_valid=6",
    "--tr_report=0",
    "--n_jobs=1",
]


def blocks(table: pd.DataFrame, folds: pd.Series) -> list[Block]:
    """Features that tell the labels with much noise, so that neighbours help."""
    generator = np.random.default_rng(0)
    labels = table[list(LABELS)].fillna(0).to_numpy(float)
    logits = 2 * labels - 3 + generator.normal(0, 2, labels.shape)
    features = np.hstack([logits, generator.normal(size=(len(table), WIDTH - len(LABELS)))])
    return [
        Block(table.index[folds == fold].tolist(), features[folds == fold], logits[folds == fold], int(fold))
        for fold in np.unique(folds)
    ]


@pytest.fixture(scope="module")
def results(small_dataset, tmp_path_factory) -> Path:
    """An experiment ``folds`` with out-of-fold and test features."""
    output_dir = tmp_path_factory.mktemp("results")
    dataset = small_dataset.folder
    tables = {fold: read_fold(dataset, "phantom", fold) for fold in range(5)}
    document = {
        "dataset": "phantom",
        "dataset_hash": read_dataset_info(dataset)["hash"],
        "folds": {str(fold): {"hash": fold_hash(table), "weights": ""} for fold, table in tables.items()},
    }
    train_rows = tables[0].sample(frac=1, random_state=0)
    folds = pd.Series(-1, index=train_rows.index)
    for fold, table in tables.items():
        folds[table.index[table["sample_type"] == "valid"]] = fold
    test_rows = read_metadata(dataset).query("split == 'test'")
    for name, kind, rows, numbers in (
        ("train", "out_of_fold", train_rows, folds),
        ("test", "test", test_rows, pd.Series(-1, index=test_rows.index)),
    ):
        folder = output_dir / "folds/features" / name
        write_features(folder, blocks(rows, numbers), len(rows), WIDTH, {**document, "kind": kind})
    return output_dir


def origins(lineage: Lineage) -> tuple[list[int], dict[str, list[int]], tuple[str, ...]]:
    """What a lineage holds, in types that compare."""
    return lineage.pictures.tolist(), {key: ids.tolist() for key, ids in lineage.names.items()}, lineage.unknown


def images_of(small_dataset, ids: pd.Index) -> tuple[Images, np.ndarray]:
    index, images = dataset_images(small_dataset.folder)
    return images, index.get_indexer(ids)


def start(results: Path, small_dataset, name: str, *more: str) -> Path:
    return train.main([*small_dataset.flags, *OPTIONS, f"--output_dir={results}", f"--experiment_id={name}", *more])


def test_a_sequence_model_learns_and_is_evaluated_and_predicts_slices_and_studies(
    results, small_dataset, capsys
) -> None:
    folder = start(results, small_dataset, "gru", "--tr_iteration_num=60", "--tr_iteration_valid=20", "--tr_report=1",
                   "--optim_lr=0.005", "--tr_ema=1", "--seq_study=noisy_or")  # fmt: skip
    printed = capsys.readouterr().err
    assert "model gru:" in printed
    assert "validation series" in printed
    assert (folder / "report.html").is_file()
    written = pd.read_csv(folder / "predictions_valid.csv", index_col="id")
    fold = read_fold(small_dataset.folder, "phantom", 0)
    valid = fold[fold["sample_type"] == "valid"]
    assert set(written.index) == set(valid.index)
    values = [point[KEY] for point in read_metrics(folder / "metrics.jsonl") if KEY in point]
    logits = {}
    for block in blocks(fold.sample(frac=1, random_state=0), np.zeros(len(fold))):
        logits = dict(zip(block.ids, block.logits, strict=True))
    own = np.array([logits[name] for name in valid.index])
    losses = np.logaddexp(0, own) - own * valid[list(LABELS)].to_numpy()
    slices_alone = float((losses.mean(axis=0) * [1, 1, 1, 1, 1, 2]).sum() / 7)
    assert min(values) < 0.9 * slices_alone
    evaluate.main(["--experiment_id=gru", f"--output_dir={results}", "--eval_draws=100"])
    assert "reproduces the logged" in capsys.readouterr().out
    predict.main([f"--net_weight_file={folder / 'best.pt'}", "--split=test"])
    written_at = [(folder / name).stat().st_mtime_ns for name in ("submission_studies.csv", "submission.csv")]
    assert written_at == sorted(written_at)  # a sweep takes the submission for all
    path = predict.main([f"--net_weight_file={folder / 'best.pt'}", "--split=valid"])
    pd.testing.assert_frame_equal(pd.read_csv(path, index_col="id").loc[written.index], written, atol=1e-6)
    studies = pd.read_csv(folder / "predictions_valid_studies.csv", index_col="study_id")
    assert set(studies.index) == set(valid["study_id"])
    highest = written.groupby(valid["study_id"].reindex(written.index)).max()
    assert (studies.loc[highest.index, list(LABELS)] >= highest - 1e-6).all(axis=None)  # noisy-or is never below it


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(results, small_dataset) -> None:
    with open_runs(results, [*small_dataset.flags, *OPTIONS, "--tr_checkpoint_minutes=1e-9"]) as runs:
        assert runs.start("whole")["code"] == 0
        assert runs.start("killed", signal=signal.SIGKILL, place="iteration", at=9)["code"] == -signal.SIGKILL
        answer = runs.go_on("killed")
        assert answer["code"] == 0, answer["output"]
        assert_same_run(results / "killed", results / "whole")


@pytest.mark.slow
def test_two_processes_train_as_one_that_takes_all_their_series_at_once_and_validate_each_slice_once(
    results, small_dataset
) -> None:
    """The series of one iteration have different lengths, so that the processes' batches hold unlike many slices."""
    exact = ("--seq_drop=0", "--seq_study=learned", "--tr_iteration_log=1", "--tr_iteration_num=6")
    with open_runs(results, [*small_dataset.flags, *OPTIONS, *exact]) as runs:
        assert runs.start("together", "--tr_batch_size=2")["code"] == 0
        answer = runs.start("shared", "--tr_batch_size=1", processes=2)
        assert answer["codes"] == [0, 0], answer["output"]
        assert runs.start("unused", "--tr_batch_size=1", "--seq_study_weight=0", processes=2)["codes"] == [0, 0]
        answer = runs.start("many", "--tr_batch_size=4", processes=2)
        assert answer["codes"] == [2, 2]
        assert "--tr_batch_size=4 in each of 2 processes is larger than the" in answer["outputs"][0]
    assert_alike(results / "shared", results / "together")


def test_a_cross_validation_of_sequence_models_finds_its_features_by_the_experiments_id(results, small_dataset) -> None:
    folder = cross_validated([*small_dataset.flags, *OPTIONS, "--data_fold=0,1"], results)
    written = pd.read_csv(folder / "predictions_oof.csv", index_col="id")
    valid = [read_fold(small_dataset.folder, "phantom", fold).query("sample_type == 'valid'").index for fold in (0, 1)]
    assert set(written.index) == set(valid[0]) | set(valid[1])
    # Written by a version that noted no lineage, they still depend on the networks behind the features.
    path, place = folder / "predictions_oof.csv", small_dataset.input_folder
    said = written_provenance(path, place)[1]
    lineage_file(path).unlink()
    ids, derived = written_provenance(path, place)
    assert said.unknown == derived.unknown == ("features of phantom",)
    assert list(map(origins, said.lineages)) == list(map(origins, derived.lineages))
    np.testing.assert_array_equal(said.used, derived.used)
    alone = written_provenance(folder / "fold_1" / "predictions_valid.csv", place)[1]
    assert alone.unknown == ("features of phantom",)
    assert alone.used.all()
    document = json.loads((folder / "cross_validation.json").read_text())
    assert document["unknown_lineage"] == ["features of phantom"]
    # Features that are no longer those that the models saw tell nothing of them.
    info = results / "folds" / "features" / "train" / "features.json"
    before = info.read_text()
    info.write_text(json.dumps(json.loads(before) | {"note": "made anew"}))
    lost = written_provenance(path, place)[1].overlap(*images_of(small_dataset, ids)).lost
    info.write_text(before)
    assert [name.rpartition(" (")[2] for name in lost] == [f"by its features, {results / 'folds'})"]


@pytest.mark.parametrize("model", ["lstm", "transformer", "conv"])
def test_the_other_models_train_too(results, small_dataset, model: str) -> None:
    folder = start(results, small_dataset, model, f"--seq_model={model}", "--seq_study=learned", "--optim=muon")
    assert (folder / "best.pt").is_file()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--net_kind=sequence"], "needs --seq_features"),
        (["--seq_width=5"], "--seq_width means nothing to --net_kind=slice"),
        (
            ["--net_kind=sequence", "--seq_features=1", "--net_model=resnet18"],
            "--net_model means nothing to --net_kind",
        ),
        (["--net_kind=sequence", "--seq_features=1", "--data_context=1"], "--data_context means nothing to --net_kind"),
        (["--net_kind=sequence", "--seq_features=1", "--tr_compile=default"], "--tr_compile means nothing"),
    ],
)
def test_options_of_another_kind_of_network_are_refused(flags: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse_args(TrainConfig, flags)


def damage(folder: Path, what: str) -> None:
    path = folder / "features/train/features.json"
    document = json.loads(path.read_text())
    if what == "in-sample":
        document["kind"] = "train"
    elif what == "fold changed":
        document["folds"]["2"]["hash"] = "0"
    elif what == "fold left out":
        del document["folds"]["0"]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("in-sample", "'train' where 'out_of_fold' ones are needed"),
        ("fold changed", "fold_2.csv changed since fold 2 was trained"),
        ("fold left out", "images that are in none of its folds"),
    ],
)
def test_features_that_are_not_out_of_fold_of_the_present_folds_are_refused(
    results, small_dataset, tmp_path, capsys, what: str, part: str
) -> None:
    shutil.copytree(results / "folds", tmp_path / "folds")
    damage(tmp_path / "folds", what)
    flags = [*small_dataset.flags, *OPTIONS, f"--output_dir={tmp_path / 'new'}", f"--seq_features={tmp_path / 'folds'}"]
    line = failure(train.main, flags, capsys)
    assert part in line
    assert not (tmp_path / "new").exists()


def test_what_a_sequence_model_cannot_do_is_one_line(results, small_dataset, tmp_path, capsys) -> None:
    flags = [*small_dataset.flags, *OPTIONS, f"--output_dir={results}"]
    line = failure(train.main, [*flags, "--tr_batch_size=100"], capsys)
    assert "a batch is of series" in line
    line = failure(train.main, [*flags, "--seq_features=nothing"], capsys)
    assert "--seq_features=nothing: no such experiment" in line
    folder = start(results, small_dataset, "plain", "--tr_iteration_num=2")
    weights = f"--net_weight_file={folder / 'best.pt'}"
    line = failure(predict.main, [weights, "--split=valid", "--tta=valid_demo.json"], capsys)
    assert "sees features and no pictures" in line
    shutil.copytree(results / "folds/features/train", tmp_path / "other/features/train")
    line = failure(predict.main, [weights, "--split=test", f"--seq_features={tmp_path / 'other'}"], capsys)
    assert "has no features" in line


def test_features_of_other_networks_are_refused_wherever_a_sequence_model_is_used(
    results, small_dataset, tmp_path, capsys
) -> None:
    """Of the same width they gave predictions that meant nothing."""
    folder = start(results, small_dataset, "own", "--tr_iteration_num=2", "--tr_iteration_valid=2")
    shutil.copytree(results / "folds/features", tmp_path / "same/features")
    shutil.copytree(results / "folds/features", tmp_path / "other/features")
    info = tmp_path / "other/features/train/features.json"
    info.write_text(info.read_text().replace('"weights": ""', '"weights": "others"'))
    weights = f"--net_weight_file={folder / 'best.pt'}"
    there = f"--seq_features={tmp_path / 'other'}"
    for main, flags in (
        (evaluate.main, ["--experiment_id=own", f"--output_dir={results}"]),
        (predict.main, [weights, "--split=test"]),
        (predict.main, [weights, "--split=valid"]),
        (export.main, [weights, "--export_format=torch_export"]),
    ):
        line = failure(main, [*flags, there], capsys)
        assert "was trained on other features" in line
    shutil.copytree(small_dataset.folder, tmp_path / "datasets" / "elsewhere")
    elsewhere = ["--data_dataset=elsewhere", f"--data_input_folder={tmp_path}"]
    line = failure(evaluate.main, ["--experiment_id=own", f"--output_dir={results}", *elsewhere], capsys)
    assert "a sequence model knows features of phantom alone; predict.py --source=" in line
    predict.main([weights, "--split=test", f"--seq_features={tmp_path / 'same'}"])
    info = tmp_path / "same/features/test/features.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "alignment_sha256": "0"}))
    line = failure(predict.main, [weights, "--split=test", f"--seq_features={tmp_path / 'same'}"], capsys)
    assert "of another making than" in line
    logits = start(results, small_dataset, "logits", "--tr_iteration_num=2", "--tr_iteration_valid=2",
                   "--seq_inputs=logits")  # fmt: skip
    predict.main([f"--net_weight_file={logits / 'best.pt'}", "--split=test", there])  # which mean the same
