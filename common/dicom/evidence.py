"""Decide whether an image is a CT slice, by one table of rules.

A CT archive also holds scouts, dose pages, screenshots, renderings and maps. Many of them have Modality CT and the
geometry of a slice, but each kind shows in some other field of the header. A missing field proves nothing: anonymized
files often lack ImageType and SOPClassUID.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.dicom.errors import NO_SLICE, DicomError
from common.dicom.pictures import lowest_and_highest

if TYPE_CHECKING:
    from common.dicom.slices import SliceHeader

HOUNSFIELD_UNITS = ("", "HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS")  # of RescaleType
UNSPECIFIED = "US"  # RescaleType's word for "unspecified" (PS3.3 C.11.1.1.2)
CT_HU = (-1100, 4095)  # from noise around air to the highest value of a 12-bit scale
OUTSIDE_SHARE = 0.01  # accepted share of pixels beyond that range; metal takes less
_CT_CLASSES = r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.[12])?"  # CT, Enhanced CT, Legacy Converted Enhanced CT
_CAPTURES = r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[1-4])?"  # Secondary Capture, and its multi-frame kinds
_NO_LETTERS = re.compile(r"[^A-Z0-9|]+")


class Evidence(NamedTuple):
    """The header fields that tell what kind of image it is, unchanged; empty for a missing field.

    ``sop_class`` is SOPClassUID, ``meta_class`` is MediaStorageSOPClassUID. ``image_type`` is ImageType, or a frame's
    FrameType, its values joined by a backslash: ``ORIGINAL\\PRIMARY\\AXIAL``.
    """

    sop_class: str = ""
    meta_class: str = ""
    image_type: str = ""
    rescale_type: str = ""
    burned_in: str = ""


class Rule(NamedTuple):
    """A sign that an image is no CT slice: ``pattern`` is found in ``field``, a field of :class:`Evidence`.

    The field is searched in capitals. In ImageType and RescaleType each run of blanks and punctuation counts as one
    blank, and ``|`` separates values. ``reason`` is a key of :data:`common.dicom.errors.NO_SLICE`.
    """

    reason: str
    field: str
    pattern: str


# The first rule that matches decides, so the most specific come first. The words of ImageType are those of the standard
# (PS3.3 C.8.2.1.1.1, C.8.15.2, C.8.16.1) and of GE, Philips, Siemens and Toshiba. DERIVED and SECONDARY alone prove
# nothing: many good head scans are reconstructed later.
RULES = (
    Rule("localizer", "image_type", r"LOCALI[SZ]ER|SCOUT|SURVIEW|SCANO|TOPOGRAM|\bCT SOM\d+ TOP\b"),
    Rule("dose_report", "image_type", r"(?<!LOW )\bDOSE|\bCT SOM\d+ PROT\b|\bPROTOCOL\b|\bPATIENT INFO|\bREPORT\b"),
    Rule("dose_report", "image_type", r"\bRESULTS?\b|\bSUMMARY\b|\bGRAPH\b"),
    Rule("screen_save", "image_type", r"\bSCREEN|\bSNAP ?SHOT\b|\bCAPTURE\b"),
    Rule("rendering", "image_type", r"\b3 ?D\b|\bVRT?\b|VOLREN|VOLUME REND|RENDER|\bSSD\b|\bSURFACE\b"),
    Rule("projection", "image_type", r"MIP\b|\bM(IN|AX) ?IP\b|PROJECTION|RAY ?SUM|\bM(IN|AX)IMUM\b"),
    Rule("map", "image_type", r"\b[RCP]{0,2}B[FV]\b|\bMTT\b|\bTT[PSD]\b|\bT ?MAX\b|PENUMBRA|\bBLOOD (FLOW|VOL)"),
    Rule("map", "image_type", r"MAP\b|PARAMETRIC|PERMEABILITY|\bIODINE\b|ELECTRON DENSITY|\bRHO ?Z\b|\bZ ?EFF"),
    Rule("map", "image_type", r"\bEFF\w* (Z|ATOMIC)\b|\bMAT(ERIAL)? (SPEC|REM|FRAC|MOD|VAL|DENS|QUANT|DECOMP)"),
    Rule("map", "image_type", r"\bSTD DEV|\b(SUBTRACT|DIVIS|MULTIPLICAT)ION\b|\bQUANTITY\b"),
    Rule("map", "image_type", r"^(?!.*\bORIGINAL\b).*\bPERF"),  # an ORIGINAL one is a perfusion scan, not a map
    Rule("map", "rescale_type", r"^(HU ?MOD|Z ?EFF|MG ?ML|EDW?|PCT)$"),
    Rule("burned_in", "burned_in", r"^YES$"),
    Rule("secondary_capture", "sop_class", rf"^{_CAPTURES}$"),
    Rule("other_class", "sop_class", rf"^(?!{_CT_CLASSES}$)."),
)
_PATTERNS = tuple((rule, re.compile(rule.pattern)) for rule in RULES)
_FIELD_TEXTS = {  # for messages, which never quote a header: it may hold a patient's name
    "sop_class": "its SOPClassUID",
    "image_type": "its ImageType",
    "rescale_type": "its RescaleType",
    "burned_in": "its BurnedInAnnotation",
}


def check_evidence(found: Evidence) -> str:
    """Raise DicomError if the header shows that an image is no CT slice. Return the doubt that is left.

    :func:`check_picture` settles a doubt by the pixels.

    - ``""``: no doubt.
    - ``unit``: RescaleType is no Hounsfield unit, but nothing else speaks against a CT slice.
    - ``class``: SOPClassUID is no CT class, but MediaStorageSOPClassUID is one. This is an error, raised last, so that
      a file with another contradiction is reported for that one.
    """
    contradiction = bool(found.sop_class) and re.fullmatch(_CT_CLASSES, found.meta_class) is not None
    fields = {
        "sop_class": found.sop_class or found.meta_class,
        "image_type": "|".join(_words(value) for value in found.image_type.upper().split("\\")),
        "rescale_type": _words(found.rescale_type.upper()),
        "burned_in": found.burned_in.upper(),
    }
    for rule, pattern in _PATTERNS:
        if pattern.search(fields[rule.field]):
            if rule.reason == "other_class" and contradiction:
                return "class"
            raise DicomError(rule.reason, f"{NO_SLICE[rule.reason]}, by {_FIELD_TEXTS[rule.field]}")
    if fields["rescale_type"] in HOUNSFIELD_UNITS:
        return ""
    if fields["image_type"] and "ORIGINAL" not in fields["image_type"]:
        raise DicomError("no_hounsfield", "RescaleType is no Hounsfield unit, and ImageType isn't ORIGINAL")
    return "unit"


def check_picture(image_hu: np.ndarray, header: SliceHeader) -> None:
    """Raise DicomError if the pixels of an image (H, W) in HU show that it is no CT slice.

    - No pixel lies in the range of CT: the rescale is broken.
    - RescaleType is no Hounsfield unit and more than 1 % of the pixels lie beyond that range: it is a map.

    ``header.doubt`` is what :func:`check_evidence` returned.
    """
    first, last = CT_HU
    if not header.doubt and any(first <= end <= last for end in lowest_and_highest(image_hu)):
        return  # true of nearly every slice, after a single pass
    inside = np.count_nonzero((image_hu >= first) & (image_hu <= last))
    if inside == 0:
        raise DicomError("rescale", f"slope and intercept leave no pixel between {first} and {last} HU")
    if header.doubt == "unit" and inside < (1 - OUTSIDE_SHARE) * image_hu.size:
        raise DicomError("no_hounsfield", "RescaleType is no Hounsfield unit, and the values are beyond a CT's range")
    if header.doubt == "class":
        raise DicomError("other_class", f"{NO_SLICE['other_class']}, by {_FIELD_TEXTS['sop_class']}")


def unit_marks(rescale_type: str) -> tuple[str, ...]:
    """Return the mark ``rescale_type`` if RescaleType is neither Hounsfield units nor unspecified, else no mark."""
    known = (*HOUNSFIELD_UNITS, UNSPECIFIED)
    return () if _words(rescale_type.upper()) in known else ("rescale_type",)


def _words(text: str) -> str:
    """Return a text with each run of blanks and punctuation as one blank."""
    return _NO_LETTERS.sub(" ", text).strip()
