"""The page of a predicted study: its series as scanned, with what the networks say of each slice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from common.datasets.image_files import load_image
from common.dicom.geometry import SliceGeometry, direction_letters
from common.preprocessing.series import NORMAL, ORIENTATION, POSITION
from common.reports.page import NOTICE
from common.reports.viewer import Facts, Slice, Stack, Study, write_viewer
from rsna_dataset import LABELS, image_path

logger = logging.getLogger(__name__)

SIDES = {"L": "left side", "R": "right side", "A": "front", "P": "back", "H": "top of the head", "F": "feet"}


@dataclass(frozen=True)
class StudyPages:
    """Writes the pages of studies.

    - ``folder`` is a dataset's folder whose images are int16 HU as scanned.
    - ``places`` (index: image id) has the columns POSITION and ORIENTATION of :mod:`common.preprocessing.series`.
    - ``patients`` gives of each study (index) the patient, "" if unknown.
    - ``series`` (index ``series_id``) is series.csv as text: each series' choice, and the reason.
    - ``model`` says in words what predicts, ``rule`` where a study's probabilities come from.
    """

    folder: Path
    places: pd.DataFrame
    patients: pd.Series
    series: pd.DataFrame
    model: str
    rule: str

    def write(self, output: Path, study_id: str, slices: pd.DataFrame, study: Mapping[str, float]) -> str:
        """Write a study's page to the folder ``output`` and return its name.

        ``slices``: described rows of metadata in the order of series and slices, with the probabilities of LABELS.
        """
        groups = [rows for _, rows in slices.groupby("series_id", sort=True)]
        stacks = [self.stack(f"series {number} of {len(groups)}", rows) for number, rows in enumerate(groups, start=1)]
        patient = self.patients[study_id]
        others = self.patients.index[(self.patients == patient) & (self.patients != "")].drop(study_id, errors="ignore")
        page = Study(
            file_stem(study_id),
            dict(study),
            f"The study's value: {self.rule}.",
            [("patient", str(patient) or "unknown"), ("predicted by", self.model)],
            stacks,
            NOTICE,
            [(file_stem(name), quote(page_name(name))) for name in others],
            unused_series(self.series[self.series["study_id"] == study_id].drop(slices["series_id"], errors="ignore")),
        )
        if left_out := write_viewer(output / page_name(study_id), page):
            logger.warning("%s: %s", page_name(study_id), left_out)
        return page_name(study_id)

    def stack(self, title: str, rows: pd.DataFrame) -> Stack:
        """Return a series, ``rows`` in order, for its study's page."""
        where = self.places.loc[rows.index]
        positions, orientations = where[POSITION].to_numpy(np.float64), where[ORIENTATION].to_numpy(np.float64)
        slices = [
            Slice(
                int(row.rows),
                int(row.columns),
                SliceGeometry(
                    tuple(position), tuple(orientation), row.row_spacing_mm, row.column_spacing_mm, row.thickness_mm
                ),
                float(row.position_mm),
                slice_facts(row),
            )
            for row, position, orientation in zip(
                rows.itertuples(), positions.tolist(), orientations.tolist(), strict=True
            )
        ]

        def read(place: int) -> np.ndarray:
            return load_image(image_path(self.folder, rows.index[place]))

        probabilities = rows[list(LABELS)].to_numpy(np.float64)
        return Stack(title, describe_direction(rows), series_facts(rows), slices, probabilities, read)


def file_stem(study_id: str) -> str:
    """Return the start of the names of a study's files; ``study_id`` is "" for files without StudyInstanceUID."""
    return study_id or "study_unknown"


def page_name(study_id: str) -> str:
    """Return the name of a study's page."""
    return f"{file_stem(study_id)}.html"


def unused_series(series: pd.DataFrame) -> Facts:
    """Return why each of these series was not predicted, with what is known of it, in words."""
    return [
        (
            str(row.Index),
            f"{row.choice.replace('_', ' ')}: {row.reason}; {row.series_slices} slices"
            + "".join(f", {fact}" for fact in (row.orientation, row.kernel) if fact not in ("", "unknown")),
        )
        for row in series.itertuples()
    ]


def describe_direction(rows: pd.DataFrame) -> str:
    """Say to which side of the patient a series' first and last slice lie."""
    normal = rows.iloc[0][NORMAL].to_numpy(np.float64)
    if len(rows) < 2 or not np.isfinite(normal).all():
        return ""
    first, last = (SIDES[direction_letters(way)[0]] for way in (-normal, normal))
    return f"The first slice is the one nearest the {first}, the last the one nearest the {last}."


def slice_facts(row: Any) -> Facts:
    """Return what is known of one slice, in words; ``row`` is a row of described metadata."""
    thickness = [("thickness", f"{row.thickness_mm:.2f} mm")] if row.thickness_mm > 0 else []
    marks = ", ".join(mark.replace("_", " ") for mark in f"{row.geometry};{row.mended}".split(";") if mark)
    return [
        ("picture", str(row.Index)),
        *thickness,
        ("HU", f"{row.hu_min} to {row.hu_max}"),
        *([("noted", marks)] if marks else []),
    ]


def series_facts(rows: pd.DataFrame) -> Facts:
    """Return what is known of a series, in words."""
    first = rows.iloc[0]
    sizes = rows["rows"].astype(str) + " × " + rows["columns"].astype(str)
    pixels = rows["row_spacing_mm"].map("{:.3g} × ".format) + rows["column_spacing_mm"].map("{:.3g} mm".format)
    facts = [("series", str(first["series_id"])), ("slices", str(len(rows))), ("matrix", ", ".join(sizes.unique()))]
    if (rows["column_spacing_mm"] > 0).all():
        facts.append(("pixels", ", ".join(pixels.unique())))
    if first["slice_spacing_mm"] > 0:
        facts.append(("distance", f"{first['slice_spacing_mm']:.2f} mm from slice to slice"))
    return facts
