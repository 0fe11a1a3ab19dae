"""Pipelines from albumentations' JSON files: Hounsfield units in, what the network sees out.

A file is read as data: a class name in it can only pick one of albumentations' transforms or of
``common.albumentations``; nothing is imported from its words. What the library would only warn about, or answer by its
defaults, is refused when the file is loaded.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks a package index for a newer version

import albumentations as A
import numpy as np
from albumentations.core.composition import BaseCompose
from albumentations.core.serialization import SERIALIZABLE_REGISTRY

from common.albumentations import DicomWindowShift, fixed_windows
from common.errors import UsageError, UserError, nearest

logger = logging.getLogger(__name__)

TRANSFORM_FOLDER = Path(__file__).resolve().parent.parent / "transforms"
CLASS_KEY = "__class_fullname__"
OWN_CLASSES = (DicomWindowShift,)

Windows = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """What a pipeline's output is on: 0..1, or normalized by ``mean`` and ``std`` (of pictures on 0..1)."""

    normalization: str = "none"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __str__(self) -> str:
        return "0..1" if self.normalization == "none" else f"Normalize({self.normalization}, {self.mean}, {self.std})"


class Pipeline:
    """A callable like albumentations' own: ``pipeline(image=hu)["image"]`` is float32 (H, W, ``channels``)."""

    def __init__(self, name: str, document: dict[str, Any], compose: A.Compose, channels: int, scale: Scale) -> None:
        """``document`` is the JSON that it was made from; ``name`` the file, for messages."""
        self.name = name
        self.document = document
        self.compose = compose
        self.channels = channels
        self.scale = scale

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of the next call.

        All transforms draw from one stream. albumentations' own ``set_random_seed`` gives each of them an equal one:
        then a flip and a rotation of probability 0.5 always come together.
        """
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``{"image": picture}``; UsageError, with the file's name, where a transform can't take the image."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = self.compose(image=image)["image"]
        except UserError as error:
            raise UsageError(f"{self.name}: {error}") from None
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(
                f"{self.name}: fails on an image of shape {image.shape} ({type(error).__name__}: {reason})"
            ) from error
        if picture.ndim == 2:  # OpenCV drops a single channel
            picture = picture[..., np.newaxis]
        if picture.ndim != 3 or picture.shape[2] != self.channels:
            raise UsageError(f"{self.name}: gives shape {picture.shape}, {self.channels} channels are expected")
        return {"image": np.ascontiguousarray(picture, dtype=np.float32)}


def find_transform(name: str) -> Path:
    """Return the file that ``name`` means: a path, or a bare name in the project's ``transforms/``.

    Raises UsageError, with what ``transforms/`` holds, where there is none.
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


def load_pipeline(path: Path, windows: Windows, *, windowed: bool = False) -> Pipeline:
    """Build the pipeline of a JSON file that ``albumentations.save`` wrote; see :func:`pipeline_from_dict`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a JSON file ({str(error).splitlines()[0]})") from None
    return pipeline_from_dict(document, str(path), windows, windowed=windowed)


def pipeline_from_dict(document: Any, name: str, windows: Windows, *, windowed: bool = False) -> Pipeline:
    """Build a pipeline from a JSON document; ``name`` is its file.

    ``windows`` (centre, width in HU) go in front where the file has no ``DicomWindowShift``. ``windowed``: the pictures
    come windowed by them already, and a ``DicomWindowShift`` is refused. ``Normalize`` with ``max_pixel_value`` 255
    means its mean and std on 0..1 here. Raises UsageError, one line with ``name``, for everything that can't be meant.
    """
    steps = _check_document(document, name)
    _check_order(steps, name, windowed)
    transforms = [_build(_on_unit_scale(step, name), name) for step in steps]
    own = [transform for transform in transforms if isinstance(transform, DicomWindowShift)]
    if not own and not windowed:
        transforms.insert(0, fixed_windows(windows))
    channels = own[0].channels if own else len(windows)
    scale = _scale(transforms, name, channels)
    return Pipeline(name, document, A.Compose(transforms), channels, scale)


def check_same_scale(first: Pipeline, second: Pipeline) -> None:
    """Raise UsageError where two pipelines of one run end on different scales or numbers of channels."""
    if first.channels != second.channels:
        raise UsageError(
            f"{first.name} gives {first.channels} channels and {second.name} {second.channels}: they must agree"
        )
    if first.scale != second.scale:
        raise UsageError(f"{first.name} ends on {first.scale} and {second.name} on {second.scale}: they must agree")


def _known_classes() -> dict[str, type]:
    library = {
        key: value
        for key, value in SERIALIZABLE_REGISTRY.items()
        if value.__module__.startswith("albumentations.") and not value.__module__.startswith("albumentations.pytorch")
    }
    return {**library, **{one.__name__: one for one in OWN_CLASSES}}


def _short_name(step: Mapping[str, Any]) -> str:
    return str(step[CLASS_KEY]).rpartition(".")[2]


def _check_document(document: Any, name: str) -> list[dict[str, Any]]:
    """Return the top level's steps, after checking that every node names a known class."""
    if not isinstance(document, dict) or not isinstance(document.get("transform"), dict):
        raise UsageError(f"{name}: not a file of albumentations: it needs '__version__' and 'transform'")
    version = str(document.get("__version__", ""))
    if version.split(".")[0] in ("", "0", "1"):
        raise UsageError(
            f"{name}: written by albumentations {version or 'of an unknown version'}; its arguments mean other things "
            "today, save the transforms again with albumentations 2"
        )
    root = document["transform"]
    _check_names(root, name)
    if _short_name(root) != "Compose":
        raise UsageError(f"{name}: the outermost transform is {_short_name(root)}, a Compose is expected")
    if root.get("p", 1.0) != 1:
        raise UsageError(f"{name}: the Compose has p={root['p']}; it must be 1, since the window is a part of it")
    return list(root.get("transforms", []))


