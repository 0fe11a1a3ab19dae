"""predict.py --source with folds' models and sequence models, on DICOM files of any origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from sklearn.metrics import log_loss

import evaluate
import predict
from common.evaluation.calibration import fit_temperatures
from rsna.forms import read_predictions
from rsna_dataset import LABELS, read_metadata
from tests.conftest import SmallDataset, cross_validated

# The pictures come in batches of other sizes than in a dataset, which moves embeddings by some 1e-6; where one then
# rounds to the next float16, probabilities move by up to this.
TOLERANCE = 2e-4
SEQUENCE = [
    "--net_kind=sequence", "--seq_width=16", "--seq_study=learned", "--tr_batch_size=2", "--tr_iteration_num=30",
    "--tr_iteration_valid=30", "--optim_lr=0.02", "--tr_report=0", "--n_jobs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def sequences(with_features: Path, small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of sequence models of folds 0 and 1."""
    flags = [*small_dataset.flags, *SEQUENCE, f"--seq_features={with_features}", "--data_fold=0,1"]
    return cross_validated(flags, tmp_path_factory.mktemp("sequences"))


def run(source: Path, weights: Path, output: Path, *more: str) -> Path:
    """Predict files without the training's dataset in reach."""
    place = f"--data_input_folder={output.parent / 'nothing'}"
    flags = [f"--source={source}", f"--net_weight_file={weights}", f"--predict_output={output}", place, "--n_jobs=1"]
    return predict.main([*flags, *more])


def slices_of(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "slices.csv", index_col="id")[list(LABELS)]


def test_the_mean_of_a_cross_validations_models_is_that_of_a_dataset(finished, small_dataset, tmp_path, capsys) -> None:
    output = run(small_dataset.source / "stage_2_test", finished, tmp_path / "out")
    expected = predict.main([f"--net_weight_file={finished}", f"--output_file={tmp_path / 's.csv'}", "--n_jobs=1"])
    slices = slices_of(output)
    pd.testing.assert_frame_equal(slices, read_predictions(expected).loc[slices.index], check_names=False, rtol=1e-5)
    models = json.loads((output / "predictions.json").read_text())["models"]
    assert [model["name"] for model in models["slices"]] == ["fold 0", "fold 1", "fold 2"]
    assert models["study"] == "highest slice"
    studies = pd.read_csv(output / "studies.csv", index_col="study_id")
    rows = read_metadata(small_dataset.folder)
    highest = slices.groupby(rows.loc[slices.index, "study_id"]).max()
    pd.testing.assert_frame_equal(studies[list(LABELS)], highest.loc[studies.index], check_names=False, rtol=1e-12)


def test_a_sequence_model_says_of_files_what_it_says_of_the_datasets_test_images(
    with_features, sequences, small_dataset, tmp_path, capsys
) -> None:
    file = sequences / "fold_0" / "best.pt"
    output = run(small_dataset.source / "stage_2_test", with_features, tmp_path / "out", f"--sequence={file}")
    printed = capsys.readouterr().out
    path = predict.main([f"--net_weight_file={file}", f"--output_file={tmp_path / 's.csv'}", "--n_jobs=1"])
    slices, expected = slices_of(output), read_predictions(path)
    np.testing.assert_allclose(slices, expected.loc[slices.index], atol=TOLERANCE)
    studies = pd.read_csv(output / "studies.csv", index_col="study_id")
    of_dataset = pd.read_csv(path.with_name("s_studies.csv"), index_col="study_id")
    np.testing.assert_allclose(studies[list(LABELS)], of_dataset.loc[studies.index, list(LABELS)], atol=TOLERANCE)
    assert all(f"{study}: {row.slices} slices in " in printed for study, row in studies.iterrows())
    alone = slices_of(run(small_dataset.source / "stage_2_test", with_features, tmp_path / "alone"))
    assert (slices - alone).abs().max(axis=None) > 0.05  # the sequence model did change something
    rows = read_metadata(small_dataset.folder)
    highest = slices.groupby(rows.loc[slices.index, "study_id"]).max()
    assert (studies[list(LABELS)] - highest.loc[studies.index]).abs().max(axis=None) > 0.01  # learned, not the maximum
    document = json.loads((output / "predictions.json").read_text())
    assert [model["model"] for model in document["models"]["sequences"]] == ["gru"]
    assert document["models"]["study"] == "sequence model (learned)"
    assert document["studies"][0]["probabilities"]["any"] == studies["any"].iloc[0]


