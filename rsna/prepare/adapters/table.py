"""The published datasets that ``--pre_dataset`` chooses from. To add one, write a file and a row.

This module imports nothing heavy, so that a command line can be checked quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.cli.choices import Row, table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Adapter(Row):
    """A published dataset: where its labels stand, and what a user must know of it.

    - ``path``: dotted path of a function (root folder, paths of the files) → :class:`PublishedLabels`.
    - ``licence``: its licence in words, and who asks for what. ``overlap``: what it shares with other datasets.
    """

    path: str = field(kw_only=True)
    licence: str = field(kw_only=True)
    overlap: str = field(kw_only=True)


@dataclass(frozen=True)
class PublishedLabels:
    """The labels of a published dataset.

    - ``table``: as :func:`rsna.forms.read_label_file` returns it, by keys of the dataset's own.
    - ``key_of``: (path of a file below the root, number of the frame from 1) → the key of its image or of its study,
      "" for none. ``of_study``: the keys name studies, not images.
    - ``said``: what to tell of the labels, a line each. ``agreement``: Fleiss' kappa of the readers for each label.
    """

    table: pd.DataFrame
    key_of: Callable[[str, int], str]
    of_study: bool
    said: tuple[str, ...] = ()
    agreement: Mapping[str, float] = field(default_factory=dict)


ADAPTERS: dict[str, Adapter] = table(
    (
        Adapter(
            "cq500",
            "CQ500 of Qure.ai: DICOM files of 491 studies, reads.csv with the votes of three readers for each study",
            path="rsna.prepare.adapters.cq500.read",
            licence="CC BY-NC-SA 4.0; cite Chilamkurthy et al. 2018 (Lancet 392:2388)",
            overlap="none is known with RSNA 2019: it fits an external validation",
        ),
        Adapter(
            "ct_ich",
            "CT-ICH of PhysioNet, version 1.2 or later: ct_scans/*.nii, hemorrhage_diagnosis_raw_ct.csv with a row for "
            "each slice",
            path="rsna.prepare.adapters.ct_ich.read",
            licence="PhysioNet Restricted Health Data License 1.5.0, with an agreement that you sign there; cite "
            "Hssayeni et al. 2020 (Data 5:14)",
            overlap="none is known with RSNA 2019: it fits an external validation",
        ),
    )
)
