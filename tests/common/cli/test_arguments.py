from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli.arguments import REQUIRED, from_dict, option, parse_args, parse_mode, to_dict
from common.errors import UsageError
from config import TrainConfig


def parse_pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    return int(first), int(second)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basics:
    """Basics."""

    most: int = option(0, "no limit of its own")
    count: int = option(3, "how many", minimum=1, maximum=100)
    rate: float = option(1e-3, "how fast", minimum=0)
    enabled: bool = option(False, "whether")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Basics):
    """A tool."""

    name: str | None = option(None, "its name")
    kind: str = option("red", "its kind", choices=("red", "green"))
    folder: Path = option(Path("./x"), "where")
    pair: tuple[int, int] = option((1, 2), "two", parse=parse_pair, form=lambda pair: f"{pair[0]}:{pair[1]}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedsFile:
    """A tool that needs a file."""

    weights: Path = option(REQUIRED, "the weights to use")
    files: tuple[Path, ...] = option(REQUIRED, "files to read", positional=True)


def message(argv: list[str], config_class: type = Config) -> str:
    with pytest.raises(UsageError) as caught:
        parse_args(config_class, argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_option_has_its_default_without_arguments() -> None:
    assert parse_args(Config, []) == Config(
        count=3, rate=1e-3, enabled=False, name=None, kind="red", folder=Path("x"), pair=(1, 2)
    )


def test_flags_take_their_value_after_an_equals_sign_or_a_space() -> None:
    assert parse_args(Config, ["--count=7", "--kind", "green", "--enabled=1"]) == Config(
        count=7, kind="green", enabled=True
    )


def test_the_last_of_a_repeated_flag_wins() -> None:
    assert parse_args(Config, ["--count=7", "--count=8"]).count == 8


def test_none_is_written_as_a_word() -> None:
    assert parse_args(Config, ["--name=a", "--name=none"]).name is None


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--cuont=3"], ["--cuont", "'--count'"]),
        (["--count=x"], ["--count", "'x'", "whole number"]),
        (["--count=2.5"], ["--count", "whole number"]),
        (["--count=0"], ["--count", "below", "1"]),
        (["--name=--"], ["--name=--", "no value"]),
        (["--count=101"], ["--count", "above", "100"]),
        (["--rate=nan"], ["--rate", "finite"]),
        (["--enabled=2"], ["--enabled", "0 or 1"]),
        (["--kind=gren"], ["--kind", "red, green", "'green'"]),
        (["--pair=a:b"], ["--pair"]),
        (["--name="], []),
        (["--count"], ["--count"]),
        (["stray"], ["'stray'", "--name=value"]),
        (["--cou=3"], ["--cou", "written in full", "--count"]),
        (["--k=3"], ["--k", "written in full", "--kind"]),
        ([f"--most={2**31}"], ["--most", "above the largest"]),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_the_flag(argv: list[str], parts: list[str]) -> None:
    if argv == ["--name="]:  # an empty text means none where none is allowed
        assert parse_args(Config, argv).name is None
        return
    text = message(argv)
    assert all(part in text for part in parts), text


def test_a_required_option_that_is_missing_is_named_with_its_meaning() -> None:
    assert "--weights is missing: the weights to use" in message(["a.csv"], NeedsFile)


def test_positional_values_become_a_tuple() -> None:
    config = parse_args(NeedsFile, ["a.csv", "b.csv", "--weights=w.pt"])
    assert config.files == (Path("a.csv"), Path("b.csv"))


def test_a_yaml_file_beats_defaults_and_a_flag_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("count: 7\nrate: 1e-2\nenabled: true\nname: 007\npair: 3:4\n")
    config = parse_args(Config, ["--count=9", f"--config={file}"])
    assert config == Config(count=9, rate=0.01, enabled=True, name="007", pair=(3, 4))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cuont: 3\n", ["'cuont'", "'count'"]),
        ("count: 0\n", ["--count", "below"]),
        ("count: {a: 1}\n", ["'count'", "nested"]),
        ("- a\n", ["option: value"]),
        ("a: [\n", ["not a YAML file"]),
        ("count:\n", ["c.yaml", "--count", "whole number"]),
        ("count: 1\nkind: red\ncount: 2\n", ["c.yaml", "'count'", "twice"]),
    ],
)
def test_a_yaml_file_passes_the_same_checks_as_flags(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    found = message([f"--config={file}"])
    assert all(part in found for part in parts), found


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml") in message([f"--config={tmp_path / 'no.yaml'}"])


@given(
    count=st.integers(1, 100),
    rate=st.floats(0, 1e9),
    enabled=st.booleans(),
    name=st.none()
    | st.from_regex(r"[a-z0-9_.-]{1,10}", fullmatch=True).filter(lambda text: text not in ("none", "null", "--")),
    pair=st.tuples(st.integers(), st.integers()),
)
def test_a_configuration_survives_the_way_through_plain_values(count, rate, enabled, name, pair) -> None:
    config = Config(count=count, rate=rate, enabled=enabled, name=name, pair=pair)
    assert from_dict(Config, to_dict(config)) == config


def test_help_shows_groups_meaning_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "A tool." in text
    assert "Basics:" in text
    assert "how many (default: 3)" in text
    assert "red|green" in text


def test_a_yaml_file_may_leave_positional_values_to_the_command_line_or_give_them(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("weights: w.pt\n")
    assert parse_args(NeedsFile, ["a.csv", f"--config={file}"]).files == (Path("a.csv"),)
    file.write_text("files: [a.csv, b.csv]\nweights: w.pt\n")
    assert parse_args(NeedsFile, [f"--config={file}"]).files == (Path("a.csv"), Path("b.csv"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Shared."""

    jobs: int = option(1, "processes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Shared):
    """Copying."""

    chosen_by = ""

    target: str = option(REQUIRED, "where to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checking(Shared):
    """Checking (--check)."""

    chosen_by = "check"

    check: bool = option(False, "1: look only")
    depth: int = option(3, "how far to look")
    width: int = option(1, "how wide to look", needs="--check=1 with --depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Both(Checking, Plain):
    """Copy, or check."""

    modes = (Checking, Plain)


def test_the_options_given_choose_a_commands_mode_which_has_its_own_options_alone() -> None:
    assert parse_mode(Both, ["--target=a", "--jobs=2"]) == Plain(target="a", jobs=2)
    assert parse_mode(Both, ["--check=1", "--depth=4"]) == Checking(check=True, depth=4)
    assert parse_mode(Both, ["--check=0", "--target=a"]) == Plain(target="a")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--check=1", "--target=a"], "--target doesn't go with --check=1, leave it out; it belongs to 'Copying'"),
        (["--target=a", "--depth=4"], "--depth needs --check=1"),
        (["--target=a", "--width=4"], "--width needs --check=1 with --depth"),
        ([], "--target is missing: where to"),
        (["--check=1", "--depht=4"], "unknown option --depht; did you mean '--depth'?"),
    ],
)
def test_an_option_of_another_mode_is_refused_by_its_name_and_home(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mode(Both, flags)
    assert str(caught.value) == message


def test_an_option_of_another_mode_that_has_its_default_is_no_mistake() -> None:
    assert parse_mode(Both, ["--target=a", "--depth=3"]) == Plain(target="a")


def test_a_path_to_a_row_of_ones_own_that_leads_nowhere_is_a_mistake_in_the_flag() -> None:
    with pytest.raises(UsageError, match=r"--optim: there is no .*exmaple/optim\.py; a row of your own"):
        parse_args(TrainConfig, ["--optim=exmaple.optim.ROW"])
