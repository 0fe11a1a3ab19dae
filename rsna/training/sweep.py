"""Sweeps: train, evaluate and predict many experiments, and summarize them."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from common.cli.arguments import parse_args
from common.cli.choices import load
from common.errors import EXIT_RESUMABLE, Interrupted, UsageError, WorkError
from common.evaluation.metric_table import key_title
from common.evaluation.metrics import WEIGHTED
from common.evaluation.texts import format_table
from common.reports.leaderboard import update_leaderboard
from common.reports.record import REPORT_FILE, STATUS_FILE, duration, read_record
from common.sweeps.plan import FINISHED, NAME, TRAIN, Planned, flags_of, planned, read_grid, read_lines
from common.sweeps.runner import INTERRUPTED, Outcome, Runner, slots
from common.sweeps.search import BEST_FILE, Search, read_space
from config import COMMANDS, TrainConfig
from rsna.training.options import ListConfig, SearchConfig, SweepOptions
from rsna_dataset import METRIC

ROOT = Path(__file__).resolve().parent.parent.parent
FEATURES = "--seq_features="
JOINING = ("second_level.py", "ensemble.py")  # commands that a line may begin with: they join experiments to another
IDLE = ("-h", "--help", "--list")  # with these flags train.py trains nothing


def run_experiments(config: ListConfig) -> Path:
    """Run the experiments of --lines or --grid; return the leaderboard's path.

    All lines are checked before the first one runs. If an experiment fails, the others still run, then raise WorkError.
    Where a line needs what another one makes (--seq_features, or a line of :data:`JOINING`), all run in the order of
    the list, and the first failure ends it.
    """
    lines = read_lines(config.lines) if config.lines is not None else read_grid(config.grid)
    if not lines:
        raise UsageError(f"{config.reads}: names no experiment")
    experiments = plan(lines, config)
    if config.dry_run:
        for experiment in experiments:
            print(experiment if experiment.state in ("new", "resume") else f"# {experiment.name} is {experiment.state}")
        return config.output_dir
    read = {flag.removeprefix(FEATURES) for one in experiments for flag in one.flags if flag.startswith(FEATURES)}
    sources = read & {one.name for one in experiments}
    in_turn = bool(sources) or any(one.script != TRAIN for one in experiments)  # each with all GPUs
    if in_turn and config.parallel > 1:
        raise UsageError(
            f"--parallel={config.parallel}: {config.reads} has lines that need what lines before them make"
        )
    places = [{}] if in_turn else slots(config.parallel, len(experiments))
    outcomes = Runner(ROOT, places, lambda folder: steps(folder, config, sources), in_turn).run(experiments)
    path = update_leaderboard(config.output_dir, METRIC)
    print(f"\n{conclusion(outcomes, config.output_dir, path)}")
    if len(outcomes) < len(experiments) or any(outcome.code == EXIT_RESUMABLE for outcome in outcomes):
        raise Interrupted("interrupted; the same command goes on: it skips what is finished and has a name")
    failed = [outcome for outcome in outcomes if outcome.code]
    if failed:
        raise WorkError(f"{len(failed)} of {len(outcomes)} experiments failed; their messages stand above")
    return path


def run_search(config: SearchConfig) -> Path:
    """Search the options of --space; return the page that shows the search. Ctrl-C saves the running trial."""
    space = read_space(config.space)
    flags = verbosity_flags(config) + ([] if "data_dataset" in space.base else data_flags(config))
    folder = config.output_dir / space.name
    for options in space.corners():
        try:
            check_flags([*flags, *flags_of(options)])
        except UsageError as error:
            raise UsageError(f"{config.space}: {error}") from None
    try:
        path = Search(space, folder, METRIC, ROOT, flags, check_flags).run(config.trials, config.seed)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on with the search") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WorkError(f"{folder}: the disk is full; make space and start again") from None
    print(f"best options   {folder / BEST_FILE}\nsearch         {path}")
    return path


def check_flags(flags: Sequence[str]) -> None:
    """Raise UsageError for flags that train.py would refuse."""
    parse_args(TrainConfig, flags)


def conclusion(outcomes: Sequence[Outcome], results: Path, leaderboard: Path) -> str:
    """Return the last lines of output: where the results are, and for several experiments how each ended."""
    if len(outcomes) != 1 or outcomes[0].code or outcomes[0].said or outcomes[0].folder is None:
        return f"{format_table(summary(outcomes, results))}\n\nleaderboard               {leaderboard}"
    folder, outputs = outcomes[0].folder, outcomes[0].outputs
    rows = {"report": folder / REPORT_FILE, "leaderboard": leaderboard, "experiment": folder}
    if "evaluate.py" in outputs:
        weighted = pd.read_csv(folder / "evaluation.csv", index_col="label").loc[WEIGHTED]
        value, constant = weighted["log_loss"], weighted["constant_log_loss"]
        rows[f"valid {key_title(read_record(folder).judged_by(METRIC))}"] = (
            f"{value:.4f}, constant predictor {constant:.4f}"
        )
    if unknown := read_record(folder).unknown_lineage:
        rows["unknown lineage"] = "; ".join(unknown)
    if "predict.py" in outputs:
        rows["submission"] = outputs["predict.py"]
    return "\n".join(f"{name:24}  {value}" for name, value in rows.items())


def plan(lines: Sequence[Sequence[str]], config: ListConfig) -> list[Planned]:
    """Check each line as train.py does and return the plan; UsageError, naming the line, if train.py refuses it."""
    place = f"--output_dir={config.output_dir}"
    try:
        common = shlex.split(config.flags)
    except ValueError as error:
        raise UsageError(f"--flags: {error}") from None
    lines = [[*line, *([] if line[0] in JOINING else common)] for line in lines]
    experiments = []
    for number, line in enumerate(lines, start=1):
        shared = [*([] if place in line else [place]), *verbosity_flags(config)]
        if line[0] in JOINING:
            experiments.append(joining(number, line, shared, config.output_dir))
            continue
        flags = [*shared, *([] if has(line, "data_dataset") else data_flags(config)), *line]
        try:
            idle = next((flag for flag in line if flag.split("=")[0] in IDLE), None)
            if idle is not None:
                raise UsageError(f"{idle} trains nothing")
            options = parse_args(TrainConfig, flags)
        except UsageError as error:
            raise UsageError(f"experiment {number} ({' '.join(line)}): {error}") from None
        name = [] if options.experiment_id is None else [f"{NAME}{options.experiment_id}"]
        if name != [flag for flag in flags if flag.startswith(NAME)][-1:]:  # from a --config, or after a space
            flags += name
        experiments.append(planned(flags, options.output_dir))
    names = [experiment.name for experiment in experiments if experiment.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two experiments are called {twice}; give each a name of its own")
    return experiments


def joining(number: int, line: Sequence[str], shared: Sequence[str], results: Path) -> Planned:
    """Return the experiment of a line that begins with a command of :data:`JOINING`; errors as :func:`plan`."""
    script, flags = line[0], [*shared, *line[1:]]
    try:
        name = parse_args(load(COMMANDS[script.removesuffix(".py")]), flags).experiment_id
    except UsageError as error:
        raise UsageError(f"experiment {number} ({' '.join(line)}): {error}") from None
    done = name is not None and (results / name / "config.yaml").is_file()
    return Planned(tuple(flags), name, FINISHED if done else "new", script=script)


def has(flags: Sequence[str], option: str) -> bool:
    """Whether an option is among flags."""
    return any(flag.split("=")[0] == f"--{option}" for flag in flags)


def data_flags(config: SweepOptions) -> list[str]:
    """Return the flag of the dataset, for lines without one."""
    return [] if config.data_dataset is None else [f"--data_dataset={config.data_dataset}"]


def steps(folder: Path, config: ListConfig, sources: Collection[str] = ()) -> list[list[str]]:
    """Return the commands that are left after a training: evaluation, prediction of the test images, and features.

    ``sources``: names of experiments whose features others of the list read.
    """
    features = ["predict.py", f"--net_weight_file={folder}", "--features=1"]
    needed = {("features/train/features.json",): features} if folder.name in sources else {}
    commands = (
        needed
        if not config.evaluate
        else needed
        | {
            ("evaluation.csv",): ["evaluate.py", f"--experiment_id={folder.name}", f"--output_dir={folder.parent}"],
            ("submission.csv", "predictions_test.csv"): [
                "predict.py",
                f"--net_weight_file={folder}",
                "--split=test",
            ],
        }
    )
    if read_record(folder, brief=True).config.get("tr_overfit"):  # its validation images are its training images
        commands.pop(("evaluation.csv",), None)
    left = [command for names, command in commands.items() if not any(is_done(folder, name) for name in names)]
    return [[*command, *verbosity_flags(config)] for command in left]


def is_done(folder: Path, name: str) -> bool:
    """Whether a result was written after the training's end; if the run continued later, it is out of date."""
    path, ended = folder / name, folder / STATUS_FILE
    return path.is_file() and not (ended.is_file() and path.stat().st_mtime_ns < ended.stat().st_mtime_ns)


