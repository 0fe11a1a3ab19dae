"""Write a phantom as a hospital's archive: each study with other series around the one to read, by four vendors.

The tags are those of public headers: kernels, ImageType, contrast and dual-energy fields as GE, Siemens, Philips and
Canon write them, also missing and contradicting ones. ``archive_truth.csv`` says what each series is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom.uid import SecondaryCaptureImageStorage

from rsna.phantom import bleeding, scanner
from rsna.phantom.plan import StudyPlan
from rsna.phantom.scanner import IMPLEMENTATION_UID, PixelForm
from rsna.phantom.study import LABELS, PhantomSettings, draw_scan, render_study, side_by_side

FORM = PixelForm(16, 1, -1024)
THIN_MM, REPEATS = 1.0, 4
CORONAL = ["1", "0", "0", "0", "0", "-1"]
ORIGINAL, DERIVED = ["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]


@dataclass(frozen=True)
class Vendor:
    """How a vendor's scanner fills in the fields that tell series apart."""

    name: str
    soft: str | list[str]
    bone: str | list[str]
    axial: list[str]
    reformat: list[str]
    localizer: list[str]
    agent: str


VENDORS = (
    Vendor("GE MEDICAL SYSTEMS", "STANDARD", "BONEPLUS", [*ORIGINAL, "AXIAL"], [*DERIVED, "AXIAL", "REFORMATTED"],
           [*ORIGINAL, "LOCALIZER"], "OMNIPAQUE 350"),
    Vendor("SIEMENS", ["J40s", "3"], ["Hr64h", "3"], [*ORIGINAL, "AXIAL", "CT_SOM5 SPI"],
           [*DERIVED, "AXIAL", "CT_SOM5 MPR"], [*ORIGINAL, "LOCALIZER", "CT_SOM5 TOP"], "APPLIED"),
    Vendor("Philips", "UB", "YA", [*ORIGINAL, "AXIAL", "HELIX"], [*DERIVED, "AXIAL", "MPR"],
           [*ORIGINAL, "LOCALIZER", "ES"], "ISOVUE"),
    Vendor("TOSHIBA", "FC26", "FC30", [*ORIGINAL, "AXIAL"], [*DERIVED, "MPR"], [*ORIGINAL, "LOCALIZER"], "IOPAMIRON"),
)  # fmt: skip


@dataclass(frozen=True)
class ArchiveSeries:
    """A series to write: its volume in HU (slices, rows, columns), first position, step, and header fields."""

    kind: str
    expected: str  # chosen, not_chosen, not_eligible, or no_slices
    hu: np.ndarray
    origin: np.ndarray
    step: np.ndarray
    fields: dict[str, Any] = field(default_factory=dict)


def write_archive_study(plan: StudyPlan, settings: PhantomSettings, folder: Path) -> list[dict[str, Any]]:
    """Write a study's series into ``folder``/archive. Return a row of archive_truth.csv for each series."""
    with side_by_side():
        return _write(plan, settings, folder)


def _write(plan: StudyPlan, settings: PhantomSettings, folder: Path) -> list[dict[str, Any]]:
    scan = draw_scan(plan, settings)
    slices = list(render_study(plan, settings))
    positive = {
        kind: int(any(one.area_mm2.get(kind, 0.0) >= bleeding.MIN_AREA_MM2 for one in slices))
        for kind in bleeding.KINDS
    }
    labels = dict(zip(LABELS, [*positive.values(), int(any(positive.values()))], strict=True))
    vendor = VENDORS[plan.index % len(VENDORS)]
    study_id = f"{IMPLEMENTATION_UID}.{settings.seed}.{plan.index}"
    rows = []
    for number, series in enumerate(_series(plan, settings, vendor, slices, scan), start=1):
        series_id = f"{study_id}.{number}"
        header = scanner.new_header(
            f"PHANTOM-{plan.patient:06d}",
            study_id,
            series_id,
            FORM,
            series.hu.shape[1:],
            scan.spacing_mm,
            scan.tilt,
            False,
        )
        header.Manufacturer = vendor.name
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        header.SeriesNumber, header.PatientAge = str(number), f"{round(scan.head.age):03d}Y"
        for keyword, value in series.fields.items():
            setattr(header, keyword, value)
        place = folder / "archive" / f"{plan.index:04d}" / f"{number:02d}"
        place.mkdir(parents=True)
        for index, hu in enumerate(series.hu):
            position = tuple(float(value) for value in series.origin + series.step * index)
            name = f"{series_id}.{index + 1}"
            path = place / f"IM{index + 1:04d}"
            scanner.write_slice(
                path, header, name, (plan.index * 100 + number) * 1000 + index, position, FORM.encode(hu)
            )
        rows.append(
            {"study": plan.index, "StudyInstanceUID": study_id, "SeriesInstanceUID": series_id, "vendor": vendor.name,
             "kind": series.kind, "expected": series.expected, **labels}
        )  # fmt: skip
    return rows


