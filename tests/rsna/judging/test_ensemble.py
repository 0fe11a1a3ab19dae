"""Tests of ensemble.py by calling main(argv): files in, file and scores out, and one line for each bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

import evaluate
from common.evaluation.metrics import normalized_weights
from ensemble import main
from rsna.forms import read_predictions
from rsna_dataset import LABEL_WEIGHTS, LABELS, read_metadata
from tests import PROJECT
from tests.runs import failure

IDS = [f"ID_{number:09x}" for number in range(20)]


def make_predictions(seed, ids=None):
    ids = IDS if ids is None else ids
    values = np.random.default_rng(seed).random((len(ids), 6))
    return pd.DataFrame(values, index=pd.Index(ids, name="id"), columns=list(LABELS))


def make_labels(ids, seed=7):
    values = (np.random.default_rng(seed).random((len(ids), 6)) < 0.3).astype(int)
    return pd.DataFrame(values, index=pd.Index(ids, name="id"), columns=list(LABELS))


def write_wide(path, frame):
    frame.to_csv(path, float_format="%.17g")
    return path


def consistent_labels(ids, seed=7):
    """Labels as a train CSV has them: no kind without any."""
    labels = make_labels(ids, seed)
    return labels.assign(any=labels.max(axis=1))


def to_long(frame):
    long = frame.reset_index().melt(id_vars="id", var_name="label", value_name="Label")
    long["ID"] = long["id"] + "_" + long["label"]
    return long[["ID", "Label"]]


def write_long(path, frame, order=None):
    long = to_long(frame)
    (long if order is None else long.sample(frac=1, random_state=order)).to_csv(path, index=False, float_format="%.17g")
    return path


@pytest.fixture
def files(tmp_path):
    return [write_wide(tmp_path / f"{name}.csv", make_predictions(seed)) for seed, name in enumerate("ab")]


@pytest.fixture
def submissions(tmp_path):
    return [
        write_long(tmp_path / f"{name}_submission.csv", make_predictions(seed), order=seed)
        for seed, name in enumerate("ab")
    ]


def run(files, output, *flags):
    return main([*(str(file) for file in files), f"--ens_output={output}", *flags])


def weighted_by_hand(values, truth):
    losses = [log_loss(truth[:, c], values[:, c], labels=[0, 1]) for c in range(6)]
    return (sum(losses[:5]) + 2 * losses[5]) / 7


def scores_of(text):
    """The first table of the output: name -> weighted log loss."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("log loss "))
    rows = [line.split("  ") for line in lines[start + 1 : lines.index("", start)]]
    return {row[0].strip(): float(next(cell for cell in row[1:] if cell.strip())) for row in rows}


def test_wide_files_give_the_weighted_mean_to_the_last_digit(files, tmp_path, capsys):
    output = run(files, tmp_path / "new" / "out.csv", "--weights=1,3")
    found = pd.read_csv(output, index_col="id")
    expected = (make_predictions(0) + 3 * make_predictions(1)) / 4
    pd.testing.assert_frame_equal(found, expected, rtol=1e-15)
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == str(output)
    assert "member alone" not in text
    run(files[:1], tmp_path / "one.csv")
    assert f"{files[0]} is the only member: nothing is averaged." in capsys.readouterr().out
    assert not [path for path in output.parent.iterdir() if path != output]


def test_submissions_give_a_submission_with_the_rows_of_the_first(submissions, tmp_path):
    output = run(submissions, tmp_path / "out.csv", "--ens_method=logit")
    found, first = pd.read_csv(output), pd.read_csv(submissions[0])
    assert list(found.columns) == ["ID", "Label"]
    assert found["ID"].tolist() == first["ID"].tolist()
    odds = np.sqrt(np.prod([make_predictions(seed) / (1 - make_predictions(seed)) for seed in (0, 1)], axis=0))
    expected = to_long(pd.DataFrame(odds / (1 + odds), index=make_predictions(0).index, columns=list(LABELS)))
    expected = expected.set_index("ID").loc[found["ID"], "Label"]
    np.testing.assert_allclose(found["Label"], expected, rtol=1e-12)


