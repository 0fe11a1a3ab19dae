"""rsna_second_level.py and second_level.py: trees over out-of-fold predictions, themselves out of fold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

import second_level
from common.arguments import parse_args
from common.files import write_csv
from config import SecondLevelConfig
from rsna_dataset import LABELS, read_fold, read_metadata, read_predictions
from rsna_second_level import fit_predict, neighbour_table
from tests.conftest import SmallDataset

FEW = ["--level_trees=20", "--level_leaf_images=5", "--level_draws=100"]


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
    """That of `any`: of the kinds these few patients have too few cases in each fold."""
    values, known = frame.loc[truth.index, "any"], truth["any"]
    return float(-(known * np.log(values) + (1 - known) * np.log(1 - values)).mean())


def truth_of(frame: pd.DataFrame, small_dataset: SmallDataset) -> pd.DataFrame:
    return read_metadata(small_dataset.folder).loc[frame.index, list(LABELS)].astype(float)


def test_what_only_the_neighbour_knows_is_learnt(member: Path, small_dataset: SmallDataset) -> None:
    before = read_predictions(member / "predictions_oof.csv")
    folder = run(member)
    after = read_predictions(folder / "predictions_oof.csv")
    assert sorted(after.index) == sorted(before.index)
    truth = truth_of(before, small_dataset)
    assert loss(after, truth) < loss(before, truth)


def test_it_is_an_experiment_with_an_evaluation_and_the_same_bytes_for_the_same_seed(member: Path) -> None:
    one, other = run(member, "--experiment_id=one"), run(member, "--experiment_id=other")
    assert (one / "predictions_oof.csv").read_bytes() == (other / "predictions_oof.csv").read_bytes()
    for name in ("config.yaml", "environment.json", "evaluation.json", "second_level.json"):
        assert (one / name).is_file()
    assert not list(one.glob("*.pkl")) + list(one.glob("*.joblib"))


def test_labels_of_a_fold_never_reach_its_own_predictions(member: Path, small_dataset: SmallDataset) -> None:
    """The trees of a fold see the others' rows alone: random labels in it change nothing of what is said of it."""
    fold = read_fold(small_dataset.folder, "phantom", 0)
    frame = read_predictions(member / "predictions_oof.csv")
    metadata = read_metadata(small_dataset.folder, described=True)
    known = neighbour_table({"cv": frame}, metadata, frame.index, 2)
    held = fold.index[fold["sample_type"] == "valid"]
    config = parse_args(SecondLevelConfig, ["cv", *FEW])
    labels = metadata.loc[frame.index, list(LABELS)].astype(int)
    honest = fit_predict(config, known.drop(index=held), labels, known.loc[held])
    labels.loc[held] = 1 - labels.loc[held]
    pd.testing.assert_frame_equal(honest, fit_predict(config, known.drop(index=held), labels, known.loc[held]))
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


def test_a_label_without_a_case_is_predicted_as_rare_and_not_as_impossible() -> None:
    known = pd.DataFrame({"x": np.arange(50.0)}, [f"ID_{n}" for n in range(50)])
    labels = pd.DataFrame(0, known.index, list(LABELS))
    found = fit_predict(parse_args(SecondLevelConfig, ["x"]), known, labels, known)
    np.testing.assert_allclose(found, 0.5 / 51)


def test_members_of_other_folds_and_what_is_no_cross_validation_are_refused(member: Path, capsys) -> None:
    shutil.copytree(member, member.parent / "other")
    path = member.parent / "other" / "cross_validation.json"
    document = json.loads(path.read_text())
    document["folds"][0]["hash"] = "0" * 32
    path.write_text(json.dumps(document))
    for names, said in [(["cv", "other"], "over the same folds"), (["cv/fold_0"], "member"), (["nothing"], "no such")]:
        with pytest.raises(SystemExit) as caught:
            second_level.main([*names, f"--output_dir={member.parent}"])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    assert sorted(folder.name for folder in member.parent.iterdir() if folder.is_dir()) == ["cv", "other"]
