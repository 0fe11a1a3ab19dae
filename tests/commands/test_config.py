from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli.arguments import from_dict, parse_args, parse_mode, to_dict
from common.cli.choices import Row, load
from common.cli.values import format_windows, parse_windows
from common.datasets.sampling import SAMPLERS
from common.errors import UsageError
from common.models.sequence import SEQUENCE_MODELS
from common.networks.averaging import AVERAGES
from common.training.losses import LOSSES
from common.training.optimizers import OPTIMIZERS
from common.training.schedulers import SCHEDULES
from config import COMMANDS, TrainConfig
from rsna.judging.options import EvaluateConfig
from rsna.prediction.options import ExportConfig, PredictConfig
from rsna.training.options import SweepConfig
from tests import PROJECT

TABLES = {
    "optim": OPTIMIZERS,
    "sched": SCHEDULES,
    "data_sampler": SAMPLERS,
    "loss": LOSSES,
    "seq_model": SEQUENCE_MODELS,
}
SCRIPTS = [f"{name}.py" for name in COMMANDS]


@pytest.mark.parametrize(("option", "row"), [(option, row) for option in TABLES for row in TABLES[option].values()])
def test_every_parameter_of_a_choice_is_an_option_without_a_default_of_its_own(option: str, row: Row) -> None:
    """The default stands in the row alone, and is a value that the command line takes too."""
    for name, default in row.parameters.items():
        assert TrainConfig.__dataclass_fields__[name].default is None
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        kind = {"net_kind": "sequence", "seq_features": "1"} if option == "seq_model" else {}
        assert getattr(from_dict(TrainConfig, {**kind, name: text}), name) == default


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_read_somewhere(command: str) -> None:
    """An option that is parsed and ignored is a lie of --help."""
    sources = [*PROJECT.glob("*.py"), *PROJECT.glob("rsna/**/*.py")]
    nodes = [
        node
        for path in sources
        if path.name not in ("config.py", "options.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read |= {node.value for node in nodes if isinstance(node, ast.Constant)}  # those that are handed on by name
    read |= {name for table in (*TABLES.values(), AVERAGES) for row in table.values() for name in row.parameters}
    for name in load(COMMANDS[command]).__dataclass_fields__:
        assert name in read, f"--{name} is read nowhere"


def test_every_command_has_its_configuration_in_the_table() -> None:
    commands = {path.stem for path in PROJECT.glob("*.py") if "\n    main()\n" in path.read_text(encoding="utf-8")}
    assert commands == COMMANDS.keys()


def test_a_validation_interval_between_optimizer_steps_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(TrainConfig, ["--tr_iteration_valid=10", "--tr_accumulation_step=4"])
    assert "--tr_iteration_valid=10" in str(caught.value)
    assert "--tr_accumulation_step=4" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ([], 3e-3),
        (["--net_pretrained=1"], 1e-3),
        (["--net_weight_file=a.pt"], 1e-3),
        (["--net_kind=sequence", "--seq_features=1"], 1e-3),
        (["--net_kind=study", "--net_weight_file=a.pt"], 1e-3),
        (["--net_kind=examples.kind.HISTOGRAM"], 1e-3),
        (["--optim_lr=0.002"], 2e-3),
        (["--optim_lr=0.002", "--net_pretrained=1"], 2e-3),
    ],
)
def test_a_rate_that_is_not_given_follows_from_the_start_and_is_a_number_from_then_on(flags, rate) -> None:
    saved = to_dict(parse_args(TrainConfig, flags))
    assert saved["optim_lr"] == rate
    assert parse_args(TrainConfig, [], saved).optim_lr == rate


SPLIT = ["--net_weight_file=a.pt"]
AUDIT = ["--audit=a.csv"]
SOURCE = ["--net_weight_file=a.pt", "--source=s", "--predict_output=o"]
FEATURES = ["--net_weight_file=cv", "--features=1"]
FILE = ["--eval_file=a.csv", "--data_dataset=rsna"]
SPACE = ["--space=s.yaml"]