def test_both_forms_together_give_the_wide_form(files, submissions, tmp_path):
    output = run([submissions[0], files[1]], tmp_path / "out.csv")
    found = pd.read_csv(output, index_col="id").sort_index()
    assert list(found.columns) == list(LABELS)
    np.testing.assert_allclose(found, (make_predictions(0) + make_predictions(1)) / 2, rtol=1e-15)


def test_rows_in_another_order_are_aligned_by_id(files, tmp_path):
    shuffled = write_wide(tmp_path / "shuffled.csv", make_predictions(1).iloc[::-1][list(LABELS)[::-1]])
    first = run(files, tmp_path / "one.csv", "--ens_method=rank").read_bytes()
    assert run([files[0], shuffled], tmp_path / "two.csv", "--ens_method=rank").read_bytes() == first


def write_fold(path, predicted, others):
    """A fold CSV in the form of the design's part 8."""
    valid, train = make_labels(predicted), make_labels(others, seed=8)
    fold = pd.concat([valid.assign(sample_type="valid"), train.assign(sample_type="train")])
    fold.assign(patient_id="p", study_id="s").to_csv(path)
    return valid, train


def test_members_and_ensemble_are_scored_beside_the_constant_predictor_of_the_train_fold(files, tmp_path, capsys):
    fold = tmp_path / "dataset_x_fold_0.csv"
    valid, train = write_fold(fold, IDS, [f"ID_{number:09x}" for number in range(100, 200)])
    run(files, tmp_path / "out.csv", f"--ens_labels={fold}")
    text = capsys.readouterr().out
    truth = valid.to_numpy()
    members = [make_predictions(seed).to_numpy() for seed in (0, 1)]
    constant = np.tile(train.mean().to_numpy(), (20, 1))
    expected = {
        str(files[0]): weighted_by_hand(members[0], truth),
        str(files[1]): weighted_by_hand(members[1], truth),
        "ensemble": weighted_by_hand((members[0] + members[1]) / 2, truth),
        "constant predictor": weighted_by_hand(constant, truth),
    }
    assert scores_of(text) == pytest.approx(expected, abs=6e-6)
    assert "20 of 20 images have labels" in text
    assert "the 100 other labelled images" in text
    assert "auroc" in text
    assert "average_precision" in text


@pytest.mark.parametrize("form", ["metadata", "train csv"])
def test_only_images_with_labels_are_scored(files, tmp_path, capsys, form):
    labels = make_labels(IDS[:12])
    path = tmp_path / "labels.csv"
    if form == "metadata":
        unknown = pd.DataFrame(index=pd.Index(IDS[12:], name="id"), columns=list(LABELS), dtype=float)
        table = pd.concat([labels.assign(split="train"), unknown.assign(split="test")])
        table.to_csv(path)
    else:
        labels = consistent_labels(IDS[:12])
        to_long(labels).to_csv(path, index=False)
    run(files, tmp_path / "out.csv", f"--ens_labels={path}")
    text = capsys.readouterr().out
    assert "12 of 20 images have labels" in text
    assert "the 12 same images" in text
    expected = weighted_by_hand(make_predictions(0).to_numpy()[:12], labels.to_numpy())
    assert scores_of(text)[str(files[0])] == pytest.approx(expected, abs=6e-6)


def test_a_yaml_file_may_name_the_files(files, tmp_path):
    config = tmp_path / "ensemble.yaml"
    listing = "\n".join(f"  - {file}" for file in files)
    config.write_text(f"members:\n{listing}\nweights: [1, 3]\nens_output: {tmp_path / 'yaml.csv'}\n")
    from_yaml = main(["--config", str(config)])
    from_flags = run(files, tmp_path / "flags.csv", "--weights=1,3")
    assert from_yaml.read_bytes() == from_flags.read_bytes()


# Experiments and fitted weights


