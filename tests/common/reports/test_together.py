"""Reports of what was put together: a cross-validation, an ensemble, a second level."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ensemble
import report
import second_level
import train
from common.cli.arguments import from_dict
from common.evaluation.metrics import constant_predictor
from common.experiments.folder import add_to_history, experiment_options
from common.reports.record import read_record, write_status
from common.reports.together import describe_only_member, spread
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.judging.evaluation import labelled_rows
from rsna.judging.report_pictures import heat_pictures
from rsna.judging.reports import write_report
from rsna.training.outcome import holds_out_folds
from rsna_dataset import LABEL_WEIGHTS, LABELS, read_metadata
from tests.common.reports.test_page import check
from tests.common.reports.test_record import experiment
from tests.conftest import SmallDataset

PREDICTIONS = "predictions_oof.csv"


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """A folder of results with the cross-validation ``cv``, without its reports."""
    shutil.copytree(finished, tmp_path / "cv")
    return tmp_path


def rebuilt(results: Path, name: str) -> str:
    report.main([f"--output_dir={results}", f"--experiment_id={name}"])
    page = (results / name / "report.html").read_text()
    check(page)
    return page


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>([^<]+)", page)


def weighted_loss(frame: pd.DataFrame, dataset: SmallDataset) -> float:
    truth = read_metadata(dataset.folder).loc[frame.index, list(LABELS)].to_numpy(dtype=float)
    values = frame[list(LABELS)].to_numpy()
    return float(-np.where(truth == 1, np.log(values), np.log1p(-values)).mean(axis=0) @ [1, 1, 1, 1, 1, 2] / 7)


def test_a_cross_validation_is_judged_by_all_that_its_folds_held_out(
    results: Path, small_dataset: SmallDataset
) -> None:
    page = unescape(rebuilt(results, "cv"))
    assert headings(page)[:6] == ["Verdict", "Folds", "Curves", "Labels", "Ranking", "Calibration"]
    frame = read_predictions(results / "cv" / PREDICTIONS)
    assert f'<p class="big">{weighted_loss(frame, small_dataset):.4f}</p>' in page
    patients = read_metadata(small_dataset.folder).loc[frame.index, "group_id"].nunique()
    assert f"No interval: {patients} patients, and an interval needs 20.<" in page
    constant = json.loads((results / "cv" / "cross_validation.json").read_text())["constant_log_loss"]
    assert f"The constant predictor scores {constant:.4f}" in page
    assert f"--config={results / 'cv' / 'config.yaml'} --experiment_id=cv_again" in page


def test_a_cross_validation_that_was_prolonged_before_its_end_is_done_again_as_its_folds_were(
    results: Path,
) -> None:
    folder = results / "cv"
    options = experiment_options(folder)
    longer = options | {"tr_iteration_num": 2 * int(options["tr_iteration_num"])}
    add_to_history(folder, ["python", "train.py"], 0, longer)
    page = unescape(rebuilt(results, "cv"))
    again = page[page.index("Do it again") :].partition("</pre>")[0].splitlines()
    assert again[-2] == "# stop it (Ctrl-C) where the reports of its folds say, then"
    assert f"--tr_iteration_num={options['tr_iteration_num']}" in again[-3]
    assert again[-1] == f"python train.py --tr_resume=cv_again --tr_iteration_num={longer['tr_iteration_num']}"


def test_its_folds_stand_in_a_table_with_their_spread_and_links_to_the_reports_that_there_are(results: Path) -> None:
    write_report(results / "cv" / "fold_1")
    page = write_report(results / "cv").read_text()
    assert re.findall(r'href="(?!data:|#)([^"]+)"', page) == ["../leaderboard.html", "fold_1/report.html"]
    fold = (results / "cv" / "fold_1" / "report.html").read_text()
    assert re.findall(r'href="(?!data:|#)([^"]+)"', fold) == ["../../leaderboard.html", "../report.html"]
    page = rebuilt(results, "cv")
    assert re.findall(r'href="(?!data:|#)([^"]+)"', page)[1:] == [f"fold_{fold}/report.html" for fold in range(3)]
    assert all((results / "cv" / f"fold_{fold}" / "report.html").is_file() for fold in range(3))
    document = json.loads((results / "cv" / "cross_validation.json").read_text())
    for fact in document["folds"]:
        row = re.search(rf">fold_{fact['fold']}(?:</a>)?</th>(.*?)</tr>", page).group(1)
        cells = re.findall(r"<td>([^<]*)", row)
        assert cells[:3] == ["finished", f"{fact['weighted_log_loss']:.4f}", f"{fact['constant_log_loss']:.4f}"]
        assert cells[5:7] == [f"{fact['images']:,}", f"{fact['patients']:,}"]
    assert f"<td>{document['mean']:.4f} ± {document['sd']:.4f}</td>" in page
    any_losses = [fact["log_loss/any"] for fact in document["folds"]]
    assert f"<td>{np.mean(any_losses):.4f} ± {np.std(any_losses, ddof=1):.4f}</td>" in page


def test_heat_is_that_of_the_network_that_held_the_image_out(results: Path) -> None:
    config = from_dict(TrainConfig, read_record(results / "cv").config)
    own = {fold: read_predictions(results / "cv" / f"fold_{fold}" / "predictions_valid.csv")[:2] for fold in range(3)}
    chosen = pd.concat(own.values()).assign(any=0.9)
    folders = {fold: results / "cv" / f"fold_{fold}" for fold in own}
    together, note = heat_pictures(config, chosen, list(folders.values()))
    assert note.startswith("Heat: ")
    assert sorted(together) == sorted(chosen.index)
    same = []
    for fold, rows in own.items():
        alone, _ = heat_pictures(config, chosen, [folders[fold]])
        assert sorted(alone) == sorted(rows.index)
        same.append(all(np.array_equal(alone[name], together[name]) for name in rows.index))
    assert any(same)  # of the network whose heat is highest, which sets the scale of all
    plain, note = heat_pictures(config, chosen.assign(any=0.4), list(folders.values()))
    assert note == "No heat: no slice here has any of 0.50 or more."
    assert all(np.ptp(picture, axis=2).max() == 0 for picture in plain.values())


def test_an_unfinished_one_is_reported_with_the_folds_that_there_are(results: Path) -> None:
    for name in (PREDICTIONS, "cross_validation.json", "metrics.jsonl"):
        (results / "cv" / name).unlink()
    shutil.rmtree(results / "cv" / "fold_2")
    write_status(results / "cv", "failed")
    write_status(results / "cv" / "fold_1", "failed")
    page = rebuilt(results, "cv")
    assert '<p class="big">failed</p>' in page
    assert "There are no predictions." in page
    assert re.search(r">fold_1</a></th><td>failed</td>", page)
    assert "fold_2" not in page


def test_one_of_which_no_fold_began_is_reported_too(results: Path) -> None:
    for name in (PREDICTIONS, "cross_validation.json", "metrics.jsonl"):
        (results / "cv" / name).unlink()
    for folder in (results / "cv").glob("fold_*"):
        shutil.rmtree(folder)
    assert "None has begun." in rebuilt(results, "cv")


def test_train_py_writes_it_when_the_folds_are_together_and_not_where_reports_are_off(results: Path) -> None:
    place = ["--tr_resume=cv", f"--output_dir={results}"]
    train.main(place)
    assert not (results / "cv" / "report.html").exists()  # the cross-validation has --tr_report=0
    train.main([*place, "--tr_report=1"])
    assert "Folds" in headings((results / "cv" / "report.html").read_text())
    assert (results / "leaderboard.html").is_file()


@pytest.mark.slow
def test_one_of_which_a_fold_fails_leaves_a_report_of_the_others(results: Path) -> None:
    for name in (PREDICTIONS, "cross_validation.json", "metrics.jsonl", "fold_1/predictions_valid.csv"):
        (results / "cv" / name).unlink()
    write_status(results / "cv" / "fold_1", "failed")
    for name in ("last.pt", "previous.pt"):
        (results / "cv" / "fold_1" / name).write_bytes(b"damaged")
    with pytest.raises(SystemExit) as caught:
        train.main(["--tr_resume=cv", f"--output_dir={results}", "--tr_report=1"])
    assert caught.value.code == 1
    page = (results / "cv" / "report.html").read_text()
    check(page)
    assert '<p class="big">failed</p>' in page
    assert re.search(r">fold_0(</a>)?</th><td>finished</td>", page)
    assert re.search(r">fold_1(</a>)?</th><td>failed</td>", page)


def test_an_ensemble_has_a_report_with_its_members_and_its_place_on_the_leaderboard(
    results: Path, small_dataset: SmallDataset, capsys
) -> None:
    shutil.copytree(results / "cv", results / "other")
    frame = read_predictions(results / "other" / PREDICTIONS)
    (frame * 0.5 + 0.1).to_csv(results / "other" / PREDICTIONS, float_format="%.17g")
    report.main([f"--output_dir={results}", "--experiment_id=other"])
    weights = ["--weights=3,1", "--ens_draws=100"]
    folder = ensemble.main(["cv", "other", f"--output_dir={results}", "--experiment_id=both", *weights])
    told = capsys.readouterr().err.splitlines()
    assert {f"report       {folder / 'report.html'}", f"leaderboard  {results / 'leaderboard.html'}"} <= set(told)
    twin = ensemble.main(["cv", "other", f"--output_dir={results}", "--weights=1,0", "--ens_draws=100"]) / "report.html"
    page = (folder / "report.html").read_text()
    check(page)
    assert headings(page)[:4] == ["Verdict", "Members", "What the networks learnt from", "Labels"]
    value = weighted_loss(read_predictions(folder / PREDICTIONS), small_dataset)
    assert f'<p class="big">{value:.4f}</p>' in page
    assert '<a href="../other/report.html">other</a>' in page
    # the other images are fewer than those predicted: the prevalences are all labelled images'
    rows = labelled_rows(small_dataset.folder)
    known = rows.loc[rows.index.intersection(frame.index), list(LABELS)]
    constant = constant_predictor(rows[list(LABELS)].mean().to_numpy(), known.to_numpy(), LABEL_WEIGHTS)
    assert f"The constant predictor scores {constant:.4f}" in page
    assert "Level with experiment cv: the best other one, cv, has" in unescape(twin.read_text())
    assert re.search(r">cv</th><td>[\d.]+</td><td>0.7500</td>", page)
    assert "ensemble.py cv other" in unescape(page)
    assert "--experiment_id=both_again" in page
    assert rebuilt(results, "both") == page
    table = pd.read_csv(results / "leaderboard.csv", index_col="experiment")
    assert table.loc["both", "weighted_log_loss"] == pytest.approx(value, abs=1e-12)
    assert read_record(folder).status == "finished"
    # A member's file was changed by hand: nobody knows any more what made it, nor what the ensemble learnt from.
    unknown = "other/predictions_oof.csv, which changed since it was written"
    assert page.count(unknown) >= 2
    marked = table["unknown_lineage"].dropna()
    assert marked.to_dict() == dict.fromkeys(["both", "other", twin.parent.name], unknown)


def test_an_ensemble_of_files_without_labels_has_a_report_that_says_so(results: Path) -> None:
    files = []
    for name in "ab":
        files.append(str(results / f"{name}.csv"))
        shutil.copy(results / "cv" / PREDICTIONS, files[-1])
    folder = ensemble.main([*files, f"--output_dir={results}"])
    page = (folder / "report.html").read_text()
    check(page)
    assert "There is no evaluation: the experiment names no dataset that has labels" in page
    assert files[0] in page


def test_a_second_level_has_a_report_with_its_members(results: Path) -> None:
    options = ["--level_trees=2", "--level_draws=100", "--experiment_id=level"]
    folder = second_level.main(["cv", f"--output_dir={results}", *options])
    page = (folder / "report.html").read_text()
    check(page)
    assert headings(page)[:3] == ["Verdict", "Members", "Labels"]
    assert "second_level.py cv" in unescape(page)
    assert "level_trees" in page[page.index("What differs from the defaults") : page.index("All options")]


@pytest.mark.parametrize(("text", "several"), [("all", True), ("0,2", True), ("3", False), ("holdout", False)])
def test_a_run_that_validates_on_the_holdout_is_no_cross_validation(text: str, several: bool, tmp_path: Path) -> None:
    assert holds_out_folds(read_record(experiment(tmp_path / "1", config=f'data_fold: "{text}"\n')).config) is several


def test_an_ensemble_that_is_one_member_is_called_so() -> None:
    assert describe_only_member({}) == describe_only_member({"a": 0.5, "b": 0.5}) == ""
    assert describe_only_member({"a": 0.999, "b": 0.001}) == ""
    assert describe_only_member({"a": 0.0, "b": 1.0}) == "All weight is on b: the ensemble is this member alone."
    assert describe_only_member({"a": -1.0, "b": 1.0}) == ""
    assert describe_only_member({"a": 1.0}) == "a is the only member: nothing is averaged."


def test_the_spread_is_that_of_known_values_with_n_minus_one() -> None:
    assert spread([1.0, float("nan"), 3.0]) == f"2.0000 ± {np.std([1, 3], ddof=1):.4f}"
    assert spread([0.5]) == "0.5000"
    assert spread([]) == "–"
