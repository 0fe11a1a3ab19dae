"""An experiment's report as one HTML page: verdict, curves, evaluation, options, and the command to repeat it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from common.evaluation.metric_table import key_of_labels, key_title, metric_of
from common.evaluation.metrics import WEIGHTED
from common.evaluation.resampling import Array
from common.reports import page
from common.reports.evaluation import evaluation_sections, judging_rows
from common.reports.page import Line
from common.reports.record import FINISHED, Record, duration
from common.reports.summary import Summary
from common.sweeps.plan import flags_of

LENGTH = "tr_iteration_num"  # a resumed run may have another length, which makes it another run
OPTION = re.compile(r"[a-z0-9_]{1,100}")
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # people copy the line into a shell: nothing else may stand there
SEEN = {"experiment_id", "output_dir", "n_jobs"}  # options that don't change the result


@dataclass(frozen=True)
class Evaluated:
    """The validation's predictions and their evaluation; see :func:`evaluation_sections`.

    ``constant``: the constant predictor's score on the same images. ``pictures``: by title, pictures with the caption
    of each. ``pictures_note`` says what they show.
    """

    document: Mapping[str, Any]
    predictions: Array
    targets: Array
    names: Sequence[str]
    constant: float
    pictures: Mapping[str, Sequence[tuple[np.ndarray, str]]] = field(default_factory=dict)
    pictures_note: str = ""


@dataclass(frozen=True)
class Together:
    """The parts of the report of an experiment made from others; they replace a run's curves and times.

    ``what``: the predictions that judge it, in words. ``sections``: HTML. ``command``: the command that makes it again;
    None: train.py with its options.
    """

    what: str
    sections: Sequence[str]
    command: str | None = None


def experiment_page(
    record: Record,
    rivals: Sequence[Summary],
    metric: str,
    defaults: Mapping[str, Any],
    constant: float | None,
    evaluated: Evaluated | None,
    missing: str = "",
    together: Together | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Return the report of ``record`` as one HTML document.

    ``rivals``: other experiments on the same data. ``metric``: the key that ranks them; its row in the table of metrics
    says which values are better. ``defaults``: the options' defaults. ``constant``: the constant predictor's score.
    ``missing``: why there is no evaluation. ``together``: for an experiment made from others. ``links``: addresses of
    other pages by their text.
    """
    judged = _judged(record, metric, evaluated, together)
    sections = [page.section("Verdict", page.cards(*_verdict(record, rivals, metric, constant, judged)))]
    if together is None:
        sections.append(page.section("Curves", page.cards(*_curves(record, metric, constant))))
    else:
        sections += together.sections
    if evaluated is None:
        sections.append(page.section("Evaluation", page.paragraph(missing or "There are no predictions.")))
    else:
        sections += evaluation_sections(evaluated.document, evaluated.predictions, evaluated.targets, evaluated.names)
        for title, pictures in evaluated.pictures.items():
            sections.append(page.section(title, page.paragraph(evaluated.pictures_note), page.tiles(pictures)))
    if together is None:
        sections.append(page.section("Time", page.table("", _times(record))))
    sections += [
        page.section("Configuration", *_configuration(record, rivals, metric, defaults)),
        page.section("Environment", page.table("", _environment(record), words=True)),
        page.section("Do it again", page.preformatted(_command(record, together))),
        page.paragraph(page.NOTICE),
    ]
    lead = f"{record.status}; started {record.started:%Y-%m-%d %H:%M} UTC" if record.started else record.status
    return page.page(f"Experiment {record.name}", lead, [page.contents(sections, links or {}), *sections])


def best_of(summaries: Sequence[Summary], metric: str) -> Summary | None:
    """Return the experiment with the best value of ``metric``; None if none was validated by it."""
    row, judged = metric_of(metric), [one for one in summaries if one.best and one.metric == metric]
    return min(judged, key=lambda one: (row.rank(one.best[0]), one.name), default=None)