def make_experiment(root, name, frame, submission=None, dataset=None):
    """The folder of an experiment as train.py and predict.py leave it, without its weights."""
    folder = root / name
    folder.mkdir(parents=True)
    write_wide(folder / "predictions_valid.csv", frame)
    if submission is not None:
        write_long(folder / "submission.csv", submission)
    if dataset is not None:
        (folder / "config.yaml").write_text(
            f"data_input_folder: {dataset.input_folder}\ndata_dataset: {dataset.folder.name}\n"
        )
    return folder


@pytest.fixture
def experiments(tmp_path, small_dataset):
    """Two experiments of unequal skill on the small phantom's labelled images; their folder and labels."""
    rows = read_metadata(small_dataset.folder).query("split == 'train'")
    tests = [f"ID_{number:09x}" for number in range(1000, 1010)]
    for seed, (name, skill) in enumerate((("good", 4), ("poor", 1))):
        noise = np.random.default_rng(seed).normal(size=(len(rows), 6))
        frame = pd.DataFrame(1 / (1 + np.exp(2 - skill * rows[list(LABELS)] - noise)), rows.index, list(LABELS))
        submission = make_predictions(seed, tests)
        make_experiment(tmp_path / "results", name, frame.rename_axis("id"), submission, small_dataset)
    return tmp_path / "results", rows


def test_an_ensemble_of_experiments_is_an_experiment_of_its_own(experiments, capsys):
    results, rows = experiments
    folder = main(["good", "poor", f"--output_dir={results}", "--ens_method=logit", "--ens_draws=100"])
    assert folder == results / "1"
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml", "environment.json", "ensemble.json", "predictions_oof.csv", "submission.csv",
        "evaluation.csv", "evaluation.json", "evaluation.html",
    }  # fmt: skip
    members = [pd.read_csv(results / name / "predictions_valid.csv", index_col="id") for name in ("good", "poor")]
    odds = np.sqrt(members[0] / (1 - members[0]) * members[1] / (1 - members[1]))
    found = pd.read_csv(folder / "predictions_oof.csv", index_col="id")
    pd.testing.assert_frame_equal(found, odds / (1 + odds), rtol=1e-9)
    scores = scores_of(capsys.readouterr().out)
    assert scores["ensemble"] == pytest.approx(
        weighted_by_hand(found.to_numpy(), rows[list(LABELS)].to_numpy()), abs=6e-6
    )
    document = json.loads((folder / "ensemble.json").read_text())
    assert [member["weight"] for member in document["members"]] == [0.5, 0.5]
    contributions = {row["member"]: row for row in document["contributions"]}
    assert contributions["good"]["without"] == pytest.approx(scores["poor"], abs=6e-6)
    assert contributions["good"]["adds"] > 0 > contributions["poor"]["adds"]
    logits = [np.log(member / (1 - member)) for member in members]
    expected = np.mean([np.corrcoef(logits[0][name], logits[1][name])[0, 1] for name in LABELS])
    assert document["correlations_of_logits"][0]["poor"] == pytest.approx(expected, rel=1e-9)


def test_fitted_weights_mix_the_submissions_too(experiments):
    results, _ = experiments
    folder = main(
        ["good", "poor", f"--output_dir={results}", "--experiment_id=fit", "--ens_fit=weights", "--ens_draws=100"]
    )
    document = json.loads((folder / "ensemble.json").read_text())
    weights = [member["weight"] for member in document["members"]]
    assert weights[0] > 0.8
    assert len(document["weights_of_outer_folds"]) == 5
    parts = [pd.read_csv(results / name / "submission.csv", index_col="ID")["Label"] for name in ("good", "poor")]
    mixed = pd.read_csv(folder / "submission.csv", index_col="ID")["Label"]
    np.testing.assert_allclose(mixed, weights[0] * parts[0] + weights[1] * parts[1].loc[mixed.index], rtol=1e-12)


