"""Kill a preprocessing run at random moments and start it again: python benchmarks/kills.py --kills=100

The dataset must end with the same bytes as an undisturbed run's. Prints a line for each kill; exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
JOURNAL = ".converted.csv"


def contents(folder: Path) -> dict[str, bytes]:
    """What a dataset holds, but for the journal, whose order is that in which files were finished."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != JOURNAL)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--studies", type=int, default=20, help="of the phantom that is converted")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        source, whole, killed = (Path(scratch) / name for name in ("phantom", "whole", "killed"))
        phantom = [f"--phantom_folder={source}", f"--phantom_studies={options.studies}", "--phantom_image_size=128"]
        subprocess.run([sys.executable, PROJECT / "rsna_phantom.py", *phantom], check=True, capture_output=True)
        command = [sys.executable, PROJECT / "preprocessing.py", f"--pre_source={source}", "--n_jobs=2"]
        start = time.perf_counter()
        subprocess.run([*command, f"--data_input_folder={whole}"], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        expected, kills, finished, journal = contents(whole / "datasets"), 0, 0, killed / "datasets/rsna" / JOURNAL
        killed.mkdir()
        shutil.copy(whole / "pseudonyms.key", killed)
        while kills < options.kills or finished == 0:
            # Over a whole run's time at first, then nearer to the start, where a run that goes on does its work.
            process = subprocess.Popen(
                [*command, f"--data_input_folder={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            try:
                limit = moments.uniform(0, seconds) if kills < options.kills else None
                process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                done = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
                print(f"kill {kills} after {limit:.2f} s: {max(done, 0)} records", flush=True)
                continue
            if process.returncode != 0 or contents(killed / "datasets") != expected:
                sys.exit(f"after {kills} kills: exit code {process.returncode}, or another dataset than undisturbed")
            finished += 1
            shutil.rmtree(killed / "datasets")
    print(f"{kills} kills, {finished} finished datasets, each with the bytes of an undisturbed run ({seconds:.1f} s)")


if __name__ == "__main__":
    main()
