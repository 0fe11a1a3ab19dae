"""Plan each study of a phantom from a seed: patient, split, bleedings, scanner, and the quirks of the real data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from rsna.phantom.bleeding import KINDS
from rsna.phantom.scanner import PIXEL_FORMS, PixelForm

TEST_SHARE = 121_232 / 874_035
REPEATED_PATIENT_SHARE = 1 - 17_079 / 19_530  # studies of a patient who has another one
PADDING_SHARE = 0.33  # of all images
PADDED_FORM = PixelForm(16, 1, -1024)
TWO_WINDOWS_SHARE = 0.4
REPEATED_POSITION_SHARE = 0.02
OTHER_SIZE_SHARE = 0.02  # of all studies; higher than in the data, so that small phantoms have some
OTHER_SIZES = ((638, 490), (768, 768), (408, 374), (666, 512))  # rows, columns where the usual is 512 × 512
MIN_TRAIN_STUDIES = 9  # fewer can't hold every pixel form and quirk


@dataclass(frozen=True)
class Difficulty:
    """All that differs between ``demo`` and ``real``: prevalence, lesion size and contrast."""

    studies: dict[tuple[str, ...], float]  # share of the studies with each set of kinds; the rest holds none
    severity: tuple[float, float]  # smallest and largest, 0..1
    severity_power: float  # above 1: small bleedings are more common than large ones
    hu: tuple[float, float]


EDH, IPH, IVH, SAH, SDH = KINDS
DIFFICULTIES = {
    "real": Difficulty(
        studies={
            (SDH,): 0.085,
            (SAH,): 0.035,
            (IPH,): 0.12,
            (IPH, IVH): 0.085,
            (IVH,): 0.045,
            (SDH, SAH): 0.03,
            (IPH, SAH): 0.015,
            (IPH, IVH, SAH): 0.03,
            (IPH, SDH, SAH): 0.01,
            (EDH,): 0.01,
            (EDH, SAH): 0.004,
        },
        severity=(0.0, 0.8),
        severity_power=1.6,
        hu=(44, 70),
    ),
    "demo": Difficulty(
        studies={
            (SDH,): 0.13,
            (SAH,): 0.09,
            (IPH,): 0.11,
            (IPH, IVH): 0.11,
            (IVH,): 0.12,
            (EDH,): 0.15,
            (SDH, SAH): 0.02,
            (IPH, SAH): 0.02,
            (EDH, SAH): 0.02,
        },
        severity=(0.9, 1.2),
        severity_power=1.0,
        hu=(72, 90),
    ),
}


@dataclass(frozen=True)
class StudyPlan:
    """One study. Its anatomy is drawn from ``patient_seed``, its images from ``pixel_seed``."""

    index: int
    split: str
    patient: int
    patient_seed: int
    pixel_seed: int
    kinds: tuple[str, ...]
    form: PixelForm
    padding: bool
    two_windows: bool
    first_slice: int  # number of the study's first image, counted over all studies
    slices: int
    size: tuple[int, int] | None = None  # rows and columns where 512 is usual; None: the usual
    repeated_position: bool = False
    identical_to: int | None = None
    cut: bool = False


def _quota(rng: np.random.Generator, count: int, shares: dict[tuple[str, ...], float]) -> list[tuple[str, ...]]:
    """Give each of ``count`` studies a set of kinds, as close to the shares as whole studies allow, in random order."""
    names: list[tuple[str, ...]] = [(), *shares]
    wanted = np.array([1 - sum(shares.values()), *shares.values()]) * count
    given = np.floor(wanted).astype(int)
    rest = np.argsort(-(wanted - given), kind="stable")[: count - int(given.sum())]
    given[rest] += 1
    dealt = [name for name, number in zip(names, given, strict=True) for _ in range(number)]
    return [dealt[i] for i in rng.permutation(count)]


def _with_every_kind(dealt: list[tuple[str, ...]], rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Make each kind occur at least once, by giving it to studies without bleeding while there are some."""
    dealt = list(dealt)
    for kind in KINDS:
        empty = [i for i, kinds in enumerate(dealt) if not kinds]
        if not any(kind in kinds for kinds in dealt) and len(empty) > 1:
            dealt[int(rng.choice(empty))] = (kind,)
    return dealt


def _deal_forms(rng: np.random.Generator, count: int) -> list[PixelForm]:
    """Return a pixel form for each training study: each form at least once, otherwise as often as in the data."""
    forms = list(PIXEL_FORMS)
    total = sum(PIXEL_FORMS.values())
    rare = [f for f in forms if PIXEL_FORMS[f] / total < 0.05]
    dealt = [f for f in rare for _ in range(max(1, round(count * PIXEL_FORMS[f] / total)))][: count - 2]
    usual = [f for f in forms if f not in rare]
    weights = np.array([PIXEL_FORMS[f] for f in usual], dtype=float)
    dealt += usual[: count - len(dealt)]
    dealt += [usual[i] for i in rng.choice(len(usual), count - len(dealt), p=weights / weights.sum())]
    return [dealt[i] for i in rng.permutation(count)]


def _slice_count(rng: np.random.Generator) -> int:
    """Return a number of slices as in the data: median 33 to 34, 95 % below 44, at most 60."""
    return int(np.clip(round(float(np.exp(rng.normal(np.log(33.5), 0.166)))), 20, 60))