def test_weights_of_each_label_are_shown_and_mix_its_predictions(experiments, capsys):
    results, _ = experiments
    flags = [f"--output_dir={results}", "--experiment_id=by", "--ens_fit=weights_per_label", "--ens_draws=100"]
    folder = main(["good", "poor", *flags])
    document = json.loads((folder / "ensemble.json").read_text())
    by_label = pd.DataFrame(document["weights_by_label"]).set_index("name")
    np.testing.assert_allclose(by_label.sum(), 1, rtol=1e-12)
    assert len(set(by_label.loc["good"])) > 1
    share = normalized_weights(LABEL_WEIGHTS, len(LABELS))
    expected = (by_label[list(LABELS)] * share).sum(axis=1)
    assert [member["weight"] for member in document["members"]] == pytest.approx(expected.tolist())
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["weight", *LABELS] for line in lines)
    parts = [pd.read_csv(results / name / "submission.csv", index_col="ID")["Label"] for name in ("good", "poor")]
    mixed = pd.read_csv(folder / "submission.csv", index_col="ID")["Label"]
    weights = [by_label.loc[name].loc[mixed.index.str.split("_").str[-1]].to_numpy() for name in ("good", "poor")]
    np.testing.assert_allclose(
        mixed, weights[0] * parts[0].loc[mixed.index] + weights[1] * parts[1].loc[mixed.index], rtol=1e-12
    )


def test_a_calibrated_ensemble_maps_each_patient_by_others_and_its_submission_by_all(experiments, capsys):
    results, rows = experiments
    folder = main(["poor", f"--output_dir={results}", "--ens_calibrate=temperature", "--ens_draws=100"])
    labels = rows[list(LABELS)].to_numpy(float)
    before = pd.read_csv(results / "poor" / "predictions_valid.csv", index_col="id")[list(LABELS)]
    found = pd.read_csv(folder / "predictions_oof.csv", index_col="id")[list(LABELS)]
    scores = scores_of(capsys.readouterr().out)
    assert scores["calibrated"] == pytest.approx(weighted_by_hand(found.to_numpy(), labels), abs=6e-6)
    assert scores["ensemble"] == pytest.approx(weighted_by_hand(before.to_numpy(), labels), abs=6e-6)
    logits = np.log(before / (1 - before))
    ratios = np.log(found / (1 - found)) / logits
    spread = ratios.groupby(rows["patient_id"]).std().max().max()
    assert spread < 1e-6  # one temperature for each patient's images
    assert np.ptp(ratios["any"]) > 1e-3
    test = read_predictions(results / "poor" / "submission.csv")
    mapped = read_predictions(folder / "submission.csv").loc[test.index]
    for column, name in enumerate(LABELS):
        inverse = 1 / np.array([0.05, 20.0])

        def loss(factor, name=name, column=column):
            scaled = logits[name] * factor
            return np.mean(np.logaddexp(0, scaled) - labels[:, column] * scaled)

        best = minimize_scalar(loss, bounds=(inverse[1], inverse[0]), method="bounded", options={"xatol": 1e-8}).x
        expected = best * np.log(test[name] / (1 - test[name]))
        np.testing.assert_allclose(np.log(mapped[name] / (1 - mapped[name])), expected, rtol=1e-3)


