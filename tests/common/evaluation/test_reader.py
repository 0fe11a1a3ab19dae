"""Tests of common/evaluation/reader.py, against scikit-learn, numbers by hand and samples drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from common.evaluation.delong import delong_test
from common.evaluation.metrics import by_group
from common.evaluation.reader import ReaderStudy, calibration_table, compare_areas, comparison, strata_table
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


def test_each_label_is_judged_by_the_images_that_have_it_as_if_there_were_no_others() -> None:
    values, targets = predictions()
    missing = np.random.default_rng(3).random(targets.shape) < (0.3, 0.6)
    missing[::8] = False  # each patient has each label, so that the draws are the same
    masked = np.where(missing, np.nan, targets)
    found = ReaderStudy(values, masked, PatientBootstrap(PATIENTS, 200, 5), NAMES, WEIGHTS)
    table, points, curve = found.intervals(), found.operating_points(), found.decision_curve()
    maps = calibration_table(values, masked, PATIENTS, NAMES, WEIGHTS)
    tests = compare_areas(values, values**2, masked, PATIENTS, NAMES).set_index("label")
    weights = 0.0
    for c, name in enumerate(NAMES):
        rows = ~missing[:, c]
        both = (values[rows][:, [c, c]], targets[rows][:, [c, c]])
        alone = ReaderStudy(*both, PatientBootstrap(PATIENTS[rows], 200, 5), NAMES, WEIGHTS)
        for wanted, given in (
            (alone.intervals(), table),
            (calibration_table(*both, PATIENTS[rows], NAMES, WEIGHTS), maps),
        ):
            for column in wanted.columns.difference(["no_interval"]):
                assert given.loc[name, column] == pytest.approx(wanted.loc["first", column], abs=1e-9), column
        for wanted, given in ((alone.operating_points(), points), (alone.decision_curve(), curve)):
            numbers = given[given["label"] == name].drop(columns=["label", "fixed"], errors="ignore").astype(float)
            expected = (
                wanted[wanted["label"] == "first"].drop(columns=["label", "fixed"], errors="ignore").astype(float)
            )
            np.testing.assert_allclose(numbers, expected, atol=1e-9)
        assert tests.loc[name, "p_value"] == pytest.approx(
            compare_areas(both[0], both[0] ** 2, both[1], PATIENTS[rows], NAMES)["p_value"][0]
        )
        weights += WEIGHTS[c] * rows.sum()
    total = sum(WEIGHTS[c] * (~missing[:, c]).sum() * table.loc[name, "log_loss"] for c, name in enumerate(NAMES))
    assert table.loc["weighted", "log_loss"] == pytest.approx(total / weights, rel=1e-12)
    strata = strata_table(found, {"half": np.arange(400) % 2}).set_index("part")
    images = strata["images"].sum()
    assert images == (~missing).any(axis=1).sum()


def test_patients_without_the_label_change_no_interval_of_a_mean() -> None:
    values, targets = predictions()
    rows = PATIENTS < 40
    masked = np.where(rows[:, None], targets, np.nan)
    found, alone = (
        ReaderStudy(*data, PatientBootstrap(owners, 20), NAMES, WEIGHTS).intervals()
        for *data, owners in ((values, masked, PATIENTS), (values[rows], targets[rows], PATIENTS[rows]))
    )
    for metric in ("log_loss", "brier"):
        for end in ("", "_low", "_high"):
            np.testing.assert_allclose(found[metric + end], alone[metric + end], rtol=1e-10)
    assert (found["patients"] == 40).all()


def test_a_label_that_nobody_gave_has_no_value_and_says_why() -> None:
    values, targets = predictions()
    targets[:, 0] = np.nan
    found = ReaderStudy(values, targets, PatientBootstrap(PATIENTS, 50), NAMES, WEIGHTS)
    table = found.intervals()
    assert table.loc["first", ["log_loss", "log_loss_low", "auroc", "calibration_error"]].isna().all()
    assert table.loc["first", "no_interval"] == "nobody labelled it"
    assert table.loc["weighted", "log_loss"] == table.loc["any", "log_loss"]
    assert np.isnan(table.loc["weighted", "auroc"])
    assert set(found.operating_points()["label"]) == set(found.decision_curve()["label"]) == {"any"}


def test_parts_and_rest_make_the_metrics_of_patients_drawn_one_by_one() -> None:
    values, targets = predictions()
    found = study(draws=20).samples
    random = np.random.default_rng(5)
    for draw, drawn in enumerate(random.integers(0, 50, (20, 50))):
        rows = np.concatenate([np.flatnonzero(patient == PATIENTS) for patient in drawn])
        for c, name in enumerate(NAMES):
            truth, scores = targets[rows, c], values[rows, c]
            for metric, exact in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
                item = found[metric][name]
                assert item.value + item.parts[drawn].sum() + item.rest[draw] == pytest.approx(exact(truth, scores))
            item, place = found["calibration_error"][name], np.minimum((scores * 15).astype(int), 14)
            error = np.abs(np.bincount(place, scores - truth)).sum() / len(rows)
            assert item.value + item.parts[drawn].sum() + item.rest[draw] == pytest.approx(error)


def test_a_patients_part_is_how_far_its_weight_moves_the_metric() -> None:
    """The slope by scikit-learn with the patient's images weighted a millionth more."""
    values, targets = predictions()
    found = study(draws=20).samples
    for c, name in enumerate(NAMES):
        for metric, exact in (
            ("log_loss", log_loss),
            ("brier", brier_score_loss),
            ("auroc", roc_auc_score),
            ("average_precision", average_precision_score),
        ):
            for patient in (0, 17, 49):
                weight = 1 + 1e-6 * (patient == PATIENTS)
                moved = exact(targets[:, c], values[:, c], sample_weight=weight) - exact(targets[:, c], values[:, c])
                assert found[metric][name].parts[patient] == pytest.approx(1e6 * moved, rel=1e-3, abs=1e-6)
            assert found[metric][name].parts.sum() == pytest.approx(0, abs=1e-12)


