"""Tell from a header how a series was scanned and reconstructed, in coarse classes that name nobody.

Descriptions are free text: words of them count as evidence, but no text leaves this module. What a file lacks is no
evidence: the value is then ``unknown``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from common.dicom.kernels import UNKNOWN, kernel_class

VENDORS = {  # by a word of Manufacturer
    "ge": r"\bGE\b|GENERAL ELECTRIC",
    "siemens": r"SIEMENS",
    "philips": r"PHILIPS|PICKER|MARCONI|ELSCINT",
    "canon": r"CANON|TOSHIBA",
    "other": r".",
}
ORIGINAL, REFORMAT, DERIVED, DYNAMIC, PROJECTION = "original", "reformat", "derived", "dynamic", "projection"
NONE, DOUBTFUL, GIVEN = "none", "doubtful", "given"
SINGLE, MIXED, PART, VIRTUAL = "single", "mixed", "part", "virtual"
OLDEST = 90


class ScanFields(NamedTuple):
    """The header fields that tell how a series was made, unchanged; empty for a missing field.

    Several values of a field are joined by a backslash.
    """

    manufacturer: str = ""
    kernel: str = ""
    image_type: str = ""
    agent: str = ""
    volume: str = ""
    dose: str = ""
    flow: str = ""
    series_text: str = ""
    study_text: str = ""
    number: str = ""
    age: str = ""
    sex: str = ""


class ScanFacts(NamedTuple):
    """How a series was scanned and reconstructed.

    - ``vendor``: a key of :data:`VENDORS`, "" if unknown.
    - ``kernel``: soft, bone, other or unknown, see :func:`common.dicom.kernels.kernel_class`.
    - ``contrast``: given; doubtful (an agent is named and nothing else speaks for it: many scanners fill it in always);
      none (the header says so); unknown.
    - ``reconstruction``: original, reformat (MPR), derived (otherwise computed), dynamic (a perfusion scan, bolus
      tracking), projection (MIP, rendering), unknown.
    - ``energy``: single; part (one of two tube voltages), mixed (of both) or virtual (monoenergetic, virtual
      non-contrast) of a dual-energy scan.
    - ``series_number``: SeriesNumber, -1 if unknown.
    - ``age``: a bin of ten years, as in ``40-49``, and ``sex`` (F, M, O); "" if unknown.
    """

    vendor: str = ""
    kernel: str = UNKNOWN
    contrast: str = UNKNOWN
    reconstruction: str = UNKNOWN
    energy: str = SINGLE
    series_number: int = -1
    age: str = ""
    sex: str = ""


class Sign(NamedTuple):
    """What ``pattern`` in one of ``fields`` (of :class:`ScanFields`, as words in capitals) says: ``value``."""

    value: str
    fields: tuple[str, ...]
    pattern: str


TEXTS = ("series_text",)
IMAGE_AND_TEXT = ("image_type", "series_text")

# The first sign of a table that is found decides. ``|`` separates the values of ImageType.
RECONSTRUCTIONS = (
    Sign(DYNAMIC, IMAGE_AND_TEXT, r"\bPERF|\bDYNAMIC|\bDYN\b|\bV?CTP\b|\bVPCT\b|\b4D\b"),
    Sign(DYNAMIC, TEXTS, r"MONITORING|BOLUS|SMART ?PREP|SURE ?START|TRACKER|\bTEST INJ"),
    Sign(DYNAMIC, ("image_type",), r"\bCT SOM\d+ MON\b"),
    Sign(PROJECTION, TEXTS, r"\bM(IN|AX)? ?IP\b|\bVRT?\b|\bVOLUME REND|\bSSD\b"),
    Sign(REFORMAT, IMAGE_AND_TEXT, r"\bMPR|REFORMAT|\bCPR\b|\bCURVED\b|\bMPVR\b"),
    Sign(DERIVED, ("image_type",), r"^DERIVED\b|\|SECONDARY\b|\bAVERAGE\b"),
    Sign(ORIGINAL, ("image_type",), r"\bORIGINAL\b"),
)
ENERGIES = (
    Sign(VIRTUAL, IMAGE_AND_TEXT, r"\bV(NC|UE)\b|\bVIRTUAL\b|\bVMI\b|\bMONO|\d+ ?KEV\b|\bGSI MD|\bMD (WATER|IOD)"),
    Sign(VIRTUAL, TEXTS, r"\bIODINE\b|\bWATER\b|\bCALCIUM SUPP"),
    Sign(PART, TEXTS, r"\b(DE|DUAL ?ENERGY)\b.*\b(80|90|100|135|140|150) ?KV|\b(A|B) (SN)?\d+ ?KV|\bSN1[45]0 ?KV"),
    Sign(MIXED, TEXTS, r"\bF 0 \d|\bM 0 \d|OPTIMUM CONTRAST|\bMIX(ED)?\b|\bBLEND"),
    Sign(MIXED, ("image_type",), r"\bDUAL\b"),
)  # fmt: skip
_WITHOUT = (
    r"(\bW ?O\b|\bNCCT\b|\bNECT\b|\bNC\b|\bNON?\b(?= ?(CON|ENH|I ?V\b))|\bNONCON\w*|\bUNENH\w*|\bPLAIN\b|\bNATI[VF]\w*"
    r"|\bPRE\b|\bPRECON\w*|\bWITHOUT\b|\bOHNE\b|\bSANS\b|\bSENZA\b|\bSIN\b|\bSEM\b|\bZONDER\b|\bBLANCO\b|\bBASALE\b)"
    r"( I ?V\b)?( CON\w*| ENH\w*| KM\b| MDC\b| CIV\b| INJ\w*| PRODUIT\b)?"
)
_WITH = (
    r"\bCTA\b|\bCTV\b|ANGIO|\bARTERI|\bVENO|\bCAROTID|\bWILLIS\b|\bCOW\b|\bDELAYED\b|\bPOST\b|\bENH\w*|\bCECT\b"
    r"|\bCONTRAST|\bW(ITH)? (I ?V )?(CON\w*|C)\b|\bW(ITH)?( AND)? *$|\bAND W(ITH)?\b|\bKM\b"
    r"|\bAVEC\b|\bMDC\b|\bCIV\b|\+ ?C\b|\bC ?\+|\bCE\b"
)
_NO_AGENT = r"(NO|NON?E?|N A|0+|NIL|OFF|NOT? .*|WITHOUT.*|W ?O.*|UNKNOWN|PLAIN|NATIV\w*|ORAL\w*|OHNE.*|SANS.*)?"
_PREPARED = {name: re.compile(pattern) for name, pattern in VENDORS.items()}
_TABLES = {table: tuple((sign, re.compile(sign.pattern)) for sign in table) for table in (RECONSTRUCTIONS, ENERGIES)}
_NO_WORDS = re.compile(r"[^A-Z0-9|+]+")
_WITHOUT_WORDS, _WITH_WORDS, _NO_AGENT_WORDS = (re.compile(pattern) for pattern in (_WITHOUT, _WITH, _NO_AGENT))
_BLENDS = re.compile(r"OPTIMUM CONTRAST|\bDE CONTRAST|LOW CONTRAST|HIGH CONTRAST")  # contrast of a picture, no agent


def describe_scan(found: ScanFields) -> ScanFacts:
    """Return what the fields say."""
    words = {name: _words(value) for name, value in found._asdict().items()}
    vendor = next((name for name, pattern in _PREPARED.items() if pattern.search(words["manufacturer"])), "")
    return ScanFacts(
        vendor,
        kernel_class(found.kernel, vendor if vendor != "other" else ""),
        _contrast(words, found),
        _decide(RECONSTRUCTIONS, words, UNKNOWN),
        _decide(ENERGIES, words, SINGLE),
        int(found.number) if re.fullmatch(r"\d{1,6}", found.number) else -1,
        _age_bin(found.age),
        words["sex"] if words["sex"] in ("F", "M", "O") else "",
    )


def _decide(table: tuple[Sign, ...], words: dict[str, str], default: str) -> str:
    for sign, pattern in _TABLES[table]:
        if any(pattern.search(words[field]) for field in sign.fields):
            return sign.value
    return default


def _contrast(words: dict[str, str], found: ScanFields) -> str:
    """Weigh the agent, the injected amount and the descriptions.

    The series' own words count before those of the study, which may hold both phases. An agent alone proves nothing.
    """
    named = _NO_AGENT_WORDS.fullmatch(words["agent"]) is None
    said = NONE if words["agent"] and not named else UNKNOWN
    for field in ("series_text", "study_text"):
        text = _BLENDS.sub(" ", words[field])
        without = _WITHOUT_WORDS.search(text) is not None
        given = _WITH_WORDS.search(_WITHOUT_WORDS.sub(" ", text)) is not None
        if without:
            if field == "study_text" and given:
                break  # both phases
            said = NONE
            break
        if given and (field == "series_text" or named):
            return GIVEN
    injected = any(_is_positive(value) for value in (found.volume, found.dose, found.flow))
    if named and injected and said != NONE:
        return GIVEN
    return DOUBTFUL if named else said


def _is_positive(value: str) -> bool:
    return re.search(r"[1-9]", value) is not None


def _age_bin(age: str) -> str:
    """Return the ten years that PatientAge (as in 045Y, PS3.5 6.2) lies in, "" if it is no age."""
    parts = re.fullmatch(r"(\d{3})([DWMY])", age)
    if parts is None:
        return ""
    years = int(parts[1]) if parts[2] == "Y" else 0 if parts[2] != "M" else int(parts[1]) // 12
    first = min(years // 10 * 10, OLDEST)
    return f"{first}+" if first == OLDEST else f"{first}-{first + 9}"


def _words(text: str) -> str:
    """Return a text in capitals with ``|`` between values and each run of blanks and punctuation as one blank.

    Other letters than ASCII's count as punctuation, so that nothing depends on the character set.
    """
    values = text.encode("ascii", "replace").decode().upper().split("\\")
    return "|".join(_NO_WORDS.sub(" ", value.replace("|", " ")).strip() for value in values)
