"""Kill a preprocessing run at random moments and start it again: python benchmarks/kills.py --kills=100

Moments are drawn by what the run is at, not by the clock: most while it converts, some while it starts or writes its
tables. The dataset must end with the same bytes as an undisturbed run's. Prints a line for each kill; exit code 1
otherwise, with the files that differ.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
JOURNAL = ".converted.csv"
POLL_SECONDS = 0.002
PHASES = {"start": 0.1, "convert": 0.5, "tables": 0.2, "let it end": 0.2}


def contents(folder: Path) -> dict[str, bytes]:
    """What a dataset holds, but for the journal, whose order is that in which files were finished."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != JOURNAL)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def records(journal: Path) -> int:
    """How many images the journal knows of."""
    try:
        return max(0, journal.read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


@dataclass
class Run:
    """A preprocessing run under way."""

    process: subprocess.Popen[bytes]
    journal: Path

    def wait_for(self, count: int) -> bool:
        """Wait for so many records; whether they came before the end."""
        while records(self.journal) < count:
            if self.process.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait so long; whether the run goes on then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--studies", type=int, default=12, help="of the phantom that is converted")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        source, whole, killed = (Path(scratch) / name for name in ("phantom", "whole", "killed"))
        phantom = [f"--phantom_folder={source}", f"--phantom_studies={options.studies}", "--phantom_image_size=512"]
        subprocess.run([sys.executable, PROJECT / "rsna_phantom.py", *phantom], check=True, capture_output=True)

        def start(folder: Path) -> Run:
            command = [sys.executable, PROJECT / "preprocessing.py", f"--pre_source={source}", "--n_jobs=2"]
            command += [f"--data_input_folder={folder}", "--pre_max_failed=1"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            return Run(subprocess.Popen(command, **quiet), folder / "datasets/rsna" / JOURNAL)

        run, times = start(whole), [time.perf_counter()]
        run.wait_for(1)
        times.append(time.perf_counter())
        total = len(list(source.rglob("*.dcm")))
        run.wait_for(total)
        times.append(time.perf_counter())
        if run.process.wait() != 0:
            sys.exit("the undisturbed run failed")
        times.append(time.perf_counter())
        begin, work, tables = (after - before for before, after in itertools.pairwise(times))
        print(f"{total} files: {begin:.2f} s until the first record, {work:.2f} s until the last, {tables:.2f} s after")
        expected, kills, finished = contents(whole / "datasets"), dict.fromkeys(PHASES, 0), 0
        killed.mkdir()
        shutil.copy(whole / "pseudonyms.key", killed)
        while sum(kills.values()) < options.kills or finished == 0:
            run = start(killed)
            there = records(run.journal)
            phase = "let it end"
            if sum(kills.values()) < options.kills:
                phase = moments.choices([*PHASES], [*PHASES.values()])[0]
                phase = "tables" if phase == "convert" and there == total else phase
            if phase == "start":
                alive = run.wait(moments.uniform(0, begin))
            elif phase == "convert":
                target = moments.randint(there, total - 1)
                alive = run.wait_for(target) and run.wait(moments.uniform(0, work * 32 / total))
            elif phase == "tables":
                alive = run.wait_for(total) and run.wait(moments.uniform(0, begin * (there == total) + tables))
            else:
                run.process.wait()
                alive = False
            if alive:
                run.process.kill()
                run.process.wait()
                kills[phase] += 1
                print(f"kill {sum(kills.values())} ({phase}): {there} records before, {records(run.journal)} after")
                continue
            found = contents(killed / "datasets")
            differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            if run.process.returncode != 0 or differing:
                sys.exit(f"exit code {run.process.returncode} after {sum(kills.values())} kills; {differing=}")
            finished += 1
            shutil.rmtree(killed / "datasets")
    where = ", ".join(f"{count} in {phase}" for phase, count in kills.items() if count)
    print(f"{sum(kills.values())} kills ({where}), {finished} datasets finished with the bytes of an undisturbed run")


if __name__ == "__main__":
    main()
