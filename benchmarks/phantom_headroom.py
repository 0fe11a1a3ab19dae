"""How much a slice's neighbours add to a network that sees one slice at a time, on a phantom of difficulty `real`.

python benchmarks/phantom_headroom.py [folder] [studies] [iterations]

Makes the phantom and trains a ResNet-18 at 128 x 128 (about ten minutes on two cores with the defaults), then scores on
the validation fold, by the weighted log loss: the constant predictor; the network; the network with its predictions for
the neighbouring slices; the network with the neighbours' true labels, which is the floor that neighbours allow. The
last two are boosted trees over the network's logits, fitted and scored by cross-validation over patients. What the
folder (default: a temporary one) already holds is used again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NEIGHBOURS = (-2, -1, 1, 2)
PATIENT_FOLDS = 10


def main(folder: Path, studies: int, iterations: int) -> None:
    """Make what is missing in ``folder``, then print the four scores."""
    import numpy as np
    import pandas as pd

    import evaluate
    import preprocessing
    import rsna_phantom
    import train
    from rsna_dataset import LABELS, dataset_folder, read_fold, read_metadata

    source, results = folder / "phantom", folder / "results"
    data = [f"--data_input_folder={folder}", "--data_dataset=real"]
    rsna_phantom.main([f"--phantom_folder={source}", f"--phantom_studies={studies}", "--phantom_only_if_missing=1"])
    preprocessing.main([*data, f"--pre_source={source}", "--pre_size=128"])
    if not (results / "1" / "predictions_valid.csv").exists():
        budget = [f"--tr_iteration_num={iterations}", f"--tr_iteration_valid={max(1, iterations // 6)}"]
        model = ["--net_model=resnet18", "--data_image_size=128", "--tr_batch_size=32"]
        train.main([*data, *budget, *model, f"--output_dir={results}"])
    scores = evaluate.main(["--experiment_id=1", f"--output_dir={results}"])

    rows = read_fold(dataset_folder(folder, "real"), "real", 0)
    predicted = pd.read_csv(results / "1" / "predictions_valid.csv", index_col="id")
    metadata = read_metadata(dataset_folder(folder, "real")).loc[predicted.index]
    clipped = predicted[list(LABELS)].clip(1e-7, 1 - 1e-7)
    table = np.log(clipped / (1 - clipped)).assign(series=metadata["series_id"], place=metadata["slice_index"])
    labels, patients = rows.loc[predicted.index, list(LABELS)], metadata["group_id"]
    network, constant = scores.loc["weighted", ["log_loss", "constant_log_loss"]]
    lines = {"constant predictor": constant, "ResNet-18, one slice": network}
    lines["+ neighbours' predictions"] = second_level(table, labels, patients, table)
    lines["+ neighbours' true labels"] = second_level(table, labels, patients, labels)
    print()
    for name, value in lines.items():
        print(f"{name:28} {value:.4f}  ({value / network:.2f} of the network's)")


def second_level(table: pd.DataFrame, labels: pd.DataFrame, patients: pd.Series, known: pd.DataFrame) -> float:
    """Score boosted trees over a slice's logits and its neighbours' values in ``known``; rows are images everywhere."""
    import numpy as np
    import pandas as pd
    from scipy.special import expit
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold

    from common.evaluation.metrics import WeightedLogLoss
    from rsna_dataset import LABEL_WEIGHTS, LABELS

    names = list(LABELS)
    by_place = known[names].set_index(pd.MultiIndex.from_frame(table[["series", "place"]]))
    parts = [table[names].to_numpy()]
    for offset in NEIGHBOURS:
        keys = pd.MultiIndex.from_arrays([table["series"], table["place"] + offset])
        parts.append(by_place.reindex(keys).to_numpy())
    features = np.hstack(parts)
    probabilities = np.empty((len(table), len(names)))
    for column, name in enumerate(names):
        labelled = labels[name].to_numpy()
        for train, test in GroupKFold(PATIENT_FOLDS).split(features, groups=patients):
            if labelled[train].min() == labelled[train].max():  # a rare label of one patient: the network's word stays
                probabilities[test, column] = expit(table[name].to_numpy()[test])
                continue
            model = HistGradientBoostingClassifier(
                max_iter=60, learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=30
            )
            probabilities[test, column] = model.fit(features[train], labelled[train]).predict_proba(features[test])[
                :, 1
            ]
    metric = WeightedLogLoss(names, LABEL_WEIGHTS)
    metric.update(probabilities, labels.to_numpy(), list(table.index))
    return metric.compute()["weighted_log_loss"]


if __name__ == "__main__":
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(given[0] if given else temporary), int((given[1:] or [200])[0]), int((given[2:] or [600])[0]))
