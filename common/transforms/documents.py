"""Turn a JSON document, of today's form or of 2019's, into transform objects, and check everything in it.

A file is data: a class name in it can only choose a transform of albumentations, of ``common.albumentations``, or of
your own module in this project's folder. Arguments that the library would only warn about, or replace by its defaults,
are refused.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
from albumentations.core.composition import BaseCompose

from common.albumentations import OWN_CLASSES, DicomWindowShift
from common.augmentations.base import ANY, HOUNSFIELD, MODULE, UNIT
from common.cli.choices import is_dotted_path, own_file
from common.cli.listing import TRANSFORM_FOLDER
from common.errors import UsageError, nearest
from common.foreign import read_json
from common.transforms.legacy import translate
from common.transforms.library import (
    CLASS_KEY,
    READ,
    REFUSED,
    TOLD,
    Node,
    check_size,
    is_librarys,
    short_name,
    unknown_class,
)

logger = logging.getLogger(__name__)

NORMALIZED = "normalized"
CLIPPED = "hu clipped to a window"
MAX_DEPTH, MOST_STEPS = 20, 500

ALWAYS_WARNS = (A.ShiftScaleRotate, A.PiecewiseAffine, A.FrequencyMasking, A.TimeMasking, A.TimeReverse)
LIBRARYS = READ | {"Normalize"}  # the other classes of TOLD become these
UNITLESS = (A.Blur, A.ChannelDropout, A.ChannelShuffle, A.NoOp, A.PixelDropout)
"""Transforms that change values and work in any unit; every other one of albumentations' takes 0..1."""