def verbosity_flags(config: SweepOptions) -> list[str]:
    """Return the flag that gives an experiment's commands this command's verbosity; none for the default."""
    return [] if config.verbosity == SweepOptions.verbosity else [f"--verbosity={config.verbosity}"]


def summary(outcomes: Sequence[Outcome], results: Path) -> pd.DataFrame:
    """Return a row for each experiment: metric, how it ended, and its time."""
    rows = {}
    for outcome in outcomes:
        name = outcome.folder.name if outcome.folder else outcome.planned.name or str(outcome.planned)
        folder = outcome.folder or results / name
        record = read_record(folder) if folder.is_dir() else None
        metric = record.judged_by(METRIC) if record else METRIC
        best = record and record.best(metric)
        ended = outcome.said or how_it_ended(outcome.code)
        rows[name] = {metric: best[0] if best else float("nan"), "ended": ended, "time": duration(outcome.seconds)}
        if record and record.unknown_lineage:
            rows[name]["unknown lineage"] = "; ".join(record.unknown_lineage)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("experiment")
    return table.fillna({"unknown lineage": ""}) if "unknown lineage" in table else table


def how_it_ended(code: int) -> str:
    """Describe an exit code in words."""
    if code in (EXIT_RESUMABLE, INTERRUPTED):
        return "interrupted, state saved" if code == EXIT_RESUMABLE else "interrupted"
    return "finished" if code == 0 else f"failed with exit code {code}"