def _judged(record: Record, metric: str, evaluated: Evaluated | None, together: Together | None) -> str:
    """Say in a sentence what the verdict's value measures, with its interval if there is one."""
    row, title = metric_of(metric), key_title(metric)
    best = record.best(metric)
    if best is None:
        return "It was never validated, so there is nothing to judge yet."
    _, iteration, weights = best
    if together is not None:
        said = f"{title.capitalize()} of {together.what}"
    else:
        average = "" if weights == "raw" else f" by the {weights} weights"
        said = f"{row.best.capitalize()} {title} of the validation set, at iteration {iteration}{average}"
        if (last := record.series(f"valid/{metric}")[0]) and last[-1] == iteration:
            said += f": the last one, so longer training may go on {'falling' if row.smaller_is_better else 'rising'}"
    if evaluated is None:
        return said + "."
    found = next(found for found in judging_rows(evaluated.document) if found["label"] == WEIGHTED)
    low, high = found.get(f"{row.name}_low"), found.get(f"{row.name}_high")
    if low is None or high is None:
        reason = found["no_interval"]  # none for a metric that has no rule for intervals
        return f"{said}. No interval: {reason}." if reason else f"{said}."
    behind = f"{found['patients']} patients, {found['positive_patients']} positive"
    return f"{said}. 95 % interval over {behind}: {low:.{row.digits}f} to {high:.{row.digits}f}."


def _verdict(record: Record, rivals: Sequence[Summary], metric: str, constant: float | None, judged: str) -> list[str]:
    best = record.best(metric)
    if best is None:
        return [page.headline(record.status, judged)]
    row, value = metric_of(metric), best[0]
    written = f"{value:.{row.digits}f}"
    found = [page.headline(written, judged)]
    if constant:
        better = row.is_better(value, constant)
        said = f"The constant predictor scores {constant:.{row.digits}f}: "
        said += f"this is {value / constant:.2f} of it." if better else "nothing has been learnt yet."
        found.append(page.headline(f"{value / constant:.2f} ×" if better else "no better", said))
    rival = best_of([other for other in rivals if other.name != record.name], metric)
    if rival is None:
        found.append(page.headline("first", "No other experiment on this data has been validated."))
    else:
        other = rival.best[0]
        theirs = f"{other:.{row.digits}f}"
        level = written == theirs
        beside = f"{'level with' if level else 'behind'} experiment {rival.name}"
        where = "the best so far" if row.is_better(value, other) and not level else beside
        found.append(
            page.headline(
                f"{value - other:+.{row.digits}f}",
                f"{where.capitalize()}: the best other one, {rival.name}, has {theirs}.",
            )
        )
    if record.unknown_lineage:
        names = ", ".join(record.unknown_lineage)
        found.append(
            page.headline(
                "unknown lineage", f"Nobody knows whether this learnt from the images that judge it: {names}."
            )
        )
    if record.status != FINISHED:
        found.append(page.headline(record.status, "What follows is of what there is."))
    return found


def _curves(record: Record, metric: str, constant: float | None) -> list[str]:
    row = metric_of(metric)
    validated = [key for key in record.keys if key.endswith(f"/{metric}") and key.startswith("valid")]
    training = [key for key in ("train/loss",) if key in record.keys]
    losses = [Line(key, *record.series(key), dots=key in validated) for key in (*training, *validated)]
    ends = [at for line in losses for at in line.x]
    if constant and ends:
        losses.append(Line("constant predictor", [min(ends), max(ends)], [constant] * 2))
    by_label = [
        Line(key.rpartition("/")[2], *record.series(key), dots=True)
        for key in record.keys if key.startswith(f"valid/{key_of_labels(metric)}")
    ]  # fmt: skip
    charts = [
        page.lines("Loss", losses, ("iteration", "loss")),
        page.lines("Validation by label", by_label, ("iteration", row.title)),
    ]
    for key, title, unit in (
        ("train/learning_rate", "Learning rate", "rate"),
        ("train/gradient_norm", "Norm of the gradient", "norm"),
        ("perf/images_per_second", "Speed", "images a second"),
        ("perf/data_wait_share", "Waiting for data", "share of the time"),
    ):
        if key in record.keys:
            charts.append(page.lines(title, [Line(key, *record.series(key))], ("iteration", unit)))
    return charts


def _times(record: Record) -> pd.DataFrame:
    rows = {"from the first start to the last point": duration(record.seconds)}
    for key, title, form in (
        ("perf/images_per_second", "images a second, median", "{:.1f}"),
        ("perf/data_wait_share", "share of the time spent waiting for data, median", "{:.1%}"),
        ("perf/host_memory_gb", "host memory, GB at most", "{:.2f}"),
        ("perf/gpu_memory_gb", "GPU memory, GB at most", "{:.2f}"),
    ):
        values = np.array(record.series(key)[1])
        values = values[np.isfinite(values)]
        if len(values):
            rows[title] = form.format(values.max() if key.endswith("_gb") else np.median(values))
    return pd.DataFrame({"": rows})


