"""The options of rsna_phantom.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option
from common.errors import UsageError
from config import GeneralOptions


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(GeneralOptions):
    """Write a phantom: synthetic head CT with bleeding, in the files and formats of the RSNA 2019 competition."""

    phantom_folder: Path = option(Path("./input/phantom"), "folder to write; an older phantom in it is replaced")
    phantom_studies: int = option(
        100, "studies to write, train and test together; at least 9 train ones", minimum=1, maximum=10**6
    )
    phantom_test_share: float | None = option(
        None, "share of the studies that are test studies; none: the data's, about 0.14", minimum=0.001, maximum=0.9
    )
    phantom_slices: int = option(
        0, "slices of every study, 2 or more; 0: spread as in the data (median 33, at most 60)", minimum=0, maximum=60
    )
    phantom_image_size: int = option(512, "rows and columns of an image, in pixels", minimum=32, maximum=1024)
    phantom_difficulty: str = option(
        "real",
        "demo: more, larger and denser bleedings, learnt within minutes; real: near the data's prevalences and sizes",
        choices=("demo", "real"),
    )
    phantom_contact_sheet: Path | None = option(
        None, "PNG file for a sheet of studies x slices with their labels in the brain window; none: no sheet"
    )
    phantom_only_if_missing: bool = option(
        False, "1: write nothing where a complete phantom of the same options already stands"
    )
    seed: int = option(0, "seed of everything: the same seed gives the same bytes", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        if self.phantom_slices == 1:
            raise UsageError("--phantom_slices=1: give 2 or more, since one of the studies repeats a slice's position")
