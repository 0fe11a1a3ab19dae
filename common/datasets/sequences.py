"""Series of slices for sequence models: features or pictures in geometric order, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.datasets.batch import Batch, collate
from common.datasets.context import slice_places
from common.datasets.images import ImageDataset, Sample, SampleKey
from common.datasets.samplers import EpochSampler
from common.dicom.geometry import local_spacing, scanned_places
from common.hashing import stable_hash

UNKNOWN_SPACING_MM = 5.0  # for a series without positions: the usual spacing of head CT
PADDED = ("features", "logits")  # attributes of SequenceSample that a batch holds padded
POOL = 100  # number of batches within which series are sorted by length


class SeriesKey(NamedTuple):
    """A :class:`~common.datasets.images.SampleKey` with the ``share`` of the series' batch.

    For ``share`` see :class:`~common.datasets.batch.Batch`.
    """

    index: int
    epoch: int = 0
    occurrence: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class SequenceSample:
    """One series: ``features`` float32 (L, F), ``logits`` (L, C), ``position_mm`` (L,), ``target`` (L, C) or None.

    ``share`` as of :class:`SeriesKey`, ``study_target`` (C,) or None as of :class:`Series`.
    """

    features: Tensor
    logits: Tensor
    position_mm: Tensor
    target: Tensor | None
    image_ids: list[str]
    share: float = 1.0
    study_target: Tensor | None = None


class Series:
    """A dataset of N images whose samples are whole series in geometric order."""

    def __init__(
        self,
        image_ids: Sequence[str],
        series_ids: Sequence[str],
        positions_mm: np.ndarray,
        slice_index: np.ndarray,
        targets: np.ndarray | None,
        reverse: float,
        seed: int,
        study_targets: np.ndarray | None = None,
    ) -> None:
        """Arrays have N rows. ``reverse`` is the chance that a series is drawn in reverse order.

        ``study_targets`` (N, C): labels of each image's whole study, NaN where missing; None: nobody labelled studies.
        """
        series = np.unique(np.asarray(series_ids, dtype=np.str_), return_inverse=True)[1].reshape(-1)
        places = known_places(series, np.asarray(positions_mm, dtype=np.float64), np.asarray(slice_index))
        self.order = np.lexsort((slice_index, places, series))
        self.starts = np.flatnonzero(np.diff(series[self.order], prepend=-1))
        self.lengths = np.diff(self.starts, append=len(series))
        self.image_ids = np.asarray(image_ids, dtype=np.str_)
        self.places = places
        self.targets = None if targets is None else np.asarray(targets, dtype=np.float32)
        self.reverse = reverse
        self.seed = seed
        self.study_targets = None if study_targets is None else np.asarray(study_targets, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.starts)

    def images_of(self, index: int) -> np.ndarray:
        """Return the images of a series by their numbers, in geometric order."""
        return self.order[self.starts[index] : self.starts[index] + self.lengths[index]]

    def drawn(self, key: SeriesKey) -> tuple[np.ndarray, Tensor]:
        """Return the images of a series as drawn, and their places, float32 (L,), with mean 0.

        Whether the series is reversed depends on (seed, epoch, series, occurrence) alone.
        """
        images = self.images_of(key.index)
        places = self.places[images] - self.places[images].mean()
        if self.reverse:
            name = str(self.image_ids[images[0]])
            draw = np.random.default_rng(stable_hash("reverse", self.seed, key.epoch, name, key.occurrence)).random()
            if draw < self.reverse:
                images, places = images[::-1], -places[::-1]
        return images, torch.from_numpy(places.astype(np.float32))

    def target_of(self, images: np.ndarray) -> Tensor | None:
        """Return the targets (L, C) of L images."""
        return None if self.targets is None else torch.from_numpy(self.targets[images])

    def study_target_of(self, images: np.ndarray) -> Tensor | None:
        """Return the label (C,) of the study of a series' images."""
        return None if self.study_targets is None else torch.from_numpy(self.study_targets[images[0]])