class Held:
    """A cross-validation's files over the small phantom, of which every third group is held out of all folds.

    Each of five models is too sure of itself, and errs in its own way: their mean is about right.
    """

    def __init__(self, small_dataset, root: Path) -> None:
        rows = read_metadata(small_dataset.folder).query("split == 'train'")
        self.dataset = root / "input" / "datasets" / "held"
        self.dataset.mkdir(parents=True)
        shutil.copy(small_dataset.folder / "dataset.json", self.dataset)
        shutil.copy(small_dataset.folder / "metadata.csv", self.dataset)
        groups = sorted(set(rows["group_id"]))[::3]
        self.rows = rows[rows["group_id"].isin(groups)]
        columns = [*LABELS, "patient_id", "study_id", "group_id"]
        table = self.rows[columns].astype(dict.fromkeys(LABELS, int)).assign(sample_type="holdout")
        table.to_csv(self.dataset / "dataset_held_holdout.csv")
        self.results = root / "results"
        tests = pd.DataFrame(
            (np.random.default_rng(1).random((600, 6)) < 0.3).astype(float),
            pd.Index([f"ID_{number:09x}" for number in range(600)], name="id"),
            list(LABELS),
        )
        self.truth = tests
        random = np.random.default_rng(0)
        models = {
            name: self.models(random, frame[list(LABELS)])
            for name, frame in (("oof", rows.drop(index=self.rows.index)), ("held", self.rows), ("test", tests))
        }
        self.folder = self.results / "cv"
        self.folder.mkdir(parents=True)
        number = np.arange(len(models["oof"][0])) % 5
        alone = sum(frame.mul(number == fold, axis=0) for fold, frame in enumerate(models["oof"]))
        write_wide(self.folder / "predictions_oof.csv", alone)
        write_wide(self.folder / "predictions_holdout.csv", sum(models["held"]) / 5)
        write_long(self.folder / "submission.csv", sum(models["test"]) / 5)
        (self.folder / "config.yaml").write_text(f"data_input_folder: {root / 'input'}\ndata_dataset: held\n")

    @staticmethod
    def models(random: np.random.Generator, targets: pd.DataFrame) -> list[pd.DataFrame]:
        right = 2.5 * targets - 1.8 + random.normal(size=targets.shape)
        each = [2 * (right + random.normal(0, 2.5, targets.shape)) for _ in range(5)]
        return [1 / (1 + np.exp(-logits)).rename_axis("id") for logits in each]


@pytest.fixture
def held(small_dataset, tmp_path) -> Held:
    return Held(small_dataset, tmp_path)


def best_factor(predictions: pd.DataFrame, targets: pd.DataFrame, name: str) -> float:
    logits, truth = np.log(predictions[name] / (1 - predictions[name])), targets[name]

    def loss(factor: float) -> float:
        return np.mean(np.logaddexp(0, logits * factor) - truth * logits * factor)

    return minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x


def test_a_cross_validations_maps_are_fitted_to_what_is_submitted(held, capsys):
    """Single models are too sure of themselves and their mean is not: their temperatures made it worse."""
    folder = main(["cv", f"--output_dir={held.results}", "--ens_calibrate=temperature", "--ens_draws=100"])
    together = read_predictions(held.folder / "predictions_holdout.csv")
    before, after = (read_predictions(path / "submission.csv") for path in (held.folder, folder))
    oof = read_predictions(held.folder / "predictions_oof.csv")
    labels = read_metadata(held.dataset)[list(LABELS)]
    wrong = before.copy()
    for name in LABELS:
        logits = np.log(before[name] / (1 - before[name]))
        both = held.rows[name].min() < held.rows[name].max()  # else there is nothing to fit
        expected = (best_factor(together, held.rows, name) if both else 1.0) * logits
        np.testing.assert_allclose(np.log(after[name] / (1 - after[name])), expected, rtol=2e-3, atol=1e-9)
        wrong[name] = 1 / (1 + np.exp(-best_factor(oof, labels.loc[oof.index], name) * logits))
    truth = held.truth.loc[before.index].to_numpy()
    losses = [weighted_by_hand(frame.loc[before.index].to_numpy(), truth) for frame in (before, after, wrong)]
    assert losses[1] < losses[0] + 0.01
    assert losses[1] + 0.02 < losses[2]
    found = pd.read_csv(folder / "predictions_oof.csv", index_col="id")
    pd.testing.assert_frame_equal(found, oof.rename_axis("id"), rtol=1e-12)  # single models' stay as they are
    text = capsys.readouterr().out
    document = json.loads((folder / "ensemble.json").read_text())
    scores = {row["name"]: row["weighted"] for row in document["log_loss_of_images_in_no_fold"]}
    target = held.rows[list(LABELS)].to_numpy()
    assert scores["ensemble"] == pytest.approx(weighted_by_hand(together.loc[held.rows.index].to_numpy(), target))
    honest = pd.read_csv(folder / "predictions_holdout.csv", index_col="id").loc[held.rows.index]
    assert scores["calibrated"] == pytest.approx(weighted_by_hand(honest.to_numpy(), target))
    assert f"the {len(honest)} images in no fold, which no member saw" in text
    logits = [np.log(frame / (1 - frame)) for frame in (honest, together.loc[honest.index])]
    spread = (logits[0] / logits[1]).groupby(held.rows["group_id"]).std().max().max()
    assert spread < 1e-6  # one temperature for each patient's images: that of the others


