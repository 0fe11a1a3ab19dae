"""A pipeline is a callable made from a transform file, with one random stream for each picture."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import albumentations as A
import numpy as np

from common.albumentations import DicomWindowShift, fixed_windows
from common.errors import UsageError, UserError
from common.hashing import stable_hash
from common.transforms.documents import (
    build_transforms,
    check_order,
    logger,
    read_document,
    todays_document,
    window_position,
)
from common.transforms.drawing import Chance, Trial, alternatives, draw_steps
from common.transforms.pictures import Picture

Windows = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """The scale of a pipeline's output: kind, mean and std (on 0..1) of each Normalize; without any it is 0..1."""

    normalizations: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = ()

    def __str__(self) -> str:
        texts = [f"Normalize({kind}, {mean}, {std})" for kind, mean, std in self.normalizations]
        return ", then ".join(texts) or "0..1"


class Pipeline:
    """A callable like albumentations' own: ``pipeline(image=picture)["image"]`` is float32 (H, W, ``channels``)."""

    def __init__(
        self,
        name: str,
        document: dict[str, Any],
        transforms: Sequence[Any],
        channels: int | None,
        *,
        fuse: bool = False,
        own_window: bool = False,
    ) -> None:
        """``document``: the file in today's form; ``name``: the file, for messages; ``channels`` None: any.

        ``fuse``: join all steps that move pixels into one warp, see :class:`common.transforms.joining.Joiner`.
        ``own_window``: the windows are the file's own.
        """
        self.name = name
        self.document = document
        self.transforms = list(transforms)
        self.channels = channels
        self.fuse = fuse
        self.own_window = own_window
        self.scale = _scale(transforms, name, channels)
        self.compose = A.Compose(self.transforms)

    def set_random_seed(self, seed: int) -> None:
        """Seed the draws of the next call.

        All transforms draw from one stream. albumentations' own ``set_random_seed`` gives them equal streams: then a
        flip and a rotation of probability 0.5 always come together.
        """
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return ``{"image": picture}``; UsageError, with the file's name, if a transform can't take the image.

        8-bit pictures are scaled to 0..1 first. A ``mask``, uint8 (H, W), moves with the picture, by nearest pixels,
        and is returned as ``mask``.
        """
        picture, moved = self._changed(image, Chance(), mask)
        return {"image": picture} if moved is None else {"image": picture, "mask": moved}

    def trial(self, image: np.ndarray) -> None:
        """Try each transform on ``image`` once, whatever its probability, then only those with p = 1.

        Raises UsageError, with the file's name, if a transform can't take the image, if values become non-finite, or
        if the picture's size depends on the draws.
        """
        trials = [*map(Trial, range(alternatives(self.compose))), Trial(0, sure=True)]
        sizes = {}
        for trial in trials:
            picture, _ = self._changed(image, trial)
            if not np.isfinite(picture).all():
                raise UsageError(f"{self.name}: gives values that are not finite")
            sizes[picture.shape[:2]] = None
        if len(sizes) > 1:
            listing = " or ".join(f"{height} x {width}" for height, width in sizes)
            raise UsageError(
                f"{self.name}: pictures become {listing} pixels, as it is drawn, and can't stand in one batch; give "
                "the step that changes the size p 1, or add one that makes them equal"
            )

    def _changed(
        self, image: np.ndarray, chance: Chance, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / np.float32(255)
        changing = Picture(image, mask)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw_steps(self.compose, image.shape, changing.do, chance, fuse=self.fuse)
                picture = changing.values
        except UserError as error:
            raise UsageError(f"{self.name}: {error}") from None
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(
                f"{self.name}: fails on an image of shape {image.shape} ({type(error).__name__}: {reason})"
            ) from error
        if picture.ndim == 2:  # OpenCV drops a single channel
            picture = picture[..., np.newaxis]
        if picture.ndim != 3 or self.channels not in (None, picture.shape[2]):
            raise UsageError(f"{self.name}: gives shape {picture.shape}, {self.channels} channels are expected")
        return np.ascontiguousarray(picture, dtype=np.float32), changing.mask


class Drawing(Protocol):
    """A pipeline, or the part of it that runs in the loading processes."""

    name: str

    def set_random_seed(self, seed: int) -> None: ...

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]: ...

    def trial(self, image: np.ndarray) -> None: ...


class FixedView:
    """One view of test-time augmentation; its draws depend only on the view's number, not on image or model."""

    def __init__(self, pipeline: Drawing, view: int) -> None:
        """``view``: 0, 1, …"""
        self.pipeline = pipeline
        self.name = pipeline.name
        self.view = view

    def set_random_seed(self, seed: int) -> None:
        """Seed the view's own draws; ``seed`` is not used."""
        self.pipeline.set_random_seed(stable_hash("view", self.view))

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        """Return what the pipeline does."""
        return self.pipeline(image=image)

    def trial(self, image: np.ndarray) -> None:
        """Try the pipeline, as its own ``trial``."""
        self.pipeline.trial(image)


