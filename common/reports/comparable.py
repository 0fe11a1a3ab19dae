"""Which experiments can be compared, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.evaluation.interval_rules import Samples
from common.evaluation.resampling import Array, Evidence
from common.reports.judgement import MOST_TEXT, read_patients

DATA = ("data_dataset", "data_fold", "data_input_folder", "dev_enabled", "tr_overfit")
OUT_OF_FOLD = "out of fold"
HASH_SHOWN = 6  # letters
MOST_PAIRED, MOST_FILES = 20, 400  # the best of a group, and of all groups

Pairs = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Group:
    """Experiments that can be compared. ``judged``: whether it is known on which images they were."""

    key: tuple[str, ...]
    title: str
    out_of_fold: bool
    judged: bool


def group_of(config: Mapping[str, Any], judged: Mapping[str, Any], *, by_study: bool = False) -> Group:
    """Return an experiment's group: all that was judged on the same images of a dataset, with labels of one level.

    ``judged`` has the fields of :class:`common.reports.judgement.Judgement`. If it is empty, the options ``config``
    tell which experiments have the same data, and ``by_study`` that an experiment's values are of studies.
    """
    options = {name: str(config.get(name) or "")[:MOST_TEXT] for name in DATA}
    data, folds = options["data_dataset"] or "unknown dataset", options["data_fold"] or "0"
    if judged:
        said = "{what}: {count:,} {level} of {patients:,} patients".format(**judged)
        hashes = f"dataset {judged['dataset'][:HASH_SHOWN]}, images {judged['images'][:HASH_SHOWN]}"
        key = (judged["dataset"], judged["images"], judged["level"])
        return Group(key, f"{data}, {said} ({hashes})", judged["what"].startswith(OUT_OF_FOLD), True)
    out_of_fold = "," in folds or isinstance(config.get("members"), list)
    more = "".join(f", {name}={options[name]}" for name in DATA[2:] if options[name] not in ("", "0", "False"))
    more += ", by study" * by_study
    title = f"{data}, {OUT_OF_FOLD if out_of_fold else f'fold {folds}'}{more}: not judged yet"
    return Group((title,), title, out_of_fold, False)


def shared_groups(own: Mapping[str, Group]) -> dict[str, Group]:
    """Return each experiment's group by its name, with one title for all of a group.

    An ensemble of runs on one fold calls its images out of fold, the runs say which fold: the group says it too.
    """
    shared: dict[tuple[str, ...], Group] = {}
    for group in sorted(set(own.values()), key=lambda group: (group.out_of_fold, group.title)):
        shared.setdefault(group.key, group)
    return {name: shared[group.key] for name, group in own.items()}


def paired_differences(table: pd.DataFrame, judged: Mapping[str, Mapping[str, Any]], results: Path) -> Pairs:
    """Return paired differences of the best experiments of each group of ``table``, whose row numbers they name.

    ``judged``: by experiment, how its best value was judged, see :func:`group_of`; none if it wasn't.
    Each is (row, other row, difference, low, high, reason for no interval): the row's value minus the other row's.
    """
    names = table.loc[table["experiment"].isin(list(judged)), "experiment"]
    found: list[Sequence[Any]] = []
    files = 0
    for _, group in names.groupby(table["group"], sort=False):
        if len(group) < 2 or files >= MOST_FILES:
            continue
        best = group.head(MOST_PAIRED)
        files += len(best)
        found += differences_of(best, judged, results)
    return found


def differences_of(names: pd.Series, judged: Mapping[str, Mapping[str, Any]], results: Path) -> list[Sequence[Any]]:
    """Return the differences of the experiments ``names`` of one group, by their row numbers."""
    patients: dict[int, tuple[float, tuple[Array, Array, Array]]] = {}
    for row, name in names.items():
        facts = judged[name]
        parts = read_patients(results / name, facts["patients"])
        first = next(iter(patients.values()), None)
        if parts is not None and (first is None or all(map(np.array_equal, parts[1:], first[1][1:]))):
            patients[row] = facts["value"], parts
    found = []
    for (row, (value, ours)), (other, (rival, theirs)) in combinations(patients.items(), 2):
        *numbers, reason = change(value, rival, ours, theirs)
        found.append((row, other, *(None if number != number else rounded(number) for number in numbers), reason))
    return found


def change(
    first: float, second: float, ours: tuple[Array, Array, Array], theirs: tuple[Array, Array, Array]
) -> tuple[float, float, float, str]:
    """Return ``first`` minus ``second`` with its paired 95 % interval, NaN without one, and the reason for none.

    ``ours`` and ``theirs``: see :func:`common.reports.judgement.read_patients`; the patients are the same.
    """
    evidence = Evidence.of_sides(*ours[1:])
    low, high = Samples(first, evidence, ours[0]).change_ends(Samples(second, evidence, theirs[0]))
    return first - second, low, high, evidence.reason


def rounded(value: Any) -> Any:
    """Return a number of nine digits for JSON, a text for one that is not finite; other values as they are."""
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.9g}") if np.isfinite(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value
