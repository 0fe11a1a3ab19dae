"""rsna/judging/second_level.py and second_level.py: trees over out-of-fold predictions, themselves out of fold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

import second_level
from common.cli.arguments import parse_args
from common.files import write_csv
from rsna.forms import read_predictions
from rsna.judging.options import SecondLevelConfig
from rsna.judging.second_level import fit_predict, neighbour_table
from rsna_dataset import LABELS, read_fold, read_metadata
from tests.conftest import SmallDataset
from tests.runs import failure

FEW = ["--level_trees=40", "--level_rate=0.15", "--level_leaf_images=5", "--level_draws=100"]


@pytest.fixture
def member(finished: Path, small_dataset: SmallDataset, tmp_path: Path) -> Path:
    """The cross-validation with predictions that know something: the truth of the slice before, and noise."""
    folder = tmp_path / "cv"
    shutil.copytree(finished, folder)
    frame = read_predictions(folder / "predictions_oof.csv")
    metadata = read_metadata(small_dataset.folder).loc[frame.index]
    series = read_metadata(small_dataset.folder, described=True).loc[frame.index, ["series_id", "slice_index"]]
    order = series.sort_values(["series_id", "slice_index"]).index
    before = metadata.loc[order, list(LABELS)].groupby(series.loc[order, "series_id"]).shift(1).fillna(0)
    noise = np.random.default_rng(0).normal(0, 0.5, before.shape)
    values = pd.DataFrame(1 / (1 + np.exp(-(4 * before.to_numpy() - 2 + noise))), order.rename("id"), list(LABELS))
    write_csv(folder / "predictions_oof.csv", values.loc[frame.index], index=True)
    return folder


def run(folder: Path, *more: str) -> Path:
    return second_level.main([folder.name, f"--output_dir={folder.parent}", *FEW, *more])


def loss(frame: pd.DataFrame, truth: pd.DataFrame) -> float:
    """That of `any`."""
    values, known = frame.loc[truth.index, "any"], truth["any"]
    return float(-(known * np.log(values) + (1 - known) * np.log(1 - values)).mean())


@pytest.fixture(scope="module")
def many() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forty patients of fifteen slices: metadata with labels, and predictions that know the slice before alone."""
    random = np.random.default_rng(0)
    truth = np.repeat(random.random((200, 6)) < 0.3, 3, axis=0)
    index = pd.Index([f"ID_{number:09x}" for number in range(600)], name="id")
    place = np.arange(600)
    metadata = pd.DataFrame(truth.astype(int), index, list(LABELS)).assign(
        patient_id=[f"P{number // 15}" for number in place],
        series_id=[f"S{number // 15}" for number in place],
        slice_index=place % 15,
    )
    before = np.vstack([np.zeros((1, 6)), truth[:-1]])
    logits = 4 * before - 2 + random.normal(0, 0.5, truth.shape)
    return metadata, pd.DataFrame(1 / (1 + np.exp(-logits)), index, list(LABELS))


