"""A command of one's own counts what pandas counts in the dataset's table."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd

from examples import command
from rsna_dataset import LABELS
from tests import PROJECT
from tests.conftest import SmallDataset


def test_an_own_command_reads_its_options_and_counts(small_dataset: SmallDataset) -> None:
    rows = pd.read_csv(small_dataset.folder / "metadata.csv").query("split == 'train'")
    names = list(LABELS)
    assert command.main(small_dataset.flags) == rows[names].sum().astype(int).to_dict()
    studies = rows.groupby("study_id")[names].max()
    assert command.main([*small_dataset.flags, "--by=study"]) == studies.sum().astype(int).to_dict()


def test_its_help_says_how_it_is_started() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "examples.command", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("usage: python -m examples.command [--flag=value ...]\n")
