"""Fuzzing the way from a file's bytes to Hounsfield units: damaged copies of real files of every transfer syntax.

python tests/fuzz_dicom.py [cases] [seed]     prints what was found; exit code 1 where anything is wrong

Each case is read in a process of its own kind (common/preprocessing/isolation.py), so that a crash or a hang is found
and named. A case is wrong where

- the process dies, or a case takes longer than a minute;
- anything but a DicomError of the closed list comes out, or an image of another type than int16;
- the fast reader and the general one disagree about a file that both read;
- an uncompressed picture differs from the original's although neither its stored bytes nor anything that the record
  keeps of the header (form of the pixels, padding, rescale, marks) has changed.
"""

from __future__ import annotations

import collections
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.dicom.decoding import SYNTAXES, Stored
from common.dicom.errors import REASONS, DicomError
from common.dicom.hounsfield import hounsfield
from common.dicom.plain import read_plain
from common.dicom.reading import CtFile, quiet_pydicom, read_any, read_dicom
from common.preprocessing.isolation import CallFailed, Process

CASES_PER_CALL = 50
CASE_SECONDS = 60.0
SHIPPED = (  # pydicom's own files; those that are no CT become one
    "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "JPEGLSNearLossless_16.dcm",
    "image_dfl.dcm", "JPEG2000.dcm", "JPGExtended.dcm", "nested_priv_SQ.dcm", "rtdose.dcm", "test-SR.dcm",
)  # fmt: skip
_seeds: list[bytes] = []


def seeds() -> list[bytes]:
    """The files that are damaged: pydicom's own, and one of each syntax."""
    if not _seeds:
        from pydicom import dcmread
        from pydicom.data import get_testdata_file
        from pydicom.uid import CTImageStorage

        from tests.common.dicom.test_dicom_syntaxes import enhanced
        from tests.dicom_encoders import LOSSLESS, content_of, ct_in, jpeg_baseline
        from tests.dicom_files import head

        for name in SHIPPED:
            dataset = dcmread(get_testdata_file(name, download=False))
            if "PixelData" in dataset:
                dataset.SOPClassUID, dataset.ImageType = CTImageStorage, None
                dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = "CT", "1", "-1024"
            _seeds.append(content_of(dataset))
        for syntax in LOSSLESS:
            _seeds.append(ct_in(syntax, head(1, 40, 48), intercept=0))
            _seeds.append(ct_in(syntax, (head(2, 48, 40) + np.int32(1024)).astype(np.uint16), bits=12))
        _seeds.append(jpeg_baseline(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)))
        _seeds.append(content_of(enhanced()))
    return _seeds


def damaged(seed: int, case: int) -> tuple[bytes, bytes]:
    """Return an original and a damaged copy, the same for the same numbers."""
    random = np.random.default_rng([seed, case])
    original = seeds()[case % len(seeds())]
    content = bytearray(original)
    for _ in range(random.integers(1, 4)):
        DAMAGES[random.integers(len(DAMAGES))](content, random)
    return original, bytes(content)


def flip(content: bytearray, random: np.random.Generator) -> None:
    """Change single bytes, most of them in the header."""
    for _ in range(random.integers(1, 6)):
        end = min(len(content), 1500) if random.random() < 0.8 else len(content)
        if end > 132:
            content[random.integers(132, end)] = random.integers(256)


def cut(content: bytearray, random: np.random.Generator) -> None:
    """Drop the end, or a piece."""
    start = random.integers(len(content) + 1)
    del content[start : len(content) if random.random() < 0.5 else start + random.integers(64)]


def grow(content: bytearray, random: np.random.Generator) -> None:
    """Put in random bytes, or a piece of the file once more."""
    place, start = random.integers(len(content) + 1, size=2)
    length = int(random.integers(1, 200))
    piece = random.bytes(length) if random.random() < 0.5 else bytes(content[start : start + length])
    content[place:place] = piece


def swap(content: bytearray, random: np.random.Generator) -> None:
    """Exchange two pieces of the header."""
    if len(content) < 400:
        return
    length = int(random.integers(1, 24))
    first, second = sorted(random.integers(132, min(len(content), 1500) - length, size=2))
    if second - first >= length:
        content[first : first + length], content[second : second + length] = (
            content[second : second + length],
            content[first : first + length],
        )


