"""All experiments of a folder as a table, CSV and HTML: rebuilt from the experiments' folders, never added to."""

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
MOST_COLUMNS, MOST_TEXT = 500, 300  # options and characters of a value: folders may be anybody's
WITHOUT_SCRIPT = 100  # rows for a browser that runs no scripts
LEFT_OUT = ("experiment_id", "output_dir", "n_jobs")
UNPLOTTED = ("data_input_folder", "trackers", "nml_enabled", "nml_project", "nml_mode", "tr_report", "verbosity")


def update_leaderboard(results: Path, metric: str, known: Mapping[Path, str] | None = None) -> Path:
    """Write leaderboard.csv and leaderboard.html of the experiments below ``results``; return the second.

    ``known``: statuses by folder, see :func:`common.reports.summary.read_summaries`.
    One writer after another: each reads all folders, so that nobody's experiment is lost and deleted ones disappear.
    Raises WorkError where the folder can't be written.
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
        results.mkdir(parents=True, exist_ok=True)  # of a sweep whose experiments all failed there is no folder yet
        file = (results / LOCK).open("a")
    except OSError as error:
        raise WorkError(
            f"{results}: cannot be written ({error.strerror}), and the leaderboard is written there; check its owner "
            "and mode"
        ) from None
    with file:
        with suppress(OSError):  # a file system without locks: two writers at once may need a rebuild
            lock_file(file, f"this process waits for another that writes the leaderboard of {results}")
        yield


def leaderboard(summaries: Sequence[Summary], metric: str) -> pd.DataFrame:
    """Return a row for each experiment, the best ``metric`` first and those never validated last.

    Columns: ``experiment``, ``status``, the metric, ``iteration`` and ``weights`` of its best value, the other
    validation metrics there, ``hours``, ``started``, all options, ``unknown_lineage``: what it depends on of which
    nobody knows what it learnt from, and ``unreadable``: what of its folder can't be read.
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
    # What only few folders have is left out where folders of other programs bring thousands of names.
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
    """Return where a page in the results' folder finds a report; a folder that was copied by hand has any name."""
    return quote(f"{name}/{REPORT_FILE}")


def leaderboard_page(table: pd.DataFrame, reports: Collection[str], metric: str) -> str:
    """Return the table as a page that sorts, filters, compares two experiments and plots an option, without network.

    ``reports``: the names of those that have a report.
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
        "unplotted": UNPLOTTED,  # options that change nothing of a result
    }
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no text of an option ends the script
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
    """Return a column for JSON: each different value once, and which one each row has."""
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