def test_several_sequence_models_give_their_mean(with_features, sequences, small_dataset, tmp_path) -> None:
    output = run(small_dataset.source / "stage_2_test", with_features, tmp_path / "out", f"--sequence={sequences}")
    path = predict.main([f"--net_weight_file={sequences}", f"--output_file={tmp_path / 's.csv'}", "--n_jobs=1"])
    slices = slices_of(output)
    np.testing.assert_allclose(slices, read_predictions(path).loc[slices.index], atol=TOLERANCE)
    parts = []
    for fold in ("fold_0", "fold_1"):  # an experiment's folder stands for its best weights
        part = run(
            small_dataset.source / "stage_2_test", with_features, tmp_path / fold, f"--sequence={sequences / fold}"
        )
        parts.append(pd.read_csv(part / "studies.csv", index_col="study_id")[list(LABELS)])
    together = pd.read_csv(output / "studies.csv", index_col="study_id")[list(LABELS)]
    pd.testing.assert_frame_equal(together, (parts[0] + parts[1]) / 2, rtol=1e-9)
    of_dataset = pd.read_csv(path.with_name("s_studies.csv"), index_col="study_id")
    np.testing.assert_allclose(together, of_dataset.loc[together.index, list(LABELS)], atol=TOLERANCE)
    assert (parts[0] - parts[1]).abs().max(axis=None) > 1e-3


def test_a_sequence_model_is_judged_and_calibrated_on_slices_and_studies(
    with_features, sequences, small_dataset, tmp_path, capsys
) -> None:
    shutil.copytree(sequences / "fold_0", tmp_path / "results" / "one")
    file = tmp_path / "results" / "one" / "best.pt"
    evaluate.main(["--experiment_id=one", f"--output_dir={file.parent.parent}", "--eval_draws=100", "--n_jobs=1"])
    printed = capsys.readouterr().out
    assert "studies (the model's output)" in printed
    assert "the model's output against the highest slice: log loss" in printed
    flags = [f"--net_weight_file={file}", "--split=valid", "--n_jobs=1"]
    predict.main([*flags, f"--output_file={tmp_path / 'v.csv'}"])
    judged = pd.read_csv(tmp_path / "v_studies.csv", index_col="study_id")
    rows = read_metadata(small_dataset.folder)
    truth = rows.groupby("study_id")[list(LABELS)].max().loc[judged.index]
    document = json.loads((file.parent / "evaluation.json").read_text())
    for row in document["study_output"][: len(LABELS)]:
        name = row["label"]
        assert row["log_loss"] == pytest.approx(log_loss(truth[name], judged[name], labels=[0, 1]), abs=1e-9)
    assert "Studies (the model" in (file.parent / "evaluation.html").read_text()
    temperatures = json.loads((file.parent / "calibration.json").read_text())
    assert temperatures["study_temperatures"] == fit_temperatures(judged[list(LABELS)], truth)

    source = small_dataset.source / "stage_2_test"
    plain, mapped = (
        run(source, with_features, tmp_path / name, f"--sequence={file}", *more)
        for name, more in (("plain", []), ("mapped", ["--calibrate=1"]))
    )
    for table, index, key in (
        ("slices.csv", "id", "temperatures"), ("studies.csv", "study_id", "study_temperatures")
    ):  # fmt: skip
        before, after = (pd.read_csv(output / table, index_col=index) for output in (plain, mapped))
        for name in LABELS:
            expected = expit(logit(before[name]) / temperatures[key][name])
            np.testing.assert_allclose(after[name], expected, rtol=1e-5)
    assert json.loads((mapped / "predictions.json").read_text())["models"]["calibrated"]
    path = predict.main([f"--net_weight_file={file}", "--calibrate=1", f"--output_file={tmp_path / 's.csv'}"])
    slices = slices_of(mapped)
    np.testing.assert_allclose(slices, read_predictions(path).loc[slices.index], atol=TOLERANCE)
    studies, of_dataset = (
        pd.read_csv(x, index_col="study_id") for x in (mapped / "studies.csv", tmp_path / "s_studies.csv")
    )
    np.testing.assert_allclose(studies[list(LABELS)], of_dataset.loc[studies.index, list(LABELS)], atol=TOLERANCE)


