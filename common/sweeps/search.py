"""Search the best options by Optuna. Trials are experiments; any number of processes share them through one file.

Optuna's study lies in a journal beside the trials. All processes and machines that see the folder share it, a killed
process loses nothing, and a later start goes on.
"""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from common.cli.console import tell
from common.errors import UsageError, WorkError
from common.experiments.folder import check_experiment_id, wait_for_orphan
from common.files import write_text
from common.foreign import Unreadable, parse_json, read_bytes
from common.reports import page
from common.reports.record import REPORT_FILE, read_record
from common.sweeps.plan import FINISHED, flags_of, planned, read_options, word_of
from common.sweeps.runner import end_with_parent
from common.waiting import Stalled, end_process, run_to_end, start_process

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
BEST_FILE = "best.yaml"
PAGE_FILE = "search.html"
FAILURES = 3  # in a row, before any trial succeeded, end the search
RANGE = {"low", "high", "log", "step"}
MOST_CHOICES = 100
OWNER = {"host": str, "pid": int, "started": float}
# Limits of a journal: a trial with 20 options and 50 validations takes some 20 kB and 1,500 values.
MOST_JOURNAL_BYTES, MOST_JOURNAL_VALUES = 2**26, 4_000_000


@dataclass(frozen=True)
class Space:
    """A search space: ``base`` options of all trials, and for each option choices or {low, high, log, step}."""

    name: str
    base: Mapping[str, Any]
    options: Mapping[str, Any]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a trial's options."""
        return {**self.base, **{name: _suggest(trial, name, values) for name, values in self.options.items()}}

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield options so that each choice and each end of a range comes once, with the first of the other options."""
        ends = {
            name: values if isinstance(values, list) else [values["low"], values["high"]]
            for name, values in self.options.items()
        }
        first = {name: values[0] for name, values in ends.items()}
        for name, values in ends.items():
            for value in values:
                yield {**self.base, **first, name: value}


def _suggest(trial: optuna.Trial, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, [word_of(value) for value in values])
    low, high = values["low"], values["high"]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, step=values.get("step", 1), log=values.get("log", False))
    return trial.suggest_float(name, low, high, step=values.get("step"), log=values.get("log", False))


def read_space(path: Path) -> Space:
    """Read ``{base: {option: value}, space: {option: [choices] or {low:, high:, log:, step:}}}``.

    Raises UsageError for another form.
    """
    base, options = read_options(path, "space")
    for name, values in options.items():
        if isinstance(values, list) and 0 < len(values) <= MOST_CHOICES:
            continue
        if isinstance(values, list) and values:
            raise UsageError(f"{path}: space, {name}: {len(values):,} choices; at most {MOST_CHOICES} can be searched")
        if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= RANGE:
            raise UsageError(f"{path}: space, {name}: give a list of choices, or low and high (and log: true, or step)")
        ends = [values["low"], values["high"]]
        if not all(_is_number(end) for end in ends) or ends[0] >= ends[1]:
            raise UsageError(
                f"{path}: space, {name}: low and high must be numbers, low below high (write 1.0e-3, not 1e-3)"
            )
        log, step = values.get("log", False), values.get("step")
        if not isinstance(log, bool):
            raise UsageError(f"{path}: space, {name}: log must be true or false")
        if log and (step is not None or ends[0] <= 0):
            raise UsageError(f"{path}: space, {name}: log: true needs a low above 0, and no step")
        whole = all(isinstance(end, int) for end in ends)
        if step is not None and (not _is_number(step) or step <= 0 or (whole and not isinstance(step, int))):
            raise UsageError(f"{path}: space, {name}: step must be {'a whole' if whole else 'a'} number above 0")
    return Space(path.stem, base, options)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Search:
    """A search in ``folder``, which holds the study and the trials' experiments.

    ``metric``: the validation metric to minimize. ``root`` holds the scripts. ``flags``: those of all trials. ``check``
    raises UsageError for flags that train.py would refuse.
    """

    space: Space
    folder: Path
    metric: str
    root: Path
    flags: Sequence[str]
    check: Callable[[Sequence[str]], None]

    def run(self, trials: int, seed: int) -> Path:
        """Run trials until ``trials`` of the study have ended; return the path of its page.

        Raises WorkError if the first trials all fail.
        """
        study = open_study(self.folder, seed)
        failures = 0
        while True:
            retry_dead(study)
            ended = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
            if len(ended) >= trials:
                return self.write_results(study)
            failures = 0 if self.run_trial(study) else failures + 1
            if failures >= FAILURES and not ended:
                raise WorkError(f"{failures} trials failed one after the other; their messages stand above")
            self.write_results(study)

    def run_trial(self, study: optuna.Study) -> bool:
        """Train one trial and prune it if its validations lag behind; return whether it succeeded."""
        from optuna.trial import TrialState

        trial = study.ask()
        name = trial.user_attrs.get("experiment", f"trial_{trial.number:04d}")
        trial.set_user_attr("experiment", name)
        trial.set_user_attr("owner", {"host": _host(), "pid": os.getpid(), "started": psutil.Process().create_time()})
        line = [
            *self.flags,
            f"--output_dir={self.folder}",
            f"--experiment_id={name}",
            *flags_of(self.space.suggest(trial)),
        ]
        self.check(line)
        wait_for_orphan(self.folder / name)  # its search was killed
        experiment = planned(line, self.folder)
        code, pruned = (0, False) if experiment.state == FINISHED else self._train(trial, name, experiment.command)
        record = read_record(self.folder / name)
        best = record.best(record.judged_by(self.metric))
        if pruned and code:
            study.tell(trial, state=TrialState.PRUNED)
        elif code or best is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, best[0])
        return pruned or not code

    def _train(self, trial: optuna.Trial, name: str, arguments: Sequence[str]) -> tuple[int, bool]:
        """Run train.py; return its exit code, and whether it was pruned because other trials did better."""
        # In a session of its own, Ctrl-C reaches it only once, through this process.
        process = start_process(
            [sys.executable, str(self.root / "train.py"), *arguments],
            "train.py",
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        pruned, seen = False, 0

        def look() -> None:
            nonlocal pruned, seen
            record = read_record(self.folder / name)
            iterations, values = record.series(f"valid/{record.judged_by(self.metric)}")
            for at, value in list(zip(iterations, values, strict=True))[seen:]:
                seen += 1
                trial.report(value, int(at))
            if not pruned and seen and trial.should_prune():
                pruned = True
                process.send_signal(signal.SIGTERM)

        try:
            run_to_end(process, f"the search waits for the training of {name}", look=look)
        except Stalled as error:
            tell(f"error: {error}")
            return error.exit_code, False
        except BaseException:
            end_process(process)
            raise
        return process.returncode, pruned

    def write_results(self, study: optuna.Study) -> Path:
        """Write ``best.yaml``, for train.py's --config, and ``search.html``; return the second."""
        import optuna
        import pandas as pd

        complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        parts = []
        if complete:
            best = min(complete, key=lambda trial: trial.value)
            write_text(self.folder / BEST_FILE, yaml.safe_dump({**self.space.base, **best.params}, sort_keys=False))
            said = (
                f"Best: {best.user_attrs['experiment']}, {self.metric} {best.value:.5f}; {BEST_FILE} has its options."
            )
            parts.append(page.paragraph(said))
            lowest = pd.Series([trial.value for trial in complete]).cummin()
            numbers = [trial.number for trial in complete]
            history = [
                page.Line("trials", numbers, [trial.value for trial in complete], dots=True),
                page.Line("lowest so far", numbers, lowest),
            ]
            parts.append(page.section("History", page.lines("", history, ("trial", self.metric.replace("_", " ")))))
        if len(complete) >= 4 and len({trial.value for trial in complete}) > 1:
            shares = optuna.importance.get_param_importances(study)
            note = "Share of the variance that an option explains (fANOVA)."
            chart = page.pairs("", pd.DataFrame({"share": shares}), note)
            parts.append(page.section("Importance of the options", chart))
        # A lost trial that was tried again has the experiment of its second try.
        last = {trial.user_attrs.get("experiment", str(trial.number)): trial for trial in study.trials}
        order = sorted(last, key=lambda name: math.inf if last[name].value is None else last[name].value)
        rows = {
            name: {
                "state": last[name].state.name.lower(),
                self.metric.replace("_", " "): "-" if last[name].value is None else f"{last[name].value:.5f}",
                **{option: f"{v:.5g}" if isinstance(v, float) else v for option, v in last[name].params.items()},
            }
            for name in order
        }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("experiment").fillna("-")
        links = {name: f"{name}/{REPORT_FILE}" for name in order if (self.folder / name / REPORT_FILE).is_file()}
        parts.append(page.section("Trials", page.table("", table, links=links)))
        path = self.folder / PAGE_FILE
        states = Counter(trial.state.name.lower() for trial in last.values())
        lead = f"{len(last)} trials: {', '.join(f'{number} {state}' for state, number in states.items())}"
        write_text(path, page.page(f"Search {study.study_name}", lead, parts))
        return path