def test_what_is_made_of_a_cross_validation_is_calibrated_by_what_no_fold_has_too(held):
    shutil.copytree(held.folder, held.results / "other")
    both = main(["cv", "other", f"--output_dir={held.results}", "--experiment_id=both", "--ens_draws=100"])
    mixed = pd.read_csv(both / "predictions_holdout.csv", index_col="id")
    pd.testing.assert_frame_equal(mixed, read_predictions(held.folder / "predictions_holdout.csv"), rtol=1e-12)
    folder = main(["both", f"--output_dir={held.results}", "--ens_calibrate=isotonic", "--ens_draws=100"])
    assert "log_loss_of_images_in_no_fold" in json.loads((folder / "ensemble.json").read_text())
    (both / "predictions_holdout.csv").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["both", f"--output_dir={held.results}", "--ens_calibrate=isotonic", "--experiment_id=again"])
    assert ended.value.code == 2


def test_a_cross_validation_is_not_calibrated_without_images_that_none_of_its_models_saw(held, capsys):
    flags = ["cv", f"--output_dir={held.results}", "--ens_calibrate=temperature", "--experiment_id=map"]
    oof = pd.read_csv(held.folder / "predictions_oof.csv", index_col="id")
    learnt = held.rows.iloc[:1][list(LABELS)].astype(float) * 0.5
    write_wide(held.folder / "predictions_oof.csv", pd.concat([oof, learnt.rename_axis("id")]))
    assert "1 images of the folds are of patients who are held out now" in failure(main, flags, capsys)
    (held.folder / "predictions_holdout.csv").unlink()
    assert f"python predict.py --split=holdout --net_weight_file={held.folder} writes it" in failure(
        main, flags, capsys
    )
    (held.dataset / "dataset_held_holdout.csv").unlink()
    assert "--pre_holdout=0.1 makes such a split" in failure(main, flags, capsys)
    assert not (held.results / "map").exists()


def test_calibration_without_labels_or_patients_is_refused(files, tmp_path, capsys):
    line = failure(main, [*files, f"--ens_output={tmp_path / 'out.csv'}", "--ens_calibrate=isotonic"], capsys)
    assert "--ens_calibrate=isotonic needs labels" in line
    to_long(consistent_labels(IDS)).to_csv(tmp_path / "train.csv", index=False)
    flags = [f"--ens_output={tmp_path / 'out.csv'}", "--ens_calibrate=isotonic"]
    assert "has no column patient_id" in failure(
        main, [*files, *flags, f"--ens_labels={tmp_path / 'train.csv'}"], capsys
    )


def test_calibration_by_one_patient_is_refused_and_leaves_no_experiment(experiments, tmp_path, capsys):
    """There is nobody else to judge it by; the row `calibrated` showed the predictions as they had been."""
    results, rows = experiments
    rows.assign(group_id="one").astype(dict.fromkeys(LABELS, int)).to_csv(tmp_path / "labels.csv")
    flags = [f"--output_dir={results}", f"--ens_labels={tmp_path / 'labels.csv'}", "--experiment_id=one"]
    assert "--ens_calibrate: all images are of one patient" in failure(
        main, ["good", *flags, "--ens_calibrate=temperature"], capsys, 1
    )
    assert "--ens_fit: all images are of one patient" in failure(
        main, ["good", "poor", *flags, "--ens_fit=greedy"], capsys, 1
    )
    assert not (results / "one").exists()


