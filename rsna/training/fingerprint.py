"""What a plan is made for: the dataset's fingerprint, from its tables alone, and the machine's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.errors import UsageError, nearest
from common.machine import memory_limit, usable_cores
from rsna.training.plan_rules import GPUS
from rsna_dataset import LABELS, dataset_folder, fold_numbers, read_fold, read_metadata

QUARTILES = (0.05, 0.5, 0.95)
Spread = tuple[float, float, float]  # 5th, 50th and 95th percentile


@dataclass(frozen=True)
class Fingerprint:
    """A dataset in numbers.

    ``images``: those in folds; ``train_images``, ``valid_images``: of the first fold; ``train_series`` too. ``pixels``:
    median of the longer side as stored. ``slices``: of a series. ``positives``: images with each label.
    """

    dataset: str
    folds: tuple[int, ...]
    images: int
    test_images: int
    train_images: int
    valid_images: int
    train_series: int
    patients: int
    studies: int
    series: int
    pixels: int
    spacing_mm: Spread
    slice_spacing_mm: Spread
    slices: Spread
    positives: dict[str, int]

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {count / self.images:.2%} ({count:,})" for name, count in self.positives.items())
        return (
            f"{self.dataset}: {self.images:,} images of {self.patients:,} patients, {self.studies:,} studies and "
            f"{self.series:,} series in {len(self.folds)} folds, {self.test_images:,} test images\n"
            f"{self.pixels} pixels (median of the longer side), {spread(self.spacing_mm)} mm a pixel, "
            f"{spread(self.slice_spacing_mm)} mm from slice to slice, {spread(self.slices)} slices a series\n"
            f"positive images: {shares}"
        )


@dataclass(frozen=True)
class Machine:
    """Where a plan runs: ``places`` for trainings side by side, on GPUs of the kind ``gpu``; None: on what is here."""

    name: str
    device: str
    places: int
    cores: int
    memory_gb: float
    gpu_memory_gb: float | None = None
    gpu: str | None = None

    @property
    def here(self) -> bool:
        """Whether it is this machine, whose speed can be measured."""
        return self.gpu is None

    def __str__(self) -> str:
        memory = "" if self.gpu_memory_gb is None else f", {self.gpu_memory_gb:.0f} GB of GPU memory each"
        cores = f", {self.cores} cores, {self.memory_gb:.0f} GB of memory" if self.here else ""
        return f"{self.name}{memory}{cores}"


def spread(values: Spread) -> str:
    """Write percentiles: the median, and in brackets the 5th and 95th."""
    low, middle, high = (f"{value:.3g}" for value in values)
    return middle if low == high else f"{middle} ({low} to {high})"


def read_fingerprint(input_folder: Path, dataset: str) -> Fingerprint:
    """Read a dataset's fingerprint from its tables; no image is read.

    Raises UsageError for a dataset that is missing, has no labels, or too few patients to hold some out; WorkError for
    damaged tables.
    """
    folder = dataset_folder(input_folder, dataset)
    metadata = read_metadata(folder, described=True)
    folds = fold_numbers(folder, dataset)
    first = read_fold(folder, dataset, folds[0] if folds else 0)
    train, valid = (first[first["sample_type"] == split] for split in ("train", "valid"))
    if train["group_id"].nunique() < 1 or valid["group_id"].nunique() < 1:
        raise UsageError(
            f"{folder}: too few patients to plan for: {first['group_id'].nunique()} in its folds, and a fold needs "
            "some to train and others to validate on; give preprocessing.py images of more patients"
        )
    rows = metadata.loc[metadata.index.intersection(first.index)]
    lengths = rows.groupby("series_id").size()
    return Fingerprint(
        dataset,
        folds,
        len(first),
        int((metadata["split"] == "test").sum()),
        len(train),
        len(valid),
        int(rows["series_id"].reindex(train.index).nunique()),
        int(first["group_id"].nunique()),
        int(rows["study_id"].nunique()),
        len(lengths),
        int(rows[["rows", "columns"]].max(axis=1).median()),
        percentiles(rows["row_spacing_mm"]),
        percentiles(rows["slice_spacing_mm"]),
        percentiles(lengths),
        {name: int((first[name] == 1).sum()) for name in LABELS},
    )


def percentiles(values: pd.Series) -> Spread:
    """Return the 5th, 50th and 95th percentile of the numbers that are known; NaN where none is."""
    known = values.dropna()
    low, middle, high = known.quantile(QUARTILES) if len(known) else [np.nan] * 3
    return float(low), float(middle), float(high)


def read_machine(gpus: str | None, n_jobs: int) -> Machine:
    """Return this machine, or the one that ``gpus`` names: a number of the GPUs here, or names as ``H100``, ``2xT4``.

    GPUs of several kinds count as that of the smallest bandwidth. Raises UsageError for unknown names and for more GPUs
    than there are.
    """
    cores, count = n_jobs or usable_cores(), torch.cuda.device_count()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = (memory_limit() or physical) / 1e9
    if gpus is None or gpus.isdigit():
        if gpus is not None and int(gpus) != count:
            raise UsageError(
                f"--gpus={gpus}: torch sees {count} GPUs here; CUDA_VISIBLE_DEVICES chooses some of them, and names as "
                f"2xT4 plan for others ({', '.join(GPUS)})"
            )
        if not count:
            return Machine("CPU", "cpu", 1, cores, memory)
        properties = torch.cuda.get_device_properties(0)
        return Machine(f"{count} x {properties.name}", "cuda", count, cores, memory, properties.total_memory / 1e9)
    names = []
    for part in gpus.split(","):
        match = re.fullmatch(r"(?:([1-9]\d?) ?x ?)?(?:rtx ?)?(\w+)", part.strip(), re.IGNORECASE)
        name = match and match[2].upper()
        if name not in GPUS:
            raise UsageError(
                f"--gpus={gpus}: {part.strip()!r} is no GPU of the table; choose from {', '.join(GPUS)}, or 2xT4 for "
                f"two{nearest(part.strip(), GPUS)}"
            )
        names += [name] * int(match[1] or 1)
    slowest = min(names, key=lambda name: GPUS[name].bandwidth)
    said = " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return Machine(said, "cuda", len(names), cores, memory, GPUS[slowest].memory_gb, slowest)
