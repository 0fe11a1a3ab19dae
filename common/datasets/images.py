"""Reads images from files, reduces and transforms them for a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from common.datasets.image_files import load_image
from common.datasets.shared import SharedArray
from common.datasets.steps import Step
from common.dicom.pictures import AIR_HU, resize_area
from common.errors import WorkError
from common.hashing import stable_hash


class SampleKey(NamedTuple):
    """Asks a dataset for a sample: the image's index, the epoch, and how often it was drawn before in this epoch.

    Loading processes live for the whole run and learn of the epoch only from this key.
    """

    index: int
    epoch: int
    occurrence: int


class Transform(Protocol):
    """A pipeline of ``common.transforms``: HU or a windowed picture in, float32 (H, W, C) or its draws alone out."""

    def set_random_seed(self, seed: int) -> None: ...

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Sample:
    """``image`` float32 (C, H, W), ``target`` float32 (K,) or None, ``size`` (H, W).

    If the device does the transform, ``image`` is as it was read, int16 HU or float32 in 0..1. ``steps`` are then still
    to be done, and ``size`` is the one after them.
    """

    image: np.ndarray
    target: np.ndarray | None
    image_id: str
    size: tuple[int, int]
    steps: tuple[Step, ...] | None = None


class Neighbours:
    """The ids of the slices around each of N images, in memory that loading processes share."""

    def __init__(self, names: np.ndarray, rows: np.ndarray) -> None:
        """``rows`` int (N, slices) are indices into the ids ``names``; the middle one is the image itself."""
        used, places = np.unique(rows, return_inverse=True)
        self._names = SharedArray(np.char.encode(np.asarray(names, dtype=np.str_)[used], "utf-8"))
        self._rows = SharedArray(places.reshape(rows.shape).astype(np.int32))

    def names(self, index: int) -> list[str]:
        """Return the ids of an image's slices, in order."""
        return [name.decode() for name in self._names.array[self._rows.array[index]].tolist()]

    def image_ids(self) -> np.ndarray:
        """Return all ids once, as an array of text."""
        return np.char.decode(self._names.array, "utf-8")


class ImageDataset:
    """Reads ``<image_folder>/<id><suffix>``: int16 Hounsfield units (H, W), or windowed pictures (H, W, C).

    A sample depends on (seed, epoch, id, occurrence) alone, not on the process that loads it or on what was loaded
    before.
    """

    def __init__(
        self,
        image_folder: Path,
        image_ids: Sequence[str],
        targets: np.ndarray | None,
        pipeline: Transform,
        image_size: int,
        seed: int,
        image_form: str,
        suffix: str = ".npy",
        neighbours: Neighbours | None = None,
    ) -> None:
        """``targets`` (N, K). ``image_size`` is the longer side in pixels, 0: as stored. ``image_form``: hu or window.

        ``suffix`` of the files is one of :data:`common.datasets.image_files.SUFFIXES`. ``neighbours`` are the slices
        that are stacked as channels; None: each image alone.
        """
        self.image_folder = image_folder
        self._ids = SharedArray(np.char.encode(np.asarray(image_ids, dtype=np.str_), "utf-8"))
        self._targets = None if targets is None else SharedArray(np.asarray(targets, dtype=np.float32))
        self.pipeline = pipeline
        self.image_size = image_size
        self.seed = seed
        self.image_form = image_form
        self.suffix = suffix
        self.neighbours = neighbours

    @property
    def image_ids(self) -> np.ndarray:
        """All ids, as an array of text (a copy)."""
        return np.char.decode(self._ids.array, "utf-8")

    @property
    def targets(self) -> np.ndarray | None:
        """All targets, float32 (N, K)."""
        return None if self._targets is None else self._targets.array

    def __len__(self) -> int:
        return len(self._ids.array)

    def check_files(self) -> None:
        """Raise WorkError, naming the first image without a file and their number.

        Call this before the work: a run then doesn't fail in the middle.
        """
        found = {entry.name for entry in os.scandir(self.image_folder)} if self.image_folder.is_dir() else set()
        wanted = self.image_ids if self.neighbours is None else self.neighbours.image_ids()
        missing = [image_id for image_id in wanted.tolist() if f"{image_id}{self.suffix}" not in found]
        if missing:
            raise WorkError(
                f"{self.image_folder / missing[0]}{self.suffix}: the image is missing ({len(missing)} of {len(wanted)} "
                "images are); run python preprocessing.py again"
            )

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """Return the sample of a sampler's key, or of an index as its first draw in epoch 0.

        Raises :class:`WorkError`, naming the file, if it is missing, cut or not an image of the dataset's form.
        """
        index, epoch, occurrence = key if isinstance(key, tuple) else (key, 0, 0)
        image_id = self._ids.array[index].decode()
        image = self.stored(index)
        self.pipeline.set_random_seed(stable_hash("augmentation", self.seed, epoch, image_id, occurrence))
        result = self.pipeline(image=image)
        picture = result["image"] if result["image"].ndim == 3 else result["image"][..., np.newaxis]
        target = None if self.targets is None else self.targets[index]
        size = result.get("size", picture.shape[:2])
        return Sample(np.ascontiguousarray(picture.transpose(2, 0, 1)), target, image_id, size, result.get("steps"))

    def stored(self, index: int) -> np.ndarray:
        """Return the transform's input: the image, or with neighbours their stack (H, W, slices · C), in order.

        Raises WorkError, naming two images, if neighbours have different sizes.
        """
        image_id = self._ids.array[index].decode()
        if self.neighbours is None:
            return self.read(image_id)
        names = self.neighbours.names(index)
        read = {name: self.read(name) for name in dict.fromkeys(names)}
        for name, image in read.items():
            if image.shape != read[image_id].shape:
                raise WorkError(
                    f"images {image_id} and {name} are neighbours of different sizes, {read[image_id].shape} and "
                    f"{image.shape}; give --data_image_size"
                )
        images = [read[name] for name in names]
        return np.stack(images, axis=-1) if self.image_form == "hu" else np.concatenate(images, axis=-1)

    def read(self, image_id: str) -> np.ndarray:
        """Return the stored image, reduced to the dataset's size: int16 HU, or float32 in 0..1 if it is windowed."""
        image = read_image(self.image_folder / f"{image_id}{self.suffix}", self.image_form)
        if self.image_form == "hu":
            return resize_area(image, self.image_size, AIR_HU)
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / np.float32(255)
        return resize_area(image, self.image_size, 0)


def read_image(path: Path, image_form: str) -> np.ndarray:
    """Read a stored image and check its form: int16 (H, W) for hu, uint8 or float32 (H, W, C) for window."""
    try:
        image = load_image(path)
    except FileNotFoundError:
        raise WorkError(f"{path}: the image is missing; run python preprocessing.py again") from None
    except (ValueError, OSError) as error:
        raise WorkError(
            f"{path}: the image is cut or damaged; remove it and run python preprocessing.py again"
        ) from error
    dimensions, dtypes = (2, ("int16",)) if image_form == "hu" else (3, ("uint8", "float32"))
    if image.ndim != dimensions or image.dtype.name not in dtypes or image.size == 0:
        raise WorkError(
            f"{path}: the image has shape {image.shape} and type {image.dtype}, {dimensions} dimensions of "
            f"{' or '.join(dtypes)} are expected; remove it and run python preprocessing.py again"
        )
    return image
