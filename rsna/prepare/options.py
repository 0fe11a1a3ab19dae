"""The options of preprocessing.py, and of the key that turns names into pseudonyms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option
from common.cli.choices import summaries
from common.cli.groups import DataLocation, GeneralOptions
from common.cli.values import Windows, format_windows, parse_windows
from common.errors import UsageError
from rsna.prepare.adapters.table import ADAPTERS

BEST, ALL = "best", "all"


@dataclass(frozen=True, kw_only=True)
class PseudonymOptions:
    """Patients' names."""

    pseudonym_key: Path | None = option(
        None,
        "key file that turns names of patients, studies, series and images into pseudonyms; created if it is "
        "missing. id_map_….csv beside it lists the file and patient of each id. none: pseudonyms.key in "
        "--data_input_folder",
    )


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """Series of a study."""

    pre_series: str | None = option(
        None,
        "which series of a study are used. best: the one non-contrast, axial, soft-kernel series of the head; "
        "series.csv says why not the others. A series with labels of its own slices is trained on anyhow. all: every "
        "series. none: best, but all for the competition's files",
        choices=(BEST, ALL),
    )

    def series_mode(self, *, competition: bool) -> str:
        """Return ``best`` or ``all``, for files in the competition's form or any other."""
        return self.pre_series or (ALL if competition else BEST)


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig(GeneralOptions, DataLocation, SeriesOptions, PseudonymOptions):
    """Convert DICOM files to a dataset: images, tables and folds, in <data_input_folder>/datasets."""

    pre_source: Path | None = option(
        None,
        "DICOM files to convert, the competition's or any other, also gzipped (.dcm.gz): a folder, with any zip and"
        " tar archives in it, or one archive, which is read in place, or one file. none: the competition's files in"
        " <data_input_folder>",
    )
    pre_labels: Path | None = option(
        None,
        "CSV of labels with a column path, SOPInstanceUID or StudyInstanceUID and one for each label, or ID,Label "
        "with one of these keys in the ID. An empty cell is a missing label; a study's 1 is the label of no slice. "
        "none: the competition's labels, or no labels",
    )
    pre_dataset: str | None = option(
        None,
        "published dataset that --pre_source holds as it was unpacked; its own files give the labels. "
        f"{summaries(ADAPTERS)}. none: none of these",
        choices=tuple(ADAPTERS),
    )
    pre_masks: Path | None = option(
        None,
        "folder with masks of the blood, <image id>.npy, for any share of the images: uint8, rows x columns as in the "
        "DICOM file, bit k (value 2**k) for kind k in the order of the labels. A phantom's is phantom_truth, see "
        "--phantom_masks. none: leave the dataset's masks alone while its images stay",
    )
    pre_max_failed: float = option(
        0.01,
        "largest accepted share of failed files. Above it everything is still written, but the exit code is 1. "
        "Files that are no CT slices (reports, localizers, dose pages, maps, text files, ...) don't count",
        minimum=0,
        maximum=1,
    )
    pre_folds: int = option(
        5,
        "number of folds for cross-validation; 1: a single split, which validates on --pre_holdout",
        minimum=1,
        maximum=1000,
    )
    pre_holdout: float = option(
        0.0, "share of the labelled images to hold out of all folds, by whole patients", minimum=0, maximum=0.9
    )
    pre_group: str = option(
        "patient",
        "what stays together in folds and intervals. patient: all studies of a PatientID. study: each study counts "
        "as a patient, for archives in which all patients have the same PatientID. In both cases images of one "
        "study, and patients with a picture in common, stay together",
        choices=("patient", "study"),
    )
    pre_size: int = option(
        0,
        "longer side of stored pictures in pixels, resized by area and padded with air to a square; 0: as in the "
        "DICOM file",
        minimum=0,
        maximum=4096,
    )
    pre_window: Windows | None = option(
        None,
        "store windows (centre/width in HU, as in 40/80,80/200), one for each channel, instead of Hounsfield units;"
        " none: HU",
        parse=parse_windows,
        form=format_windows,
    )
    pre_type: str = option(
        "auto",
        "type of stored pixels. float32 (0..1) or uint8 (0..255): for --pre_window. auto: float32 for windows, "
        "int16 for HU",
        choices=("auto", "float32", "uint8"),
    )
    pre_crop: str = option(
        "none",
        "head: keep only the box around the head and replace table and holder by air; metadata.csv lists the boxes,"
        " and crop_sheet.png shows some",
        choices=("none", "head"),
    )
    pre_format: str = option(
        "npy",
        "format of image files. npy: plain numpy arrays. blosc2: losslessly compressed .b2nd arrays, about a third "
        "of the size",
        choices=("npy", "blosc2"),
    )
    pre_demographics: bool = option(
        False, "1: metadata.csv also has the patient's age, in bins of ten years, and sex, as far as the files say"
    )
    check: bool = option(
        False,
        "1: write nothing. Read a few hundred files and the labels, and report in seconds what the source holds, "
        "what the labels fit, which folds are possible, and how much time and disk space a dataset takes",
    )
    pre_verify: bool = option(
        False,
        "1: convert nothing. Read the images of a finished dataset again and check that all are there, with the "
        "right shape and hash",
    )
    pre_audit: bool = option(
        False,
        "1: also write audit.html beside the dataset: what is in it, and what to check before training. A finished "
        "dataset is not converted again unless a source or other options are given",
    )
    pre_scheduler: str = option(
        "local",
        "what runs the conversion. local: processes on this machine. dask: workers of a dask cluster (pip install "
        "distributed)",
        choices=("local", "dask"),
    )
    pre_dask_address: str | None = option(
        None,
        "scheduler of a running dask cluster that sees the same folders, as in tcp://10.0.0.1:8786; none: start "
        "--n_jobs workers on this machine",
    )
    seed: int = option(0, "seed of the folds", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        for name in ("pre_verify", "pre_audit") if self.check else ():
            if getattr(self, name):
                raise UsageError(f"--{name}=1 doesn't go with --check=1, which makes no dataset; leave one of them out")
        if self.pre_dataset is not None and (self.pre_source is None or self.pre_labels is not None):
            raise UsageError(
                f"--pre_dataset={self.pre_dataset} reads the folder --pre_source and takes its labels from there: give "
                "--pre_source, and leave out --pre_labels"
            )
        for name in ("pre_verify", "check"):
            if self.pre_masks is not None and getattr(self, name):
                raise UsageError(f"--pre_masks doesn't go with --{name}=1, which writes no dataset; leave it out")
        if self.check and self.pre_scheduler != "local":
            raise UsageError(f"--pre_scheduler={self.pre_scheduler} doesn't go with --check=1, which reads here")
        if self.pre_verify and self.pseudonym_key is not None:
            raise UsageError("--pseudonym_key doesn't go with --pre_verify=1, which converts nothing; leave it out")
        if self.pre_folds == 1 and self.pre_holdout == 0:
            raise UsageError("--pre_folds=1 needs --pre_holdout, the share of images to validate on, as in 0.2")
        if self.pre_type != "auto" and self.pre_window is None:
            raise UsageError(f"--pre_type={self.pre_type} needs --pre_window: Hounsfield units are stored as int16")
        if self.pre_dask_address is not None and self.pre_scheduler != "dask":
            raise UsageError(f"--pre_dask_address={self.pre_dask_address} needs --pre_scheduler=dask")
