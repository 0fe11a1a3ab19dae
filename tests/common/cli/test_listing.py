"""Tests of common/cli/listing.py by the command that uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm

import train
from common.cli.choices import load
from common.cli.listing import TABLES, listing
from common.errors import UsageError
from tests import PROJECT


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_listed_row_by_row_with_every_option(kind, capsys) -> None:
    assert train.main([f"--list={kind}"]) is None
    lines = capsys.readouterr().out.splitlines()
    rows = load(TABLES[kind])
    assert [line.split()[0] for line in lines] == list(rows)
    for line, row in zip(lines, rows.values(), strict=True):
        assert all(f"--{option}=" in line for option in row.parameters)


@pytest.mark.parametrize("question", ["optim", "sched", "sampler", "loss", "pool", "transform"])
def test_a_list_that_needs_no_heavy_import_makes_none(question, tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROJECT / "train.py"), f"--list={question}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "timm", "pandas", "albumentations", "sklearn"}


def test_models_are_listed_by_a_part_of_the_name_or_a_pattern() -> None:
    assert len(listing("model")) == len(timm.list_models())
    assert "resnet18  (pretrained weights)" in listing("model:resnet1")
    assert [line.split()[0] for line in listing("model:resnet?8")] == ["resnet18"]


def test_transform_files_are_those_of_the_folder() -> None:
    assert listing("transform") == sorted(path.name for path in (PROJECT / "transforms").glob("*.json"))


@pytest.mark.parametrize(
    ("question", "message"),
    [("optm", "choose from optim, .*did you mean 'optim'"), ("optim:x", "choose from"), ("model:resnwt18", "resnet18")],
)
def test_what_there_is_no_list_of_is_refused(question, message) -> None:
    with pytest.raises(UsageError, match=message):
        listing(question)
