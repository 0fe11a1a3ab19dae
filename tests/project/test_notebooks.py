"""notebooks/: each runs from top to bottom on a phantom, and none holds outputs or a path of somebody's machine."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from tests import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
SHOWS = {  # what kind of output tells that the notebook shows something
    "1_data.ipynb": "image/png",
    "2_transforms.ipynb": "image/png",
    "3_experiment.ipynb": "text/html",
    "4_compare.ipynb": "text/html",
    "5_study.ipynb": "application/vnd.jupyter.widget-view+json",
}
SMALL = [
    "--net_model=resnet10t",
    "--data_image_size=32",
    "--tr_batch_size=8",
    "--tr_iteration_num=4",
    "--tr_iteration_valid=4",
    "--tr_report=0",
    "--n_jobs=1",
]


def test_there_are_five_notebooks_and_the_readme_tells_of_each() -> None:
    readme = (NOTEBOOKS[0].parent / "README.md").read_text()
    assert len(NOTEBOOKS) == 5
    assert all(path.name in readme for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped_and_no_cell_names_a_path_of_a_machine(path: Path) -> None:
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "".join("".join(cell["source"]) for cell in book["cells"])
    assert not re.search(r"(?<![\w.])/(home|Users|root|work|tmp|mnt|data)/|[A-Z]:\\", text)


IMPORT = re.compile(r"from ((?:common|rsna|config)[\w.]*) import (\([^)]*\)|[\w, ]+)")
TEXTS = [
    path for pattern in ("notebooks/*.ipynb", "*.sh", "docs/*.md", "tests/**/*.py") for path in PROJECT.glob(pattern)
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_what_a_text_imports_of_the_project_is_there(path: Path) -> None:
    """Also in a notebook's cell, and in the text of a script that a test writes."""
    for module, names in IMPORT.findall(path.read_text()):
        found = importlib.import_module(module)
        for name in re.findall(r"(\w+)(?: as \w+)?", names.replace("\\n", " ")):
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"


FIRST_CELLS = """
import contextlib, io, json, sys
from IPython.core.interactiveshell import InteractiveShell
for path in sys.argv[1:]:
    shell = InteractiveShell()
    with open(path) as file:
        (first, *_) = [cell["source"] for cell in json.load(file)["cells"] if cell["cell_type"] == "code"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        shell.run_cell("".join(first))
    print(json.dumps([line for line in shown.getvalue().splitlines() if line.strip()]))
"""


@pytest.mark.slow
def test_in_a_clean_clone_a_notebook_says_in_one_line_what_to_run_first(tmp_path: Path) -> None:
    (tmp_path / "results" / "1").mkdir(parents=True)  # an experiment that has just begun
    places = {"DATASET": tmp_path / "no", "EXPERIMENT": tmp_path / "results" / "1", "RESULTS": tmp_path / "results"}
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}, "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", FIRST_CELLS, *map(str, NOTEBOOKS)]
    result = subprocess.run(
        command, env=environment, cwd=NOTEBOOKS[0].parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(shown) == len(NOTEBOOKS)
    for lines, variable in zip(shown, ("DATASET", "DATASET", "EXPERIMENT", "RESULTS", "EXPERIMENT"), strict=True):
        (line,) = lines
        assert line.startswith(f"error: {places[variable]}: has no ")
        assert line.endswith(f"yet; run first: bash train.sh (or name another by {variable}=...)")


@pytest.fixture(scope="module")
def results(small_dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for rate in ("1e-3", "1e-2"):
        train.main([*small_dataset.flags, *SMALL, f"--output_dir={folder}", f"--optim_lr={rate}"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(path: Path, small_dataset, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="nbclient is not installed (requirements-dev.txt)")
    code = (
        "import sys, nbformat\n"
        "from nbclient import NotebookClient\n"
        "book = nbformat.read(sys.argv[1], as_version=4)\n"
        "NotebookClient(book, timeout=300, resources={'metadata': {'path': sys.argv[2]}}).execute()\n"
        "outputs = [output for cell in book.cells for output in cell.get('outputs', ())]\n"
        "print(sorted({kind for output in outputs for kind in output.get('data', ())}))\n"
    )
    dataset = tmp_path / "phantom"  # a copy: an audit is written into it
    shutil.copytree(small_dataset.folder, dataset)
    places = {"DATASET": dataset, "EXPERIMENT": results / "1", "RESULTS": results}
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
    command = [sys.executable, "-c", code, str(path), str(path.parent)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert SHOWS[path.name] in result.stdout
