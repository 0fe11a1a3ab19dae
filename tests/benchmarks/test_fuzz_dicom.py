"""A share of what tests/fuzz_dicom.py does, and what it must find."""

from __future__ import annotations

import pytest

from common.dicom import plain
from tests import fuzz_dicom


@pytest.mark.parametrize("cases", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_files_neither_crash_nor_hang_nor_give_a_wrong_picture_unnoticed(cases: int) -> None:
    outcomes, wrong = fuzz_dicom.fuzz(cases, seed=0)
    assert wrong == []
    assert sum(outcomes.values()) == cases
    assert outcomes["image, fast reader"] > cases / 100
    assert outcomes["image, general reader"] > cases / 100


def test_both_readers_agree_about_every_original_and_the_fast_one_reads_the_plain_ones() -> None:
    fast = [fuzz_dicom.compare_readers(content) for content in fuzz_dicom.seeds()]
    assert sum(fast) >= 3


def test_a_fast_reader_that_errs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = plain._numbers
    monkeypatch.setattr(plain, "_numbers", lambda *call: tuple(value + 1 for value in right(*call)))
    found = fuzz_dicom.check_cases(0, 0, len(fuzz_dicom.seeds()))
    assert any(wrong for _, _, wrong in found)
