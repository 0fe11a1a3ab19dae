"""The leaderboard of all experiments as CSV and HTML, built anew each time from the experiments' folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from common.errors import WorkError
from common.evaluation.metric_table import METRICS, key_title, metric_of
from common.evaluation.metrics import STUDY
from common.files import inert_cells, write_csv, write_text
from common.reports import page
from common.reports.comparable import MOST_PAIRED, Pairs, group_of, paired_differences, rounded, shared_groups
from common.reports.record import REPORT_FILE
from common.reports.summary import Summary, read_summaries
from common.waiting import lock_file

CSV_FILE = "leaderboard.csv"
HTML_FILE = "leaderboard.html"
LOCK = ".leaderboard.lock"
SCRIPT = Path(__file__).with_name("leaderboard.js")
MOST_COLUMNS, MOST_TEXT = 500, 300  # options, characters of a value: anybody may have made the folders
WITHOUT_SCRIPT = 100  # rows shown by a browser without scripts
SAME_VALUE = 1e-6  # relative: a logged value is read back from text
AUROC = "auroc/any"
MEASURED = ("experiment", "status", "of_constant", "iteration", "weights", "hours", "started", "group")
# What the page shows first, with its heading; the experiment and the metric stand before it.
READING = (
    ("of_constant", "of constant"),
    (AUROC, "AUROC of any"),
    ("net_model", "model"),
    ("data_image_size", "pixels"),
    ("hours", "time"),
    ("status", "status"),
)
LEFT_OUT = ("experiment_id", "output_dir", "n_jobs")
UNPLOTTED = ("data_input_folder", "trackers", "nml_enabled", "nml_project", "nml_mode", "tr_report", "verbosity")


def update_leaderboard(results: Path, metric: str, known: Mapping[Path, str] | None = None) -> Path:
    """Write leaderboard.csv and leaderboard.html of the experiments below ``results``; return the second.

    ``known``: statuses by folder, see :func:`common.reports.summary.read_summaries`.
    Processes write one after another, and each reads all folders. So no experiment is lost, and deleted ones disappear.
    Raises WorkError if the folder can't be written.
    """
    with _alone(results):
        summaries = read_summaries(results, metric, known)
        table = leaderboard(summaries, metric)
        pairs = paired_differences(table, {one.name: one.judged for one in summaries if fits(one)}, results)
        write_csv(results / CSV_FILE, inert_cells(table))
        reports = {one.name for one in summaries if (results / one.name / REPORT_FILE).is_file()}
        write_text(results / HTML_FILE, leaderboard_page(table, reports, metric, summaries, pairs))
    return results / HTML_FILE


@contextmanager
def _alone(results: Path) -> Iterator[None]:
    try:
        results.mkdir(parents=True, exist_ok=True)  # if all experiments of a sweep failed, there is none yet
        file = (results / LOCK).open("a")
    except OSError as error:
        raise WorkError(
            f"{results}: cannot be written ({error.strerror}), and the leaderboard is written there; check its owner "
            "and mode"
        ) from None
    with file:
        with suppress(OSError):  # a file system without locks: after two writers at once, write it again
            lock_file(file, f"this process waits for another that writes the leaderboard of {results}")
        yield


def leaderboard(summaries: Sequence[Summary], metric: str) -> pd.DataFrame:
    """Return a row for each experiment: group by group, in each the best ``metric`` first, those without one last.

    Only experiments of one ``group`` can be compared, see :mod:`common.reports.comparable`. Those that studies judge
    have groups of their own, which say so, with the metric by study in the metric's column. The other columns:
    ``experiment``, ``status``, the metric with the ends of its interval, ``of_constant`` (its share of the constant
    predictor's), ``iteration`` and ``weights`` of the best value, the other validation metrics at that iteration,
    ``hours``, ``started``, all options, ``unknown_lineage`` (networks behind it whose training images are unknown)
    and ``unreadable`` (problems with its files).
    """
    rank = metric_of(metric).rank
    groups = shared_groups(
        {one.name: group_of(one.config, one.judged, by_study=one.metric != metric) for one in summaries}
    )
    size = Counter(groups.values())

    def order(one: Summary) -> tuple[Any, ...]:
        group = groups[one.name]
        value = rank(one.best[0]) if one.best else 0
        return (not group.out_of_fold, not group.judged, -size[group], group.title, one.best is None, value, one.name)

    ordered = sorted(summaries, key=order)
    best = [one.best or (float("nan"), None, "") for one in ordered]
    judged = [one.judged if fits(one) else {} for one in ordered]
    columns: dict[str, list[Any]] = {
        "experiment": [one.name for one in ordered],
        "status": [one.status for one in ordered],
        metric: [value for value, _, _ in best],
        **{f"{metric}_{end}": [facts.get(end) for facts in judged] for end in ("low", "high")},
        "of_constant": [facts.get("of_constant") for facts in judged],
        "iteration": [at for _, at, _ in best],
        "weights": [weights for _, _, weights in best],
        "hours": [one.hours for one in ordered],
        "started": [one.started for one in ordered],
        "group": [groups[one.name].title for one in ordered],
    }
    if any(facts.get("auroc_any") is not None for facts in judged):
        columns[AUROC] = [facts.get("auroc_any") for facts in judged]
    for parts in ([one.scores for one in ordered], [one.config for one in ordered]):
        for name in common_names(parts, [*columns, *LEFT_OUT]):
            try:
                columns[name] = list(map(itemgetter(name), parts))  # several times as fast
            except KeyError:  # not all have it
                columns[name] = [part.get(name) for part in parts]
    for name, texts in (
        ("unknown_lineage", [one.unknown_lineage for one in ordered]),
        ("unreadable", [one.problems for one in ordered]),
    ):
        if any(texts):
            columns[name] = ["; ".join(each)[:MOST_TEXT] if each else None for each in texts]
    table = pd.DataFrame({name: plain_column(values) for name, values in columns.items()})
    numbers = [f"{metric}_low", f"{metric}_high", "of_constant", metric]
    return table.astype({"iteration": "Int64"} | dict.fromkeys(numbers, "float64"))


def fits(one: Summary) -> bool:
    """Whether the judgement is of the best value: a run may have gone on since its predictions were judged."""
    known = bool(one.judged) and one.best is not None and one.judged["metric"] == one.metric
    return known and abs(one.judged["value"] - one.best[0]) <= SAME_VALUE * abs(one.best[0])


def common_names(parts: Sequence[Mapping[str, Any]], taken: Collection[str]) -> list[str]:
    """Return the names in ``parts`` but for those ``taken``; of more than :data:`MOST_COLUMNS`, the commonest."""
    count: Counter[str] = Counter()
    for part in parts:
        count.update(part.keys())  # folders of other programs can bring thousands of names
    others = {name: number for name, number in count.items() if name not in taken}
    return list(others if len(others) <= MOST_COLUMNS else dict(Counter(others).most_common(MOST_COLUMNS)))


def plain_column(values: list[Any]) -> Any:
    """Return a column's values as numbers and short texts; one value alone if all rows share the same object."""
    different = dict(zip(map(id, values), values, strict=True))
    plain = {key: _plain(value) for key, value in different.items()}
    return next(iter(plain.values())) if len(plain) == 1 < len(values) else [plain[key] for key in map(id, values)]


def is_score(name: str) -> bool:
    """Whether a column is a metric of one label, such as ``log_loss/any``, or of studies."""
    return metric_of(name).name in METRICS and ("/" in name or name.startswith(STUDY))


def _plain(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        value = ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
    return int(value) if isinstance(value, bool) else value[:MOST_TEXT] if isinstance(value, str) else value


def report_address(name: str) -> str:
    """Return a report's address, relative to the results' folder. It is quoted: people name folders as they like."""
    return quote(f"{name}/{REPORT_FILE}")


def leaderboard_page(
    table: pd.DataFrame, reports: Collection[str], metric: str, summaries: Sequence[Summary] = (), pairs: Pairs = ()
) -> str:
    """Return the table as a page that sorts, filters, compares two experiments and plots an option, without network.

    ``reports``: names of the experiments that have a report. ``summaries``: for the curves. ``pairs``: see
    :func:`common.reports.comparable.paired_differences`.
    """
    row, title = metric_of(metric), key_title(metric)
    curves = {one.name: [list(part) for part in one.curve] for one in summaries if len(one.curve[0]) > 1}
    data = {
        "metric": metric,
        "title": title,
        "lowest_first": row.smaller_is_better,
        "scores": [name for name in table.columns if is_score(name)],
        "measured": [*MEASURED, metric, f"{metric}_low", f"{metric}_high"],
        "reading": [["experiment", "experiment"], [metric, title], *READING],
        "columns": list(table.columns),
        "count": len(table),
        "values": {name: _packed(column) for name, column in table.items()},
        "reports": {name: report_address(name) for name in reports},
        "curves": curves,
        "pairs": pairs,
        "most_paired": MOST_PAIRED,
        "unplotted": UNPLOTTED,  # options that don't change the result
    }
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # an option's text can't end the script
    body = (
        f"<noscript>{page.table(_first_rows(table), table.iloc[:WITHOUT_SCRIPT, :7].astype(str))}</noscript>",
        '<p><label>Filter <input id="filter" type="search" placeholder="resnet34 lr=0.001"></label> '
        '<label><input id="all" type="checkbox"> all options that differ</label> '
        '<span id="count" class="soft" aria-live="polite"></span></p>',
        '<div class="card" tabindex="0"><table id="board"><caption class="soft">Only what stands in one group was '
        "judged on the same images and can be compared. Click a heading to sort, two boxes to compare. Of constant: "
        "share of the constant predictor's value. In brackets: 95 % interval over patients.</caption>"
        "<thead></thead></table></div>",
        '<section><h2>Two experiments compared</h2><div id="difference" aria-live="polite">'
        "<p>Tick two experiments of one group above.</p></div></section>",
        '<section><h2>The options of a group</h2><p><label>Group <select id="group"></select></label></p>'
        f"<h3>{escape(title.capitalize())} over an option</h3>"
        '<p><label>Option <select id="option"></select></label></p>'
        '<div id="scatter"></div>'
        f'<h3>All options that differ, and {escape(title)}</h3><p class="soft">A line for each experiment: '
        f"blue and thick the {row.best}, orange and thin the {row.worst}. Click one to tick it in the table.</p>"
        '<div id="parallel" class="card"></div></section>',
        f'<script type="application/json" id="data">{embedded}</script>',
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )
    return page.page("Leaderboard", f"{len(table)} experiments, {row.best} {title} first, group by group", body)


def _first_rows(table: pd.DataFrame) -> str:
    return "" if len(table) <= WITHOUT_SCRIPT else f"The first {WITHOUT_SCRIPT} of {len(table)}: {CSV_FILE} has all"


def _packed(column: pd.Series) -> dict[str, Any]:
    """Return a column for JSON. If most values repeat, each is stored once and rows point to it."""
    at, different = pd.factorize(column.to_numpy(dtype=object), use_na_sentinel=False)
    values = [None if pd.isna(value) else rounded(value) for value in different.tolist()]
    if len(values) == 1:
        return {"of": values}
    if len(values) < len(column) / 2:
        return {"of": values, "at": at.tolist()}
    return {"each": [values[place] for place in at.tolist()]}
