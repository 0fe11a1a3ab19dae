"""predict.py --audit: submissions made by hand, whole and with each fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import predict
from rsna.forms import check_submission
from rsna_dataset import LABELS, PUBLISHED, read_metadata
from tests.runs import failure

IDS = [f"ID_{number:09x}" for number in range(30)]
NAMES = [f"{image}_{label}" for image in IDS for label in LABELS]


def made(path: Path, change=None) -> Path:
    """A submission that nothing is wrong with, but for ``change``."""
    kinds = np.random.default_rng(0).uniform(0.02, 0.08, (30, 5))
    values = np.column_stack([kinds * [0.1, 1, 1, 1, 1], np.clip(1.5 * kinds.max(axis=1), 0, 1)])
    frame = pd.DataFrame({"ID": NAMES, "Label": values.ravel().astype(object)})
    (frame if change is None else change(frame)).to_csv(path, index=False)
    return path


@pytest.fixture
def sample(tmp_path):
    pd.DataFrame({"ID": NAMES, "Label": 0.5}).to_csv(tmp_path / "sample.csv", index=False)
    return tmp_path / "sample.csv"


def audit(path: Path, sample: Path, *more: str) -> Path:
    return predict.main([f"--audit={path}", f"--audit_sample={sample}", f"--data_input_folder={path.parent}", *more])


def test_a_good_submission_is_valid_and_nothing_is_remarked(tmp_path, sample, capsys):
    path = made(tmp_path / "good.csv")
    before = path.read_bytes()
    assert audit(path, sample) == path
    text = capsys.readouterr().out
    assert "valid" in text.splitlines()
    assert "look at" not in text
    assert "fault" not in text
    assert path.read_bytes() == before


def test_a_dataset_that_is_named_is_there_and_gives_the_prevalences(tmp_path, sample, small_dataset, capsys):
    path = made(tmp_path / "good.csv")
    place = [f"--data_input_folder={tmp_path}", "--data_dataset=typo"]
    assert "--data_dataset=typo: no such dataset" in failure(predict.main, [f"--audit={path}", *place], capsys)
    predict.main([f"--audit={path}", f"--audit_sample={sample}", *small_dataset.flags])
    text = capsys.readouterr().out
    assert "valid" in text.splitlines()
    assert f"labelled images of {small_dataset.folder}" in text


def set_value(place, value):
    def change(frame):
        frame.loc[place, "Label"] = value
        return frame

    return change


def set_name(place, value):
    def change(frame):
        frame.loc[place, "ID"] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            lambda frame: frame.drop(index=[3, 9]),
            "rows missing: 2 (ID_000000000_subarachnoid, ID_000000001_subarachnoid)",
        ),
        (lambda frame: pd.concat([frame, frame.iloc[[7]]]), f"rows there more than once: 1 ({NAMES[7]})"),
        (set_value(5, 1.2), f"values outside 0..1: 1 ({NAMES[5]})"),
        (set_value(5, -0.1), f"values outside 0..1: 1 ({NAMES[5]})"),
        (set_value(5, ""), f"values empty or no finite number: 1 ({NAMES[5]})"),
        (set_value(5, "inf"), f"values empty or no finite number: 1 ({NAMES[5]})"),
        (set_value(5, "high"), f"values empty or no finite number: 1 ({NAMES[5]})"),
        (set_name(5, "ID_000000000_Any"), "rows not <image>_<label>"),
        (set_name(5, "ID_fffffffff_any"), "rows not in the sample: 1 (ID_fffffffff_any)"),
        (lambda frame: frame.rename(columns={"Label": "label"}), "has no column Label"),
        (lambda frame: frame.iloc[:0], "has no rows"),
    ],
)
def test_each_fault_ends_with_exit_code_1_and_is_counted_and_named(tmp_path, sample, capsys, change, part):
    path = made(tmp_path / "bad.csv", change)
    line = failure(
        predict.main, [f"--audit={path}", f"--audit_sample={sample}", f"--data_input_folder={tmp_path}"], capsys, 1
    )
    assert part in line
    assert str(path) in line


@pytest.mark.parametrize(
    "rewrite", [lambda text: text.replace(",", ";"), lambda text: "sep=,\n" + text], ids=["semicolons", "sep"]
)
def test_a_table_that_only_a_spreadsheet_program_reads_is_no_valid_submission(tmp_path, sample, capsys, rewrite):
    path = made(tmp_path / "bad.csv", lambda frame: frame)
    path.write_text(rewrite(path.read_text()))
    line = failure(
        predict.main, [f"--audit={path}", f"--audit_sample={sample}", f"--data_input_folder={tmp_path}"], capsys, 1
    )
    assert "is not UTF-8 text with a comma between ID and Label" in line


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (set_value(5, 0.0), "1 of 30 images have any below one of the kinds, by"),
        (set_value(5, 0.99), "1 of 30 images have any above the kinds' sum, by"),
        (lambda frame: frame.iloc[::-1], "another order than the sample's"),
        (set_value(0, 0), "epidural is 0 or 1 to within 1e-7 for 1 images"),
        (lambda frame: frame.assign(Label=0.25), "subdural is 0.25 for every image"),
        (lambda frame: frame.assign(Label=frame["Label"] * 4), "subdural has a mean of"),
    ],
)
def test_what_looks_wrong_is_said_and_the_file_stays_valid(tmp_path, sample, capsys, change, part):
    audit(made(tmp_path / "odd.csv", change), sample)
    text = capsys.readouterr().out
    assert any(line.startswith("look at: ") and part in line for line in text.splitlines()), text
    assert "valid" in text.splitlines()


@pytest.mark.parametrize("rule", ["half", "prevalence"])
def test_missing_rows_are_filled_by_the_rule_that_is_named_into_another_file(tmp_path, sample, capsys, rule):
    path = made(tmp_path / "cut.csv", lambda frame: frame.drop(index=[5, 12]).iloc[::-1])
    before = path.read_bytes()
    filled = audit(path, sample, f"--audit_fill={rule}")
    assert filled == tmp_path / "cut_filled.csv"
    check_submission(filled, sample)
    values = pd.read_csv(filled, index_col="ID")["Label"]
    assert list(values.index) == NAMES
    assert values.iloc[5] == (0.5 if rule == "half" else PUBLISHED["any"])
    assert values.iloc[12] == (0.5 if rule == "half" else PUBLISHED[LABELS[0]])
    kept = pd.read_csv(path, index_col="ID")["Label"]
    pd.testing.assert_series_equal(values[kept.index], kept, rtol=1e-15)
    assert path.read_bytes() == before
    assert "2 rows filled" in capsys.readouterr().out


def test_other_faults_are_not_filled_over(tmp_path, sample, capsys):
    path = made(tmp_path / "bad.csv", lambda frame: set_value(5, 3)(frame).drop(index=[9]))
    flags = [f"--audit={path}", f"--audit_sample={sample}", "--audit_fill=half", f"--data_input_folder={tmp_path}"]
    line = failure(predict.main, [*flags], capsys, 1)
    assert "values outside" in line
    assert "rows missing: 1" in line
    assert not (tmp_path / "bad_filled.csv").exists()


def test_sample_and_prevalences_are_the_datasets_where_it_has_them(small_dataset, tmp_path, capsys):
    sample = small_dataset.folder / "sample_submission.csv"
    rows = read_metadata(small_dataset.folder).query("split == 'train'")
    lines = sample.read_text().splitlines()
    (tmp_path / "cut.csv").write_text("\n".join(lines[:-1]) + "\n")
    flags = [*small_dataset.flags, "--audit_fill=prevalence", f"--output_file={tmp_path / 'whole.csv'}"]
    predict.main([f"--audit={tmp_path / 'cut.csv'}", *flags])
    last = pd.read_csv(tmp_path / "whole.csv").iloc[-1]
    assert last["Label"] == pytest.approx(rows[last["ID"].rpartition("_")[2]].mean(), rel=1e-12)
    assert f"of the {len(rows)} labelled images" in capsys.readouterr().out


def test_without_any_sample_whole_images_are_asked_for(tmp_path, capsys):
    flags = [f"--data_input_folder={tmp_path}"]
    predict.main([f"--audit={made(tmp_path / 'good.csv')}", *flags])
    assert "sample submission: none" in capsys.readouterr().out
    path = made(tmp_path / "cut.csv", lambda frame: frame.drop(index=[9]))
    assert "images without a row for some label: 1 (ID_000000001)" in failure(
        predict.main, [f"--audit={path}", *flags], capsys, 1
    )
    assert "no sample submission" in failure(predict.main, [f"--audit={path}", *flags, "--audit_fill=half"], capsys, 1)


@given(values=st.lists(st.one_of(st.floats(), st.text(max_size=4)), min_size=len(NAMES), max_size=len(NAMES)))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_of_any_kind_never_end_in_a_traceback(tmp_path, values):
    path = made(tmp_path / "any.csv", lambda frame: frame.assign(Label=values))
    try:
        predict.main([f"--audit={path}", f"--data_input_folder={tmp_path}"])
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    assert code in (0, 1)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--audit=x.csv", "--net_weight_file=y.pt"], "doesn't go with --audit"),
        (["--audit=x.csv", "--source=y", "--predict_output=z"], "doesn't go with --audit"),
        (["--audit=x.csv", "--output_file=y.csv"], "needs --audit_fill"),
        (["--audit=x.csv", "--output_file=x.csv", "--audit_fill=half"], "is the file to audit"),
        (["--audit_fill=half", "--net_weight_file=y.pt"], "--audit_fill needs --audit"),
        (["--audit=nowhere.csv"], "no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys, flags, part):
    assert part in failure(predict.main, [*flags], capsys)
