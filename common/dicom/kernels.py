"""Sort the reconstruction kernels of CT scanners into a few classes by their names (ConvolutionKernel).

Names are those of vendors' public manuals and of public lists of real headers:

- Siemens: SOMATOM Sensation and Emotion application guides (B10s to B90s, H10s to H70h, U70u, T20s, S80s), and "Siemens
  CT Reconstruction Kernels" (diagnosticradphys.com) for Br, Hr, Qr, Ur. The number is the sharpness.
- GE, Philips, Toshiba and Canon, and newer Siemens names: the kernel lists of public classifiers of head CT series
  (non-contrast, bone, CTA, topogram) and of Comp2Comp (soft kernels of five vendors), and the tables of LIDC and NLST.

A name that no row knows is ``unknown``, which is no evidence against a series.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

SOFT, BONE, OTHER, UNKNOWN = "soft", "bone", "other", "unknown"
CLASSES = (SOFT, BONE, OTHER, UNKNOWN)
SHARP_FROM, BONE_FROM = 50, 56  # of a Siemens number: routine brain and body kernels lie below, bone kernels above
ANY_VENDOR = ""
_SEPARATORS = re.compile(r"[^A-Z0-9+#]+")


class Kernels(NamedTuple):
    """Kernels of a vendor whose whole name matches ``pattern``, in capitals and with blanks between its parts."""

    vendor: str
    pattern: str
    kernel: str


# The first row that matches decides. Rows of any vendor come last; they read words.
KERNELS = (
    Kernels("ge", r"((HD|MD|ND) )?(STANDARD|STND|STD|SOFT|SMTH|SMOOTH)[0-9+#]*", SOFT),
    Kernels("ge", r"(HD )?(BONE ?(PLUS|\+)?|EDGE|ULTRA) ?2?", BONE),
    Kernels("ge", r"(HD )?(DETAIL|LUNG|CHEST) ?2?", OTHER),
    Kernels("siemens", r"TR?\d\d[A-Z]?( ?\d)?", OTHER),  # topograms
    Kernels("siemens", r"[A-Z]L\d\d[A-Z]?( ?\d)?", OTHER),  # lung
    Kernels("siemens", r"[ABDHIJQSUV][CFPRVN]?[1-4]\d[A-Z]?( ?\d)?", SOFT),
    Kernels("siemens", r"[ABDHIJQSUV][CFPRVN]?5[0-5][A-Z]?( ?\d)?", OTHER),
    Kernels("siemens", r"[ABDHIJQSUV][CFPRVN]?(5[6-9]|[6-9]\d)[A-Z]?( ?\d)?", BONE),
    Kernels("philips", r"[ABC]|[US][ABC]|E[BC]|XC[A-D]", SOFT),
    Kernels("philips", r"[DE]|Y[AB]", BONE),
    Kernels("philips", r"L|LC|Y[C-F]", OTHER),
    Kernels("canon", r"FC(0\d|1\d|2\d|4\d|6\d)( [A-Z])?", SOFT),  # body, head, head without correction, brain
    Kernels("canon", r"FC(3\d|8\d|9\d)( [A-Z])?", BONE),  # inner ear and bone
    Kernels("canon", r"FC5\d( [A-Z])?|FL\d\d", OTHER),  # lung, scanogram
    Kernels(ANY_VENDOR, r"(.* )?BONE.*", BONE),
    Kernels(ANY_VENDOR, r"(.* )?(LUNG|SHARP|DETAIL|EDGE|EAR|CTA|SCANO\w*|TOPO\w*).*", OTHER),
    Kernels(ANY_VENDOR, r"(.* )?(BRAIN|HEAD|SOFT|SMOOTH|STANDARD|ROUTINE|BODY).*", SOFT),
)
_PATTERNS = tuple((row, re.compile(row.pattern)) for row in KERNELS)


@lru_cache(maxsize=1024)
def kernel_class(name: str, vendor: str) -> str:
    """Return the class of a kernel: ``soft`` (brain and soft tissue), ``bone``, ``other`` or ``unknown``.

    ``name`` is ConvolutionKernel. Several values, as in ``J40s\\3``, are joined, and so is a list that was written into
    one text. ``vendor`` is one of :data:`common.dicom.scan.VENDORS`; the rows of all vendors are tried for an unknown
    one.
    """
    found = _SEPARATORS.sub(" ", name.encode("ascii", "replace").decode().upper()).strip()
    if found:
        for row, pattern in _PATTERNS:
            if (not vendor or row.vendor in (vendor, ANY_VENDOR)) and pattern.fullmatch(found):
                return row.kernel
    return UNKNOWN