@pytest.mark.parametrize(
    ("config", "mode", "flag"),
    [
        (TrainConfig, [], "--tr_resume_change=optim_lr"),
        *((PredictConfig, AUDIT, flag) for flag in ("--calibrate=1", "--split=train", "--n_jobs=2", "--tta=a.json")),
        *((PredictConfig, AUDIT, flag) for flag in ("--net_weight_file=a.pt", "--source=s", "--net_weights=raw")),
        *((PredictConfig, SOURCE, flag) for flag in ("--split=valid", "--output_file=a.csv")),
        (PredictConfig, SOURCE, "--data_dataset=rsna"),
        *((PredictConfig, SPLIT, flag) for flag in ("--feature_refit=b.pt", "--pseudonym_key=k", "--audit_fill=half")),
        *((PredictConfig, SPLIT, flag) for flag in ("--sequence=b.pt", "--predict_output=o", "--output_file=./a.pt")),
        (ExportConfig, ["--net_weight_file=a.pt"], "--export_file=./a.pt"),
        (PredictConfig, [*SOURCE, "--sequence=s.pt"], "--seq_features=1"),
        *((PredictConfig, FEATURES, flag) for flag in ("--split=valid", "--seq_features=1")),
        *((PredictConfig, FEATURES, flag) for flag in ("--net_compute=auto", "--data_dataset=rsna", "--calibrate=1")),
        *((PredictConfig, FEATURES, flag) for flag in ("--tta=a.json", "--output_file=a.csv", "--sequence=s.pt")),
        (PredictConfig, SPLIT, "--tta_views=8"),
        (EvaluateConfig, ["--experiment_id=1"], "--tta_mean=logit"),
        *((EvaluateConfig, FILE, flag) for flag in ("--tta=a.json", "--net_weights=raw", "--seq_features=1")),
        *((SweepConfig, ["--lines=a.txt"], flag) for flag in ("--trials=5", "--seed=1")),
        *((SweepConfig, SPACE, flag) for flag in ("--dry_run=1", "--parallel=2", "--evaluate=0", "--flags=--seed=1")),
    ],
)
def test_an_option_that_has_no_effect_with_the_others_is_refused_by_its_name(config, mode, flag) -> None:
    parse = parse_mode if hasattr(config, "modes") else parse_args
    parse(config, mode)
    with pytest.raises(UsageError) as caught:
        parse(config, [*mode, flag])
    assert str(caught.value).startswith(flag.partition("=")[0])


def test_the_default_training_survives_the_way_through_a_checkpoint() -> None:
    config = parse_args(TrainConfig, [])
    assert from_dict(TrainConfig, to_dict(config)) == config


@given(
    st.lists(
        st.tuples(st.integers(-2000, 4000).map(float), st.integers(1, 8000).map(float)), min_size=1, max_size=6
    ).map(tuple)
)
def test_windows_survive_the_way_through_text(windows) -> None:
    assert parse_windows(format_windows(windows)) == windows


@pytest.mark.parametrize("text", ["", "40", "40/0", "40/-80", "a/b", "40/80,", "40/80;80/200"])
def test_text_that_is_no_list_of_windows_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="centre/width"):
        parse_windows(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_answered_from_any_folder_without_loading_what_only_the_work_needs(script: str, tmp_path: Path) -> None:
    """The rule behind a quick --help, checked without a clock: neither torch nor numpy nor pandas is imported."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROJECT / script), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert result.returncode == 0
    assert "--config" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "numpy", "pandas", "timm", "albumentations", "pydicom", "sklearn", "yaml"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_one_line_and_exit_code_2_and_leaves_nothing_behind(script: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(PROJECT / script), "--verbsity=2", "member"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == "error: unknown option --verbsity; did you mean '--verbosity'?\n"
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [TrainConfig, PredictConfig, ExportConfig])
def test_an_experiments_folder_as_weight_file_means_its_best_weights(tmp_path, config) -> None:
    (tmp_path / "1").mkdir()
    given = [f"--net_weight_file={tmp_path / '1'}"]
    parse = parse_mode if hasattr(config, "modes") else parse_args
    assert parse(config, given).net_weight_file == tmp_path / "1"  # as a cross-validation's
    (tmp_path / "1" / "best.pt").write_bytes(b"")
    assert parse(config, given).net_weight_file == tmp_path / "1" / "best.pt"
    assert parse(config, [f"{given[0]}/best.pt"]).net_weight_file == tmp_path / "1" / "best.pt"
