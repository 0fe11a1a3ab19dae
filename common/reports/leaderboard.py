"""The leaderboard of all experiments as CSV and HTML, built anew each time from the experiments' folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from common.errors import WorkError
from common.evaluation.metric_table import METRICS, key_title, metric_of
from common.files import inert_cells, write_csv, write_text
from common.reports import page
from common.reports.record import REPORT_FILE
from common.reports.summary import Summary, read_summaries
from common.waiting import lock_file

CSV_FILE = "leaderboard.csv"
HTML_FILE = "leaderboard.html"
LOCK = ".leaderboard.lock"
SCRIPT = Path(__file__).with_name("leaderboard.js")
MOST_COLUMNS, MOST_TEXT = 500, 300  # options, characters of a value: anybody may have made the folders
WITHOUT_SCRIPT = 100  # rows shown by a browser without scripts
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
        write_csv(results / CSV_FILE, inert_cells(table))
        reports = {one.name for one in summaries if (results / one.name / REPORT_FILE).is_file()}
        write_text(results / HTML_FILE, leaderboard_page(table, reports, metric))
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
    """Return a row for each experiment: the best ``metric`` first, experiments without validation last.

    Columns: ``experiment``, ``status``, the metric, ``iteration`` and ``weights`` of its best value, the other
    validation metrics at that iteration, ``hours``, ``started``, all options, ``unknown_lineage`` (networks behind it
    whose training images are unknown) and ``unreadable`` (problems with its files).
    """
    rows = []
    for one in summaries:
        row: dict[str, Any] = {"experiment": one.name, "status": one.status}
        row[metric], row["iteration"], row["weights"] = one.best or (float("nan"), None, "")
        row |= {name: value for name, value in one.scores.items() if name not in row}
        row["hours"], row["started"] = one.hours, one.started
        for name, texts in (("unknown_lineage", one.unknown_lineage), ("unreadable", one.problems)):
            if texts:
                row[name] = "; ".join(texts)[:MOST_TEXT]
        options = {name: value for name, value in one.config.items() if name not in LEFT_OUT and name not in row}
        rows.append(row | {name: _plain(value) for name, value in options.items()})
    table = pd.DataFrame(rows, columns=_order(rows, metric))
    ascending = [metric_of(metric).smaller_is_better, True]
    table = table.astype({"iteration": "Int64"})
    return table.sort_values([metric, "experiment"], ascending=ascending, kind="stable", ignore_index=True)


def _order(rows: Sequence[dict[str, Any]], metric: str) -> list[str]:
    """Return all columns, measured ones first."""
    first = ["experiment", "status", metric, "iteration", "weights", "hours", "started"]
    count = Counter(name for row in rows for name in row if name not in first)
    # Folders of other programs can bring thousands of names. Then the rarest are left out.
    others = count if len(count) <= MOST_COLUMNS else dict(count.most_common(MOST_COLUMNS))
    leading = [name for name in others if name == "unknown_lineage" or is_score(name)]
    return [*first, *leading, *(name for name in others if name not in leading)]


def is_score(name: str) -> bool:
    """Whether a column is a metric of one label, such as ``log_loss/any``."""
    return name.partition("/")[0] in METRICS and "/" in name


def _plain(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        value = ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
    return int(value) if isinstance(value, bool) else value[:MOST_TEXT] if isinstance(value, str) else value


def report_address(name: str) -> str:
    """Return a report's address, relative to the results' folder. It is quoted: people name folders as they like."""
    return quote(f"{name}/{REPORT_FILE}")


def leaderboard_page(table: pd.DataFrame, reports: Collection[str], metric: str) -> str:
    """Return the table as a page that sorts, filters, compares two experiments and plots an option, without network.

    ``reports``: names of the experiments that have a report.
    """
    row, title = metric_of(metric), key_title(metric)
    data = {
        "metric": metric,
        "lowest_first": row.smaller_is_better,
        "scores": [name for name in table.columns if is_score(name)],
        "columns": list(table.columns),
        "count": len(table),
        "values": {name: _packed(column) for name, column in table.items()},
        "reports": {name: report_address(name) for name in reports},
        "unplotted": UNPLOTTED,  # options that don't change the result
    }
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # an option's text can't end the script
    body = (
        f"<noscript>{page.table(_first_rows(table), table.iloc[:WITHOUT_SCRIPT, :7].astype(str))}</noscript>",
        '<p><label>Filter <input id="filter" type="search" placeholder="resnet34 lr=0.001"></label> '
        '<span id="count" class="soft" aria-live="polite"></span></p>',
        '<div class="card"><table id="board"><caption class="soft">Click a heading to sort, two boxes to compare; '
        "columns in which all are the same are left out.</caption><thead></thead><tbody></tbody></table></div>",
        '<section><h2>Two experiments compared</h2><div id="difference" aria-live="polite">'
        "<p>Tick two experiments above.</p></div></section>",
        f"<section><h2>{escape(title.capitalize())} over an option</h2>"
        '<p><label>Option <select id="option"></select></label></p>'
        '<div id="scatter"></div></section>',
        f'<section><h2>All options that differ, and {escape(title)}</h2><p class="soft">A line for each experiment: '
        f"blue and thick the {row.best}, orange and thin the {row.worst}. Click one to tick it in the table.</p>"
        '<div id="parallel" class="card"></div></section>',
        f'<script type="application/json" id="data">{embedded}</script>',
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )
    return page.page("Leaderboard", f"{len(table)} experiments, {row.best} {title} first", body)


def _first_rows(table: pd.DataFrame) -> str:
    return "" if len(table) <= WITHOUT_SCRIPT else f"The first {WITHOUT_SCRIPT} of {len(table)}: {CSV_FILE} has all"


def _packed(column: pd.Series) -> dict[str, Any]:
    """Return a column for JSON. If most values repeat, each is stored once and rows point to it."""
    missing = column.isna().to_numpy()
    values = [None if none else _rounded(value) for value, none in zip(column.tolist(), missing, strict=True)]
    places: dict[Any, int] = {}
    at = [places.setdefault((type(value), value), len(places)) for value in values]
    different = [value for _, value in places]
    if len(different) == 1:
        return {"of": different}
    return {"of": different, "at": at} if len(different) < len(values) / 2 else {"each": values}


def _rounded(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.9g}") if np.isfinite(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value
