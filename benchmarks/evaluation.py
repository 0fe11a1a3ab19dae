"""Time and memory of an evaluation as large as the competition's: python benchmarks/evaluation.py [images] [patients].

Made-up predictions with about the published prevalences. Prints processor seconds for the sums (log loss, Brier) with
10,000 draws, for all metrics with 2,000 draws, and for all that evaluate.py makes of them (studies, operating points,
calibration, decision curves), and how far the binned AUROC and average precision are from scikit-learn's.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PREVALENCES = (0.0041, 0.0480, 0.0348, 0.0473, 0.0627, 0.1434)


def main(images: int, patients: int) -> None:
    """Print the measurements."""
    import numpy as np
    import pandas as pd

    from common.evaluation.metrics import binary_log_losses
    from common.evaluation.reader import ReaderStudy
    from common.evaluation.resampling import PatientBootstrap, mean_interval
    from rsna.judging.evaluation import evaluate_predictions
    from rsna_dataset import LABEL_WEIGHTS, LABELS

    random = np.random.default_rng(0)
    targets = (random.random((images, len(LABELS))) < PREVALENCES).astype(np.float64)
    predictions = 1 / (1 + np.exp(4 - 4 * targets - random.normal(size=targets.shape)))
    owners = random.integers(0, patients, images)

    start = time.process_time()
    bootstrap = PatientBootstrap(owners, 10_000)
    losses = binary_log_losses(predictions, targets)
    columns = np.column_stack([np.ones(images), losses, (predictions - targets) ** 2])
    totals = bootstrap.totals(bootstrap.by_patient(columns))
    assert totals.shape == (10_000, 13)
    low, high, _ = mean_interval(bootstrap, losses[:, -1], targets[:, -1] == 1, "log")
    print(f"{images} images, {patients} patients")
    print(
        f"log loss and Brier of each label, 10,000 draws: {time.process_time() - start:.1f} s "
        f"(log loss of any {low:.5f} to {high:.5f})"
    )

    start = time.process_time()
    study = ReaderStudy(predictions, targets, PatientBootstrap(owners, 2_000), LABELS, LABEL_WEIGHTS)
    print(f"all metrics, 2,000 draws: {time.process_time() - start:.1f} s")
    errors = ", ".join(f"{name} {error:.1g}" for name, error in study.binning_errors().items() if error)
    print(f"largest error of the binned values: {errors}")
    del study, bootstrap, totals, columns
    ids = pd.Index([f"ID_{number:09x}" for number in range(images)], name="id")
    rows = pd.DataFrame(targets.astype(np.int8), columns=list(LABELS), index=ids)
    names = np.char.add("patient_", owners.astype(str))
    rows = rows.assign(patient_id=names, study_id=names, group_id=names)
    frame = pd.DataFrame(predictions, columns=list(LABELS), index=ids)
    start = time.process_time()
    evaluate_predictions(frame, rows, targets.mean(axis=0), 2_000)
    print(f"all that evaluate.py makes of them, 2,000 draws: {time.process_time() - start:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    main(*(given + [752_803, 17_079][len(given) :]))
