"""Folds for cross-validation that keep groups of images together and are balanced by label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from common.errors import UsageError, WorkError
from common.preprocessing.groups import Identities

HELD_OUT = -1


def check_parts(folds: int, holdout: float, groups: int, by_study: int = 0) -> None:
    """Raise UsageError, with options that would work, if there are fewer groups than folds and hold-out.

    ``by_study`` is the number of groups if each study counted as a patient; 0 if unknown, or if it does already.
    """
    held_out = int(holdout > 0)
    if groups >= folds + held_out:
        return

    def fewer(count: int) -> str:
        possible = count - held_out
        # A single fold is a split, which validates on the hold-out.
        return f"--pre_folds={min(possible, folds)}" if possible >= 2 - held_out else ""

    ways = [f"{fewer(groups)} works"] if fewer(groups) else []
    if by_study > groups and fewer(by_study):
        option = f" {fewer(by_study)}" if by_study - held_out < folds else ""
        ways.append(f"if a PatientID stands for many patients, --pre_group=study{option} takes each of the {by_study} "
                    "studies for a patient")  # fmt: skip
    count = f"are only {groups} groups" if groups != 1 else "is only 1 group"
    raise UsageError(
        f"--pre_folds={folds}{f' and --pre_holdout={holdout}' * held_out}: there {count} of patients "
        f"with labelled images; {'; or '.join(ways) or 'no number of folds works: give images of more patients'}"
    )


def assign_folds(groups: np.ndarray, labels: np.ndarray, folds: int, seed: int, holdout: float = 0) -> np.ndarray:
    """Return the fold of each image (N,), 0..folds-1 or :data:`HELD_OUT`: groups stay whole, labels are spread evenly.

    ``groups`` (N,) are names. ``labels`` (N, K) are 0 and 1. ``holdout`` is the share of images that go into no fold.

    The parts are the folds and the hold-out. Groups are assigned from the largest to the smallest. Each goes to the
    part where it adds least to the sum of squares of the part's shares of all images and of each label's positives,
    relative to the part's size.

    With six labels this is more even than scikit-learn's StratifiedGroupKFold, which makes a class of each combination
    of labels, and 15 times as fast. On 747,058 images of 22,000 studies the rarest label is within 0.01 % of even
    (there within 3 %). The result depends on seed, groups and labels, not on the order of images. Raises UsageError for
    fewer groups than parts.
    """
    group, names = pd.factorize(groups, sort=True)
    parts = folds + (holdout > 0)
    check_parts(folds, holdout, len(names))
    wanted = np.full(parts, (1 - holdout) / folds)
    wanted[folds:] = holdout
    columns = np.column_stack([np.ones(len(labels)), labels])
    counts = np.stack([np.bincount(group, weights=column, minlength=len(names)) for column in columns.T], axis=1)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-shares[order].max(axis=1), kind="stable")]
    load = np.zeros((parts, columns.shape[1]))
    part_of_group = np.zeros(len(names), dtype=np.int64)
    empty = np.ones(parts, dtype=bool)
    for left, index in zip(range(len(order), 0, -1), order, strict=True):
        growth = ((2 * load + shares[index]) * shares[index]).sum(axis=1) / wanted
        if left == np.count_nonzero(empty):  # otherwise a small hold-out of few groups would get none
            growth[~empty] = np.inf
        part = int(growth.argmin())
        load[part] += shares[index]
        empty[part] = False
        part_of_group[index] = part
    part_of_group[part_of_group == folds] = HELD_OUT
    return part_of_group[group]


def fold_tables(rows: pd.DataFrame, fold: np.ndarray, folds: int) -> Iterator[pd.DataFrame]:
    """Yield the table of each fold: its rows with a first column ``sample_type``, train or valid.

    Rows held out are in no fold. They follow in a last table, with ``holdout``. If there is only one fold, it validates
    on them instead. Tables come one after another, since a million rows take memory.
    """
    held_out = fold == HELD_OUT
    if folds == 1:
        yield _typed_rows(rows, np.where(held_out, "valid", "train"))
        return
    for number in range(folds):
        yield _typed_rows(rows[~held_out], np.where(fold[~held_out] == number, "valid", "train"))
    if held_out.any():
        yield _typed_rows(rows[held_out], "holdout")


def _typed_rows(rows: pd.DataFrame, sample_type: np.ndarray | str) -> pd.DataFrame:
    return rows.assign(sample_type=sample_type)[["sample_type", *rows.columns]]


def check_folds(fold: np.ndarray, groups: np.ndarray, images: Identities) -> None:
    """Raise WorkError if a group, a study, or a picture that links patients is in more than one fold."""
    for what, keys in (("group", groups), ("study", images.studies), ("picture", images.pictures)):
        table = pd.DataFrame({"key": keys, "fold": fold, "id": images.image_ids})[keys != ""]
        split = table.groupby("key", observed=True)["fold"].transform("nunique") > 1
        if split.any():
            ids = ", ".join(table.loc[split, "id"].head(5))
            raise WorkError(
                f"a {what} stands in more than one fold, for instance with images {ids}; please report this"
            )
