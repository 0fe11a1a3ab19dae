"""rsna/judging/evaluation.py by evaluate.py, on predictions made up for the small phantom's images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import ensemble
import evaluate
from rsna.training.outcome import describe_flattery, write_flattery
from rsna_dataset import LABELS, read_metadata
from tests.runs import failure

METRICS = ("log_loss", "brier", "auroc", "average_precision", "calibration_error")


@pytest.fixture
def labelled(small_dataset) -> pd.DataFrame:
    return read_metadata(small_dataset.folder).query("split == 'train'")


class Crowd:
    """The small phantom's images as if each nine were of another patient: 40, enough for intervals."""

    def __init__(self, small_dataset, folder: Path) -> None:
        self.folder = folder / "datasets" / "crowd"
        self.folder.mkdir(parents=True)
        metadata = pd.read_csv(small_dataset.folder / "metadata.csv", dtype=str, keep_default_na=False)
        ranks = metadata.groupby("split").cumcount() // 9
        patients = [f"{split}{rank}" for split, rank in zip(metadata["split"], ranks, strict=True)]
        metadata = metadata.assign(patient_id=patients, study_id=patients, group_id=patients)
        metadata.to_csv(self.folder / "metadata.csv", index=False)
        shutil.copy(small_dataset.folder / "dataset.json", self.folder)
        self.flags = [f"--data_input_folder={folder}", "--data_dataset=crowd"]


@pytest.fixture
def crowd(small_dataset, tmp_path) -> Crowd:
    return Crowd(small_dataset, tmp_path / "crowd")


def make_up(rows: pd.DataFrame, skill: float, path: Path, seed: int = 0) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(size=(len(rows), len(LABELS)))
    frame = pd.DataFrame(1 / (1 + np.exp(2 - skill * rows[list(LABELS)] - noise)), rows.index, list(LABELS))
    frame.to_csv(path, float_format="%.17g")
    return frame


def run(small_dataset, *more: str) -> pd.DataFrame:
    return evaluate.main([*small_dataset.flags, "--eval_draws=200", *more])


def test_predictions_of_any_origin_are_evaluated_with_intervals(small_dataset, labelled, tmp_path, capsys) -> None:
    frame = make_up(labelled, 3, tmp_path / "mine.csv")
    table = run(small_dataset, f"--eval_file={tmp_path / 'mine.csv'}")
    weights = np.array([1, 1, 1, 1, 1, 2]) / 7
    losses = [log_loss(labelled[name], frame[name], labels=[0, 1]) for name in LABELS]
    assert table.loc["weighted", "log_loss"] == pytest.approx(weights @ losses, abs=1e-12)
    assert table.loc["any", "auroc"] == pytest.approx(roc_auc_score(labelled["any"], frame["any"]), abs=1e-12)
    written = pd.read_csv(tmp_path / "mine_evaluation.csv", index_col="label")
    pd.testing.assert_frame_equal(written, table, check_exact=True)
    document = json.loads((tmp_path / "mine_evaluation.json").read_text())
    assert document["images"] == len(labelled)
    assert document["patients"] == labelled["group_id"].nunique()
    assert document["studies"] == labelled["study_id"].nunique()
    for row in document["slice_level"]:
        assert set(METRICS) <= set(row)
        assert row["log_loss_low"] is row["log_loss_high"] is None
    assert document["no_interval"] == f"{document['patients']} patients, and an interval needs 20"
    assert {part["stratum"] for part in document["strata"]} >= {
        "kinds of hemorrhage in the slice",
        "stored pixels: bits/signed/slope/intercept",
    }
    text = capsys.readouterr().out
    assert f"no interval: {labelled['group_id'].nunique()} patients, and an interval needs 20" in text
    assert "any, slices: sensitivity" in text