def open_study(folder: Path, seed: int) -> optuna.Study:
    """Open or create a folder's study."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        raise UsageError("--space: optuna is not installed; pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / JOURNAL)
    lock = JournalFileOpenLock(path)
    lock.acquire()
    try:
        _check_journal(folder / JOURNAL)
    finally:
        lock.release()
    # Each process needs its own seed: with the same one all would try the same points.
    sampler = optuna.samplers.TPESampler(seed=(seed + os.getpid()) % 2**31, constant_liar=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    try:
        storage = JournalStorage(JournalFileBackend(path, lock))
        study = optuna.create_study(
            study_name=folder.name, storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True
        )
        _check_trials(study)
        return study
    except OSError:
        raise
    except Exception as error:  # optuna may raise anything for a journal that another program wrote
        raise _no_journal(Path(path), f"{type(error).__name__}: {' '.join(str(error).split())[:100]}") from None


def _no_journal(path: Path, reason: str) -> WorkError:
    return WorkError(
        f"{path}: no journal of a search by this program ({reason}); remove it, or name the space's file anew"
    )


def _check_journal(path: Path) -> None:
    """Cut off an incomplete last line, left by a full disk. With another line after it no study could be read.

    Raises WorkError for a journal beyond the limits, before optuna reads it.
    """
    if not path.exists():
        return
    whole = 0
    try:
        content = read_bytes(path, MOST_JOURNAL_BYTES)
        if sum(map(content.count, (b",", b"[", b"{"))) > MOST_JOURNAL_VALUES:  # it has at most as many values
            raise Unreadable(f"more than {MOST_JOURNAL_VALUES:,} values")
        for number, line in enumerate(io.BytesIO(content), start=1):
            if not line.endswith(b"\n"):
                break
            _check_line(line, number)
            whole += len(line)
    except Unreadable as error:
        raise _no_journal(path, str(error)) from None
    if whole < len(content):
        os.truncate(path, whole)


def _check_line(line: bytes, number: int) -> None:
    """Raise Unreadable unless a line is a JSON object of optuna's; JSON inside its texts is checked too."""
    try:
        entry = parse_json(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("op_code"), int):
            raise Unreadable("not an entry of a journal")
        if "distribution" in entry:
            parse_json(str(entry["distribution"]))
    except Unreadable as error:
        raise Unreadable(f"line {number}: {error}") from None