def load_pipeline(
    path: Path | str,
    windows: Windows | None = None,
    *,
    windowed: bool = False,
    fuse: bool = False,
    slices: int = 1,
) -> Pipeline:
    """Build the pipeline of a JSON file written by ``albumentations.save`` of 2.x or 0.3 to 0.5.

    See :func:`pipeline_from_dict`.
    """
    document = read_document(Path(path))
    return pipeline_from_dict(document, str(path), windows, windowed=windowed, fuse=fuse, slices=slices)


def pipeline_from_dict(
    document: Any,
    name: str,
    windows: Windows | None = None,
    *,
    windowed: bool = False,
    fuse: bool = False,
    slices: int = 1,
) -> Pipeline:
    """Build a pipeline from a JSON document; ``name`` is its file.

    ``windows`` (centre, width in HU) are added to a file without ``DicomWindowShift``: at the front, or after the last
    transform that takes Hounsfield units. None: a file without one gets pictures on 0..1. ``windowed``: the pictures
    already come windowed by ``windows``, and a ``DicomWindowShift`` is refused. ``Normalize`` with ``max_pixel_value``
    255 means its mean and std on 0..1 here. ``fuse``: join all steps that move pixels into one warp. ``slices``: as
    many neighbours come side by side, each with all windows; a ``Normalize`` with a value for each window applies to
    each slice. Raises UsageError, one line with ``name``, for anything without a valid meaning.
    """
    today = todays_document(document, name)
    transforms = build_transforms(today, name)
    own = [transform for transform in transforms if isinstance(transform, DicomWindowShift)]
    if windows is not None and not own and not windowed:
        transforms.insert(window_position(transforms), fixed_windows(windows))
    has_window = any(isinstance(transform, DicomWindowShift) for transform in transforms)
    check_order(transforms, name, windowed=windowed or not has_window)
    channels = own[0].channels if own else None if windows is None else len(windows)
    if slices > 1 and channels is not None:
        transforms = [_for_slices(transform, channels, slices) for transform in transforms]
        channels *= slices
    return Pipeline(name, today, transforms, channels, fuse=fuse, own_window=bool(own))


def _for_slices(transform: Any, windows: int, slices: int) -> Any:
    """Return a transform for ``slices`` slices side by side: a Normalize repeats its values for each slice."""
    if not isinstance(transform, A.Normalize) or transform.normalization != "standard":
        return transform
    mean, std = (
        tuple(np.tile(values, slices).tolist()) if np.size(values) == windows > 1 else values
        for values in (transform.mean, transform.std)
    )
    return A.Normalize(mean, std, transform.max_pixel_value, transform.normalization, p=transform.p)


def check_same_scale(first: Pipeline, second: Pipeline) -> None:
    """Raise UsageError if two pipelines of one run end on different scales or numbers of channels."""
    if first.channels != second.channels:
        raise UsageError(
            f"{first.name} gives {first.channels} channels and {second.name} {second.channels}: they must agree"
        )
    if first.scale != second.scale:
        raise UsageError(f"{first.name} ends on {first.scale} and {second.name} on {second.scale}: they must agree")


def _scale(transforms: Sequence[Any], name: str, channels: int | None) -> Scale:
    found = [transform for transform in transforms if isinstance(transform, A.Normalize)]
    if not found:
        logger.warning("%s: has no Normalize; the network sees pictures on 0..1", name)
    return Scale(tuple(_normalization(normalize, name, channels) for normalize in found))


def _normalization(
    normalize: A.Normalize, name: str, channels: int | None
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    if normalize.p != 1:
        raise UsageError(f"{name}: Normalize has p={normalize.p}; it must be 1, or pictures end on different scales")
    if normalize.normalization != "standard":
        return normalize.normalization, (), ()
    mean, std = (tuple(np.ravel(values).astype(float).tolist()) for values in (normalize.mean, normalize.std))
    for values in (mean, std):
        if channels is not None and len(values) not in (1, channels):
            raise UsageError(
                f"{name}: Normalize has {len(values)} values for {channels} windows; give it a value for each window"
            )
    return "standard", mean, std
