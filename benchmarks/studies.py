"""How long predict.py takes for a study: python benchmarks/studies.py [slices] [size] [--repeats=5] [weight file].

Makes a phantom of studies of so many slices (40 of 512 x 512) in a scratch folder and predicts one of them, again and
again, each time in a new process, as a user would. Without a weight file the demo model is trained for two iterations;
times don't depend on what it learnt. Prints medians in seconds.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def run(*arguments: str) -> None:
    """Run a script of the project; an error ends the benchmark."""
    subprocess.run([sys.executable, *arguments], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)


def main(argv: list[str]) -> None:
    """Measure and print."""
    repeats = next((int(text.partition("=")[2]) for text in argv if text.startswith("--repeats=")), 5)
    plain = [text for text in argv if not text.startswith("--")]
    slices, size = (int(plain[place]) if len(plain) > place else default for place, default in ((0, 40), (1, 512)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        flags = [f"--phantom_slices={slices}", f"--phantom_image_size={size}", "--phantom_studies=10"]
        run("rsna_phantom.py", f"--phantom_folder={folder / 'input' / 'phantom'}", *flags)
        location = [f"--data_input_folder={folder / 'input'}", "--data_dataset=phantom"]
        weights = Path(plain[2]) if len(plain) > 2 else None
        if weights is None:
            source = f"--pre_source={folder / 'input' / 'phantom'}"
            run("preprocessing.py", *location, source, "--pre_folds=2")
            training = ["--tr_iteration_num=2", "--tr_iteration_valid=2", "--tr_report=0", "--experiment_id=demo"]
            run("train.py", *location, *training, "--dev_enabled=1", f"--output_dir={folder / 'results'}")
            weights = folder / "results" / "demo" / "best.pt"
        study = one_study(folder / "input" / "phantom", folder / "study")
        found: dict[str, list[float]] = {}
        for number in range(repeats):
            output = folder / f"out{number}"
            started = time.perf_counter()
            run("predict.py", f"--source={study}", f"--net_weight_file={weights}", f"--predict_output={output}",
                f"--data_input_folder={folder / 'input'}")  # fmt: skip
            whole = time.perf_counter() - started
            (result,) = json.loads((output / "predictions.json").read_text())["studies"]
            for name, value in {**result["seconds"], "whole command": whole}.items():
                found.setdefault(name, []).append(value)
            print(f"{number + 1}: {len(result['slices'])} slices, {whole:.1f} s", flush=True)
        for name, values in found.items():
            print(f"{name:15} {statistics.median(values):6.2f} s (from {min(values):.2f} to {max(values):.2f})")


def one_study(phantom: Path, target: Path) -> Path:
    """Copy the files of the phantom's first test study to a folder."""
    import pandas as pd

    truth = pd.read_csv(phantom / "phantom_truth.csv")
    tests = truth[truth["split"] == "test"]
    target.mkdir()
    for image_id in tests.loc[tests["study_id"] == tests["study_id"].iloc[0], "id"]:
        file = phantom / "stage_2_test" / f"{image_id}.dcm"
        if file.is_file():
            shutil.copy(file, target)
    return target


if __name__ == "__main__":
    main(sys.argv[1:])
