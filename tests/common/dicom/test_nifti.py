"""Tests of common/dicom/nifti.py: volumes that nibabel writes, against the slices they were made of.

The reader was also tried on what dcm2niix 1.0.20260724 makes of real head scans (neurolabusc/dcm_qa_ct): 308 slices of
three Philips series had the same Hounsfield units at the same place as in the DICOM files.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from common.dicom.errors import DicomError
from common.dicom.nifti import read_nifti
from common.preprocessing.packed import has_mark, is_nifti
from common.preprocessing.sources import read_source

SLICES = np.random.default_rng(0).integers(-1024, 2000, (6, 8, 10)).astype(np.int16)  # in DICOM's axes
# Columns of 0.5 mm to the left, rows of 0.6 mm to the back, slices 5 mm apart and each 1 mm further back (a tilt).
AFFINE_LPS = np.array([[0.5, 0, 0, -110], [0, 0.6, 1, -90], [0, 0, 5, 30], [0, 0, 0, 1.0]])
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
KINDS = (nibabel.Nifti1Image, nibabel.Nifti2Image)
AXES = ("RAS", "LPS", "LAS", "PIR", "SAL", "ILA", "ASR", "RSP")
FORMS = {  # how a value in HU is stored, and slope and intercept that give it back
    "int16": (np.int16, 1, 0),
    "uint16": (np.uint16, 1, -1024),
    "big-endian": (">i2", 1, 0),
    "float32": (np.float32, 1, 0),
    "halves": (np.int16, 0.5, 100),
}


def volume(axes: str = "LPS", form: str = "int16", kind: type = nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    dtype, slope, intercept = FORMS[form]
    stored = ((SLICES.transpose(2, 1, 0).astype(np.float64) - intercept) / slope).astype(dtype)
    image = kind(stored, RAS @ AFFINE_LPS)
    image = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes)))
    image.header.set_slope_inter(slope, intercept)
    return image


@given(st.sampled_from(AXES), st.sampled_from(sorted(FORMS)), st.sampled_from(KINDS))
def test_a_volume_gives_the_same_slices_at_the_same_places_however_it_is_stored(axes: str, form: str, kind: type):
    content = volume(axes, form, kind).to_bytes()
    assert is_nifti(content[:348])
    file = read_nifti(content, "one.nii")
    np.testing.assert_array_equal([frame.container for frame in file.frames()], SLICES)
    for number, header in enumerate(file.header.frames):
        np.testing.assert_allclose(header.geometry.position, (AFFINE_LPS @ [0, 0, number, 1])[:3], atol=1e-4)
        np.testing.assert_allclose(header.geometry.orientation, (1, 0, 0, 0, 1, 0), atol=1e-6)
        assert (header.geometry.row_spacing_mm, header.geometry.column_spacing_mm) == pytest.approx((0.6, 0.5))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((9, 9, 9), np.uint8), "no_hounsfield"),  # a mask
        (np.arange(729, dtype=np.uint8).reshape(9, 9, 9), "no_hounsfield"),  # a picture of 256 greys
        (np.full((9, 9, 9), np.nan, np.float32), "no_hounsfield"),
        (np.full((9, 9, 9, 2), -1000, np.int16), "map"),
        (np.full((9, 1, 9), -1000, np.int16), "localizer"),
        (np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour"),
        (np.zeros((9, 9, 9), np.complex64), "colour"),
    ],
)
def test_what_is_no_scan_in_hounsfield_units_is_refused_with_its_reason(array: np.ndarray, reason: str) -> None:
    with pytest.raises(DicomError) as caught:
        read_nifti(nibabel.Nifti1Image(array, np.eye(4)).to_bytes(), "one.nii")
    assert caught.value.reason == reason


@pytest.mark.parametrize("cut", [348, 352, 700])
def test_a_cut_volume_is_refused(cut: int) -> None:
    with pytest.raises(DicomError) as caught:
        read_nifti(volume().to_bytes()[:cut], "one.nii")
    assert caught.value.reason == "unreadable"


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@given(st.integers(0, 351), st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused(place: int, value: int) -> None:
    content = bytearray(volume().to_bytes())
    content[place] = value
    try:
        file = read_nifti(bytes(content), "one.nii")
        assert len(list(file.frames())) == len(file.header.frames)
    except DicomError:
        pass


def test_a_packed_volume_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    content = volume().to_bytes()
    packed = tmp_path / "scan"
    packed.write_bytes(gzip.compress(content))
    assert has_mark(packed.read_bytes())
    assert read_source(packed) == content


def test_without_nibabel_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DicomError, match="pip install nibabel"):
        read_nifti(volume().to_bytes(), "one.nii")
