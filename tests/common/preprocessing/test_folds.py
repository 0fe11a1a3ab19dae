"""common/preprocessing/groups.py and folds.py: groups of images, balance, repeatability, and rows held out."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError, WorkError
from common.preprocessing.folds import HELD_OUT, assign_folds, check_folds, check_parts, fold_tables
from common.preprocessing.groups import Identities, causes, describe_links, group_images, large_group, picture_keys
from rsna_dataset import LABELS


@dataclass(frozen=True)
class Rows:
    """Synthetic images: whose they are, and labels of each."""

    images: Identities
    labels: np.ndarray


def identities(patients: object, studies: object = None, pictures: object = None) -> Identities:
    """Images 0, 1, ... of these patients, studies and pictures; none of those that are not given."""
    count = len(patients)
    given = [np.full(count, "") if keys is None else keys for keys in (patients, studies, pictures)]
    ids = [f"ID_{number}" for number in range(count)]
    return Identities(*(np.array(keys, dtype=object) for keys in (*given, ids)))


def islands(images: Identities) -> list[set[int]]:
    """The groups by their definition, the slow way: whoever shares a name with one of an island joins it."""
    found: list[tuple[set[object], set[int]]] = []
    for place, row in enumerate(zip(images.patients, images.studies, images.pictures, strict=True)):
        names = {(kind, name) for kind, name in zip("pqr", row, strict=True) if name} or {("id", place)}
        touched = [island for island in found if island[0] & names]
        found = [island for island in found if not island[0] & names]
        members = {place}.union(*(island[1] for island in touched))
        found.append((names.union(*(island[0] for island in touched)), members))
    return sorted((members for _, members in found), key=min)


@st.composite
def rows_of_images(draw: st.DrawFn) -> Rows:
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    patients = draw(st.integers(5, 60))
    count = draw(st.integers(patients, 6 * patients))
    who = np.concatenate([np.arange(patients), generator.integers(0, patients, count - patients)])
    pictures = generator.integers(0, count * draw(st.integers(1, 50)), count)
    links = generator.random(count) < draw(st.floats(0, 0.5))
    pictures = np.where(links, np.char.add("h", pictures.astype(str)), "").astype(object)
    labels = (generator.random((count, len(LABELS))) < draw(st.floats(0, 1))).astype(np.int8)
    names = np.where(generator.random(count) < draw(st.floats(0, 0.5)), "", np.char.add("P", who.astype(str)))
    studies = generator.integers(0, 3 * patients, count)
    scanned = generator.random(count) < draw(st.floats(0, 1))
    studies = np.where(scanned, np.char.add("S", studies.astype(str)), "")
    return Rows(identities(names, studies, pictures), labels)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_images(), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_folds_keep_groups_whole_whatever_the_order_of_rows(rows: Rows, seed: int, order: object) -> None:
    groups = group_images(rows.images)
    found = pd.Series(range(len(groups))).groupby(groups).agg(set)
    assert sorted(found, key=min) == islands(rows.images)
    if len(set(groups)) < 3:
        with pytest.raises(UsageError, match=r"groups? of patients"):
            assign_folds(groups, rows.labels, 3, seed)
        return
    fold = assign_folds(groups, rows.labels, 3, seed)
    assert set(fold) == {0, 1, 2}
    assert pd.DataFrame({"g": groups, "f": fold}).groupby("g")["f"].nunique().max() == 1
    check_folds(fold, groups, rows.images)

    shuffled = np.arange(len(fold))
    order.shuffle(shuffled)
    again = group_images(Identities(*(values[shuffled] for values in vars(rows.images).values())))
    np.testing.assert_array_equal(assign_folds(again, rows.labels[shuffled], 3, seed), fold[shuffled])


def test_groups_follow_chains_of_shared_pictures_and_studies() -> None:
    patients = ["a", "b", "b", "c", "d", "e", "e"]
    pictures = ["1", "1", "2", "2", "3", "", ""]
    assert group_images(identities(patients, None, pictures)).tolist() == ["a", "a", "a", "a", "d", "e", "e"]
    studies = ["", "", "", "S", "S", "", "T"]
    assert group_images(identities(patients, studies, pictures)).tolist() == ["a", "a", "a", "a", "a", "e", "e"]


def test_images_without_patient_are_of_their_study_and_else_alone() -> None:
    images = identities(["", "", "", "", "P"], ["S", "S", "", "", "T"])
    assert group_images(images).tolist() == ["S", "S", "ID_2", "ID_3", "P"]
    same_for_all = identities(["ANONYMOUS"] * 4, ["S", "S", "T", "T"], ["", "h", "", "k"])
    assert set(group_images(same_for_all)) == {"ANONYMOUS"}
    assert group_images(same_for_all.by_study()).tolist() == ["S", "S", "T", "T"]
    twins = identities(["ANONYMOUS"] * 4, ["S", "S", "T", "T"], ["", "h", "h", ""]).by_study()
    assert group_images(twins).tolist() == ["S", "S", "S", "S"]


def test_folds_are_balanced_by_label_at_the_datas_prevalences() -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(3000), generator.integers(24, 45, 3000))
    prevalence = np.array([0.0041, 0.0483, 0.0352, 0.0476, 0.0630, 0.1440])
    bleeding = generator.random((3000, 6)) < prevalence * 2  # as in the data: few patients hold a label's slices
    labels = (bleeding[patients] & (generator.random((len(patients), 6)) < 0.5)).astype(np.int8)
    fold = assign_folds(np.char.add("P", patients.astype(str)).astype(object), labels, 5, 0)
    images = np.bincount(fold) / len(fold)
    positives = np.stack([labels[fold == number].sum(axis=0) for number in range(5)]) / labels.sum(axis=0)
    np.testing.assert_allclose(images, 0.2, atol=0.002)  # 1 % of a fold
    largest = np.stack([labels[patients == number].sum(axis=0) for number in range(3000)]).max(axis=0) / labels.sum(
        axis=0
    )
    assert (np.abs(positives - 0.2) <= np.maximum(largest / 2, 0.001)).all()  # a patient's slices can't be divided


def test_another_seed_gives_other_folds() -> None:
    groups = np.repeat(np.arange(50), 4).astype(str).astype(object)
    labels = np.zeros((200, 6), np.int8)
    assert (assign_folds(groups, labels, 5, 0) != assign_folds(groups, labels, 5, 1)).any()


@pytest.mark.parametrize("what", ["group", "study", "picture"])
def test_the_last_check_refuses_folds_that_tear_what_belongs_together(what: str) -> None:
    torn = {"group": ["y", "z"], "study": ["y", "z"], "picture": ["y", "z"]} | {what: ["x", "x"]}
    images = identities(["", ""], torn["study"], torn["picture"])
    with pytest.raises(WorkError, match=f"a {what} stands in more than one fold.*ID_0, ID_1"):
        check_folds(np.array([0, 1]), np.array(torn["group"], dtype=object), images)


def test_constant_pictures_and_pictures_of_air_link_nobody() -> None:
    records = pd.DataFrame(
        {
            "digest": ["a", "b", "c", "d"],
            "hu_min": [40, -1000, -1000, -1000],
            "hu_max": [40, 500, 500, 500],
            "solid": [1.0, 0.0099, 0.01, 0.5],
        }
    )
    assert picture_keys(records).tolist() == ["", "", "c", "d"]


def linked(patients: int, group: int) -> Identities:
    """One image for each patient; the first ``group`` share a picture."""
    return identities(
        [f"P{number:05d}" for number in range(patients)],
        None,
        ["same" if number < group else "" for number in range(patients)],
    )


def test_what_joins_patients_is_told_by_cause_with_images_of_the_largest_group() -> None:
    line = describe_links(linked(50, 4))["picture"]
    assert "link 4 patients to 1 groups" in line
    assert "the largest has 4 patients (images ID_0, ID_1, ID_2, ID_3)" in line
    assert describe_links(linked(50, 0)) == {}
    mixed = identities(["a", "b", "c", "c", ""], ["S", "S", "T", "T", "U"], ["", "", "h", "", "h"])
    lines = describe_links(mixed)
    assert "join 2 patients to 1 groups; the largest has 2 patients (images ID_0, ID_1)" in lines["study"]
    assert "link 2 patients to 1 groups; the largest has 2 patients (images ID_2, ID_3, ID_4)" in lines["picture"]
    assert {name: (part.groups, part.patients) for name, part in causes(mixed).items()} == {
        "study": (1, 2), "picture": (1, 2), "both": (2, 4)
    }  # fmt: skip


@pytest.mark.parametrize(("patients", "group", "refused"), [(1001, 11, True), (1001, 10, False), (1000, 500, False)])
def test_a_group_of_more_than_a_hundredth_of_many_patients_is_an_error_that_names_files(
    patients: int, group: int, refused: bool
) -> None:
    if refused:
        with pytest.raises(WorkError, match=r"largest has 11 patients \(images ID_0, ID_1, ID_10, .*too many"):
            describe_links(linked(patients, group))
    else:
        assert f"the largest has {group} patients" in describe_links(linked(patients, group))["picture"]


def test_a_patient_with_most_images_in_many_studies_is_named() -> None:
    images = identities(["ANONYMOUS"] * 12 + ["P", "Q"], [f"S{n // 2}" for n in range(14)])
    assert large_group(group_images(images), images) == ("ANONYMOUS", 6, 12 / 14)
    assert large_group(group_images(images.by_study()), images) is None
    few = identities(["P"] * 10 + ["Q"], [f"S{n // 2}" for n in range(11)])
    assert large_group(group_images(few), few) is None, "five studies may be one patient's"


@pytest.mark.parametrize("folds", [1, 2, 7, 40])
@pytest.mark.parametrize("holdout", [0.1, 0.3])
def test_rows_held_out_are_whole_patients_of_the_wanted_share_balanced_by_label(folds: int, holdout: float) -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(1000), generator.integers(24, 45, 1000))
    labels = generator.random((len(patients), 6)) < [0.02, 0.05, 0.04, 0.05, 0.06, 0.14]
    groups = np.char.add("P", patients.astype(str)).astype(object)
    fold = assign_folds(groups, labels.astype(np.int8), folds, 0, holdout)
    assert set(fold) == {*range(folds), HELD_OUT}
    held_out = fold == HELD_OUT
    assert held_out.mean() == pytest.approx(holdout, abs=0.01)
    np.testing.assert_allclose(labels[held_out].sum(axis=0) / labels.sum(axis=0), holdout, atol=0.01)
    np.testing.assert_allclose(np.bincount(fold[~held_out]) / len(fold), (1 - holdout) / folds, atol=0.004)
    assert not set(patients[held_out]) & set(patients[~held_out])


def test_rows_held_out_stand_in_no_fold_but_in_a_table_of_their_own() -> None:
    rows = pd.DataFrame({"any": range(6)}, index=list("abcdef"))
    first, second, rest = fold_tables(rows, np.array([0, 1, HELD_OUT, 1, 0, HELD_OUT]), 2)
    assert first.columns.tolist() == ["sample_type", "any"]
    assert first["sample_type"].to_dict() == {"a": "valid", "b": "train", "d": "train", "e": "valid"}
    assert second["sample_type"].to_dict() == {"a": "train", "b": "valid", "d": "valid", "e": "train"}
    assert rest["sample_type"].to_dict() == {"c": "holdout", "f": "holdout"}


def test_a_single_fold_validates_on_what_is_held_out() -> None:
    rows = pd.DataFrame({"any": range(4)}, index=list("abcd"))
    (table,) = fold_tables(rows, np.array([0, HELD_OUT, 0, HELD_OUT]), 1)
    assert table["sample_type"].to_dict() == {"a": "train", "b": "valid", "c": "train", "d": "valid"}


def test_fewer_groups_than_parts_is_an_error_that_names_the_flags() -> None:
    groups, labels = np.array(["a", "b"], dtype=object), np.zeros((2, 6), np.int8)
    with pytest.raises(UsageError, match=r"--pre_folds=2 and --pre_holdout=0.5: there are only 2 groups"):
        assign_folds(groups, labels, 2, 0, 0.5)


@pytest.mark.parametrize(
    ("folds", "holdout", "groups", "by_study"),
    [(5, 0, 2, 0), (5, 0, 1, 6), (5, 0, 1, 3), (5, 0, 1, 1), (5, 0.1, 2, 2), (5, 0.1, 3, 40), (2, 0.5, 1, 1)],
)
def test_too_few_groups_are_told_with_the_options_that_work_and_no_others(
    folds: int, holdout: float, groups: int, by_study: int
) -> None:
    """Each option that the message names is tried on groups of that number."""
    with pytest.raises(UsageError) as caught:
        check_parts(folds, holdout, groups, by_study)
    advised = [(groups, folds_, "study" in part) for part in str(caught.value).split("; ")[1:]
               for folds_ in re.findall(r"--pre_folds=(\d+)|--pre_group=study takes", part)]  # fmt: skip
    for _, advice, study in advised:
        count = by_study if study else groups
        parts = int(advice or folds)
        names = np.array([f"g{number % count}" for number in range(2 * count)], dtype=object)
        found = assign_folds(names, np.zeros((2 * count, 6), np.int8), parts, 0, holdout)
        assert len(set(found)) == parts + (holdout > 0)
    works = max(groups, by_study) - (holdout > 0) >= (1 if holdout else 2)
    assert bool(advised) == works
    assert ("no number of folds works" in str(caught.value)) != works
