"""Tests of common/dicom/scan.py and kernels.py: what a header says of how a series was made.

The kernels below were listed from what vendors and public sources call them, before anybody looked at the rules:

- Siemens SOMATOM Sensation and Emotion application guides: "standard kernels for body tissue studies B30s or B40s,
  softer images with B20s or B10s"; "for higher sharpness, cervical spine, shoulder, extremities: B60s, B70s, B80s";
  "for very high sharpness U70u, U80u, U90u for bone studies"; topograms T20s, T80s.
- "Siemens CT Reconstruction Kernels" (diagnosticradphys.com): Br40 standard body, Hr32 head, Ur77 sharp.
- Two public classifiers of head CT series: their lists of kernels of non-contrast heads, bone series and topograms.
- Comp2Comp: its list of soft kernels of GE, Philips, Canon, Toshiba, Siemens.
- pydicom's own test files and the headers of LIDC and NLST: STANDARD, BONE, LUNG; Philips B and C (soft), D (sharp).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.dicom.kernels import kernel_class
from common.dicom.reading import quiet_pydicom, read_any, read_dicom
from common.dicom.scan import ScanFields, describe_scan
from tests.dicom_files import head, new_ct, write_ct

BRAIN_OR_SOFT = {
    "ge": "STANDARD SOFT STD+ SOFT# MD\\ STND MD\\ SMTH STANDARD2",
    "siemens": "B10s B20f B20s B30f B30s B31f B31s B40f B41s Br34f Br36f Br38f Br40d Bf37f Bf39f I26f I30f I31f I31s "
    "I40f H30s H31f H31s H40s H41s H41f Hc40s Hf35s Hf38s Hr32s Hr36s3 Hr38s Hr40s Hr40f3 J30s2 J30s4 J40s3 J40s5 "
    "J45s4 Qr32s Qr40 Qr40d",
    "philips": "A B C SA SB UA UB UC IMR1,Brain\\ Routi IMR1,Soft\\ Tissue",
    "canon": "FC01 FC02 FC03 FC05 FC07 FC08 FC10 FC13 FC18 FC21 FC26 FC41 FC63 FC64 FC68 BRAIN_LCD",
}  # fmt: skip
BONE = {
    "ge": "BONE BONEPLUS EDGE",
    "siemens": "H60f H60s H70h Hr56f Hr56s3 Hr60f3 Hr64h1 Hr64h2 Hr68h Hr69h3 J70h1 J70h3 I70f "
    "B60s B70s B80s U70u U90u",
    "philips": "YA YB D E",
    "canon": "FC30 FC35 FC81",
}  # fmt: skip
NEITHER = {"ge": "LUNG DETAIL", "siemens": "T20f Tr20f T80s Bl57", "philips": "L", "canon": "FL03 FL04 FC51"}


def names(table: dict[str, str]) -> list[tuple[str, str]]:
    listed = [(vendor, text.replace("\\ ", "\0").split()) for vendor, text in table.items()]
    return [(vendor, name.replace("\0", " ")) for vendor, all_names in listed for name in all_names]


def test_a_kernel_has_the_class_that_its_vendor_and_public_lists_give_it() -> None:
    wrong = {
        (vendor, name): kernel_class(name, vendor)
        for kernel, table in (("soft", BRAIN_OR_SOFT), ("bone", BONE), ("other", NEITHER))
        for vendor, name in names(table)
        if kernel_class(name, vendor) != kernel
    }
    assert wrong == {}
    assert len(names(BRAIN_OR_SOFT) + names(BONE) + names(NEITHER)) > 110
    without_vendor = [name for _, name in names(BRAIN_OR_SOFT) if kernel_class(name, "") != "soft"]
    assert without_vendor == []  # anonymized files often lack Manufacturer


@pytest.mark.parametrize("name", ["J40s\\3", "['J40s', '3']", "j40s", " J40s ", "J40s/3"])
def test_a_kernel_of_several_values_is_read_however_they_are_written(name: str) -> None:
    assert kernel_class(name, "siemens") == "soft"
    assert kernel_class(name.replace("J40s", "Hr64h").replace("j40s", "hr64h"), "siemens") == "bone"


def test_a_name_that_nobody_knows_is_unknown() -> None:
    assert [kernel_class(name, vendor) for name, vendor in (("", ""), ("11", "other"), ("XYZ", "ge"))] == [
        "unknown"
    ] * 3
    assert kernel_class("B30f", "ge") == "unknown"  # another vendor's name


@pytest.mark.parametrize(
    ("fields", "contrast"),
    [
        ({}, "unknown"),
        ({"agent": "OMNIPAQUE 350"}, "doubtful"),  # filled in on many series where nothing was given
        ({"agent": "NONE"}, "none"),
        ({"agent": "N/A", "volume": "0"}, "none"),
        ({"agent": "ORAL"}, "none"),
        ({"agent": "ISOVUE", "volume": "100"}, "given"),
        ({"agent": "ISOVUE", "flow": "4.5"}, "given"),
        ({"agent": "CE", "series_text": "CTA Head 1.0"}, "given"),
        ({"series_text": "HEAD W/ CONTRAST 5mm"}, "given"),
        ({"series_text": "Schaedel +C"}, "given"),
        ({"series_text": "Head W/O Contrast", "agent": "OMNIPAQUE"}, "doubtful"),
        ({"series_text": "HEAD WITHOUT CONTRAST"}, "none"),
        ({"series_text": "Kopf nativ"}, "none"),
        ({"series_text": "5/5mm Plain"}, "none"),
        ({"series_text": "unenhanced brain"}, "none"),
        ({"series_text": "NON-CON HEAD"}, "none"),
        ({"series_text": "HEAD 5MM", "study_text": "CT HEAD WO IV CONTRAST"}, "none"),
        ({"series_text": "HEAD 5MM", "study_text": "CT HEAD W AND WO CONTRAST"}, "unknown"),  # holds both phases
        ({"series_text": "HEAD 5MM", "study_text": "CT HEAD W CONTRAST"}, "unknown"),
        ({"series_text": "DE_Head Optimum Contrast"}, "unknown"),  # a blend of two energies
    ],
)
def test_contrast_is_weighed_by_agent_amount_and_words(fields: dict[str, str], contrast: str) -> None:
    assert describe_scan(ScanFields(**fields)).contrast == contrast


@pytest.mark.parametrize(
    ("fields", "reconstruction", "energy"),
    [
        ({"image_type": "ORIGINAL\\PRIMARY\\AXIAL"}, "original", "single"),
        ({"image_type": "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 MON"}, "dynamic", "single"),
        ({"image_type": "ORIGINAL\\PRIMARY\\PERFUSION\\NONE"}, "dynamic", "single"),
        ({"image_type": "DERIVED\\PRIMARY\\MPR"}, "reformat", "single"),
        ({"image_type": "DERIVED\\SECONDARY\\MPR\\CSA MPR"}, "reformat", "single"),
        ({"image_type": "DERIVED\\PRIMARY\\AXIAL"}, "derived", "single"),
        ({"image_type": "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM7 SPI DUAL"}, "original", "mixed"),
        ({"image_type": "ORIGINAL\\PRIMARY\\AXIAL\\GSI MONO"}, "original", "virtual"),
        ({"image_type": "DERIVED\\PRIMARY\\AXIAL\\VMI"}, "derived", "virtual"),
        ({"series_text": "DE_Head 1.0 Hr40 A_80kV"}, "unknown", "part"),
        ({"series_text": "DE_Head 5.0 Hr40 F_0.5"}, "unknown", "mixed"),
        ({"series_text": "VNC 5.0"}, "unknown", "virtual"),
        ({"series_text": "AX MIP 10"}, "projection", "single"),
        ({}, "unknown", "single"),
    ],
)
def test_reconstruction_and_energy_are_told_by_image_type_and_words(
    fields: dict[str, str], reconstruction: str, energy: str
) -> None:
    found = describe_scan(ScanFields(**fields))
    assert (found.reconstruction, found.energy) == (reconstruction, energy)


def test_ages_are_bins_of_ten_years() -> None:
    ages = {"045Y": "40-49", "008M": "0-9", "026M": "0-9", "100Y": "90+", "003W": "0-9", "45": "", "": "", "XXXY": ""}
    assert {age: describe_scan(ScanFields(age=age)).age for age in ages} == ages


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", None])
def test_both_readers_of_headers_say_the_same_of_a_scan(tmp_path: Path, charset: str | None) -> None:
    dataset = new_ct(head(0) + 1024)
    if charset:
        dataset.SpecificCharacterSet = charset
    dataset.Manufacturer, dataset.ConvolutionKernel = "SIEMENS", ["Hr40s", "3"]
    dataset.SeriesDescription = "Schädel groß ohne KM" if charset else "Kopf ohne KM"
    dataset.SeriesNumber, dataset.PatientAge, dataset.PatientSex = 4, "071Y", "F"
    dataset.ContrastBolusAgent, dataset.ContrastBolusVolume = "none", "0"
    content = write_ct(tmp_path / "one.dcm", dataset).read_bytes()
    with quiet_pydicom():
        quick, slow = (read(content).header.frames[0].scan for read in (read_dicom, read_any))
    assert quick == slow
    assert quick == ("siemens", "soft", "none", "unknown", "single", 4, "70-79", "F")
