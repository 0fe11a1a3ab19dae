"""All experiments of a folder as a table, CSV and HTML: rebuilt from the experiments' folders, never added to."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from common.files import write_csv, write_text
from common.reports import page
from common.reports.record import REPORT_FILE, Record, read_records

CSV_FILE = "leaderboard.csv"
HTML_FILE = "leaderboard.html"
LOCK = ".leaderboard.lock"
SCRIPT = Path(__file__).with_name("leaderboard.js")
LEFT_OUT = ("experiment_id", "output_dir", "n_jobs")
UNPLOTTED = ("data_input_folder", "trackers", "nml_enabled", "nml_project", "nml_mode", "tr_report", "verbosity")


def update_leaderboard(results: Path, metric: str, known: Mapping[Path, str] | None = None) -> Path:
    """Write leaderboard.csv and leaderboard.html of the experiments below ``results``; return the second.

    ``known``: statuses by folder, see :func:`common.reports.record.read_records`.
    One writer after another: each reads all folders, so that nobody's experiment is lost and deleted ones disappear.
    """
    with _alone(results):
        records = read_records(results, known, brief=True)
        table = leaderboard(records, metric)
        write_csv(results / CSV_FILE, table)
        write_text(results / HTML_FILE, leaderboard_page(table, records, metric))
    return results / HTML_FILE


@contextmanager
def _alone(results: Path) -> Iterator[None]:
    results.mkdir(parents=True, exist_ok=True)  # of a sweep whose experiments all failed there is no folder yet
    with (results / LOCK).open("a") as file:
        with suppress(OSError):  # a file system without locks: two writers at once may need a rebuild
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def leaderboard(records: Sequence[Record], metric: str) -> pd.DataFrame:
    """Return a row for each experiment, the lowest ``metric`` first and those never validated last.

    Columns: ``experiment``, ``status``, the metric, ``iteration`` and ``weights`` of its lowest value, the other
    validation metrics there, ``hours``, ``started`` and all options.
    """
    rows = []
    for record in records:
        best = record.best(metric)
        row: dict[str, Any] = {"experiment": record.name, "status": record.status}
        row[metric], row["iteration"], row["weights"] = best or (float("nan"), None, "")
        if best:
            prefix = "valid/" if best[2] == "raw" else f"valid_{best[2]}/"
            for key in record.keys:
                if key.startswith(prefix) and key != prefix + metric:
                    row[key.removeprefix(prefix)] = dict(zip(*record.series(key), strict=True)).get(best[1])
        row["hours"] = round(record.seconds / 3600, 3)
        row["started"] = record.started.isoformat(timespec="seconds") if record.started else ""
        options = {name: value for name, value in record.config.items() if name not in LEFT_OUT and name not in row}
        rows.append(row | {name: _plain(value) for name, value in options.items()})
    table = pd.DataFrame(rows, columns=_order(rows, metric))
    return table.astype({"iteration": "Int64"}).sort_values([metric, "experiment"], kind="stable", ignore_index=True)


def _order(rows: Sequence[dict[str, Any]], metric: str) -> list[str]:
    """Return all columns, measured ones first."""
    first = ["experiment", "status", metric, "iteration", "weights", "hours", "started"]
    others = dict.fromkeys(name for row in rows for name in row if name not in first)
    scores = [name for name in others if name.startswith("log_loss/")]
    return [*first, *scores, *(name for name in others if name not in scores)]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else ",".join(map(str, value)) if isinstance(value, list) else value


def report_address(record: Record) -> str:
    """Return where a page in the results' folder finds a report; a folder that was copied by hand has any name."""
    return quote(f"{record.name}/{REPORT_FILE}")


def leaderboard_page(table: pd.DataFrame, records: Sequence[Record], metric: str) -> str:
    """Return the table as a page that sorts, filters, compares two experiments and plots an option, without network."""
    reports = {record.name: report_address(record) for record in records if (record.folder / REPORT_FILE).is_file()}
    rows = json.loads(table.to_json(orient="records", double_precision=10))
    data = {"metric": metric, "columns": list(table.columns), "rows": rows, "reports": reports}
    data["unplotted"] = UNPLOTTED  # options that change nothing of a result
    embedded = json.dumps(data).replace("<", "\\u003c")  # no text of an option can end the script
    title = metric.replace("_", " ")
    body = (
        f"<noscript>{page.table('', table.astype(str).iloc[:, :7])}</noscript>",
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
        "blue and thick the lowest, orange and thin the highest. Click one to tick it in the table.</p>"
        '<div id="parallel" class="card"></div></section>',
        f'<script type="application/json" id="data">{embedded}</script>',
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )
    return page.page("Leaderboard", f"{len(table)} experiments, lowest {title} first", body)