class SequenceDataset(Series):
    """Series of features, which stay on disk until a sample needs them."""

    def __init__(
        self,
        image_ids: Sequence[str],
        series_ids: Sequence[str],
        positions_mm: np.ndarray,
        slice_index: np.ndarray,
        targets: np.ndarray | None,
        rows: np.ndarray,
        features: np.ndarray,
        logits: np.ndarray,
        reverse: float,
        seed: int,
        study_targets: np.ndarray | None = None,
    ) -> None:
        """As :class:`Series`; ``rows`` (N,) are the images' places in ``features`` (M, F) and ``logits`` (M, C)."""
        super().__init__(image_ids, series_ids, positions_mm, slice_index, targets, reverse, seed, study_targets)
        self.rows = rows
        self.features = features
        self.logits = logits

    def __getitem__(self, key: SeriesKey | SampleKey | int) -> SequenceSample:
        """Return a series as it is drawn."""
        key = series_key(key)
        images, places = self.drawn(key)
        rows = self.rows[images]
        return SequenceSample(
            torch.from_numpy(self.features[rows].astype(np.float32)),
            torch.from_numpy(self.logits[rows].astype(np.float32)),
            places,
            self.target_of(images),
            self.image_ids[images].tolist(),
            key.share,
            self.study_target_of(images),
        )


@dataclass(frozen=True)
class PictureSample:
    """One series: its L ``pictures``, which hold targets and names too, and ``position_mm`` (L,).

    ``share`` and ``study_target`` as of :class:`SequenceSample`.
    """

    pictures: list[Sample]
    position_mm: Tensor
    share: float = 1.0
    study_target: Tensor | None = None


class PictureSeries(Series):
    """Series of pictures, each slice transformed by draws of its own."""

    def __init__(
        self,
        image_ids: Sequence[str],
        series_ids: Sequence[str],
        positions_mm: np.ndarray,
        slice_index: np.ndarray,
        targets: np.ndarray | None,
        reverse: float,
        seed: int,
        pictures: ImageDataset,
        study_targets: np.ndarray | None = None,
    ) -> None:
        """As :class:`Series`; ``pictures`` are of the same images in the same order."""
        super().__init__(image_ids, series_ids, positions_mm, slice_index, targets, reverse, seed, study_targets)
        self.pictures = pictures

    def __getitem__(self, key: SeriesKey | SampleKey | int) -> PictureSample:
        """Return a series as it is drawn."""
        key = series_key(key)
        images, places = self.drawn(key)
        pictures = [self.pictures[SampleKey(int(image), key.epoch, key.occurrence)] for image in images]
        return PictureSample(pictures, places, key.share, self.study_target_of(images))


def series_key(key: SeriesKey | SampleKey | int) -> SeriesKey:
    """Return a complete key from a sampler's key, or from an index as its first draw in epoch 0."""
    return SeriesKey(*key) if isinstance(key, tuple) else SeriesKey(key)


def known_places(series: np.ndarray, positions_mm: np.ndarray, slice_index: np.ndarray) -> np.ndarray:
    """Return a place in mm for each slice (N,), even for one without a position.

    Slices without a position follow the others of their series at the spacing of the last ones that have one. A series
    without any position is ordered by ``slice_index``, 5 mm apart.
    """
    places = slice_places(series, positions_mm, slice_index)
    found = np.isfinite(positions_mm)
    unplaced = np.bincount(series, weights=found, minlength=series.max(initial=-1) + 1) == 0
    places = np.where(unplaced[series], places * UNKNOWN_SPACING_MM, places)
    missing = np.flatnonzero(~np.isfinite(places))
    if len(missing) == 0:
        return places
    order = np.lexsort((places, series))
    order = order[np.isfinite(places[order])]
    first, centers = scanned_places(series[order], places[order])
    owners = series[order][first]
    last, spacing = np.zeros((2, series.max() + 1))
    # Assignment keeps the last of several values: the one of the series' highest place.
    last[series[order]], spacing[owners] = places[order], local_spacing(owners, centers)
    for row in missing[np.lexsort((slice_index[missing], series[missing]))]:
        last[series[row]] += spacing[series[row]]
        places[row] = last[series[row]]
    return places