def _series(
    plan: StudyPlan, settings: PhantomSettings, vendor: Vendor, slices: list[Any], scan: Any
) -> Iterator[ArchiveSeries]:
    """Yield the series of a study in the order of their numbers. Some studies lack tags, or have ones that lie."""
    rng = np.random.default_rng([settings.seed, 7, plan.pixel_seed])
    soft = np.stack([one.hu for one in slices])
    first = np.array(slices[0].position_mm)
    step = (np.array(slices[-1].position_mm) - first) / max(1, len(slices) - 1)
    gap = scan.thickness_mm
    quirk = plan.index // len(VENDORS) % 4
    axial = {"ImageType": vendor.axial, "ConvolutionKernel": vendor.soft, "SliceThickness": f"{gap:.3f}"}
    axial["SeriesDescription"] = "Head 5.0"

    def noisy(volume: np.ndarray, sigma: float) -> np.ndarray:
        return (volume + rng.normal(0, sigma, volume.shape)).clip(*FORM.hu_range).astype(np.int16)

    scout = soft.mean(axis=1).repeat(4, axis=0)[None].astype(np.int16)
    yield ArchiveSeries("scout", "no_slices", scout, first, step, {
        "ImageType": vendor.localizer, "ConvolutionKernel": vendor.soft, "SliceThickness": "650",
        "ImageOrientationPatient": CORONAL,
    })  # fmt: skip
    if quirk == 1:  # as anonymized archives: nothing is left but geometry
        axial = {}
    elif quirk == 2:  # fields that lie: a body part, an agent that every series names
        axial |= {"BodyPartExamined": "CSPINE", "ContrastBolusAgent": vendor.agent, "SeriesDescription": "CT HEAD/NK"}
    elif quirk == 3:  # thick slices that were computed from thin ones
        axial |= {"ImageType": [*DERIVED, *vendor.axial[2:]], "SeriesDescription": "Kopf nativ"}
    yield ArchiveSeries("soft", "chosen", soft, first, step, axial)
    yield ArchiveSeries("bone", "not_eligible", noisy(soft, 35), first, step, axial | {
        "ConvolutionKernel": vendor.bone, "SeriesDescription": "Head bone"
    })  # fmt: skip
    parts = max(1, round(gap / THIN_MM))
    thin = {"SliceThickness": f"{THIN_MM:.3f}", "SeriesDescription": "Head 1.0"} if axial else {}
    yield ArchiveSeries("thin", "not_chosen", noisy(soft.repeat(parts, axis=0), 6), first, step / parts, axial | thin)
    enhanced = soft + np.where((soft > 15) & (soft < 60), 12, 0).astype(np.int16)
    given = {"ContrastBolusAgent": vendor.agent, "ContrastBolusVolume": "100", "SeriesDescription": "Head 5.0 post"}
    yield ArchiveSeries("contrast", "not_eligible", enhanced, first, step, axial | given)
    side = soft.shape[1]
    coronal = np.stack(
        [cv2.resize(soft[::-1, row], (soft.shape[2], side)) for row in range(0, side, max(1, side // 12))]
    )
    backwards = np.array([0, max(1, side // 12) * scan.spacing_mm, 0])
    yield ArchiveSeries("coronal", "not_eligible", coronal, first, backwards, axial | {
        "ImageType": vendor.reformat, "ImageOrientationPatient": CORONAL, "SeriesDescription": "MPR"
    })  # fmt: skip
    middle = len(soft) // 2
    perfusion = noisy(soft[middle : middle + 1].repeat(REPEATS * 3, axis=0), 12)
    yield ArchiveSeries("perfusion", "not_eligible", perfusion, first + middle * step, np.zeros(3), axial | {
        "ContrastBolusAgent": vendor.agent, "SeriesDescription": "Neuro"
    })  # fmt: skip
    yield ArchiveSeries("virtual", "not_eligible", soft, first, step, axial | {
        "ImageType": [*DERIVED, "AXIAL", "VMI"], "SeriesDescription": "MonoE 70 keV"
    })  # fmt: skip
    yield ArchiveSeries("map", "no_slices", soft[:2], first, step, {"ImageType": [*DERIVED, "PERFUSION", "RCBF"]})
    yield ArchiveSeries("dose", "no_slices", soft[:1], first, step, {
        "SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]
    })  # fmt: skip
