"""CT-ICH (PhysioNet, Hssayeni et al. 2020): head CT of 82 patients as NIfTI, labels of each slice.

The published layout of versions 1.2 to 1.3.1, as public loaders of it describe it::

    hemorrhage_diagnosis_raw_ct.csv   PatientNumber, SliceNumber (from 1, along the file's third axis), a column
                                      for each kind as in Intraventricular, No_Hemorrhage, Fracture_Yes_No
    ct_scans/049.nii                  the volume of patient 49, in Hounsfield units
    masks/049.nii                     its bleedings outlined; no labels are taken from here

Source: doi 10.13026/4nae-zg36 and doi 10.3390/data5010014. Version 1.0 has JPEG pictures, which are no CT any more.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.dicom.nifti import slices_of_third_axis
from common.errors import UsageError, WorkError
from common.spreadsheets import checked_numbers, read_texts
from rsna.prepare.adapters.table import PublishedLabels
from rsna_dataset import KINDS, LABELS

DIAGNOSES = "hemorrhage_diagnosis_raw_ct.csv"
VOLUME = re.compile(r"(?:.*/)?ct_scans/(\d+)\.nii(?:\.gz)?")
PLACE = ["PatientNumber", "SliceNumber"]


def read(root: Path, paths: Sequence[str]) -> PublishedLabels:
    """Return the labels of the slices. A volume whose slices are not those of the table gets none, which is said.

    Raises UsageError for a folder ``root`` of another layout, WorkError for a value that is not 0 or 1 and for a table
    that contradicts itself.
    """
    file = root / DIAGNOSES
    if not file.is_file():
        raise UsageError(f"--pre_dataset=ct_ich: there is no {file}; name the unpacked folder that has ct_scans/ in it")
    columns = [name.capitalize() for name in KINDS]
    texts = read_texts(file, [*PLACE, *columns, "No_Hemorrhage"])
    numbers = pd.DataFrame({name: checked_numbers(file, texts[name]) for name in texts}, texts.index)
    wrong = ~numbers[[*columns, "No_Hemorrhage"]].isin((0, 1))
    if wrong.any(axis=None):
        raise WorkError(f"{file}: row {numbers.index[wrong.any(axis=1)][0]}: a label is not 0 or 1")
    labels = numbers[columns].set_axis(list(KINDS), axis=1).assign(any=1 - numbers["No_Hemorrhage"])[list(LABELS)]
    bad = (labels["any"] != labels[list(KINDS)].max(axis=1)) | numbers.duplicated(PLACE)
    if bad.any():
        raise WorkError(f"{file}: row {bad.index[bad][0]}: stands there twice, or No_Hemorrhage contradicts its kinds")
    places = numbers[PLACE].astype(np.int64)
    volumes = {path: int(found[1]) for path in paths if (found := VOLUME.fullmatch(path)) is not None}
    if volumes and importlib.util.find_spec("nibabel") is None:
        raise UsageError("--pre_dataset=ct_ich: NIfTI files need a package that is not installed: pip install nibabel")
    slices = {}  # for each volume: the patient, the number of slices, whether the file's first slice is the highest
    for path, patient in volumes.items():
        count, turned = slices_of_third_axis(root / path)
        if count and sorted(places.loc[places["PatientNumber"] == patient, "SliceNumber"]) == list(range(1, count + 1)):
            slices[path] = patient, count, turned

    def slice_of(path: str, frame: int) -> str:
        if path not in slices:
            return ""
        patient, count, turned = slices[path]  # frames are counted from the lowest slice
        return f"{patient}/{count + 1 - frame if turned else frame}"

    patients = places["PatientNumber"].nunique()
    said = [f"{len(slices)} of the {patients} patients of {DIAGNOSES} have a volume with as many slices as rows"]
    left_out = len(volumes) - len(slices)
    said += [f"{left_out} volumes have other slices than {DIAGNOSES} names, and get no labels"] * (left_out > 0)
    keys = [f"{patient}/{number}" for patient, number in places.itertuples(index=False)]
    table = labels.astype(np.int8).set_axis(pd.Index(keys, name="key")).assign(row=places.index.to_numpy())
    return PublishedLabels(table, slice_of, False, tuple(said))