def test_console_file_and_page_quote_the_same_intervals_and_who_is_behind_them(
    crowd, labelled, tmp_path, capsys
) -> None:
    make_up(labelled, 3, tmp_path / "mine.csv")
    run(crowd, f"--eval_file={tmp_path / 'mine.csv'}")
    document = json.loads((tmp_path / "mine_evaluation.json").read_text())
    rows = {row["label"]: row for row in document["slice_level"]}
    patients = read_metadata(crowd.folder).loc[labelled.index, "patient_id"]
    for name in LABELS:
        positive = patients[labelled[name] == 1].nunique()
        assert (rows[name]["patients"], rows[name]["positive_patients"]) == (40, positive)
        for metric in METRICS:
            low, high = (rows[name][f"{metric}_{end}"] for end in ("low", "high"))
            if positive < 5:
                assert low is high is None
                assert rows[name]["no_interval"] == f"{positive} positive patients, and an interval needs 5"
            else:
                assert low <= rows[name][metric] <= high
                assert rows[name]["no_interval"] == ""
    text, page = capsys.readouterr().out, (tmp_path / "mine_evaluation.html").read_text()
    any_row = rows["any"]
    assert f"95 % intervals over 40 patients, {any_row['positive_patients']} positive" in text
    for metric, digits in (("log_loss", 4), ("auroc", 3)):
        shown = [f"{any_row[metric + end]:.{digits}f}" for end in ("", "_low", "_high")]
        assert f"{shown[0]} [{shown[1]}, {shown[2]}]" in page
    assert f"{any_row['log_loss']:.4f} [{any_row['log_loss_low']:.4f}, {any_row['log_loss_high']:.4f}]" in text
    assert any(part["low"] is None for part in document["strata"])
    assert "nan" not in text + page
    benefits = [row for row in document["decision_curve"] if row["label"] == "any"]
    assert all(row["model_low"] <= row["model"] <= row["model_high"] for row in benefits)
    line = next(row for row in document["calibration"] if row["label"] == "any")
    assert line["slope_low"] < line["slope"] < line["slope_high"]
    assert f"slope {line['slope']:.3f} [{line['slope_low']:.3f}, {line['slope_high']:.3f}]" in text
    assert f"{line['intercept']:.2f} [{line['intercept_low']:.2f}, {line['intercept_high']:.2f}]" in page


def test_a_label_that_training_lacks_does_not_cost_the_constant_predictor_12(small_dataset, labelled, tmp_path) -> None:
    """The only positive slices are those that are judged: a prevalence of 0 cost it 34 for each."""
    metadata = pd.read_csv(small_dataset.folder / "metadata.csv", dtype=str, keep_default_na=False)
    folder = tmp_path / "datasets" / "rare"
    folder.mkdir(parents=True)
    shutil.copy(small_dataset.folder / "dataset.json", folder)
    few = labelled.index[:100]
    known = metadata["split"] == "train"
    metadata.loc[known, "epidural"] = np.where(metadata.loc[known, "id"].isin(few[:3]), "1", "0")
    metadata.to_csv(folder / "metadata.csv", index=False)
    make_up(labelled.loc[few], 3, tmp_path / "few.csv")
    flags = [f"--data_input_folder={tmp_path}", "--data_dataset=rare", f"--eval_file={tmp_path / 'few.csv'}"]
    table = evaluate.main([*flags, "--eval_draws=100"])
    expected = log_loss([1] * 3 + [0] * 97, [0.5 / (len(labelled) - 100 + 1)] * 100)
    assert table.loc["epidural", "constant_log_loss"] == pytest.approx(expected)


def test_studies_are_judged_by_their_highest_slice(small_dataset, labelled, tmp_path) -> None:
    frame = make_up(labelled, 3, tmp_path / "mine.csv")
    run(small_dataset, f"--eval_file={tmp_path / 'mine.csv'}")
    document = json.loads((tmp_path / "mine_evaluation.json").read_text())
    rows = {row["label"]: row for row in document["study_level"]}
    highest, truth = (table.groupby(labelled["study_id"]).max() for table in (frame, labelled[list(LABELS)]))
    assert rows["any"]["log_loss"] == pytest.approx(log_loss(truth["any"], highest["any"], labels=[0, 1]), abs=1e-9)


def test_the_constant_predictor_never_knows_the_prevalences_of_a_few_images_alone(
    small_dataset, labelled, tmp_path, capsys
) -> None:
    """Such as those of --pre_holdout, which a cross-validation doesn't predict."""
    most = labelled.iloc[3:]
    make_up(most, 3, tmp_path / "most.csv")
    table = run(small_dataset, f"--eval_file={tmp_path / 'most.csv'}")
    losses = [log_loss(most[name], np.full(len(most), labelled[name].mean()), labels=[0, 1]) for name in LABELS]
    assert table["constant_log_loss"].tolist()[:6] == pytest.approx(losses)
    flags = [f"--ens_labels={small_dataset.folder / 'metadata.csv'}", "--ens_draws=100"]
    ensemble.main([str(tmp_path / "most.csv"), *flags, f"--ens_output={tmp_path / 'out.csv'}"])
    assert f"knows the prevalences of the {len(labelled)} labelled images" in capsys.readouterr().out


