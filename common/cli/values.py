"""Option values with a text form of their own: names, numbers, durations, windows, folds, weight files.

``parse_…`` reads the text and raises ValueError with a sentence. ``format_…`` writes a value back as text.
"""

from __future__ import annotations

import re
from pathlib import Path

Windows = tuple[tuple[float, float], ...]

MOST_HOURS = 10_000
HOLDOUT = "holdout"  # value of --data_fold: all folds train, the hold-out validates

_DURATION = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d{1,2})?)([hms]?)")
_UNITS_H = {"": 1.0, "h": 1.0, "m": 1 / 60, "s": 1 / 3600}
_WINDOW = re.compile(r"([+-]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def parse_windows(text: str) -> Windows:
    """Read ``centre/width,centre/width`` in Hounsfield units; ValueError for anything else or a width of 0."""
    windows = []
    for part in text.split(","):
        match = _WINDOW.fullmatch(part.strip())
        if match is None or float(match[2]) == 0:
            raise ValueError(f"{part!r} is not centre/width in HU with a width above 0, as in 40/80,80/200")
        windows.append((float(match[1]), float(match[2])))
    return tuple(windows)


def format_windows(windows: Windows) -> str:
    """Write windows in the form that :func:`parse_windows` reads."""
    return ",".join(f"{center:.12g}/{width:.12g}" for center, width in windows)


def parse_names(text: str) -> tuple[str, ...]:
    """Read ``name,name``, with or without the dashes of a flag; an empty text is no name."""
    return tuple(part.strip().removeprefix("--") for part in text.split(",") if part.strip())


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read ``0.9,0.999``; ValueError if a part is no number, negative or not finite."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers such as 0.9,0.999") from None
    if not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"{text!r}: the numbers must be finite and at least 0")
    return numbers


def format_numbers(numbers: tuple[float, ...] | None) -> str:
    """Write numbers in the form that :func:`parse_numbers` reads."""
    return "none" if numbers is None else ",".join(repr(number) for number in numbers)


def parse_weights(text: str) -> tuple[float, ...]:
    """Read ``1,2,0.5``; ValueError as :func:`parse_numbers`, and if all are 0."""
    weights = parse_numbers(text)
    if sum(weights) == 0:
        raise ValueError(f"{text!r}: weights must not all be 0")
    return weights


def parse_hours(text: str) -> float:
    """Read a duration in hours: ``0.5``, or with a unit ``8h``, ``30m``, ``90s``; ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    hours = 0.0 if match is None else float(match[1]) * _UNITS_H[match[2]]
    if not 0 < hours <= MOST_HOURS:
        raise ValueError(f"{text!r} is no duration of up to {MOST_HOURS} hours, such as 0.5 (hours), 30m or 90s")
    return hours


def parse_folds(text: str) -> int | str | tuple[int, ...]:
    """Read a fold: ``0``, several as a tuple (``0,1,2``), ``all`` as (), or ``holdout``; ValueError otherwise."""
    if text.strip().lower() == "all":
        return ()
    if text.strip().lower() == HOLDOUT:
        return HOLDOUT
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", part) for part in parts):
        raise ValueError(f"{text!r} is not a fold's number, numbers such as 0,1,2, all, or holdout")
    folds = tuple(int(part) for part in parts)
    if len(set(folds)) < len(folds):
        raise ValueError(f"{text!r} names a fold twice")
    return folds[0] if len(folds) == 1 else folds


def format_folds(folds: int | str | tuple[int, ...]) -> str:
    """Write folds in the form that :func:`parse_folds` reads."""
    if isinstance(folds, tuple):
        return ",".join(map(str, folds)) or "all"
    return str(folds)


def parse_weight_file(text: str) -> Path:
    """Return the path that a text names; for an experiment's folder its best.pt."""
    path = Path(text)
    return path / "best.pt" if (path / "best.pt").is_file() else path