def _check_names(step: Any, name: str) -> None:
    if not isinstance(step, dict) or not isinstance(step.get(CLASS_KEY), str):
        raise UsageError(f"{name}: a transform without {CLASS_KEY!r}")
    known, short = _known_classes(), _short_name(step)
    if short not in known:
        hint = nearest(short, known) or "; only albumentations' transforms and common.albumentations' are"
        raise UsageError(f"{name}: the transform {short!r} is not known{hint}")
    children = step.get("transforms", [])
    if not isinstance(children, list):
        raise UsageError(f"{name}: 'transforms' of {short} is not a list")
    for child in children:
        _check_names(child, name)


def _check_order(steps: Sequence[Mapping[str, Any]], name: str, windowed: bool) -> None:
    names = [_short_name(step) for step in steps]
    for special in ("DicomWindowShift", "Normalize"):
        if names.count(special) > 1:
            raise UsageError(f"{name}: {special} stands twice")
        for step in steps:
            if special in _nested_names(step):
                raise UsageError(
                    f"{name}: {special} inside {_short_name(step)}; it must stand in the outermost Compose"
                )
    if windowed and "DicomWindowShift" in names:
        raise UsageError(f"{name}: has a DicomWindowShift, but the dataset's pictures are windowed already")
    if {"DicomWindowShift", "Normalize"} <= set(names) and names.index("Normalize") < names.index("DicomWindowShift"):
        raise UsageError(f"{name}: Normalize stands before DicomWindowShift and would get Hounsfield units")


def _nested_names(step: Mapping[str, Any]) -> set[str]:
    children = step.get("transforms", [])
    return {_short_name(child) for child in children}.union(*(_nested_names(child) for child in children))


def _on_unit_scale(step: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a Normalize for 8-bit pictures as one for pictures on 0..1, with a line that says so."""
    if _short_name(step) != "Normalize" or step.get("max_pixel_value", 255.0) in (1, None):
        return step
    if step.get("max_pixel_value", 255.0) != 255:
        raise UsageError(
            f"{name}: Normalize has max_pixel_value {step['max_pixel_value']}; pictures are on 0..1: use 1.0"
        )
    logger.warning("%s: Normalize with max_pixel_value 255 is taken as mean and std of pictures on 0..1", name)
    return {**step, "max_pixel_value": 1.0}


def _build(step: Mapping[str, Any], name: str) -> Any:
    short = _short_name(step)
    built = _known_classes()[short]
    arguments = {key: value for key, value in step.items() if key != CLASS_KEY}
    allowed = [key for key in inspect.signature(built.__init__).parameters if key not in ("self", "strict")]
    unknown = [key for key in arguments if key not in allowed]
    if unknown:
        hint = nearest(unknown[0], allowed) or f"; it takes {', '.join(allowed)}"
        raise UsageError(f"{name}: {short} has no argument {unknown[0]!r}{hint}")
    if issubclass(built, BaseCompose):
        arguments["transforms"] = [_build(child, name) for child in arguments.get("transforms", [])]
    try:
        with warnings.catch_warnings():
            # The library answers some arguments that it can't take with a warning and its defaults.
            warnings.simplefilter("error")
            if built is A.ShiftScaleRotate:  # warns whatever its arguments, to recommend Affine
                warnings.simplefilter("ignore")
            return built(**arguments)
    except Exception as error:
        raise UsageError(f"{name}: {short}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return the one line in a message of pydantic's that says what is wrong."""
    details = getattr(error.__cause__, "errors", None)
    if details is not None:
        first = details()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _scale(transforms: Sequence[Any], name: str, channels: int) -> Scale:
    found = [transform for transform in transforms if isinstance(transform, A.Normalize)]
    if not found:
        logger.warning("%s: has no Normalize; the network sees pictures on 0..1", name)
        return Scale()
    normalize = found[0]
    if normalize.p != 1:
        raise UsageError(f"{name}: Normalize has p={normalize.p}; it must be 1, or pictures end on different scales")
    if normalize.normalization != "standard":
        return Scale(normalize.normalization)
    mean, std = (tuple(np.ravel(values).astype(float).tolist()) for values in (normalize.mean, normalize.std))
    for values in (mean, std):
        if len(values) not in (1, channels):
            raise UsageError(
                f"{name}: Normalize has {len(values)} values for {channels} windows; give it a value for each window"
            )
    return Scale("standard", mean, std)