def test_the_worst_images_come_first(small_dataset, labelled, tmp_path) -> None:
    frame = make_up(labelled, 3, tmp_path / "mine.csv")
    image = labelled.index[labelled["any"] == 1][0]
    frame.loc[image, "any"] = 1e-9
    frame.to_csv(tmp_path / "mine.csv", float_format="%.17g")
    run(small_dataset, f"--eval_file={tmp_path / 'mine.csv'}")
    worst = pd.read_csv(tmp_path / "mine_evaluation_worst.csv", index_col="id")
    assert worst.index[0] == image
    assert worst.loc[image, ["any", "any_predicted"]].tolist() == [1, 1e-9]
    assert worst["log_loss"].is_monotonic_decreasing


def test_two_predictions_are_compared_over_the_same_patients(small_dataset, crowd, labelled, tmp_path, capsys) -> None:
    make_up(labelled, 5, tmp_path / "good.csv", seed=1)
    make_up(labelled, 1, tmp_path / "bad.csv", seed=2)
    run(small_dataset, f"--eval_file={tmp_path / 'good.csv'}", f"--eval_compare={tmp_path / 'bad.csv'}")
    assert f"no interval: {labelled['group_id'].nunique()} patients" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "good_evaluation_compared.csv")["verdict"].isna().all()
    run(crowd, f"--eval_file={tmp_path / 'good.csv'}", f"--eval_compare={tmp_path / 'bad.csv'}")
    rows = pd.read_csv(tmp_path / "good_evaluation_compared.csv").set_index(["label", "metric"])
    assert rows.loc[("weighted", "log_loss"), "verdict"] == "better"
    assert rows.loc[("any", "auroc"), "difference"] > 0
    text = capsys.readouterr().out
    assert "paired over patients" in text
    behind = rows.loc[("weighted", "log_loss")]
    assert f"better, 40 patients, {behind['positive_patients']} positive" in text
    assert "DeLong p = " in text
    run(crowd, f"--eval_file={tmp_path / 'good.csv'}", f"--eval_compare={tmp_path / 'good.csv'}")
    assert set(pd.read_csv(tmp_path / "good_evaluation_compared.csv")["verdict"].dropna()) == {"no difference shown"}


def test_predictions_of_other_images_are_not_compared(small_dataset, labelled, tmp_path, capsys) -> None:
    make_up(labelled, 5, tmp_path / "all.csv")
    make_up(labelled.iloc[1:], 5, tmp_path / "less.csv")
    flags = [*small_dataset.flags, f"--eval_file={tmp_path / 'all.csv'}", f"--eval_compare={tmp_path / 'less.csv'}"]
    text = failure(evaluate.main, flags, capsys, 1)
    assert f"no predictions for 1 of {len(labelled)} images ({labelled.index[0]})" in text
    assert not list(tmp_path.glob("*evaluation*"))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ((), "either --experiment_id or --eval_file"),
        (("--experiment_id=1", "--eval_file=x.csv"), "--experiment_id doesn't go with --eval_file"),
        (("--eval_file=x.csv",), "--eval_file needs --data_dataset"),
        (("--eval_file=x.csv", "--data_dataset=y", "--tta=train_demo.json"), "--tta doesn't go with --eval_file"),
        (("--eval_file=x.csv", "--data_dataset=y", "--net_weights=ema"), "--net_weights doesn't go with --eval_file"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, flags: tuple[str, ...], part: str) -> None:
    text = failure(evaluate.main, flags, capsys)
    assert part in text


def test_a_comparison_with_nothing_is_refused_before_the_work(small_dataset, labelled, tmp_path, capsys) -> None:
    make_up(labelled, 5, tmp_path / "all.csv")
    flags = [*small_dataset.flags, f"--output_dir={tmp_path}", f"--eval_file={tmp_path / 'all.csv'}"]
    text = failure(evaluate.main, [*flags, "--eval_compare=77"], capsys)
    assert "--eval_compare=77: no such experiment" in text
    assert not (tmp_path / "all_evaluation.csv").exists()