def damage(copy: Path, what: str) -> None:
    """Make of a cross-validation with features one that the sequence model doesn't belong to."""
    info = copy / "features/train/features.json"
    document = json.loads(info.read_text())
    if what == "other features":
        info.write_text(json.dumps({**document, "made": "again"}))
    elif what == "no maps":
        del document["alignment_sha256"]
        info.write_text(json.dumps(document))
    elif what == "other maps":
        maps = np.load(copy / "features/alignment.npy")
        np.save(copy / "features/alignment.npy", maps + 1)
    elif what == "no features":
        shutil.rmtree(copy / "features")
    elif what == "trained further":
        contents = torch.load(copy / "fold_1/best.pt", weights_only=True)
        torch.save({**contents, "iteration": 99}, copy / "fold_1/best.pt")


@pytest.mark.parametrize(
    ("what", "code", "part"),
    [
        ("other features", 2, "was trained on other features than those that lie in"),
        ("no maps", 2, "kept no maps of the folds"),
        ("other maps", 1, "alignment.npy: damaged (not the file that the features were made with)"),
        ("no features", 2, "has no features"),
        ("trained further", 2, "were trained further since its features were made"),
    ],
)
def test_a_sequence_model_only_goes_with_the_features_that_it_was_trained_on(
    with_features, sequences, small_dataset, tmp_path, capsys, what, code, part
) -> None:
    shutil.copytree(with_features, tmp_path / "cv")
    damage(tmp_path / "cv", what)
    with pytest.raises(SystemExit) as ended:
        run(
            small_dataset.source / "stage_2_test",
            tmp_path / "cv",
            tmp_path / "out",
            f"--sequence={sequences / 'fold_0' / 'best.pt'}",
        )
    assert ended.value.code == code
    error = capsys.readouterr().err
    assert part in error.splitlines()[-1]
    if what != "trained further":  # that shows only when the networks are loaded
        assert not (tmp_path / "out").exists()


def test_models_and_options_that_do_not_go_together_are_one_line(
    finished, with_features, sequences, small_dataset, tmp_path, capsys
) -> None:
    source, output = small_dataset.source / "stage_2_test", tmp_path / "out"
    slice_file, sequence_file = finished / "fold_0" / "best.pt", sequences / "fold_0" / "best.pt"
    for weights, flags, part in [
        (slice_file, [f"--sequence={sequence_file}"], "--sequence needs a cross-validation's folder"),
        (with_features, [f"--sequence={slice_file}"], "is no sequence model"),
        (with_features, [f"--sequence={tmp_path / 'none.pt'}"], "no such weight file"),
        (with_features, ["--calibrate=1"], "--calibrate=1 needs one model's weights"),
        (with_features, [f"--sequence={sequence_file}", "--tta=train_demo.json"], "--sequence doesn't go with --tta"),
        (with_features, [f"--sequence={sequences}", "--calibrate=1"], "--calibrate=1 needs one model's weights"),
        (with_features, [f"--sequence={sequence_file}", "--calibrate=1"], "evaluate.py --experiment_id=… makes it"),
        (small_dataset.folder, [], "is no cross-validation's folder"),
    ]:
        with pytest.raises(SystemExit) as ended:
            run(source, weights, output, *flags)
        assert ended.value.code == 2
        assert part in capsys.readouterr().err.splitlines()[-1]
        assert not output.exists()
    with pytest.raises(SystemExit):
        predict.main([f"--net_weight_file={with_features}", f"--sequence={sequence_file}"])
    assert "--sequence needs --source" in capsys.readouterr().err


def test_a_sequence_model_alone_is_told_where_it_belongs(sequences, small_dataset, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        run(small_dataset.source / "stage_2_test", sequences / "fold_0" / "best.pt", tmp_path / "out")
    assert "as --sequence" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()  # before any file is read