def _configuration(record: Record, rivals: Sequence[Summary], metric: str, defaults: Mapping[str, Any]) -> list[str]:
    def differing(other: Mapping[str, Any], title: str) -> pd.DataFrame:
        names = [name for name, value in record.config.items() if name not in SEEN and other.get(name) != value]
        return pd.DataFrame(
            {"here": [_word(record.config[name]) for name in names], title: [_word(other.get(name)) for name in names]},
            index=pd.Index(names, name="option"),
        )

    parts = [page.table("What differs from the defaults", differing(defaults, "default"), words=True)]
    rival = best_of([other for other in rivals if other.name != record.name], metric)
    if rival is not None:
        parts.append(
            page.table(
                f"What differs from {rival.name}, the best other one",
                differing(rival.config, rival.name),
                words=True,
            )
        )
    whole = pd.DataFrame({"value": {name: _word(value) for name, value in record.config.items()}}).rename_axis("option")
    return [page.cards(*parts), page.details("All options", page.table("", whole, words=True))]


def _word(value: Any) -> str:
    if value is None or value in ("", []):
        return "none"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _environment(record: Record) -> pd.DataFrame:
    known = dict(record.environment)
    packages = known.pop("packages", {})
    left_out = ("resumed", "launch", "command")
    rows = {
        name: value if isinstance(value, str) else "none" if value in (None, []) else json.dumps(value)
        for name, value in known.items()
        if name not in left_out
    }
    rows["resumed"] = f"{len(known.get('resumed', []))} times"
    if isinstance(packages, Mapping):
        rows["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return pd.DataFrame({"": rows})


def _command(record: Record, together: Together | None) -> str:
    commit = str(record.environment.get("git_commit"))
    lines = [f"git checkout {commit}"] if COMMIT.fullmatch(commit) else []
    if record.environment.get("git_dirty"):
        lines.append("# the working copy had changes that are in no commit")
    if together is not None and together.command is not None:
        return "\n".join([*lines, together.command])
    name = f"{record.folder.name}_again"
    legs = _legs(record)
    first = {option: before for leg in reversed(legs) for option, (before, _) in leg.changed.items()}
    lines.append(_train({"config": record.folder / "config.yaml", "experiment_id": name, **first}))
    length = first.get(LENGTH, record.config.get(LENGTH))
    for leg in legs:
        if leg.iteration == 0:  # an unfinished cross-validation: each fold had stopped at another iteration
            lines.append("# stop it (Ctrl-C) where the reports of its folds say, then")
        elif leg.iteration != length:
            lines.append(f"# stop it after iteration {leg.iteration} (Ctrl-C), then")
        now = {option: value for option, (_, value) in leg.changed.items()}
        named = {"tr_resume_change": list(leg.named)} if leg.named else {}
        lines.append(_train({"tr_resume": name, **now, **named}))
        length = now.get(LENGTH, length)
    return "\n".join(lines)


@dataclass(frozen=True)
class _Leg:
    """A start that resumed the run with other options: the iteration, {option: (before, now)}, --tr_resume_change."""

    iteration: int
    changed: Mapping[str, tuple[Any, Any]]
    named: Sequence[str]


def _legs(record: Record) -> list[_Leg]:
    """Return the starts that changed the run. Anybody may have written environment.json: other forms are skipped."""
    found = []
    resumed = record.environment.get("resumed")
    for entry in resumed if isinstance(resumed, list) else ():
        try:
            named = [option for option in entry["named"] if option in entry["changed"]]
            options = [LENGTH, *named] if LENGTH in entry["changed"] else named
            changed = {option: tuple(entry["changed"][option]) for option in options}
            if changed and all(OPTION.fullmatch(option) and len(pair) == 2 for option, pair in changed.items()):
                found.append(_Leg(int(entry["iteration"]), changed, named))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _train(options: Mapping[str, Any]) -> str:
    """Return a command of train.py, quoted for a shell."""
    words = {name: "none" if value is None else value for name, value in options.items()}
    return shlex.join(["python", "train.py", *flags_of(words)])
