"""Tests of common/cli/choices.py: what a choice knows is given to it, and nothing else."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli.arguments import parse_args
from common.cli.choices import Row, choose, describe, load, settings, table
from common.errors import UsageError
from common.training.losses import LOSSES, LossRow
from config import TrainConfig

ROW = Row("square", "all sides equal", parameters={"shape_side": 2.0, "shape_round": False})
ROWS = table((ROW, Row("point", "no extent")))


def test_rows_are_found_by_name_and_an_unknown_name_names_the_nearest():
    assert choose("shape", "square", ROWS) is ROW
    with pytest.raises(UsageError, match=r"^--shape=sqare: unknown; .* square, point; did you mean 'square'\?$"):
        choose("shape", "sqare", ROWS)


@given(st.dictionaries(st.sampled_from(["shape_side", "shape_round"]), st.none() | st.floats(0, 9)))
def test_what_is_given_replaces_the_default_and_none_leaves_it(values):
    found = settings("shape", ROW, values)
    assert set(found) == {"shape_side", "shape_round"}
    for name, value in found.items():
        expected = values.get(name)
        assert value == (ROW.parameters[name] if expected is None else expected)


@pytest.mark.parametrize(
    ("row", "known"), [("square", "it knows --shape_side, --shape_round"), ("point", "it knows no option of this kind")]
)
def test_an_option_that_the_choice_does_not_know_is_refused_with_what_it_knows(row, known):
    assert settings("shape", ROWS[row], {"shape_radius": None}) is not None
    with pytest.raises(UsageError) as caught:
        settings("shape", ROWS[row], {"shape_radius": 0.0})
    assert str(caught.value) == f"--shape_radius: --shape={row} doesn't know it; {known}"


def test_the_listing_has_a_line_for_each_row_with_its_options_and_defaults():
    assert describe(ROWS) == ["square  all sides equal --shape_side=2 --shape_round=0", "point   no extent"]


def test_a_dotted_path_is_imported():
    assert load("collections.Counter") is collections.Counter


OWN = LossRow("own", "a loss of one's own", lambda values, labels, device: lambda logits, targets: logits**2)


def test_a_dotted_path_chooses_a_row_of_ones_own_and_nothing_that_is_none():
    path = "tests.common.cli.test_choices"
    assert choose("loss", f"{path}.OWN", LOSSES) is OWN
    assert parse_args(TrainConfig, [f"--loss={path}.OWN"]).loss == f"{path}.OWN"
    for name, said in (("ROW", "has no LossRow of the name ROW"), ("NONE", "has no LossRow of the name NONE")):
        with pytest.raises(UsageError, match=said):
            choose("loss", f"{path}.{name}", LOSSES)


def test_a_name_in_a_checkpoint_imports_nothing_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"^--loss=elsewhere\.ROW: there is no .*elsewhere\.py; a row of your own"):
        choose("loss", "elsewhere.ROW", LOSSES)


@pytest.mark.parametrize("text", ["import nonexisting_pkg", "def (", "X = 1 / 0"])
def test_an_own_module_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "own_broken.py").write_text(text)
    monkeypatch.setattr("common.cli.choices.PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = r"--loss=own_broken\.ROW: .*own_broken\.py can't be imported \(\w+Error: "
    with pytest.raises(UsageError, match=words) as caught:
        choose("loss", "own_broken.ROW", table([Row("a", "one")]))
    assert len(str(caught.value).splitlines()) == 1
