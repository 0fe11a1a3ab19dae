"""report.py: a report of every run, however it ended, with the numbers of its own predictions."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import report
import train
from common.checkpoint import load_checkpoint, save_checkpoint
from common.evaluation.metrics import constant_predictor
from common.reports.leaderboard import update_leaderboard
from common.reports.page import tiles
from common.reports.record import read_record
from common.trackers.jsonl import JsonlTracker
from rsna.judging.evaluation import evaluate_predictions, loss_change
from rsna.judging.report_pictures import PICTURES_EACH, TILE
from rsna.judging.reports import keep_judgement, links_of, write_report
from rsna.training.lineage import checkpoint_lineage
from rsna_dataset import LABEL_WEIGHTS, LABELS, read_fold
from tests.browser import BROWSER
from tests.common.reports.test_leaderboard import driven
from tests.common.reports.test_page import check
from tests.common.reports.test_record import experiment, point
from tests.runs import failure

METRIC = "weighted_log_loss"
SMALL = [
    "--net_model=resnet10t",
    "--data_image_size=32",
    "--tr_batch_size=8",
    "--tr_iteration_num=4",
    "--tr_iteration_valid=4",
    "--tr_iteration_log=2",
    "--n_jobs=1",
]


@dataclass(frozen=True)
class Reported:
    folder: Path
    flags: list[str]
    page: str


@pytest.fixture(scope="module")
def reported(small_dataset, tmp_path_factory) -> Reported:
    flags = [*small_dataset.flags, *SMALL, f"--output_dir={tmp_path_factory.mktemp('results')}"]
    folder = train.main([*flags, "--optim_lr=0.01"])
    return Reported(folder, flags, (folder / "report.html").read_text())


def test_a_run_leaves_a_page_that_stands_alone_and_is_well_formed(reported: Reported) -> None:
    check(reported.page)
    assert not re.search(r"src=\"(?!data:)", reported.page)
    links = re.findall(r'href="(?!data:)([^"]+)"', reported.page)
    headings = re.findall(r'<section id="([^"]+)"><h2>', reported.page)
    assert len(set(headings)) == len(headings) == reported.page.count("<section") > 5
    assert links == [*(f"#{name}" for name in headings), "../leaderboard.html"]  # all that the page leads to
    assert "<script" not in reported.page
    assert len(reported.page) < 5_000_000
    assert reported.page.count("<img") == len(re.findall(r'<img src="data:image/(?:png|jpeg);base64,', reported.page))
    assert re.findall(r"<h2>([^<]+)", reported.page)[:5] == ["Verdict", "Curves", "Labels", "Ranking", "Calibration"]
    assert json.loads((reported.folder / "status.json").read_text()) == {"status": "finished"}


def test_a_report_leads_to_the_datasets_audit_where_there_is_one(reported: Reported, tmp_path: Path) -> None:
    inputs = tmp_path / "some input#1"
    audit = inputs / "datasets" / "phantom" / "audit.html"
    audit.parent.mkdir(parents=True)
    audit.touch()
    folder = tmp_path / "results" / "1"
    shutil.copytree(reported.folder, folder)
    config = (folder / "config.yaml").read_text()
    changed = re.sub(r"(?m)^data_input_folder: .*$", f"data_input_folder: {json.dumps(str(inputs))}", config)
    (folder / "config.yaml").write_text(changed)
    assert links_of(read_record(folder)) == {
        "Leaderboard": "../leaderboard.html",
        "Audit of the dataset": "../../some%20input%231/datasets/phantom/audit.html",
    }
    for name in ("../x", "x" * 5000, "null"):  # whatever a folder of somebody says
        (folder / "config.yaml").write_text(re.sub(r"(?m)^data_dataset: .*$", f"data_dataset: {name}", changed))
        assert set(links_of(read_record(folder))) == {"Leaderboard"}


def test_trackers_get_the_evaluation_without_any_slice(reported: Reported, tmp_path: Path) -> None:
    class Shown(JsonlTracker):
        def log_figure(self, name: str, html: str) -> None:
            figures[name] = html

    figures: dict[str, str] = {}
    shutil.copytree(reported.folder, tmp_path / "1")
    write_report(tmp_path / "1", tracker=Shown())
    assert list(figures) == ["evaluation"]
    check(figures["evaluation"])
    assert not re.search(r"<img|<script|(src|href)=", figures["evaluation"])
    assert not re.search(r"\bID_", figures["evaluation"])
    for title in ("Slices", "ROC", "Precision and recall", "Reliability", "Decision curve of any"):
        assert f"<figcaption>{title}" in figures["evaluation"]


def test_what_nobody_knows_of_a_networks_origin_is_said_by_report_and_leaderboard(reported: Reported, tmp_path) -> None:
    """The checkpoint of a training that started from weights of another program, and one of before that lost it."""
    shutil.copytree(reported.folder, tmp_path / "known")
    for name in ("foreign", "lost"):
        shutil.copytree(reported.folder, tmp_path / name)
        path = tmp_path / name / "best.pt"
        checkpoint = load_checkpoint(path)
        own = checkpoint_lineage(checkpoint, str(path), Path(checkpoint["config"]["data_input_folder"]))
        if name == "foreign":
            save_checkpoint(path, checkpoint | {"lineage": replace(own, unknown=("rival.safetensors",)).state()})
        else:
            del checkpoint["lineage"]
            save_checkpoint(path, checkpoint | {"data_hash": "of a fold that was made anew"})
    report.main([f"--output_dir={tmp_path}", "--experiment_id=foreign,lost,known"])
    known, foreign, lost = ((tmp_path / name / "report.html").read_text() for name in ("known", "foreign", "lost"))
    assert "lineage" not in known
    assert "Nobody knows whether this learnt from the images that judge it: rival.safetensors." in unescape(foreign)
    assert "unknown lineage: rival.safetensors; nobody knows" in foreign
    assert f"lost: {tmp_path}/lost/best.pt" in lost
    table = pd.read_csv(tmp_path / "leaderboard.csv", index_col="experiment")["unknown_lineage"].fillna("")
    assert table.to_dict() == {"known": "", "foreign": "rival.safetensors", "lost": f"lost: {tmp_path}/lost/best.pt"}
    board = (tmp_path / "leaderboard.html").read_text()
    assert "rival.safetensors" in board


def test_its_numbers_are_those_of_the_predictions(reported: Reported, small_dataset) -> None:
    frame = pd.read_csv(reported.folder / "predictions_valid.csv", index_col="id")
    rows = read_fold(small_dataset.folder, "phantom", 0).loc[frame.index]
    values, truth = frame.to_numpy(), rows[list(LABELS)].to_numpy()
    losses = -np.where(truth == 1, np.log(values), np.log1p(-values)).mean(axis=0)
    text = unescape(reported.page)
    assert f'<p class="big">{(losses @ [1, 1, 1, 1, 1, 2]) / 7:.4f}</p>' in text
    assert f">{losses[1]:.4f}" in text
    assert f"{truth[:, 5].sum():,} of {len(truth):,}" in text


def test_it_says_what_differs_from_the_defaults_and_how_to_do_it_again(reported: Reported) -> None:
    differing = reported.page[
        reported.page.index("What differs from the defaults") : reported.page.index("All options")
    ]
    assert "optim_lr" in differing
    assert "data_image_size" in differing
    assert "net_drop" not in differing
    assert f"--config={reported.folder / 'config.yaml'}" in unescape(reported.page)


def test_what_may_be_long_goes_on_in_a_new_line_and_no_table_has_an_empty_heading(reported: Reported) -> None:
    (environment,) = re.findall(r"<h2>Environment</h2>\n<figure>(.+?)</figure>", reported.page, re.DOTALL)
    assert environment.startswith('<table class="words"><tbody>')
    assert "<th scope='col'></th>" not in reported.page


def test_no_picture_is_without_a_text_that_says_what_it_shows(reported: Reported) -> None:
    texts = re.findall(r'<img [^>]*alt="([^"]*)"', reported.page)
    assert len(texts) >= 10
    assert all(re.fullmatch(r"ID_\w+: .+; predicted any 0\.\d\d, .+", text) for text in texts)
    charts = [svg for svg in re.findall(r"<svg [^>]*>", reported.page) if "28 8" not in svg]  # but legends' samples
    assert len(charts) >= 6
    assert all('role="img" aria-label="' in svg for svg in charts)


def test_heat_of_the_best_weights_stands_beside_the_windows(reported: Reported, tmp_path: Path) -> None:
    def raise_any(path: Path) -> None:  # features after ReLU are never negative: each slice has heat
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["model"]["fc.weight"][LABELS.index("any")] = 1
        torch.save(checkpoint, path)
        table = path.with_name("predictions_valid.csv")
        predictions = pd.read_csv(table)
        predictions.assign(any=predictions["any"] * 0.01 + 0.9).to_csv(table, index=False)

    assert "Left windows of 40/80 and 80/200 HU (center/width)." in reported.page
    page = changed(reported.folder, tmp_path / "1", raise_any)
    assert re.search(
        r"Heat: LayerCAM of any \(\d+ x \d+ cells\), one scale up to [\d.e-]+, where any is 0.50 or more", page
    )
    sources = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(sources) == page.count("<img") >= 10
    shares = []
    for source in sources:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(source), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (TILE, 3 * TILE, 3)
        coloured = np.ptp(picture.astype(int), axis=2) > 10
        assert not coloured[:, : 2 * TILE - 8].any()
        assert not coloured[:8, 2 * TILE + 8 : 2 * TILE + 16].any()  # a corner of air: the head ends before it
        shares.append(coloured[:, 2 * TILE + 8 :].mean())
    assert min(shares) > 0
    assert max(shares) > 0.02


def changed(folder: Path, target: Path, change) -> str:
    """The report of a copy whose checkpoint was changed."""
    shutil.copytree(folder, target)
    change(target / "best.pt")
    report.main([f"--output_dir={target.parent}", f"--experiment_id={target.name}"])
    page = (target / "report.html").read_text()
    check(page)
    return page


def without(folder: Path, target: Path, change) -> str:
    """The same where the change leaves no heat."""
    page = changed(folder, target, change)
    assert "jpeg" not in page
    assert page.count('<img src="data:image/png') >= 10
    return unescape(page)


def test_unreadable_or_missing_weights_leave_the_pictures_without_heat(reported: Reported, tmp_path: Path) -> None:
    page = without(reported.folder, tmp_path / "cut", lambda path: path.write_bytes(path.read_bytes()[:1000]))
    assert f"No heat: {tmp_path / 'cut' / 'best.pt'}" in page
    page = without(reported.folder, tmp_path / "gone", lambda path: path.unlink())
    assert f"No heat: {tmp_path / 'gone' / 'best.pt'}" in page


def test_a_sequence_model_has_pictures_without_heat(reported: Reported, tmp_path: Path) -> None:
    def change(path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"] = {"net_kind": "sequence", "seq_features": "folds"}
        torch.save(checkpoint, path)

    assert "a sequence model, which sees features and no pictures" in without(reported.folder, tmp_path / "1", change)


def test_the_largest_pictures_that_there_can_be_are_far_from_5_mb() -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (TILE, 3 * TILE, 3), dtype=np.uint8) for _ in range(3 * PICTURES_EACH)]
    assert len(tiles([(picture, "noise") for picture in noise])) < 4_000_000


def test_a_later_run_is_compared_with_the_best_so_far(reported: Reported) -> None:
    folder = train.main([*reported.flags, "--optim_lr=1e-9", "--experiment_id=later"])
    page = (folder / "report.html").read_text()
    assert f"the best other one, {reported.folder.name}, has" in page
    assert f"What differs from {reported.folder.name}, the best other one" in page
    table = pd.read_csv(folder.parent / "leaderboard.csv", dtype={"experiment": str})
    status = table.set_index("experiment")["status"]
    assert status[reported.folder.name] == status["later"] == "finished"
    assert (folder.parent / "leaderboard.html").is_file()


def test_a_run_that_fails_is_reported_with_what_there_is(reported: Reported, monkeypatch) -> None:
    def fail(self, batch):
        if self.iteration == 3:
            raise RuntimeError("broken")
        return prepare(self, batch)

    prepare = train_network().prepare_batch
    monkeypatch.setattr(train_network(), "prepare_batch", fail)
    with pytest.raises(RuntimeError, match="broken"):
        train.main([*reported.flags, "--experiment_id=failing"])
    page = (reported.folder.parent / "failing" / "report.html").read_text()
    check(page)
    assert "It was never validated" in page
    assert read_record(reported.folder.parent / "failing").status == "failed"
    table = pd.read_csv(reported.folder.parent / "leaderboard.csv", dtype={"experiment": str}).set_index("experiment")
    assert table.loc["failing", "status"] == "failed"


def train_network() -> type:
    from rsna_network import RSNANetwork

    return RSNANetwork


def test_a_report_that_cant_be_written_costs_a_line_and_not_the_run(reported: Reported, monkeypatch, caplog) -> None:
    def broken(*_):
        raise ValueError("no page today")

    monkeypatch.setattr("rsna.judging.conclusion.write_report", broken)
    folder = train.main([*reported.flags, "--experiment_id=unreported"])
    assert "no report (no page today); python report.py writes it later" in caplog.text
    assert read_record(folder).status == "finished"


def test_without_its_dataset_an_experiment_is_reported_all_the_same(reported: Reported, tmp_path: Path, capsys) -> None:
    shutil.copytree(reported.folder, tmp_path / "1")
    config = (tmp_path / "1" / "config.yaml").read_text()
    (tmp_path / "1" / "config.yaml").write_text(
        re.sub("data_input_folder: .*", f"data_input_folder: {tmp_path}", config)
    )
    report.main([f"--output_dir={tmp_path}", "--experiment_id=1"])
    page = (tmp_path / "1" / "report.html").read_text()
    assert "There is no evaluation: " in page
    assert "Curves" in page
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "1/report.html"), str(tmp_path / "leaderboard.html")]


@pytest.mark.parametrize(
    ("flags", "part"),
    [(["--experiment_id=none"], "none"), (["--output_dir=nowhere"], "--output_dir=nowhere: no such folder")],
)
def test_a_mistake_is_one_line_and_exit_code_2(reported: Reported, flags, part, capsys) -> None:
    assert part in failure(report.main, [f"--output_dir={reported.folder.parent}", *flags], capsys)


def test_the_leaderboard_pairs_what_was_judged_on_the_same_images_as_evaluate_does(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    targets = (chance.random((120, 6)) < 0.4).astype(float)
    targets[::2] = 0  # negative slices
    targets[60:] = 0  # and negative patients
    patients = [f"p{number // 3:02}" for number in range(120)]
    ids = [f"i{number:03}" for number in range(120)]
    rows = pd.DataFrame(targets, index=pd.Index(ids, name="id"), columns=list(LABELS))
    rows = rows.assign(patient_id=patients, study_id=patients)

    def judged(name: str, wrong: float, rows: pd.DataFrame = rows) -> pd.DataFrame:
        truth = rows[list(LABELS)].to_numpy()
        guess = np.clip(np.abs(truth - wrong) + chance.normal(0, 0.1, truth.shape), 0.02, 0.98)
        frame = pd.DataFrame(guess, index=rows.index, columns=list(LABELS))
        found = evaluate_predictions(frame, rows, np.full(6, 0.4), 20)
        value = found.study.samples["log_loss"]["weighted"].value
        experiment(
            tmp_path / name, *(point(at, valid__weighted_log_loss=value * more) for at, more in ((1, 2), (2, 1)))
        )
        keep_judgement(tmp_path / name, found, rows, "a1b2", "slices", "out of fold")
        return frame

    def embedded() -> dict:
        page = update_leaderboard(tmp_path, METRIC).read_text()
        return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])

    frames = {name: judged(name, wrong) for name, wrong in (("bad", 0.4), ("good", 0.2))}
    judged("elsewhere", 0.3, rows.head(90))
    (tmp_path / "evil").mkdir()
    shutil.copytree(tmp_path / "good", tmp_path / "evil", dirs_exist_ok=True)
    (tmp_path / "evil" / "judged.npz").write_bytes(b"PK" + bytes(99))
    for _ in range(2):  # the second time from what was kept
        data = embedded()
        table = pd.read_csv(tmp_path / "leaderboard.csv")
        assert table["experiment"].tolist() == ["evil", "good", "bad", "elsewhere"]
        assert table["group"].nunique() == 2
        ((row, other, *numbers, reason),) = data["pairs"]  # not with other images, nor with a file that can't be read
        assert table.loc[[row, other], "experiment"].tolist() == ["good", "bad"]
        due = loss_change(frames["good"].to_numpy(), frames["bad"].to_numpy(), targets, np.array(patients))
        assert numbers == pytest.approx([due.value, due.low, due.high], rel=1e-7)
        assert due.high < 0
        assert reason == ""
        (at, values), best = data["curves"]["good"], table.loc[1, METRIC]
        assert (at, values) == ([1, 2], pytest.approx([2 * best, best], rel=1e-4))
    constant = constant_predictor(np.full(6, 0.4), targets, LABEL_WEIGHTS)
    assert table.loc[2, "of_constant"] == pytest.approx(table.loc[2, METRIC] / constant)
    assert table.loc[2, "auroc/any"] == pytest.approx(roc_auc_score(targets[:, -1], frames["bad"]["any"]))
    if BROWSER is not None:
        tick = "document.querySelectorAll('#board input').forEach(box => {} && box.click());"
        tick = tick.format("{}.includes(box.ariaLabel.slice(8))")
        page = tmp_path / "leaderboard.html"
        said = unescape(driven(page, tick.format(["bad", "good"])))
        assert f"good minus that of bad, paired over patients: {due.value:.5f}, 95 % interval {due.low:.5f}" in said
        assert "good is better." in said
        assert re.findall(r'data-curve="(\w+)"', said) == ["good", "bad"]
        assert f"{table.loc[2, METRIC]:.4f} [{table.loc[2, f'{METRIC}_low']:.4f}, " in said
        apart = unescape(driven(page, tick.format(["bad", "elsewhere"])))
        assert re.search(
            "They can't be compared: bad belongs to “.*120 slices.*elsewhere belongs to “.*90 slices", apart
        )
        assert "data-curve" not in apart[apart.index('id="difference"') :].split("</section>")[0]
        assert "report.py --experiment_id" in driven(page, tick.format(["evil", "good"]))
    with (tmp_path / "bad" / "metrics.jsonl").open("a") as file:  # the run went on: what was judged is not its best
        file.write(json.dumps(point(3, valid__weighted_log_loss=0.001)) + "\n")
    assert embedded()["pairs"] == []


def test_a_report_keeps_how_the_run_was_judged_and_the_leaderboard_says_on_which_images(reported: Reported) -> None:
    table = pd.read_csv(reported.folder.parent / "leaderboard.csv", dtype={"experiment": str}).set_index("experiment")
    row = table.loc[reported.folder.name]
    predicted = pd.read_csv(reported.folder / "predictions_valid.csv")
    assert row["group"].startswith(f"phantom, fold 0: {len(predicted)} slices of ")
    assert (row["of_constant"] < 1) == ("this is" in reported.page)