def _check_trials(study: optuna.Study) -> None:
    """Raise ValueError unless the trials have the form that :meth:`Search.run_trial` writes."""
    if len(study.directions) != 1:
        raise ValueError("the study has several values to make small")
    for trial in study.get_trials(deepcopy=False):
        name, owner = trial.user_attrs.get("experiment"), trial.user_attrs.get("owner")
        if name is not None:
            check_experiment_id(name if isinstance(name, str) else "")
        if owner is not None and (name is None or {key: type(value) for key, value in owner.items()} != OWNER):
            raise ValueError(f"trial {trial.number} has an owner of another form")
        if trial.state.name == "COMPLETE" and not _is_number(trial.value):
            raise ValueError(f"trial {trial.number} has no value")


def retry_dead(study: optuna.Study) -> None:
    """Queue this machine's trials again if their process is gone, with the same options and experiment."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("owner")
        if owner is None or owner["host"] != _host() or _is_alive(owner):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):  # another process was quicker and queues it
            continue
        study.enqueue_trial(trial.params, user_attrs={"experiment": trial.user_attrs["experiment"]})


def _host() -> str:
    return str(uuid.getnode())  # tells machines apart without naming them


def _is_alive(owner: Mapping[str, Any]) -> bool:
    try:
        return psutil.Process(owner["pid"]).create_time() == owner["started"]
    except psutil.NoSuchProcess:
        return False