@pytest.mark.parametrize("fit", ["weights", "weights_per_label", "greedy", "none"])
def test_a_patients_prediction_does_not_depend_on_his_own_labels(experiments, small_dataset, tmp_path, fit):
    results, rows = experiments
    patient = rows["patient_id"].iloc[0]
    own = (rows["patient_id"] == patient).to_numpy()
    outputs = []
    for number, labels in enumerate(
        (rows, rows.assign(**{name: rows[name].where(~own, 1 - rows[name]) for name in LABELS}))
    ):
        path = tmp_path / f"labels{number}.csv"
        labels.astype(dict.fromkeys(LABELS, int)).to_csv(path)
        flags = [f"--output_dir={results}", f"--ens_fit={fit}", f"--ens_labels={path}", "--ens_draws=100"]
        flags += ["--ens_calibrate=isotonic"] * (fit != "weights")
        output = main(["good", "poor", *flags, f"--ens_output={tmp_path / f'out{number}.csv'}"])
        outputs.append(pd.read_csv(output, index_col="id"))
    pd.testing.assert_frame_equal(outputs[0][own], outputs[1][own], rtol=1e-15)
    assert not outputs[0][~own].equals(outputs[1][~own])


def test_an_ensemble_is_evaluated_and_is_a_member_like_any_other_experiment(experiments):
    results, _ = experiments
    folder = main(["good", "poor", f"--output_dir={results}", "--experiment_id=both", "--ens_draws=100"])
    table = evaluate.main(
        [f"--output_dir={results}", "--experiment_id=both", "--eval_compare=good", "--eval_draws=100"]
    )
    written = pd.read_csv(folder / "evaluation.csv", index_col="label")
    assert table.loc["weighted", "log_loss"] == pytest.approx(written.loc["weighted", "log_loss"], abs=1e-12)
    assert (folder / "evaluation_compared.csv").is_file()
    again = main(["both", "good", f"--output_dir={results}", "--weights=1,0", "--ens_draws=100"])
    assert (again / "predictions_oof.csv").read_bytes() == (folder / "predictions_oof.csv").read_bytes()


def test_experiments_of_different_folds_are_refused_with_both_names(experiments, small_dataset, capsys):
    results, rows = experiments
    make_experiment(results, "fold1", make_predictions(0, list(rows.index[:7])), dataset=small_dataset)
    line = failure(main, ["good", "fold1", f"--output_dir={results}"], capsys, 1)
    assert "fold1 (7 rows)" in line
    assert "don't cover the same rows" in line
    assert sorted(path.name for path in results.iterdir()) == ["fold1", "good", "poor"]


def test_members_that_do_not_exist_or_lack_something_are_one_line(experiments, small_dataset, tmp_path, capsys):
    results, rows = experiments
    assert "no such experiment" in failure(main, ["good", "9", f"--output_dir={results}"], capsys)
    (results / "empty").mkdir()
    assert "has no predictions yet" in failure(main, ["good", "empty", f"--output_dir={results}"], capsys)
    to_long(consistent_labels(list(rows.index))).to_csv(tmp_path / "train.csv", index=False)
    flags = [f"--output_dir={results}", "--ens_fit=weights", f"--ens_labels={tmp_path / 'train.csv'}"]
    assert "has no column patient_id" in failure(main, ["good", "poor", *flags], capsys)
    (results / "good" / "config.yaml").write_text("data_dataset: gone\ndata_input_folder: nowhere\n")
    assert "name the labels by --ens_labels" in failure(main, ["good", "poor", f"--output_dir={results}"], capsys)


# Bad input