def find_transform(name: str) -> Path:
    """Return the file that ``name`` means: a path, or a bare name in the project's ``transforms/``.

    Raises UsageError, listing the files in ``transforms/``, if there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.name == name and (TRANSFORM_FOLDER / name).is_file():
        return TRANSFORM_FOLDER / name
    found = sorted(file.name for file in TRANSFORM_FOLDER.glob("*.json"))
    raise UsageError(
        f"{name}: no such transform file; transforms/ holds {', '.join(found) or 'none'}{nearest(name, found)}"
    )


def read_document(path: Path) -> Any:
    """Read a file's JSON document; UsageError if there is none."""
    try:
        return read_json(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def todays_document(document: Any, name: str) -> dict[str, Any]:
    """Return a document of either form in today's words; ``name`` is its file, for messages.

    A line is logged as a warning for each argument whose meaning is not the literal one. Raises UsageError, one line,
    for what has no valid meaning.
    """
    if not isinstance(document, dict) or not isinstance(document.get("transform"), dict):
        raise UsageError(f"{name}: not a file of albumentations: it needs '__version__' and 'transform'")
    root, version = document["transform"], parse_version(document.get("__version__"), name)
    _check_extent(root, name)
    notes: list[str] = []
    try:
        root = _checked(translate(root, version, notes) if version < (1,) else root, notes)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    for note in dict.fromkeys(notes):
        logger.warning("%s: %s", name, note)
    if short_name(root) in ("OneOf", "OneOrOther", "SomeOf", "Sequential") or not _is_composition(root):
        root = {CLASS_KEY: "Compose", "transforms": [root], "p": 1.0}
    if short_name(root) not in ("Compose", "ReplayCompose"):
        raise UsageError(f"{name}: the outermost transform is {short_name(root)}, a Compose is expected")
    if root.get("p", 1.0) != 1:
        raise UsageError(f"{name}: the Compose has p={root['p']}; it must be 1, since the window is a part of it")
    return {"__version__": A.__version__, "transform": root}


def parse_version(text: Any, name: str) -> tuple[int, ...]:
    """Return a file's version as numbers: 0.3 to 0.5, or 2; UsageError for any other."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(text or ""))
    if match is None:
        raise UsageError(f"{name}: has no '__version__' of albumentations; save it again, or add the one that wrote it")
    version = tuple(int(part or 0) for part in match.groups())
    if version[0] != 2 and version[:2] not in ((0, 3), (0, 4), (0, 5)):
        raise UsageError(
            f"{name}: written by albumentations {text}, whose arguments are neither those of 0.3 to 0.5 nor of 2; save "
            "the transforms again with albumentations 2"
        )
    return version


def build_transforms(document: Mapping[str, Any], name: str) -> list[Any]:
    """Return the outermost Compose's transforms; UsageError for arguments that a class can't take."""
    return [_build(step, name) for step in document["transform"].get("transforms", [])]


def window_position(transforms: Sequence[Any]) -> int:
    """Return the window's position: after the last transform that takes Hounsfield units."""
    takes_hu = [index for index, transform in enumerate(transforms) if HOUNSFIELD in map(units, _leaves(transform))]
    return takes_hu[-1] + 1 if takes_hu else 0


def check_order(transforms: Sequence[Any], name: str, *, windowed: bool) -> None:
    """Raise UsageError if a transform would get other units than it takes.

    ``windowed``: pictures come on 0..1; otherwise they come as Hounsfield units until a DicomWindowShift.
    """
    for special in (DicomWindowShift, A.Normalize):
        for transform in transforms:
            if isinstance(transform, BaseCompose) and any(isinstance(leaf, special) for leaf in _leaves(transform)):
                raise UsageError(
                    f"{name}: {special.__name__} inside {type(transform).__name__}; "
                    "it must stand in the outermost Compose"
                )
    names = [type(transform).__name__ for transform in transforms]
    if names.count("DicomWindowShift") > 1:
        raise UsageError(f"{name}: DicomWindowShift stands twice")
    if names.count("Normalize") > 1:
        logger.warning("%s: Normalize stands twice; the second works on normalized values", name)
    state = UNIT if windowed else HOUNSFIELD
    for transform in transforms:
        for leaf in _leaves(transform):
            _check_units(leaf, state, name)
        if isinstance(transform, DicomWindowShift):
            state = CLIPPED if transform.min_max_normalize is False else UNIT
        elif isinstance(transform, A.Normalize):
            state = NORMALIZED


def units(transform: Any) -> str:
    """Return which units a transform takes: Hounsfield units, 0..1 or any."""
    if hasattr(transform, "units"):
        return transform.units
    return ANY if isinstance(transform, (A.DualTransform, *UNITLESS)) else UNIT


def _check_units(transform: Any, state: str, name: str) -> None:
    wanted, called = units(transform), type(transform).__name__
    if wanted == ANY:
        if state == HOUNSFIELD:
            _check_border(transform, name)
        return
    if wanted == HOUNSFIELD:
        if state == HOUNSFIELD:
            return
        if state == UNIT and isinstance(transform, DicomWindowShift):
            raise UsageError(f"{name}: has a DicomWindowShift, but the dataset's pictures are windowed already")
        raise UsageError(
            f"{name}: {called} takes Hounsfield units and would get others; it must stand before DicomWindowShift"
        )
    if state == HOUNSFIELD:
        raise UsageError(
            f"{name}: {called} stands before DicomWindowShift and would get Hounsfield units; it takes pictures on 0..1"
        )
    if isinstance(transform, A.Normalize):
        if state == CLIPPED and transform.max_pixel_value != 1:
            raise UsageError(
                f"{name}: Normalize behind a window that gives HU needs mean and std in HU, max_pixel_value 1"
            )
    elif state != UNIT:
        stands = "behind Normalize" if state == NORMALIZED else "behind a window that gives Hounsfield units"
        raise UsageError(f"{name}: {called} stands {stands}; it takes pictures on 0..1")


def _check_border(transform: Any, name: str) -> None:
    constant = getattr(transform, "border_mode", None) == 0 or not hasattr(transform, "border_mode")
    fill = getattr(transform, "fill", None)
    if constant and isinstance(fill, (int, float)) and fill == 0:
        logger.warning(
            "%s: %s fills with 0 before the window: 0 HU is water; fill -1024 is air", name, type(transform).__name__
        )


def _leaves(transform: Any) -> Iterator[Any]:
    if isinstance(transform, BaseCompose):
        for child in transform.transforms:
            yield from _leaves(child)
    else:
        yield transform


def find_class(fullname: str) -> type | None:
    """Return the class that a name in a file means; None if the name is not allowed.

    A bare name, or one within albumentations, is the library's. A class that only this project has is found by its bare
    name, with any module in front: notebooks of 2019 kept it in various ones. Your own class is named by its path in
    this project's folder, such as ``examples.transform.Gain``. No module from elsewhere is imported.
    """
    module, _, short = fullname.rpartition(".")
    if is_librarys(fullname) and short in LIBRARYS:
        return getattr(A, short)
    if is_librarys(fullname) or module == MODULE:
        return OWN_CLASSES.get(short)
    if short == DicomWindowShift.__name__:
        return DicomWindowShift
    own = None
    if is_dotted_path(fullname) and own_file(module).is_file():
        own = getattr(importlib.import_module(module), short, None)
    return own if isinstance(own, type) and issubclass(own, A.BasicTransform) else None


def _checked(step: Any, notes: list[str]) -> Node:
    """Check a step of today's form and its children, and return it with known names; add remarks to ``notes``."""
    if not isinstance(step, dict) or not isinstance(step.get(CLASS_KEY), str):
        raise UsageError(f"a transform without {CLASS_KEY!r}")
    fullname, short = step[CLASS_KEY], short_name(step)
    if is_librarys(fullname):
        if short in REFUSED:
            raise UsageError(f"{short} can't work here: {REFUSED[short]}")
        if short in TOLD:
            step, note = TOLD[short](step)
            notes += [note] if note else []
            return step
    if find_class(fullname) is None:
        raise unknown_class(fullname, LIBRARYS | OWN_CLASSES.keys(), f"albumentations and {MODULE}")
    check_size(step)
    if "transforms" not in step:
        return step
    if not isinstance(step["transforms"], list):
        raise UsageError(f"'transforms' of {short} is not a list")
    return {**step, "transforms": [_checked(child, notes) for child in step["transforms"]]}


def _is_composition(step: Mapping[str, Any]) -> bool:
    found = find_class(step[CLASS_KEY])
    return found is not None and issubclass(found, BaseCompose)


def _check_extent(step: Any, name: str) -> None:
    """Raise UsageError for too many or too deep transforms. No recursion: a hostile file could overflow it."""
    depth, count, level = 0, 0, [step]
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > MAX_DEPTH:
            raise UsageError(f"{name}: transforms inside each other, more than {MAX_DEPTH} deep")
        if count > MOST_STEPS:
            raise UsageError(f"{name}: more than {MOST_STEPS:,} transforms")
        children = [one["transforms"] for one in level if isinstance(one, dict) and "transforms" in one]
        level = [child for some in children if isinstance(some, list) for child in some]


def _build(step: Node, name: str) -> Any:
    short, built = short_name(step), find_class(step[CLASS_KEY])
    allowed = _arguments(built)
    # The library writes some arguments of a base class that the class itself doesn't take.
    inherited = {argument for base in built.__mro__[1:] for argument in _arguments(base)} - {*allowed}
    arguments = {key: value for key, value in step.items() if key != CLASS_KEY and key not in inherited}
    unknown = [key for key in arguments if key not in allowed]
    if unknown:
        hint = nearest(unknown[0], allowed) or f"; it takes {', '.join(allowed)}"
        raise UsageError(f"{name}: {short} has no argument {unknown[0]!r}{hint}")
    if issubclass(built, BaseCompose):
        arguments["transforms"] = [_build(child, name) for child in arguments.get("transforms", [])]
    try:
        with warnings.catch_warnings():
            # For some invalid arguments the library only warns and takes its defaults.
            warnings.simplefilter("error")
            if issubclass(built, ALWAYS_WARNS):
                warnings.simplefilter("ignore")
            return built(**arguments)
    except Exception as error:
        raise UsageError(f"{name}: {short}: {_reason(error)}") from None


def _arguments(built: type) -> list[str]:
    return [key for key in inspect.signature(built.__init__).parameters if key not in ("self", "strict", "kwargs")]


def _reason(error: Exception) -> str:
    """Return the line of pydantic's message that says what is wrong."""
    details = getattr(error.__cause__, "errors", None)
    if details is not None:
        first = details()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