def test_the_error_of_an_auroc_is_delongs() -> None:
    """One image of each patient: the difference from a score that tells nothing has the same error."""
    values, targets = predictions()
    one = ReaderStudy(values, targets, PatientBootstrap(np.arange(400), 20), NAMES, WEIGHTS)
    error = delong_test(values[:, 1], np.zeros(400), targets[:, 1]).standard_error
    parts = one.samples["auroc"]["any"].parts
    assert np.sqrt(parts @ parts) == pytest.approx(error, rel=0.01)


def test_an_aurocs_interval_is_wilsons_with_the_error_of_leaving_each_patient_out() -> None:
    values, targets = predictions()
    one = study()
    areas = {}
    for c, name in enumerate(NAMES):
        whole = roc_auc_score(targets[:, c], values[:, c])
        without = [roc_auc_score(targets[p != PATIENTS, c], values[p != PATIENTS, c]) - whole for p in range(50)]
        areas[name] = whole, np.array(without)
    areas["weighted"] = tuple(SCALE @ [areas[name][part] for name in NAMES] for part in (0, 1))
    table = one.intervals()
    for name, (area, without) in areas.items():
        error, freedom = np.sqrt(without @ without), one.samples["auroc"][name].evidence.freedom
        times = stats.t.ppf(0.975, freedom)
        cases = area * (1 - area) / error**2 / times**2 * stats.norm.ppf(0.975) ** 2  # as many have this error
        doubt = stats.norm.ppf(0.975) ** 2 / cases
        half = np.sqrt(doubt * area * (1 - area) + doubt**2 / 4) / (1 + doubt)
        centre = (area + doubt / 2) / (1 + doubt)
        assert table.loc[name, ["auroc_low", "auroc_high"]].tolist() == pytest.approx(
            [centre - half, centre + half], abs=2e-3
        )


def test_a_perfect_model_is_no_surer_of_all_labels_together_than_of_each() -> None:
    targets = predictions()[1]
    perfect = ReaderStudy(0.1 + 0.8 * targets, targets, PatientBootstrap(PATIENTS, 50, 5), NAMES, (1, 5))
    table = perfect.intervals()
    assert (table["auroc"] == 1).all()
    assert table.loc["weighted", "auroc_low"] == pytest.approx(table["auroc_low"].min())
    assert table.loc["weighted", "auroc_low"] < 0.99


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
    assert curve[["model_low", "everyone_high"]].isna().all(axis=None)
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


@pytest.mark.parametrize(("positive", "verdict"), [(5, "no difference shown"), (30, "better")])
def test_a_difference_whose_error_nobody_can_see_is_as_sure_as_the_two_values_are(positive: int, verdict: str) -> None:
    """A perfect model against a constant one: every patient agrees, so that the difference's own interval had no width.

    At five positive patients it was called better, where a sign test (and DeLong's here) has p = 0.06.
    """
    truth = np.zeros((60, 1))
    truth[:positive] = 1
    perfect, constant = (
        ReaderStudy(scores, truth, PatientBootstrap(np.arange(60), 50, 0), ("any",), (1,))
        for scores in (0.2 + 0.6 * truth, np.full((60, 1), 0.5))
    )
    row = comparison(perfect, constant).query("label == 'any' and metric == 'auroc'").iloc[0]
    assert row["difference"] == pytest.approx(0.5)
    assert row["low"] < row["difference"] - 0.01
    assert row["verdict"] == verdict


