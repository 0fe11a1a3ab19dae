"""What labels of studies alone teach: python benchmarks/study_labels.py DATASET FOLDER [--seeds=1] [--iterations=400].

DATASET is a preprocessed dataset with labels of slices, such as a phantom's: input/datasets/phantom. Two copies of it
with small pictures (--size=64) are made in FOLDER. In the one slices keep their labels. In the other each study has
its own alone: 1 where a slice has 1. The same network over whole series (--net_kind=study) learns from each, from the
same random weights. Both are judged by the labels of slices on the studies of two folds (--valid_folds=2):

- AUROC of ``any`` by study,
- the mean AUROC of ``any`` by slice within positive studies. A copy of the study's probability scores 0.5 there.

Trainings that are there are not done again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))
MODEL = ["--net_model=resnet10t", "--tr_report=0", "--n_jobs=1"]
SERIES = ["--net_kind=study", "--seq_width=32", "--seq_layers=1", "--tr_batch_size=4", "--optim_lr=0.001"]
ARMS = {  # dataset, options
    "slices": ("slices", ["--seq_study=noisy_or"]),
    "noisy_or": ("studies", ["--seq_study=noisy_or", "--seq_study_weight=1"]),
    "max": ("studies", ["--seq_study=max", "--seq_study_weight=1"]),
    "learned": ("studies", ["--seq_study=learned", "--seq_study_weight=1"]),
}


def make_datasets(source: Path, folder: Path, size: int, valid_folds: int) -> None:
    """Write the datasets ``slices`` and ``studies`` to ``folder``; their fold validates on several of the source's."""
    from rsna_dataset import LABELS, STUDY_LABELS

    name = source.name
    info = json.loads((source / "dataset.json").read_text())
    metadata = pd.read_csv(source / "metadata.csv", dtype={"id": str}, keep_default_na=False)
    metadata = metadata[metadata["split"] == "train"]
    folds = [pd.read_csv(source / f"dataset_{name}_fold_{fold}.csv", dtype={"id": str}) for fold in range(valid_folds)]
    valid = set().union(*(fold.loc[fold["sample_type"] == "valid", "id"] for fold in folds))
    fold = folds[0].assign(sample_type=np.where(folds[0]["id"].isin(valid), "valid", "train"))
    for dataset in ("slices", "studies"):
        target = folder / "datasets" / dataset
        (target / "images").mkdir(parents=True)
        for table, file in ((metadata, "metadata.csv"), (fold, f"dataset_{dataset}_fold_0.csv")):
            written = table
            if dataset == "studies":
                highest = table[list(LABELS)].astype(float).groupby(table["study_id"].to_numpy()).transform("max")
                written = table.assign(**{name: highest[name].where(highest[name] == 0) for name in LABELS})
                written = written.assign(
                    **dict(zip(STUDY_LABELS, highest.to_numpy().T, strict=True)), label_level="study"
                )
            written.to_csv(target / file, index=False)
        whole = info | {"missing_labels": int(dataset == "studies"), "hash": dataset}
        (target / "dataset.json").write_text(json.dumps(whole))
        for image_id in metadata["id"]:
            path = target / "images" / f"{image_id}.npy"
            if dataset == "studies":
                path.symlink_to(folder / "datasets" / "slices" / "images" / path.name)
                continue
            image = np.load(source / "images" / path.name)
            step = max(image.shape[0] // size, 1)
            rows, columns = (side // step * step for side in image.shape)
            blocks = image[:rows, :columns].reshape(rows // step, step, columns // step, step)
            np.save(path, blocks.mean(axis=(1, 3)).round().astype(np.int16))


def train(folder: Path, dataset: str, name: str, *flags: str) -> Path:
    """Train the experiment ``name`` if it isn't there; return its folder."""
    result = folder / "results" / name
    if not (result / "status.json").is_file() or '"finished"' not in (result / "status.json").read_text():
        shutil.rmtree(result, ignore_errors=True)
        place = [f"--data_input_folder={folder}", f"--data_dataset={dataset}", f"--output_dir={folder / 'results'}"]
        command = [sys.executable, "train.py", *place, *MODEL, *flags, f"--experiment_id={name}"]
        subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return result


def judge(result: Path, folder: Path) -> tuple[float, float, int, int]:
    """Return both AUROCs of ``any``, and the numbers of studies and of positive ones that have both sorts of slices."""
    truth = pd.read_csv(folder / "datasets" / "slices" / "dataset_slices_fold_0.csv", index_col="id")
    slices = pd.read_csv(result / "predictions_valid.csv", index_col="id")["any"]
    studies = pd.read_csv(result / "predictions_valid_studies.csv", index_col="study_id")["any"]
    truth = truth.loc[slices.index].assign(score=slices)
    label = truth.groupby("study_id")["any"].max()
    mixed = [rows for _, rows in truth.groupby("study_id") if rows["any"].nunique() == 2]
    within = [roc_auc_score(rows["any"], rows["score"]) for rows in mixed]
    return roc_auc_score(label, studies.loc[label.index]), float(np.mean(within)), len(label), len(within)


def main() -> None:
    """Make the data, train, judge and print."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path)
    for name, default in (("seeds", 1), ("iterations", 400), ("size", 64), ("valid_folds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--arms", default=",".join(ARMS))
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not (folder / "datasets").is_dir():
        make_datasets(options.dataset, folder, options.size, options.valid_folds)
    seen = [f"--data_image_size={options.size}"]
    # Random weights whose batch norms know the pictures: the rate is next to nothing, and no label moves anything.
    still = ["--optim_lr=1e-12", "--optim_weight_decay=0", "--net_head_init=random", "--tr_batch_size=16"]
    start = train(folder, "slices", "start", *seen, *still, "--tr_iteration_num=60", "--tr_iteration_valid=60")
    length = [f"--tr_iteration_num={options.iterations}", f"--tr_iteration_valid={max(options.iterations // 8, 1)}"]
    for arm in options.arms.split(","):
        dataset, own = ARMS[arm]
        for seed in range(options.seeds):
            flags = [*seen, *SERIES, *own, *length, f"--net_weight_file={start / 'best.pt'}", f"--seed={seed}"]
            study, within, studies, positive = judge(train(folder, dataset, f"{arm}_{seed}", *flags), folder)
            print(f"{arm:9} seed {seed}: any by study AUROC {study:.3f} ({studies} studies), within positive studies "
                  f"{within:.3f} ({positive} studies)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
