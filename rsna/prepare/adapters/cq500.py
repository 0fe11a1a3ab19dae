"""CQ500 (Qure.ai, 2018): head CT of 491 patients, a study each, read by three radiologists.

The published layout, as public loaders of it describe it::

    reads.csv                                      a row for each study: name, Category, R1:ICH, R1:IPH, …, R3:SAH, …
    CQ500CT0 CQ500CT0/Unknown Study/CT 5mm/*.dcm   name is CQ500-CT-0; some copies keep the zip files, CQ500-CT-0.zip

Source: Chilamkurthy et al. 2018, doi 10.1016/S0140-6736(18)31645-3, whose gold standard is the majority of the readers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UsageError, WorkError
from common.evaluation.agreement import fleiss_kappa
from common.spreadsheets import read_texts
from rsna.prepare.adapters.table import PublishedLabels
from rsna_dataset import ANY, LABELS, LABELS_IN_SHORT

READS = "reads.csv"
READERS = ("R1", "R2", "R3")
NAME = re.compile(r"CQ500-?CT-?(\d+)", re.IGNORECASE)


def read(root: Path, paths: Sequence[str]) -> PublishedLabels:
    """Return the majority of the three readers for each study, and how far they agree.

    Raises UsageError if there is no reads.csv in the folder ``root``, WorkError for a vote that is not 0 or 1.
    """
    file = root / READS
    if not file.is_file():
        raise UsageError(f"--pre_dataset=cq500: there is no {file}; put the file of the readers' votes there")
    columns = [f"{reader}:{LABELS_IN_SHORT[label]}" for reader in READERS for label in LABELS]
    texts = read_texts(file, ["name", *columns])
    numbers = [NAME.fullmatch(name.strip()) for name in texts["name"]]
    for row, number in zip(texts.index, numbers, strict=True):
        if number is None:
            raise WorkError(f"{file}: row {row}: its name has not the form CQ500-CT-0")
    keys = pd.Index([key_of(number[1]) for number in numbers], name="key")
    if not keys.is_unique:
        raise WorkError(f"{file}: row {texts.index[keys.duplicated()][0]}: a study stands there twice")
    wrong = ~texts[columns].isin(("0", "1"))
    if wrong.any(axis=None):
        row, column = np.argwhere(wrong.to_numpy())[0]
        raise WorkError(f"{file}: row {texts.index[row]}: {columns[column]} is not 0 or 1")
    votes = texts[columns].to_numpy(np.int64).reshape(len(texts), len(READERS), len(LABELS))
    labels = (2 * votes.sum(axis=1) > len(READERS)).astype(np.int8)
    added = labels[:, :ANY].any(axis=1) & (labels[:, ANY] == 0)
    labels[added, ANY] = 1
    kappa = {name: fleiss_kappa(votes[:, :, column]) for column, name in enumerate(LABELS)}
    said = [
        f"{len(texts)} studies have the label of at least two of three readers; their agreement (Fleiss' kappa): "
        + ", ".join(f"{name} {value:.2f}" for name, value in kappa.items())
    ]
    said += [f"{added.sum()} studies have a kind by majority and no ICH: they count as any"] * bool(added.any())
    table = pd.DataFrame(labels, keys, list(LABELS)).assign(row=texts.index.to_numpy())
    return PublishedLabels(table, study_of, True, tuple(said), kappa)


def key_of(number: str) -> str:
    """Return the key of a study from its number as written."""
    return f"CQ500-CT-{int(number)}"


def study_of(path: str, frame: int) -> str:
    """Return the key of the study that a file's path names, "" for none."""
    found = NAME.search(path)
    return "" if found is None else key_of(found[1])
