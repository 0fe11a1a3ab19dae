"""Choose for each study the series to predict: a table of rules, with a reason for every series that isn't chosen.

Networks learnt from non-contrast, axial heads of a soft kernel, with slices of about 5 mm (the competition's). A study
of a hospital holds other series beside that one, and its highest slice would come from any of them.

What a file lacks is no evidence against its series: only a value that a rule names rules it out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.dicom import kernels, scan
from common.preprocessing.series_facts import SCAN, series_facts
from common.preprocessing.tables import first_known
from rsna.prepare.options import ALL

SERIES_FILE = "series.csv"
CHOSEN, NOT_CHOSEN, NOT_ELIGIBLE = "chosen", "not_chosen", "not_eligible"
TRAINING_MM = 5.0  # slice thickness of most of the training data
WHOLE = 0.9  # of the study's longest coverage: a whole head
FACTS = [*SCAN, "orientation", "head", "repeats", "series_slices", "thickness_mm", "slice_spacing_mm", "coverage_mm",
         "head_mm", "series_number"]  # fmt: skip


class Rule(NamedTuple):
    """A series whose ``fact`` has one of ``values`` is not eligible, for ``reason``. ``because`` is for the reader."""

    fact: str
    values: tuple[str, ...]
    reason: str
    because: str


class Preference(NamedTuple):
    """Of eligible series the one with the lowest ``rank`` of its facts is better, by ``reason``."""

    rank: Callable[[pd.DataFrame], pd.Series]
    reason: str
    because: str


# The first rule that holds gives the reason.
RULES = (
    Rule("orientation", ("coronal", "sagittal", "oblique"), "not axial", "networks learnt axial slices"),
    Rule("head", ("no",), "no head in it", "no slice shows a skull; descriptions of the body part lie"),
    Rule("reconstruction", (scan.DYNAMIC,), "perfusion scan or bolus tracking", "contrast flows in, at a low dose"),
    Rule("repeats", ("yes",), "each place scanned several times", "a perfusion scan whose header doesn't say so"),
    Rule("reconstruction", (scan.PROJECTION,), "projection or rendering", "it shows the highest values of a slab"),
    Rule("contrast", (scan.GIVEN,), "contrast given", "enhanced vessels look like blood"),
    Rule("energy", (scan.VIRTUAL,), "virtual images of dual energy", "their HU are not those of a tube voltage"),
    Rule("kernel", (kernels.BONE,), "bone kernel", "noise hides blood, and edges look like it"),
    Rule("kernel", (kernels.OTHER,), "kernel for neither brain nor soft tissue", "as with bone kernels"),
)


def _places(fact: str, *values: str) -> Callable[[pd.DataFrame], pd.Series]:
    """Return a rank: the place of the fact among ``values``, with all others at the front."""
    return lambda facts: facts[fact].map({value: place for place, value in enumerate(values, start=1)}).fillna(0)


def _part_of_the_head(facts: pd.DataFrame) -> pd.Series:
    covers = facts["head_mm"].fillna(facts["coverage_mm"]).fillna(0)
    return (covers < WHOLE * covers.groupby(facts["study_id"]).transform("max")).astype(int)


# The first preference in which two series differ decides between them.
PREFERENCES = (
    Preference(_places("contrast", scan.DOUBTFUL), "a contrast agent is named", "it may have been given"),
    Preference(_places("kernel", kernels.UNKNOWN), "unknown kernel", "it may be a bone kernel"),
    Preference(_part_of_the_head, "covers less of the head", "a neck, or a part that was scanned again"),
    Preference(_places("energy", scan.MIXED, scan.PART), "a part of dual energy", "noisier, at another voltage"),
    Preference(lambda facts: (facts["thickness_mm"] - TRAINING_MM).abs().round(1).fillna(np.inf),
               "thickness further from 5 mm", "noise and partial volume as in training"),
    Preference(lambda facts: -facts["series_slices"], "fewer slices", "more of the head is seen"),
    Preference(_places("reconstruction", scan.DERIVED, scan.REFORMAT), "computed from other slices", "smoothed"),
    Preference(lambda facts: facts["series_number"].where(facts["series_number"] >= 0, np.inf),
               "a later series of equal worth", "contrast is given after the first scan"),
)  # fmt: skip


def choose_series(facts: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Return ``facts`` (rows of :func:`common.preprocessing.series_facts.series_facts`) with ``choice`` and ``reason``.

    With ``all`` every series is chosen. The result doesn't depend on the order of rows, nor of a study's choice on
    series that are not eligible.
    """
    facts = facts.sort_index()
    if mode == ALL:
        return facts.assign(choice=CHOSEN, reason="all series are used")
    holds = [facts[rule.fact].isin(rule.values).to_numpy() for rule in RULES]
    reason = pd.Series(np.select(holds, [rule.reason for rule in RULES], ""), index=facts.index, dtype=object)
    eligible = facts[reason == ""]
    ranks = pd.DataFrame({preference.reason: preference.rank(eligible).astype(float) for preference in PREFERENCES})
    order = ranks.assign(study_id=eligible["study_id"]).sort_values(list(ranks), kind="stable")
    best = order.groupby("study_id").head(1)
    choice = pd.Series(np.where(reason == "", NOT_CHOSEN, NOT_ELIGIBLE), index=facts.index)
    choice[best.index] = CHOSEN
    counts = eligible.groupby("study_id").size()
    for study_id, rows in order.groupby("study_id"):
        chosen = rows.iloc[0]
        reason[rows.index[0]] = "the only eligible series" if counts[study_id] == 1 else f"best of {counts[study_id]}"
        for series_id, row in rows.iloc[1:].iterrows():
            worse = [name for name in ranks if row[name] > chosen[name]]
            reason[series_id] = worse[0] if worse else "of equal worth"
    return facts.assign(choice=choice, reason=reason)