def count_tests(count: int, share: float | None = None) -> int:
    """Return how many of ``count`` studies are test studies. Raise ValueError if the others are too few.

    ``share`` is their share of all studies; None stands for that of the data.
    """
    tests = max(1, round(count * (TEST_SHARE if share is None else share)))
    if count - tests < MIN_TRAIN_STUDIES:
        raise ValueError(f"the data's quirks need at least {MIN_TRAIN_STUDIES} training studies")
    return tests


def plan_studies(
    count: int, seed: int, difficulty: str, slices: int = 0, test_share: float | None = None
) -> list[StudyPlan]:
    """Plan ``count`` studies, train and test together. The same arguments give the same plan.

    ``slices`` is the number of slices of every study; 0 varies it as in the data. Raises the ValueError of
    :func:`count_tests`.
    """
    rng = np.random.default_rng([seed, 0])
    kinds_rng = np.random.default_rng([seed, 5])  # its own, so that difficulties share all that is not bleeding
    tests = count_tests(count, test_share)
    trains = count - tests
    setting = DIFFICULTIES[difficulty]
    kinds = _with_every_kind(_quota(kinds_rng, trains, setting.studies), kinds_rng)
    kinds += _quota(kinds_rng, tests, setting.studies)
    patients = _deal_patients(rng, trains, tests)
    # A patient whose only study appears again under another patient's name, with the same pixels.
    alone = [i for i in range(trains) if patients.count(patients[i]) == 1]
    original, twin = (int(i) for i in rng.choice(alone, 2, replace=False))
    usual = [form for form in PIXEL_FORMS if not form.wrapped][:2]
    forms = _deal_forms(rng, trains - 1)
    forms.insert(twin, forms[original - (original > twin)])
    forms += [usual[i] for i in rng.integers(0, 2, tests)]
    # Padding occurs in one form only, so there it is more common than over all images.
    padding = PADDING_SHARE * sum(PIXEL_FORMS.values()) / PIXEL_FORMS[PADDED_FORM]

    studies = []
    for index in range(count):
        study = StudyPlan(
            index=index,
            split="train" if index < trains else "test",
            patient=patients[index],
            patient_seed=patients[index],
            pixel_seed=index,
            kinds=kinds[index],
            form=forms[index],
            padding=bool(rng.random() < padding) and forms[index] == PADDED_FORM,
            two_windows=bool(rng.random() < TWO_WINDOWS_SHARE),
            first_slice=0,
            slices=slices or _slice_count(rng),
        )
        studies.append(study)
    if not any(study.padding for study in studies[:trains] if study.index != twin):
        index = next(s.index for s in studies[:trains] if s.form == PADDED_FORM and s.index != twin)
        studies[index] = replace(studies[index], padding=True)
    studies = _place_quirks(rng, studies, [i for i in range(trains) if i not in (original, twin)])
    studies[original] = replace(studies[original], identical_to=twin)
    studies[twin] = replace(studies[original], index=twin, patient=patients[twin], identical_to=original)
    firsts = np.cumsum([0, *(study.slices for study in studies)]).tolist()
    return [replace(study, first_slice=first) for study, first in zip(studies, firsts, strict=False)]


def _deal_patients(rng: np.random.Generator, trains: int, tests: int) -> list[int]:
    """Return each study's patient number. Some patients have several studies, all train or all test."""
    patients: list[int] = []
    for index in range(trains + tests):
        own = patients[:index] if index < trains else patients[trains:index]
        if len(own) > 1 and (rng.random() < REPEATED_PATIENT_SHARE or index == 2):
            patients.append(int(rng.choice(own)))
        else:
            patients.append(max(patients, default=-1) + 1)
    return patients


def _place_quirks(rng: np.random.Generator, studies: list[StudyPlan], free: list[int]) -> list[StudyPlan]:
    """Give quirks that few studies have to some of ``free`` (indices of training studies), each at least once."""
    studies = list(studies)
    if not any(studies[i].two_windows for i in free):
        studies[free[0]] = replace(studies[free[0]], two_windows=True)
    sizes = [OTHER_SIZES[i] for i in rng.permutation(len(OTHER_SIZES))]
    for place, index in enumerate(rng.permutation(free)[: max(1, round(OTHER_SIZE_SHARE * len(free)))]):
        studies[index] = replace(studies[index], size=sizes[place % len(sizes)])
    for index in rng.permutation(free)[: max(1, round(REPEATED_POSITION_SHARE * len(free)))]:
        studies[index] = replace(studies[index], repeated_position=True)
    cut = int(rng.choice([i for i in free if studies[i].size is None]))
    studies[cut] = replace(studies[cut], cut=True)
    return studies


def hex_id(seed: int, purpose: str, number: int, digits: int) -> str:
    """Return ``ID_`` and ``digits`` hexadecimal digits, distinct for each number and in no visible order."""
    bits = 4 * digits
    mask = (1 << bits) - 1
    key = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=24).digest()
    value = number & mask
    for turn in range(3):  # each step is reversible, so two numbers never collide
        factor = int.from_bytes(key[8 * turn : 8 * turn + 8], "little") | 1
        value = (value * factor + turn) & mask
        value ^= value >> (bits // 2)
    return f"ID_{value:0{digits}x}"
