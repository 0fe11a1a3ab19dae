"""What docs/ tells of clusters, several machines and dashboards runs on one machine.

``srun`` and ``scontrol`` are stand-ins of a few lines, SLURM's variables are set by hand, and two nodes are two
processes of this machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from common.trackers.jsonl import read_metrics
from tests import PROJECT
from tests.conftest import SmallDataset
from tests.run_driver import free_port

BLOCKS = [
    block
    for name in ("training.md", "sweeps.md")
    for block in re.findall(r"^```bash\n(.*?)^```", (PROJECT / "docs" / name).read_text(encoding="utf-8"), re.M | re.S)
]
KEY = "valid/weighted_log_loss"
TINY = (
    "--data_dataset=phantom --net_model=test_convnext --data_image_size=32 --tr_batch_size=4 --tr_iteration_num=4 "
    "--tr_iteration_valid=2 --tr_report=0 --n_jobs=1"
)
STAND_INS = {
    "srun": """#!/bin/bash
# one task on each node; its exit code is the highest
[ -z "$STAND_IN_CODE" ] || exit "$STAND_IN_CODE"
for node in $(seq "${SLURM_JOB_NUM_NODES:-1}"); do "$@" & tasks+=($!); done
worst=0
for task in "${tasks[@]}"; do wait "$task" || worst=$(($? > worst ? $? : worst)); done
exit $worst
""",
    "scontrol": """#!/bin/bash
