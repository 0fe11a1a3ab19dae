"""The options of preprocessing.py, and of the key that turns names into pseudonyms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option
from common.cli.values import Windows, format_windows, parse_windows
from common.errors import UsageError
from config import DataLocation, GeneralOptions


@dataclass(frozen=True, kw_only=True)
class PseudonymOptions:
    """Patients' names."""

    pseudonym_key: Path | None = option(
        None,
        "file of the key that turns names of patients, studies, series and images into pseudonyms; made where it is "
        "missing, and id_map_….csv beside it says which file and patient each id stands for; none: pseudonyms.key in "
        "--data_input_folder",
    )


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig(GeneralOptions, DataLocation, PseudonymOptions):
    """Convert DICOM files to a dataset: images, tables and folds, in <data_input_folder>/datasets."""

    pre_source: Path | None = option(
        None,
        "DICOM files, in the competition's form or any other, also packed by gzip (.dcm.gz): a folder with the zip and "
        "tar archives in it; such an archive, read in place; or a single file; none: the competition's, in "
        "<data_input_folder>",
    )
    pre_labels: Path | None = option(
        None,
        "CSV of labels: a column path, SOPInstanceUID or StudyInstanceUID and one for each label, or ID,Label with "
        "such a key in the ID; none: the competition's own, or unlabelled",
    )
    pre_max_failed: float = option(
        0.01,
        "largest accepted share of failed files; above it everything is still written, with exit code 1. Files that "
        "are no CT slices (reports, localizers, dose pages, maps, text files, ...) never count",
        minimum=0,
        maximum=1,
    )
    pre_folds: int = option(
        5,
        "folds for cross-validation; 1: no more than a split, which validates on --pre_holdout",
        minimum=1,
        maximum=1000,
    )
    pre_holdout: float = option(
        0.0, "share of the labelled images, by whole patients, that are held out of all folds", minimum=0, maximum=0.9
    )
    pre_group: str = option(
        "patient",
        "what stays together in folds and intervals: patient: all studies of a PatientID; study: each study counts as "
        "a patient, for archives that give all their patients the same PatientID. Either way images of one study, and "
        "patients with a picture in common, stay together",
        choices=("patient", "study"),
    )
    pre_size: int = option(
        0, "pixels of the longer side (area rule, padded to a square with air); 0: as stored", minimum=0, maximum=4096
    )
    pre_window: Windows | None = option(
        None,
        "store windows (centre/width in HU, as in 40/80,80/200), a channel each, and not Hounsfield units; none: HU",
        parse=parse_windows,
        form=format_windows,
    )
    pre_type: str = option(
        "auto",
        "type of the stored pixels: float32 (0..1) or uint8 (0..255) for --pre_window; auto: float32, int16 for HU",
        choices=("auto", "float32", "uint8"),
    )
    pre_crop: str = option(
        "none",
        "head: keep the head's box only, with air in place of table and holder; the boxes stand in metadata.csv "
        "and crop_sheet.png shows some",
        choices=("none", "head"),
    )
    pre_format: str = option(
        "npy",
        "image files: npy: plain numpy arrays; blosc2: losslessly compressed .b2nd arrays, about a third of the size",
        choices=("npy", "blosc2"),
    )
    check: bool = option(
        False,
        "1: write nothing; read some hundred files and the labels, and tell in seconds what the source holds, what the "
        "labels fit, which folds are possible, and what time and disk a dataset takes",
    )
    pre_verify: bool = option(
        False, "1: convert nothing; read a finished dataset's images again: all there, right shape, right hash"
    )
    pre_audit: bool = option(
        False,
        "1: also write audit.html beside the dataset: what is in it, and what to look at before training; a finished "
        "dataset is left as it is unless a source or other options are given",
    )
    pre_scheduler: str = option(
        "local",
        "who converts: local: processes of this machine; dask: workers of a dask cluster (pip install distributed)",
        choices=("local", "dask"),
    )
    pre_dask_address: str | None = option(
        None,
        "scheduler of a running dask cluster that sees the same folders, as in tcp://10.0.0.1:8786; none: a cluster of "
        "--n_jobs workers on this machine",
    )
    seed: int = option(0, "seed of the folds", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        for name in ("pre_verify", "pre_audit") if self.check else ():
            if getattr(self, name):
                raise UsageError(f"--{name}=1 doesn't go with --check=1, which makes no dataset; leave one of them out")
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