def test_a_change_of_a_weighted_metric_has_the_evidence_of_the_rarest_labels_patients() -> None:
    better, worse = study(1, 3.0), study(1, 1.0)
    found = comparison(better, worse).set_index(["label", "metric"]).loc["weighted"]
    rarest = min((better.evidence[name] for name in NAMES), key=lambda item: item.effective)
    for metric in ("auroc", "average_precision", "calibration_error"):
        one, other = (item.samples[metric]["weighted"] for item in (better, worse))
        ends = rarest.change_interval(one.value - other.value, one.parts - other.parts, one.rest - other.rest)
        assert found.loc[metric, ["low", "high"]].tolist() == pytest.approx(ends)


def test_slices_become_studies_by_their_highest_value() -> None:
    values = by_group(np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]]), ["b", "b", "a"])
    np.testing.assert_array_equal(values, [[0.3, 0.3], [0.5, 0.9]])


def test_labels_that_cannot_be_tested_have_no_row() -> None:
    values, targets = predictions()
    targets[:, 0] = 0
    assert compare_areas(values, values, targets, PATIENTS, NAMES)["label"].tolist() == ["any"]


def test_the_net_benefits_have_the_intervals_of_a_mean() -> None:
    """Each patient with one image: Student's interval of scipy, with other degrees of freedom."""
    values, targets = predictions()
    one = ReaderStudy(values, targets, PatientBootstrap(np.arange(400), 4000), NAMES, WEIGHTS)
    row = one.decision_curve().set_index(["label", "threshold"]).loc[("any", 0.3)]
    gains = np.where(values[:, 1] >= 0.3, np.where(targets[:, 1] == 1, 1, -3 / 7), 0.0)
    low, high = stats.t.interval(0.95, 399, gains.mean(), stats.sem(gains))
    assert row[["model", "model_low", "model_high"]].tolist() == pytest.approx([gains.mean(), low, high], abs=0.005)


def test_the_calibration_error_by_hand() -> None:
    """Two images at 0.05 and 0.06 of which one is positive, one at 0.5 and one at 1 that are: (0.89 + 0.5 + 0) / 4."""
    values, targets = np.array([[0.05], [0.06], [0.5], [1.0]]), np.array([[0.0], [1.0], [1.0], [1.0]])
    one = ReaderStudy(values, targets, PatientBootstrap(range(4), 100), ("any",), (1,))
    assert one.samples["calibration_error"]["any"].value == pytest.approx((0.89 + 0.5) / 4)


@pytest.mark.parametrize(("patients", "positive"), [(1, 1), (12, 6), (60, 3)])
def test_too_few_patients_give_no_interval_and_no_better_model(patients: int, positive: int) -> None:
    """One patient's bootstrap draws nobody else: an interval of width 0 made the first model better for sure."""
    owner = np.arange(patients).repeat(30)
    targets = np.column_stack([(np.arange(30 * patients) % 30 < 10) & (owner < positive)] * 2).astype(float)
    noise = np.random.default_rng(1).normal(size=targets.shape)
    values = [1 / (1 + np.exp(-skill * (targets - 0.5) - noise)) for skill in (6.0, 0.5)]
    bootstrap = PatientBootstrap(owner, 300)
    good, bad = (ReaderStudy(part, targets, bootstrap, NAMES, WEIGHTS) for part in values)
    table = good.intervals()
    assert table.filter(regex="_(low|high)$").isna().all(axis=None)
    assert set(table["no_interval"]) == {bootstrap.evidence(targets[:, 0] == 1).reason}
    found = comparison(good, bad)
    assert set(found["verdict"]) == {""}
    assert found["no_interval"].str.contains("an interval needs").all()
    assert (found["difference"].abs() > 0).all()
    assert compare_areas(values[0], values[1], targets, owner, NAMES).empty
    assert good.decision_curve()["model_low"].isna().all()
    assert good.operating_points()["low"].isna().all()


def test_the_calibration_errors_interval_holds_the_truth_where_chance_is_most_of_it() -> None:
    """A perfectly calibrated model: the truth is 0, and each sample's error is chance, the draws' twice as much."""
    held, seen = 0, 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        values = 1 / (1 + np.exp(-random.normal(-1, 1.5, (300, 1))))
        targets = (random.random((300, 1)) < values).astype(float)
        item = ReaderStudy(values, targets, PatientBootstrap(np.arange(300) // 5, 200), ("any",), (1,))
        low, high = item.samples["calibration_error"]["any"].ends
        sample = item.samples["calibration_error"]["any"]
        assert low <= sample.value <= high
        held += low < 0.01
        draws = sample.value + sample.rest + item.bootstrap.totals(sample.parts[:, None])[:, 0]
        seen += np.quantile(draws, 0.025) < 0.01
    assert held >= 54
    assert seen < 10


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
    assert (table["low"].dropna() < table["log_loss"]["late"]).all()
    assert table["no_interval"].to_dict() == {"early": "13 patients, and an interval needs 20", "late": ""}
    assert np.isnan(table.loc["early", "low"])
    assert table["patients"].to_dict() == {"early": 13, "late": 38}


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