class LengthSampler(EpochSampler):
    """Each series once in an epoch, in random order, but with series of similar lengths in a batch.

    The batches of several processes in one iteration together equal the batch of a single process of the same total
    size.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """``lengths`` (S,) of the series in slices; ``batch_size`` is that of each process."""
        super().__init__(len(lengths), seed, rank, world_size)
        self.lengths = lengths
        self.batch_size = batch_size * world_size

    def order(self, epoch: int) -> np.ndarray:
        """Return whole batches in random order, then the few series that fill no batch."""
        random = self.random("lengths", epoch)
        drawn = random.permutation(self.length)
        whole = self.length - self.length % self.batch_size
        pool = POOL * self.batch_size
        parts = [drawn[start : min(start + pool, whole)] for start in range(0, whole, pool)]
        parts = [part[np.argsort(self.lengths[part], kind="stable")] for part in parts]
        batches = np.concatenate([*parts, drawn[:0]]).reshape(-1, self.batch_size)
        return np.concatenate([batches[random.permutation(len(batches))].ravel(), drawn[whole:]])

    def __iter__(self) -> Iterator[SeriesKey]:
        """Yield this process' keys, each with its batch's share: the batch's slices over the processes' mean."""
        whole = self.length - self.length % self.batch_size
        own = self.batch_size // self.world_size
        slices = self.lengths[self.order(self.epoch)[:whole]].reshape(-1, own, self.world_size).sum(axis=1)
        shares = (slices[:, self.rank] / slices.mean(axis=1)).tolist()
        for place, key in enumerate(super().__iter__(), start=self.offset):
            batch = place // own
            yield SeriesKey(*key, shares[batch] if batch < len(shares) else 1.0)  # the rest is not used


def collate_sequences(samples: Sequence[SequenceSample]) -> Batch:
    """Pad series to the longest: ``features`` (B, L, F), ``logits`` (B, L, C) and the inputs of :func:`placed`.

    ``target`` (N, C) and ``image_id`` (N) have no padding: they list the slices, series after series.
    """
    targets = [sample.target for sample in samples if sample.target is not None]
    return placed(
        Batch(
            {name: pad_sequence([getattr(one, name) for one in samples], batch_first=True) for name in PADDED},
            torch.cat(targets) if targets else None,
            [image_id for sample in samples for image_id in sample.image_ids],
        ),
        samples,
    )


def collate_pictures(samples: Sequence[PictureSample]) -> Batch:
    """Concatenate the pictures of all series, ``image`` (N, C, H, W), and add the inputs of :func:`placed`.

    ``target`` (N, K) and ``image_id`` (N) have the same order. Errors as :func:`common.datasets.batch.collate`.
    """
    pictures = [picture for sample in samples for picture in sample.pictures]
    return placed(collate(pictures), samples)


def placed(batch: Batch, samples: Sequence[SequenceSample | PictureSample]) -> Batch:
    """Return a batch of N slices with their places in its B series, which are padded to L slices.

    ``position_mm`` float32 (B, L); ``mask`` bool (B, L), true for slices; ``places`` int64 (N,): each slice's place
    among the B · L, series after series; ``lengths``: slices of each series. All are computed here, on the host:
    finding the slices by the mask on a GPU would make the host wait. ``study_target`` (B, C): labels of the series'
    studies, if studies were labelled.
    """
    positions_mm = [sample.position_mm for sample in samples]
    lengths = torch.tensor([len(one) for one in positions_mm])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    position_mm = pad_sequence(positions_mm, batch_first=True)
    inputs = {**batch.inputs, "position_mm": position_mm, "mask": mask, "places": mask.flatten().nonzero().flatten()}
    if samples[0].study_target is not None:
        inputs["study_target"] = torch.stack([sample.study_target for sample in samples])
    return replace(batch, inputs=inputs, lengths=tuple(lengths.tolist()), share=samples[0].share)