def test_files_with_other_rows_are_refused_by_name_count_and_example(files, tmp_path, capsys):
    other = write_wide(tmp_path / "other.csv", make_predictions(3, [*IDS[:18], "ID_fffffffff"]))
    line = failure(main, [files[0], other, f"--ens_output={tmp_path / 'out.csv'}"], capsys, 1)
    for part in (str(files[0]), str(other), "19 rows", "20 rows", IDS[18], IDS[19], "ID_fffffffff"):
        assert part in line
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("bad", ["1.5", "-0.1", "inf", "", "abc"])
@pytest.mark.parametrize("form", ["wide", "long"])
def test_a_bad_probability_names_file_and_row(files, tmp_path, capsys, bad, form):
    path = tmp_path / "bad.csv"
    frame = make_predictions(1).astype(object)
    frame.loc[IDS[4], "subdural"] = bad
    frame.to_csv(path) if form == "wide" else to_long(frame).to_csv(path, index=False)
    line = failure(main, [files[0], path, f"--ens_output={tmp_path / 'out.csv'}"], capsys, 1)
    assert str(path) in line
    assert IDS[4] in line or "row" in line
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "id,any\nID_1,0.5\n", "ID,Label\n"])
def test_a_file_of_another_form_is_refused_by_name(files, tmp_path, capsys, content):
    path = tmp_path / "form.csv"
    path.write_text(content)
    with pytest.raises(SystemExit) as caught:
        run([files[0], path], tmp_path / "out.csv")
    assert caught.value.code in (1, 2)
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--weights=1"], "--weights has 1 numbers for 2 members"),
        (["--weights=1,2,3"], "--weights has 3 numbers for 2 members"),
        (["--weights=1,-2"], "at least 0"),
        (["--weights=0,0"], "not all be 0"),
        (["--weights=1,nan"], "finite"),
        (["--weights=1,x"], "not a list of numbers"),
        (["--ens_method=median"], "mean, logit, power, rank"),
        (["--ens_method=power"], "--ens_power=3 (or another exponent) belong together"),
        (["--ens_power=3"], "belong together"),
        (["--ens_fit=weights"], "needs labels: name them by --ens_labels"),
        (["--ens_fit=greedy", "--weights=1,2"], "has nothing to fit"),
        (["--ens_fit=greedy", "--ens_method=rank"], "needs probabilities"),
        (["--experiment_id=e"], "either --experiment_id or --ens_output"),
        (["--ens_methd=mean"], "did you mean '--ens_method'"),
    ],
)
def test_a_wrong_flag_is_one_line(files, tmp_path, capsys, flags, part):
    assert part in failure(main, [*files, f"--ens_output={tmp_path / 'out.csv'}", *flags], capsys)


def test_files_and_outputs_that_cannot_be_used_are_one_line(files, tmp_path, capsys):
    output = f"--ens_output={tmp_path / 'out.csv'}"
    assert "nothing.csv" in failure(main, [files[0], tmp_path / "nothing.csv", output], capsys)
    assert "given twice" in failure(main, [files[0], files[0], output], capsys)
    assert "one of the files to read" in failure(main, [*files, f"--ens_output={files[1]}"], capsys)
    assert "is a folder" in failure(main, [*files, f"--ens_output={tmp_path}"], capsys)
    assert "its folder can't be written" in failure(main, [*files, f"--ens_output={files[0]}/x/out.csv"], capsys)
    assert "required" in failure(main, [output], capsys)


@pytest.mark.parametrize(
    ("content", "code", "part"),
    [
        (None, 2, "no such file"),
        ("", 2, "not a CSV file"),
        ("id,any\nID_000000000,1\n", 2, "has no column epidural"),
        ("strange", 2, "has no column id"),
        (f"id,{','.join(LABELS)}\nID_000000000,0,0,0,0,0,0.5\n", 1, "label any: '0.5' is not 0 or 1"),
        (f"id,{','.join(LABELS)}\nID_000000000,0,0,,0,0,1\n", 1, "label intraventricular: is empty"),
        (f"id,{','.join(LABELS)}\nID_1,0,0,0,0,0,1\nID_1,0,0,0,0,0,1\n", 1, "ID_1 stands there more than once"),
        (f"id,{','.join(LABELS)}\nID_elsewhere,0,0,0,0,0,1\n", 2, "knows none of the 20 predicted images"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(files, tmp_path, capsys, content, code, part):
    path = tmp_path / "labels.csv"
    if content is not None:
        path.write_text(content)
    line = failure(main, [*files, f"--ens_output={tmp_path / 'out.csv'}", f"--ens_labels={path}"], capsys, code)
    assert part in line
    assert str(path) in line
    assert not (tmp_path / "out.csv").exists()


def test_help_says_that_ranks_are_no_probabilities_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom ensemble import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'numpy', 'pandas', 'torch', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not calibrated probabilities" in " ".join(done.stdout.split())