def series_of(table: pd.DataFrame) -> pd.Series:
    """Return the series of each row of the metadata (index ``id``), as :func:`series_table` names it."""
    return pd.Series(first_known(table, "series_id", "study_id"), index=table.index)


def series_table(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Return series.csv, index ``series_id``: study_id, choice, reason, and :data:`FACTS`.

    ``table`` is the metadata, index ``id``. A series or study without an id has that of its study or image.
    """
    facts = series_facts(table, series_of(table).to_numpy(), first_known(table, "study_id", "series_id"))
    return choose_series(facts, mode)[["study_id", "choice", "reason", *FACTS]]


def read_series(path: Path) -> pd.DataFrame | None:
    """Return series.csv as text, index ``series_id``; None for a dataset that was made before there was one."""
    return pd.read_csv(path, dtype=str, keep_default_na=False, index_col="series_id") if path.is_file() else None


def without_choice(series: pd.DataFrame) -> dict[str, str]:
    """Return why a study has no chosen series, for each such study, as in ``contrast given (2), bone kernel (1)``."""
    chosen = series["study_id"][series["choice"] == CHOSEN]
    left = series[~series["study_id"].isin(chosen)]
    return {
        str(study_id): ", ".join(f"{reason} ({count})" for reason, count in reasons.value_counts(sort=False).items())
        for study_id, reasons in left.sort_values("reason")["reason"].groupby(left["study_id"])
    }


def describe_choice(series: pd.DataFrame) -> str:
    """Return how many series were chosen, and why the others were not, in one line."""
    counts = series["choice"].value_counts()
    others = series["reason"][series["choice"] != CHOSEN].value_counts()
    reasons = ", ".join(f"{reason} {count}" for reason, count in others.items())
    why = f" ({SERIES_FILE} says why; {reasons})" * bool(reasons)
    return f"{counts.get(CHOSEN, 0):,} of {len(series):,} series chosen{why}"