def test_what_only_the_neighbour_knows_is_learnt(many: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    metadata, frame = many
    known = neighbour_table({"cv": frame}, metadata, frame.index, 2)
    learnt, asked = known.iloc[:300], known.iloc[300:]
    found, counts = fit_predict(parse_args(SecondLevelConfig, ["cv", *FEW]), learnt, metadata, asked)
    assert min(counts.values()) > 0
    assert loss(found, metadata.loc[asked.index]) < 0.5 * loss(frame, metadata.loc[asked.index])


def test_it_is_an_experiment_with_an_evaluation_and_the_same_bytes_for_the_same_seed(member: Path) -> None:
    one, other = run(member, "--experiment_id=one"), run(member, "--experiment_id=other")
    assert (one / "predictions_oof.csv").read_bytes() == (other / "predictions_oof.csv").read_bytes()
    for name in ("config.yaml", "environment.json", "evaluation.json", "second_level.json"):
        assert (one / name).is_file()
    assert not list(one.glob("*.pkl")) + list(one.glob("*.joblib"))


def test_labels_of_a_fold_never_reach_its_own_predictions(member: Path, small_dataset: SmallDataset) -> None:
    """The trees of a fold see the others' rows alone: other labels in it change nothing of what is said of it."""
    fold = read_fold(small_dataset.folder, "phantom", 0)
    frame = read_predictions(member / "predictions_oof.csv")
    metadata = read_metadata(small_dataset.folder, described=True)
    known = neighbour_table({"cv": frame}, metadata, frame.index, 2)
    held = fold.index[fold["sample_type"] == "valid"]
    config = parse_args(SecondLevelConfig, ["cv", *FEW])
    labels = metadata.loc[frame.index, [*LABELS, "group_id"]].astype(dict.fromkeys(LABELS, int))
    honest, _ = fit_predict(config, known.drop(index=held), labels, known.loc[held])
    labels.loc[held, list(LABELS)] = 1 - labels.loc[held, list(LABELS)]
    again, _ = fit_predict(config, known.drop(index=held), labels, known.loc[held])
    pd.testing.assert_frame_equal(honest, again)
    written = read_predictions(run(member) / "predictions_oof.csv")
    pd.testing.assert_frame_equal(honest, written.loc[held], check_names=False)


def test_neighbours_are_those_of_the_series_by_position(small_dataset: SmallDataset) -> None:
    metadata = read_metadata(small_dataset.folder, described=True)
    ids = metadata.index[metadata["split"] == "train"]
    random = np.random.default_rng(1)
    frame = pd.DataFrame(random.uniform(0.1, 0.9, (len(ids), 6)), ids, list(LABELS)).sample(frac=1, random_state=0)
    found = neighbour_table({"m": frame}, metadata, ids, 1)
    for _, rows in metadata.loc[ids].groupby("series_id"):
        order = rows.sort_values("slice_index").index
        for place, name in enumerate(order):
            assert found.loc[name, "m/any/+0"] == pytest.approx(logit(frame.loc[name, "any"]))
            assert found.loc[name, "slices"] == len(order)
            assert found.loc[name, "position"] == pytest.approx(place / max(1, len(order) - 1))
            for offset in (-1, 1):
                if 0 <= place + offset < len(order):
                    expected = logit(frame.loc[order[place + offset], "subdural"])
                    assert found.loc[name, f"m/subdural/{offset:+d}"] == pytest.approx(expected)
                else:
                    assert np.isnan(found.loc[name, f"m/subdural/{offset:+d}"])


@pytest.mark.parametrize("cases", [False, True])
def test_where_trees_find_nothing_new_the_members_mean_stays(cases: bool) -> None:
    """The members' logits are the log odds that labels are drawn with: nothing predicts better."""
    random = np.random.default_rng(0)
    odds = random.normal(-1, 2, 300)
    index = pd.Index([f"ID_{number}" for number in range(300)], name="id")
    labels = (random.random(300) < 1 / (1 + np.exp(-odds))).astype(int) if cases else np.zeros(300, int)
    apart = random.normal(0, 0.1, 300)
    members = {f"{name}/{label}/+0": odds + sign * apart for name, sign in (("a", 1), ("b", -1)) for label in LABELS}
    known = pd.DataFrame(members, index)
    rows = pd.DataFrame(dict.fromkeys(LABELS, labels), index).assign(patient_id=[f"P{n % 20}" for n in range(300)])
    found, counts = fit_predict(parse_args(SecondLevelConfig, ["x"]), known, rows, known)
    assert set(counts.values()) == {0}
    for label in LABELS:
        np.testing.assert_allclose(logit(found[label]), odds, rtol=1e-6)


def test_members_of_other_folds_and_what_is_no_cross_validation_are_refused(member: Path, capsys) -> None:
    shutil.copytree(member, member.parent / "other")
    path = member.parent / "other" / "cross_validation.json"
    document = json.loads(path.read_text())
    document["folds"][0]["hash"] = "0" * 32
    path.write_text(json.dumps(document))
    for names, said in [(["cv", "other"], "over the same folds"), (["cv/fold_0"], "member"), (["nothing"], "no such")]:
        assert said in failure(second_level.main, [*names, f"--output_dir={member.parent}"], capsys)
    assert sorted(folder.name for folder in member.parent.iterdir() if folder.is_dir()) == ["cv", "other"]


def test_what_cannot_be_learnt_from_is_one_line_and_leaves_no_experiment(member: Path, capsys) -> None:
    frame = read_predictions(member / "predictions_oof.csv")
    for name, file, changed in (
        ("short", "predictions_oof.csv", frame.iloc[1:]),
        ("foreign", "submission.csv", frame.rename(index=lambda image: f"x{image}")),
    ):
        shutil.copytree(member, member.parent / name)
        write_csv(member.parent / name / file, changed, index=True)
    for names, code, said in (
        (["cv", "short"], 1, f"no predictions for 1 of {len(frame)} images ({frame.index[0]})"),
        (["foreign"], 1, "predicts no image of the members' dataset"),
        (["cv", "cv"], 2, "cv is given twice"),
    ):
        assert said in failure(
            second_level.main, [*names, f"--output_dir={member.parent}", *FEW, "--experiment_id=level"], capsys, code
        )
    assert not (member.parent / "level").exists()
