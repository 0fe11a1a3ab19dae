"""Tests of common/evaluation/reader.py, against scikit-learn, numbers by hand and samples drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from common.evaluation.reader import (
    ReaderStudy,
    by_group,
    calibration_table,
    compare_areas,
    comparison,
    strata_table,
)
from common.evaluation.resampling import PatientBootstrap

NAMES = ("first", "any")
WEIGHTS = (1, 2)
SCALE = np.array([1, 2]) / 3
PATIENTS = np.arange(400) // 8


def predictions(seed: int = 0, skill: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    targets = (random.random((400, 2)) < (0.2, 0.4)).astype(float)
    noise = np.random.default_rng(seed).normal(size=(400, 2))
    return 1 / (1 + np.exp(-(skill * (targets - 0.5) + noise))), targets


def study(seed: int = 0, skill: float = 2.0, draws: int = 300) -> ReaderStudy:
    values, targets = predictions(seed, skill)
    return ReaderStudy(values, targets, PatientBootstrap(PATIENTS, draws, 5), NAMES, WEIGHTS)


def test_every_metric_is_scikit_learns() -> None:
    values, targets = predictions()
    table = study().intervals()
    for c, name in enumerate(NAMES):
        assert table.loc[name, "log_loss"] == pytest.approx(log_loss(targets[:, c], values[:, c]), abs=1e-12)
        assert table.loc[name, "brier"] == pytest.approx(brier_score_loss(targets[:, c], values[:, c]), abs=1e-12)
        assert table.loc[name, "auroc"] == pytest.approx(roc_auc_score(targets[:, c], values[:, c]), abs=1e-12)
    for metric in ("log_loss", "brier", "auroc", "average_precision", "calibration_error"):
        assert table.loc["weighted", metric] == pytest.approx(SCALE @ table.loc[list(NAMES), metric], abs=1e-12)
        assert (table[f"{metric}_low"] < table[metric]).all() or metric == "calibration_error"
        assert (table[metric] < table[f"{metric}_high"]).all()


def test_the_draws_are_those_of_patients_drawn_one_by_one() -> None:
    values, targets = predictions()
    found = study(draws=20).samples
    random = np.random.default_rng(5)
    for draw, drawn in enumerate(random.integers(0, 50, (20, 50))):
        rows = np.concatenate([np.flatnonzero(patient == PATIENTS) for patient in drawn])
        for c, name in enumerate(NAMES):
            truth, scores = targets[rows, c], values[rows, c]
            assert found["log_loss"][name].draws[draw] == pytest.approx(log_loss(truth, scores), abs=1e-12)
            assert found["auroc"][name].draws[draw] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_operating_points_by_hand() -> None:
    """Ten negatives at 0.0 to 0.9, positives at 0.85, 0.95 and 0.2."""
    scores = np.append(np.arange(10) / 10, [0.85, 0.95, 0.2])[:, None]
    targets = np.append(np.zeros(10), np.ones(3))[:, None]
    points = ReaderStudy(scores, targets, PatientBootstrap(np.arange(13), 100), ("any",), (1,)).operating_points()
    rows = points.set_index(["fixed", "at"])
    # One negative of ten may lie above: 0.9, so that the threshold is 0.85 and two of three positives are found.
    assert rows.loc[("specificity", 0.90), ["threshold", "value"]].tolist() == pytest.approx([0.85, 2 / 3])
    assert rows.loc[("specificity", 0.95), ["threshold", "value"]].tolist() == pytest.approx([0.95, 1 / 3])
    # Nine tenths of three positives are all of them: the threshold is 0.2, with two negatives below.
    assert rows.loc[("sensitivity", 0.90), ["threshold", "value"]].tolist() == pytest.approx([0.2, 0.2])


def test_the_net_benefit_by_hand() -> None:
    scores, targets = np.array([[0.6], [0.15], [0.05], [0.3]]), np.array([[1.0], [0.0], [0.0], [0.0]])
    curve = ReaderStudy(scores, targets, PatientBootstrap(range(4), 100), ("any",), (1,)).decision_curve()
    row = curve.set_index("threshold").loc[0.1]
    assert row["model"] == pytest.approx(1 / 4 - 2 / 4 * (0.1 / 0.9))
    assert row["everyone"] == pytest.approx(1 / 4 - 3 / 4 * (0.1 / 0.9))


def test_a_better_model_is_told_from_a_worse_one_and_from_itself() -> None:
    better, worse = study(1, 3.0), study(1, 1.0)
    said = comparison(better, worse).set_index(["label", "metric"])["verdict"]
    assert (said.xs("auroc", level="metric") == "better").all()
    assert (said.xs("log_loss", level="metric") == "better").all()
    assert set(comparison(worse, worse)["verdict"]) == {"no difference shown"}
    assert comparison(worse, better).set_index(["label", "metric"])["verdict"][("weighted", "brier")] == "worse"


def test_slices_become_studies_by_their_highest_value() -> None:
    values = by_group(np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]]), ["b", "b", "a"])
    np.testing.assert_array_equal(values, [[0.3, 0.3], [0.5, 0.9]])


def test_labels_that_cannot_be_tested_have_no_row() -> None:
    values, targets = predictions()
    targets[:, 0] = 0
    assert compare_areas(values, values, targets, NAMES)["label"].tolist() == ["any"]


def test_a_label_with_one_class_only_has_no_ranking_and_the_rest_goes_on() -> None:
    values, targets = predictions()
    targets[:, 0] = 0
    one = ReaderStudy(values, targets, PatientBootstrap(PATIENTS, 100), NAMES, WEIGHTS)
    table = one.intervals()
    assert np.isnan(table.loc["first", ["auroc", "auroc_low"]].astype(float)).all()
    assert table.loc["any", "auroc_low"] < table.loc["any", "auroc"]
    assert set(one.operating_points()["label"]) == {"any"}
    assert one.binning_errors()["auroc"] < 1e-12


def test_strata_are_parts_of_the_whole() -> None:
    one = study()
    part = np.where(np.arange(400) < 100, "early", "late")
    table = strata_table(one, {"place": part}).set_index("part")
    assert table["images"].to_dict() == {"early": 100, "late": 300}
    pooled = (table["log_loss"] * table["images"]).sum() / 400
    assert pooled == pytest.approx(one.samples["log_loss"]["weighted"].value, abs=1e-12)
    assert (table["low"] < table["log_loss"]).all()


def test_calibration_is_shown_before_and_after() -> None:
    values, targets = predictions(skill=2.0)
    extreme = values**4 / (values**4 + (1 - values) ** 4)
    table = calibration_table(extreme, targets, PATIENTS, NAMES, WEIGHTS)
    assert table.loc["weighted", "log_loss"] == pytest.approx(
        SCALE @ [log_loss(targets[:, c], extreme[:, c]) for c in range(2)], abs=1e-12
    )
    for method in ("temperature", "isotonic"):
        assert table.loc["weighted", f"log_loss_{method}"] < table.loc["weighted", "log_loss"]
        assert table.loc["weighted", f"calibration_error_{method}"] < table.loc["weighted", "calibration_error"]