def test_strata_of_a_phantom_come_from_its_truth_file(small_dataset, labelled, tmp_path, capsys) -> None:
    make_up(labelled, 3, tmp_path / "mine.csv")
    run(small_dataset, f"--eval_file={tmp_path / 'mine.csv'}")
    truth = pd.read_csv(small_dataset.source / "phantom_truth.csv", index_col="id", keep_default_na=False)
    truth = truth.loc[labelled.index]
    strata = pd.DataFrame(json.loads((tmp_path / "mine_evaluation.json").read_text())["strata"])
    blood = strata[strata["stratum"] == "blood in the slice, mm3"].set_index("part")["images"]
    volume = truth[[f"{name}_mm3" for name in LABELS[:-1]]].astype(float).sum(axis=1)
    assert blood["none"] == (volume == 0).sum()
    assert blood.drop("none").sum() == (volume > 0).sum()
    assert len(blood) == 4
    mimics = strata[strata["stratum"] == "look-alikes of blood"].set_index("part")["images"]
    assert mimics["none"] == (truth["mimics"] == "").sum()
    assert "what is unusual about the file" in set(strata["stratum"])
    drawn = volume[volume > 0]
    parts = [tuple(map(float, part.split(" to "))) for part in blood.drop("none").index]
    ends = [end for part in sorted(parts) for end in part]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == pytest.approx((drawn.min(), drawn.max()), rel=1e-3)


def test_a_truth_file_that_is_none_or_of_other_images_is_refused(small_dataset, labelled, tmp_path, capsys) -> None:
    make_up(labelled, 3, tmp_path / "mine.csv")
    flags = [*small_dataset.flags, f"--eval_file={tmp_path / 'mine.csv'}"]
    text = failure(evaluate.main, [*flags, f"--eval_truth={tmp_path / 'mine.csv'}"], capsys)
    assert "not a phantom's truth file" in text
    other = pd.read_csv(small_dataset.source / "phantom_truth.csv").assign(id="ID_f")
    other.to_csv(tmp_path / "other.csv", index=False)
    text = failure(evaluate.main, [*flags, f"--eval_truth={tmp_path / 'other.csv'}"], capsys)
    assert "knows none of the images" in text


def test_a_label_that_no_threshold_separates_is_reported_all_the_same(small_dataset, labelled, tmp_path) -> None:
    """The highest score is a false positive: at 90 % specificity of a handful of negatives no threshold is left."""
    few = pd.concat([labelled[labelled["any"] == 0].head(3), labelled[labelled["any"] == 1].head(5)])
    frame = make_up(few, 3, tmp_path / "few.csv")
    frame["any"] = np.where(few["any"] == 1, 0.2, 0.9)
    frame.to_csv(tmp_path / "few.csv")
    run(small_dataset, f"--eval_file={tmp_path / 'few.csv'}")
    document = json.loads((tmp_path / "few_evaluation.json").read_text())
    points = [row for row in document["operating_points"]["slice_level"] if row["label"] == "any"]
    assert points[0]["threshold"] is None
    assert points[0]["value"] == 0
    assert (tmp_path / "few_evaluation.html").is_file()


def test_a_threshold_in_the_json_flags_the_share_that_it_is_said_to_hold(small_dataset, labelled, tmp_path) -> None:
    frame = make_up(labelled, 3, tmp_path / "mine.csv")
    run(small_dataset, f"--eval_file={tmp_path / 'mine.csv'}")
    document = json.loads((tmp_path / "mine_evaluation.json").read_text())
    points = document["operating_points"]["slice_level"]
    assert len(points) == 4 * len(LABELS)
    for point in points:
        scores, truth = frame[point["label"]].to_numpy(), labelled[point["label"]].to_numpy() == 1
        flagged = scores >= point["threshold"]
        shares = {"sensitivity": flagged[truth].mean(), "specificity": (~flagged[~truth]).mean()}
        assert shares.pop(point["fixed"]) >= point["at"] - 1e-9
        assert list(shares.values()) == pytest.approx([point["value"]], abs=1e-12)


def test_images_in_no_fold_say_by_how_much_the_best_of_validations_flatters(labelled, tmp_path) -> None:
    assert "predict.py --split=holdout says by how much" in describe_flattery(tmp_path)
    alone = [make_up(labelled, 3, tmp_path / f"{seed}.csv", seed) for seed in (1, 2)]
    said = write_flattery(tmp_path, [(frame.iloc[::-1], None) for frame in alone], labelled, 0.25)
    weights = [1, 1, 1, 1, 1, 2]
    each = [np.average([log_loss(labelled[name], frame[name]) for name in LABELS], weights=weights) for frame in alone]
    mean, patients = np.mean(each), labelled["group_id"].nunique()
    assert said.endswith(
        f"0.25000 here, and on the {len(labelled)} images in no fold ({patients} patients) each of the 2 models alone "
        f"scores {mean:.5f} ({mean - 0.25:+.5f})"
    )
    assert describe_flattery(tmp_path) == said
    (tmp_path / "flattery.json").write_text("[")
    assert "predict.py --split=holdout says by how much" in describe_flattery(tmp_path)