case $1 in
show) echo 127.0.0.1 ;;
requeue) echo "$2" >>requeued.txt ;;
esac
""",
    "hostname": "#!/bin/bash\necho 127.0.0.1\n",
}


class Site:
    """A folder in which a page's blocks run as in a checkout, with its own input and output."""

    def __init__(self, folder: Path, dataset: SmallDataset) -> None:
        self.folder = folder
        names = [path.name for pattern in ("*.py", "*.sh", "requirements*.txt") for path in PROJECT.glob(pattern)]
        for name in (*names, "constraints.txt", "common", "transforms", "experiments", ".venv"):
            (folder / name).symlink_to(PROJECT / name)
        (folder / "input" / "datasets").mkdir(parents=True)
        for path in dataset.source.iterdir():
            (folder / "input" / path.name).symlink_to(path)
        (folder / "input" / "datasets" / "phantom").symlink_to(dataset.folder)
        (folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    @property
    def results(self) -> Path:
        return self.folder / "output" / "results"

    @property
    def requeued(self) -> list[str]:
        path = self.folder / "requeued.txt"
        return path.read_text().split() if path.exists() else []

    def start(self, part: str, *changes: tuple[str, str], tiny: str = TINY, **variables: str) -> subprocess.Popen[str]:
        """Start the block that has this part; ``…`` stands for flags, and what needs another machine is replaced."""
        (block,) = [block for block in BLOCKS if part in block]
        for before, after in (*changes, *([("…", tiny)] if "…" in block else [])):
            assert before in block
            block = block.replace(before, after)
        script = self.folder / f"block_{time.monotonic_ns()}.sh"
        script.write_text(block)
        path = os.pathsep.join([str(self.folder / "bin"), str(self.folder / ".venv" / "bin"), os.environ["PATH"]])
        return subprocess.Popen(
            ["bash", str(script)],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "STAND_IN_CODE": ""} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


@pytest.fixture
def site(tmp_path: Path, small_dataset: SmallDataset) -> Site:
    return Site(tmp_path, small_dataset)


def points(folder: Path) -> int:
    return len((folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_one_machine_with_several_processes(site: Site) -> None:
    ended(site.start("torchrun --nproc_per_node=8", ("=8", "=2")))
    assert (site.results / "1" / "best.pt").is_file()


@pytest.mark.slow
def test_several_machines(site: Site) -> None:
    here = (("--nproc_per_node=8", "--nproc_per_node=1"), ("node0:29400", f"127.0.0.1:{free_port()}"))
    first, second = (site.start("--rdzv_id=run1", *here) for _ in range(2))
    outputs = ended(first) + ended(second)
    assert "in each of 2 processes" in outputs
    assert [path.name for path in site.results.iterdir() if path.is_dir()] == ["1"]


@pytest.mark.slow
def test_a_slurm_job_of_two_nodes_trains_and_goes_on_and_is_requeued_until_it_is_finished(site: Site) -> None:
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": "7"}
    changes = (
        ("--nproc_per_node=8", "--nproc_per_node=1"),
        (":29400", f":{free_port()}"),
        ("--net_model=resnet50 --tr_batch_size=64 ", ""),
    )
    part = '--rdzv_id="$SLURM_JOB_ID"'
    ended(site.start(part, *changes, **variables, STAND_IN_CODE="1"))  # no node: nothing was trained
    assert site.requeued == ["7"]
    output = ended(site.start(part, *changes, **variables))
    assert "in each of 2 processes" in output
    assert points(site.results / "resnet50") >= 2
    assert site.requeued == ["7"]
    longer = TINY.replace("--tr_iteration_num=4", "--tr_iteration_num=6")
    resumed = longer.replace("--data_dataset=phantom ", "")
    ended(site.start(part, *changes, tiny=resumed, **variables))
    assert json.loads((site.results / "resnet50" / "environment.json").read_text())["resumed"][0]["iteration"] == 4


@pytest.mark.slow
def test_an_array_cross_validates(site: Site) -> None:
    part = "--cv_run="
    folds = ("--data_fold=all", "--data_fold=0,1")
    ids = {"SLURM_ARRAY_JOB_ID": "8"}
    for fold in ("0", "1"):
        assert not (site.results / "cv1" / "cross_validation.json").exists()
        ended(site.start(part, folds, SLURM_ARRAY_TASK_ID=fold, **ids))
    assert len(json.loads((site.results / "cv1" / "cross_validation.json").read_text())["folds"]) == 2
    assert site.requeued == []
    ended(site.start(part, folds, SLURM_ARRAY_TASK_ID="1", **ids, STAND_IN_CODE="75"))
    assert site.requeued == ["8_1"]


@pytest.mark.slow
def test_an_array_runs_the_lines_of_a_sweep(site: Site) -> None:
    names = ("one", "two")
    (site.folder / "mine.txt").write_text("".join(f"--experiment_id={name} {TINY}\n" for name in names))
    ended(site.start('sweep.py --lines="$line"', SLURM_ARRAY_TASK_ID="2"))
    assert [path.name for path in site.results.iterdir() if path.is_dir()] == ["two"]
    assert (site.results / "two" / "evaluation.csv").is_file()
    assert (site.results / "two" / "submission.csv").is_file()
    assert site.requeued == []


@pytest.mark.slow
def test_dask_workers_of_several_nodes_preprocess(site: Site) -> None:
    pytest.importorskip("distributed")
    port = str(free_port())
    changes = (("8786", port), ("--pre_scheduler", "--n_jobs=1 --pre_scheduler"))
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1"}
    output = ended(site.start("dask scheduler", *changes, tiny="--data_dataset=rsna", **variables))
    assert (site.folder / "input" / "datasets" / "rsna" / "dataset.json").is_file(), output
    same = [
        pd.read_csv(site.folder / f"input/datasets/{name}/metadata.csv", index_col="id") for name in ("rsna", "phantom")
    ]
    pd.testing.assert_frame_equal(*same)


def waited(true: Callable[[], object], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_jobs_write_to_one_dashboard(site: Site) -> None:
    pytest.importorskip("trackio")
    port, said = str(free_port()), site.folder / "said.txt"
    site.results.mkdir(parents=True)
    shown = site.start(
        "--host 0.0.0.0", ("7860", port), ("0.0.0.0", f"127.0.0.1 >{said}"), BROWSER="true", PYTHONUNBUFFERED="1"
    )
    try:
        waited(lambda: said.exists() and "write_token=" in said.read_text())
        token = re.search(r"write_token=([\w-]+)", said.read_text()).group(1)
        address = ("node0:7860?write_token=…", f"127.0.0.1:{port}?write_token={token}")
        ended(
            site.start("TRACKIO_SERVER_URL", address, tiny=f"{TINY} --experiment_id=job --output_dir=elsewhere/group")
        )
        with closing(sqlite3.connect(site.results / ".trackio" / "group.db")) as database:
            rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
        logged = read_metrics(site.folder / "elsewhere" / "group" / "job" / "metrics.jsonl")
        due = {point["iteration"]: point[KEY] for point in logged if KEY in point}
        found = {step: json.loads(values)[KEY] for name, step, values in rows if KEY in json.loads(values)}
        assert found == due
        assert {name for name, *_ in rows} == {"job"}
    finally:
        os.killpg(shown.pid, signal.SIGTERM)  # the shell and the dashboard
        shown.communicate(timeout=60)  # ends only when neither is left
