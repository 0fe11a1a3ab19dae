"""common/foreign.py: other people's YAML and JSON, read within limits; nothing of a hostile one is built."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.foreign import MOST_BYTES, MOST_DEPTH, MOST_VALUES, Unreadable, parse_json, parse_yaml, read_json, read_yaml
from common.trackers.jsonl import read_metrics
from tests import PROJECT

scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | st.text()
documents = st.recursive(scalars, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20)


@settings(max_examples=100, deadline=None)
@given(documents)
def test_what_our_own_writers_write_is_read_as_it_was(document) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    assert parse_yaml(text) == yaml.safe_load(text)
    finite = json.loads(json.dumps(document).replace("Infinity", "0"))
    assert parse_json(json.dumps(finite)) == finite


def test_dates_become_texts_and_half_of_a_surrogate_pair_can_be_written() -> None:
    assert parse_yaml("a: 2026-01-02\nb: 2026-01-02 03:04:05") == {
        "a": date(2026, 1, 2).isoformat(),
        "b": datetime(2026, 1, 2, 3, 4, 5).isoformat(),
    }
    parse_json('["\\ud800"]')[0].encode()


def nested_yaml(depth: int) -> str:
    return "[" * depth + "]" * depth


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def merged(levels: int) -> str:
    """Aliases by YAML's merge key, which are copied and not only pointed to."""
    lines = ["a0: &a0 {x0: 1}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level}\n  <<: [{', '.join([f'*a{level - 1}'] * 9)}]\n  x{level}: 1")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested_yaml(MOST_DEPTH + 1), "deep"),
        (nested_yaml(100_000), "deep|nesting"),
        (bomb(20), "values"),
        (merged(20), "values"),
        ("a: &a [*a]", "holds itself"),
        ("[" + "1," * MOST_VALUES + "1]", "values"),
        ("a: 0x" + "f" * 6000, "whole number"),
        ("a: " + "9" * 6000, "whole number|type that its tag"),
        ("a: 2026-13-45", "type that its tag"),
        ("a: !!python/object/apply:os.system ['true']", "not a YAML file"),
        ("a: !!binary aGVsbG8=", "type bytes"),
        ("a: !!set {b, c}", "type set"),
        ("a: [", "not a YAML file"),
        ('a: "\\ud800"', "not a YAML file"),
    ],
)
def test_a_yaml_that_nothing_can_hold_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 100 + "]" * 100, "deep"),
        ("[1e400]", "not finite"),
        ("[-Infinity]", "Infinity"),
        ("[NaN]", "NaN"),
        ("9" * 5000, "digits"),
        (str(2**63), "whole number"),
        ("[" + "1," * MOST_VALUES + "1]", "values"),
        ("{", "not a JSON file"),
    ],
)
def test_a_json_that_nothing_can_hold_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        parse_json(text)


def test_no_more_is_read_of_a_file_than_may_be_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(10**12)  # a file of holes: it takes no disk
    for read in (read_json, read_yaml):
        with pytest.raises(Unreadable, match=f"larger than {MOST_BYTES:,} bytes"):
            read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Unreadable, match="UTF-8"):
        read_json(path)


def test_the_words_of_a_refusal_quote_nothing_of_the_file() -> None:
    for text in ("name: [CANARY", "CANARY: !!float CANARY", "? [CANARY]\n: 1", "&CANARY [*CANARY2]"):
        with pytest.raises(Unreadable) as caught:
            parse_yaml(text)
        assert "CANARY" not in str(caught.value).replace("CANARY2", "")


FLOODS = {
    "config.yaml": bomb(30),
    "metrics.jsonl": '{"iteration": 1, "valid/a": [' + "[" * 400_000 + "\n{}\n",
    "environment.json": "[" + "[],[]," * 600_000 + "1]",
}


def test_a_flood_costs_seconds_and_little_memory(tmp_path: Path) -> None:
    for name, text in FLOODS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "status.json").write_text('{"status": ' + "9" * 3_000_000 + "}")
    code = (
        "import sys, resource; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from common.reports.record import read_record\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "record = read_record(Path(sys.argv[1]), brief=True)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *record.problems, sep='\\n')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(PROJECT)],
        capture_output=True, text=True, check=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    )  # fmt: skip
    grown, *problems = result.stdout.splitlines()
    assert int(grown) < 300 * 1024
    assert {problem.partition(":")[0].partition(",")[0] for problem in problems} == {*FLOODS, "status.json"}


def test_a_metrics_file_of_endless_numbers_is_no_runs_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("common.trackers.jsonl.MOST_NUMBERS", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "valid/a": 0.5}\n' * 51)
    with pytest.raises(Exception, match="more than 100 numbers"):
        read_metrics(path)