def digit(content: bytearray, random: np.random.Generator) -> None:
    """Change a digit of a number in the header, which no reader can notice."""
    digits = [place for place in range(132, min(len(content), 1500)) if content[place] in b"0123456789"]
    if digits:
        content[digits[random.integers(len(digits))]] = random.integers(ord("0"), ord("9") + 1)


DAMAGES = (flip, cut, grow, swap, digit)


def images(file: CtFile) -> list[Any]:
    """Everything that is kept of each frame: what the record holds of header and marks, and the picture."""
    found: list[Any] = []
    for header, stored in zip(file.header.frames, file.frames(), strict=True):
        error = next((part for part in (header, stored) if isinstance(part, DicomError)), None)
        if error is not None:
            found.append((error.reason, str(error)))
            continue
        assert isinstance(stored, Stored)
        picture, mended = hounsfield(stored.container, file.header.form, header)
        assert picture.dtype == np.int16
        kept = (file.syntax_uid, file.header.form, header.slope, header.intercept, mended, stored.marks, header.marks)
        found.append((kept, stored.container.tobytes(), picture.tobytes()))
    return found


@functools.lru_cache(maxsize=128)
def outcome(content: bytes) -> Any:
    """What reading a file gives: a reason, or its frames."""
    try:
        with quiet_pydicom():
            return images(read_dicom(content))
    except DicomError as error:
        reason = error.reason
    assert reason in REASONS, reason
    return reason


def compare_readers(content: bytes) -> bool:
    """Whether the fast reader read the file; AssertionError where the general one reads something else."""
    if read_plain(content) is None:
        return False
    with quiet_pydicom() as messages:
        fast, general = read_dicom(content), read_any(content)
        # As text: the same places may be NaN.
        assert repr(fast.header) == repr(general.header), (fast.header, general.header)
        assert (fast.syntax_uid, fast.start, fast.declared) == (general.syntax_uid, general.start, general.declared)
        assert images(fast) == images(general)
    assert not messages, messages  # the record counts them
    return True


def check(original: bytes, content: bytes) -> str:
    """Return what came of a case; AssertionError where it is wrong."""
    fast = compare_readers(content)
    result, expected = outcome(content), outcome(original)
    if isinstance(result, str):
        return result
    for frame, (*_, before) in zip(result, expected if isinstance(expected, list) else [], strict=False):
        if len(frame) == 3 and isinstance(before, bytes) and frame[2] != before:
            same = [other for other in expected if other[:2] == frame[:2]]
            assert not same, "another picture of the same stored numbers and the same header"
    if all(len(frame) == 2 for frame in result):
        return result[0][0]
    return f"image, {'fast' if fast else 'general'} reader"


def check_cases(seed: int, first: int, count: int) -> list[tuple[int, str, bool]]:
    """Check some cases; return number, outcome and whether it is wrong for each."""
    found = []
    for case in range(first, first + count):
        try:
            found.append((case, check(*damaged(seed, case)), False))
        except Exception as error:
            found.append((case, f"{type(error).__name__}: {str(error)[:500]}", True))
    return found


def fuzz(cases: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Check ``cases`` damaged files; return how often each outcome was, and what was wrong."""
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    process = Process(("tests.fuzz_dicom",))
    for first in range(0, cases, CASES_PER_CALL):
        count = min(CASES_PER_CALL, cases - first)
        try:
            found = process.call(check_cases, CASE_SECONDS * 5, seed, first, count)
        except CallFailed:  # one by one, to know which it was
            found = []
            for case in range(first, first + count):
                process = Process(("tests.fuzz_dicom",)) if process.connection.closed else process
                try:
                    found += process.call(check_cases, CASE_SECONDS, seed, case, 1)
                except CallFailed as error:
                    found.append((case, error.reason, True))
            process = Process(("tests.fuzz_dicom",)) if process.connection.closed else process
        for case, result, bad in found:
            outcomes["wrong" if bad else result] += 1
            if bad:
                wrong.append(f"seed {seed}, case {case}: {result}")
    process.close()
    return outcomes, wrong


def main() -> int:
    """Fuzz as the command line says."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes, wrong = fuzz(cases, seed)
    for name, count in outcomes.most_common():
        print(f"{count:7d}  {name}")
    print(*wrong, sep="\n")
    print(f"{cases} damaged files of {len(seeds())} originals in {len(SYNTAXES)} known syntaxes: {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    from tests import fuzz_dicom  # by the name that the other process finds it by

    sys.exit(fuzz_dicom.main())
