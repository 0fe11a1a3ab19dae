"""The second level: gradient boosted trees over the networks' predictions of a slice and its neighbours.

The trees learn from out-of-fold predictions alone and are cross-validated over the same folds: the trees that predict
fold k saw no patient of it. No model is stored, since scikit-learn's own files are pickles. The members' CSVs, the
options and the seed give the same trees again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold

from common.cli.arguments import from_dict, to_dict
from common.errors import UsageError, UserError, WorkError
from common.evaluation.ensembling import align, clipped_logits
from common.evaluation.metrics import binary_log_losses, prevalences_of
from common.evaluation.statistics import member_table
from common.evaluation.texts import format_table
from common.experiments.folder import experiment_folder
from common.experiments.resume import read_options
from common.files import write_csv, write_json
from common.lineage import Provenance
from common.reports.record import write_value
from config import TrainConfig
from rsna.forms import check_submission, read_predictions, write_submission
from rsna.judging.evaluation import evaluate_predictions, write_evaluation
from rsna.judging.evaluation_text import describe
from rsna.judging.held_out import held_out_predictions, matching_predictions, refuse_gaps
from rsna.judging.options import SecondLevelConfig
from rsna.judging.put_together import put_together
from rsna.training.folds import Fold, read_folds
from rsna.training.lineage import learnt_from, overlap, overlap_lines, refuse_seen
from rsna.training.outcome import HOLDOUT_FILE, PREDICTION_FILES, Conclude, finished_folds
from rsna.training.provenance import write_provenance, written_provenance
from rsna_dataset import LABEL_WEIGHTS, LABELS, dataset_folder, known_groups, read_metadata
from rsna_network import pooled_metrics

LEVEL_ROW = "second level"
PARTS = 3  # of the cross-validation that chooses the number of trees


def second_level(config: SecondLevelConfig, typed: Sequence[str], conclude: Conclude) -> Path:
    """Fit the trees, judge them and write the experiment; print the scores and return the experiment's folder.

    Everything is computed before anything is written. Raises UsageError if a member is no finished cross-validation or
    has other folds. Raises WorkError if its files are of other images.
    """
    members = {name: experiment_folder(config.output_dir, name, "member") for name in config.members}
    options, folds = common_folds(members)
    dataset = dataset_folder(options.data_input_folder, options.data_dataset)
    metadata = read_metadata(dataset, described=True)
    labelled = pd.concat([fold.valid for fold in folds])
    refuse_gaps(labelled, f"{dataset}: its images")
    files = {name: folder / PREDICTION_FILES[0] for name, folder in members.items()}
    frames = {
        name: matching_predictions(read_predictions(file), labelled.index, str(file)) for name, file in files.items()
    }
    provenance = check_members(files, dataset, options.data_input_folder, labelled.index)
    known = neighbour_table(frames, metadata, labelled.index, config.level_neighbours)
    parts = {
        fold.number: fit_predict(config, known.drop(index=fold.valid.index), labelled, known.loc[fold.valid.index])
        for fold in folds
    }
    predictions = pd.concat([frame for frame, _ in parts.values()]).loc[labelled.index]
    submissions = {name: member / "submission.csv" for name, member in members.items()}
    submission = None
    if all(path.is_file() for path in submissions.values()):
        submission = predict_test(config, submissions, metadata, labelled, known)
    held = predict_held_out(config, members, dataset, metadata, labelled, known)
    written = to_dict(config) | {"data_input_folder": str(options.data_input_folder), "data_dataset": dataset.name}
    prevalences = prevalences_of(labelled[list(LABELS)])
    targets = labelled[list(LABELS)].to_numpy(np.float64)
    scored = {name: frame.loc[labelled.index].to_numpy() for name, frame in frames.items()}
    table = member_table(scored | {LEVEL_ROW: predictions.to_numpy()}, targets, LABELS, LABEL_WEIGHTS, prevalences)
    evaluation = evaluate_predictions(predictions, labelled, prevalences, config.level_draws, metadata)
    found = overlap(provenance, dataset, labelled.index)
    evaluation.document["lineage"] = found.document() | {"notes": overlap_lines(found)}
    with put_together(config.output_dir, config.experiment_id, written, typed, conclude) as folder:
        write_csv(folder / PREDICTION_FILES[0], predictions, index=True)
        write_provenance(folder / PREDICTION_FILES[0], provenance.beside(trees_provenance(dataset, folds, labelled)))
        if held is not None:
            write_csv(folder / HOLDOUT_FILE, held, index=True)
        if submission is not None:
            sample = next(iter(submissions.values()))
            write_submission(submission, sample, folder / "submission.csv")
            check_submission(folder / "submission.csv", sample)
        write_evaluation(evaluation, folder)
        write_json(
            folder / "second_level.json",
            {
                "members": {name: str(member / PREDICTION_FILES[0]) for name, member in members.items()},
                "images": len(known),
                "unknown_lineage": list(provenance.unknown),
                "trees": {str(number): counts for number, (_, counts) in parts.items()},
            },
        )
        write_value(folder, pooled_metrics(predictions, labelled))
    print("\n".join([f"{format_table(table)}\n\n{describe(evaluation)}", *overlap_lines(found), str(folder)]))
    return folder


def check_members(files: Mapping[str, Path], dataset: Path, input_folder: Path, ids: pd.Index) -> Provenance:
    """Return which networks made the members' predictions of ``ids``; UsageError if one learnt from these images."""
    parts = []
    for file in files.values():
        own, provenance = written_provenance(file, input_folder)
        parts.append(provenance.rows(own.get_indexer(ids)))
        found = overlap(parts[-1], dataset, ids)
        what = f"{dataset.name} that are learnt from"
        refuse_seen(found, str(file), what, "members must be out-of-fold predictions; cross-validate it anew")
    return reduce(Provenance.beside, parts)


