"""The options of rsna_phantom.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option
from common.cli.groups import GeneralOptions
from common.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(GeneralOptions):
    """Write a phantom: synthetic head CT with bleeding, in the files and formats of the RSNA 2019 competition."""

    phantom_folder: Path = option(Path("./input/phantom"), "folder to write; an older phantom in it is replaced")
    phantom_studies: int = option(
        100,
        "number of studies to write, train and test together; at least 9 must be train studies",
        minimum=1,
        maximum=10**6,
    )
    phantom_test_share: float | None = option(
        None, "share of test studies; none: as in the competition's data, about 0.14", minimum=0.001, maximum=0.9
    )
    phantom_slices: int = option(
        0,
        "number of slices in every study, 2 or more; 0: varied as in the competition's data (median 33, at most 60)",
        minimum=0,
        maximum=60,
    )
    phantom_image_size: int = option(512, "rows and columns of an image, in pixels", minimum=32, maximum=1024)
    phantom_difficulty: str = option(
        "real",
        "demo: more, larger and denser bleedings, which a network learns within minutes. real: close to the "
        "competition's prevalences and sizes",
        choices=("demo", "real"),
    )
    phantom_archive: bool = option(
        False,
        "1: write a hospital's archive instead of the competition's files: each study with scout, bone, thin, contrast,"
        " coronal, perfusion and dual-energy series and a dose page beside the series to read, in the tags of four "
        "vendors, also missing and contradicting ones. archive_truth.csv says what each series is, study_labels.csv "
        "is for --pre_labels",
    )
    phantom_masks: bool = option(
        False,
        "1: also write which pixels are blood, phantom_truth/<id>.npy, a bit for each kind, for preprocessing.py "
        "--pre_masks",
    )
    phantom_contact_sheet: Path | None = option(
        None, "PNG file for a sheet of studies x slices in the brain window, with their labels; none: no sheet"
    )
    phantom_only_if_missing: bool = option(
        False, "1: write nothing if a complete phantom with the same options is already there"
    )
    seed: int = option(
        0, "seed of all random numbers: the same seed gives the same bytes", minimum=0, maximum=2**31 - 1
    )

    def __post_init__(self) -> None:
        if self.phantom_archive and self.phantom_contact_sheet is not None:
            raise UsageError("--phantom_contact_sheet doesn't go with --phantom_archive=1; leave one of them out")
        if self.phantom_archive and self.phantom_masks:
            raise UsageError("--phantom_masks=1 doesn't go with --phantom_archive=1; leave one of them out")
        if self.phantom_slices == 1:
            raise UsageError("--phantom_slices=1: give 2 or more, since one of the studies repeats a slice's position")