def trees_provenance(dataset: Path, folds: Sequence[Fold], labelled: pd.DataFrame) -> Provenance:
    """Return the provenance of the trees: those that predict a fold learnt from the images of the other folds."""
    lineages = [learnt_from(dataset, labelled.index.difference(fold.valid.index)) for fold in folds]
    used = np.stack([labelled.index.isin(fold.valid.index) for fold in folds], axis=1)
    return Provenance(tuple(lineages), used)


def common_folds(members: Mapping[str, Path]) -> tuple[TrainConfig, list[Fold]]:
    """Return the first member's options and folds; UsageError if another member or the dataset now has other folds."""
    first = next(iter(members.values()))
    facts = {name: finished_folds(folder) for name, folder in members.items()}
    options = from_dict(TrainConfig, read_options(first), f"{first} (its configuration)")
    folds = read_folds(replace(options, cv_run=None))
    due = {fold.number: fold.hash for fold in folds}
    for name, found in facts.items():
        if {number: fact["hash"] for number, fact in found.items()} != due:
            raise UsageError(
                f"{members[name]}: its folds are not those of {first} and its dataset; members must be cross-validated "
                "over the same folds"
            )
    return options, folds


def neighbour_table(
    frames: Mapping[str, pd.DataFrame], metadata: pd.DataFrame, ids: pd.Index, reach: int
) -> pd.DataFrame:
    """Return the features, a row for each of ``ids``: logits of the slice and of its neighbours in the series.

    Columns: ``<member>/<label>/<offset>`` for offsets −reach..reach in order of position (NaN beyond the series' ends),
    ``position`` in the series (0..1) and the series' number of ``slices``. Example: ``cv1/any/+1`` is the next slice's.
    """
    rows = metadata.loc[ids, ["series_id", "slice_index"]].sort_values(["series_id", "slice_index"], kind="stable")
    series = rows["series_id"]
    columns: dict[str, pd.Series] = {}
    for member, frame in frames.items():
        logits = pd.DataFrame(clipped_logits(frame.loc[rows.index]), rows.index, list(LABELS))
        grouped = logits.groupby(series, sort=False)
        for offset in range(-reach, reach + 1):
            moved = grouped.shift(-offset)
            columns |= {f"{member}/{label}/{offset:+d}": moved[label] for label in LABELS}
    count = series.groupby(series, sort=False).transform("size")
    place = rows.groupby("series_id", sort=False).cumcount()
    columns |= {"position": place / (count - 1).clip(lower=1), "slices": count}
    return pd.DataFrame(columns, rows.index).loc[ids]


def fit_predict(
    config: SecondLevelConfig, known: pd.DataFrame, labels: pd.DataFrame, asked: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Fit trees to the features ``known``; return probabilities of ``asked``, and each label's number of trees.

    ``labels`` has a row for each of ``known``, with its patient. A cross-validation over patients chooses the number of
    trees of each label. It is 0 if the members' mean logit predicts better; then the mean is the prediction.
    """
    rows = labels.loc[known.index]
    patients = known_groups(rows)
    found, counts = {}, {}
    for label in LABELS:
        truth = rows[label].to_numpy()
        counts[label] = count_trees(config, known, truth, patients, label)
        if counts[label]:
            model = build_trees(config, counts[label]).fit(known.to_numpy(), truth)
            found[label] = model.predict_proba(asked.to_numpy())[:, 1]
        else:
            found[label] = expit(mean_logit(asked, label))
    return pd.DataFrame(found, index=asked.index.rename("id"))[list(LABELS)], counts


def count_trees(
    config: SecondLevelConfig, known: pd.DataFrame, truth: np.ndarray, patients: np.ndarray, label: str
) -> int:
    """Choose the number of trees by cross-validation over patients; 0: the members' mean logit is better."""
    parts = min(PARTS, len(np.unique(patients)))
    total = np.zeros(1 + config.level_trees)
    values = known.to_numpy()
    for fitted, held in GroupKFold(parts).split(values, groups=patients) if parts > 1 else ():
        if truth[fitted].min() == truth[fitted].max():
            return 0
        model = build_trees(config, config.level_trees).fit(values[fitted], truth[fitted])
        stages = (stage[:, 1] for stage in model.staged_predict_proba(values[held]))
        predicted = itertools.chain([expit(mean_logit(known.iloc[held], label))], stages)
        total += [binary_log_losses(stage, truth[held]).sum() for stage in predicted]
    return int(np.argmin(total))


def build_trees(config: SecondLevelConfig, count: int) -> HistGradientBoostingClassifier:
    """Return an unfitted model of ``count`` trees."""
    return HistGradientBoostingClassifier(
        learning_rate=config.level_rate,
        max_iter=count,
        max_leaf_nodes=config.level_leaves,
        min_samples_leaf=config.level_leaf_images,
        l2_regularization=config.level_l2,
        early_stopping=False,
        random_state=config.seed,
    )


def mean_logit(known: pd.DataFrame, label: str) -> np.ndarray:
    """Return the mean of the members' logits of each slice, without its neighbours."""
    return known[[name for name in known.columns if name.endswith(f"/{label}/+0")]].to_numpy().mean(axis=1)


def predict_held_out(
    config: SecondLevelConfig,
    members: Mapping[str, Path],
    dataset: Path,
    metadata: pd.DataFrame,
    labels: pd.DataFrame,
    known: pd.DataFrame,
) -> pd.DataFrame | None:
    """Predict the images in no fold in the way of the test images; None if a member has no predictions of them."""
    try:
        held = held_out_predictions(dataset, members)
    except UserError:
        return None
    asked = neighbour_table(held.predictions, metadata, held.rows.index, config.level_neighbours)
    return fit_predict(config, known, labels, asked)[0]


def predict_test(
    config: SecondLevelConfig,
    submissions: Mapping[str, Path],
    metadata: pd.DataFrame,
    labels: pd.DataFrame,
    known: pd.DataFrame,
) -> pd.DataFrame:
    """Predict the test images by trees fitted to all out-of-fold predictions.

    Images without a picture get the members' mean logit. Raises WorkError if the members' submissions cover different
    images, or none of the dataset's.
    """
    paths = {str(path): name for name, path in submissions.items()}
    aligned = align({path: read_predictions(Path(path)) for path in paths})
    frames = {paths[path]: frame for path, frame in aligned.items()}
    first = next(iter(frames.values()))
    mean = np.mean([clipped_logits(frame) for frame in frames.values()], axis=0)
    result = pd.DataFrame(expit(mean), first.index, list(LABELS))
    pictured = first.index.intersection(metadata.index, sort=False)
    if pictured.empty:
        raise WorkError(
            f"{next(iter(paths))}: predicts no image of the members' dataset; python predict.py --net_weight_file="
            f"{next(iter(submissions.values())).parent} predicts its test images"
        )
    asked = neighbour_table(frames, metadata, pictured, config.level_neighbours)
    result.loc[pictured] = fit_predict(config, known, labels, asked)[0].to_numpy()
    return result
