"""Tries to judge networks by what they learnt from, each time in another way, and says what came of it.

    python benchmarks/leaks.py [--folder=FOLDER]

An attempt is refused (an error before anything is written), its images are left out and counted, or, where nobody can
know, the result says so. The command makes a small phantom, a cross-validation and its features first (some minutes
on one core), prints a row for each attempt and ends with exit code 1 where one got through.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REFUSED, LEFT_OUT, SAID = "refused", "left out", "said"
PHANTOM = ["--phantom_studies=12", "--phantom_image_size=64", "--phantom_difficulty=demo", "--n_jobs=1"]
TINY = [
    "--tr_iteration_num=4", "--tr_iteration_valid=2", "--tr_batch_size=4", "--data_image_size=32", "--n_jobs=1",
    "--tr_report=0",
]  # fmt: skip
SEQUENCE = [
    "--net_kind=sequence", "--tr_batch_size=2", "--tr_iteration_num=2", "--tr_iteration_valid=2", "--n_jobs=1",
    "--tr_report=0",
]  # fmt: skip
REMADE = "--pre_folds=3"  # folds of other images; of so few studies another seed alone would give the same


@dataclass(frozen=True)
class Outcome:
    """What a command made of an attempt: its exit code (0: it ran) and all that it said."""

    code: int
    text: str

    def __str__(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line or "left out" in line or "lineage" in line]
        return (telling or lines or ["nothing was said"])[0]


@dataclass(frozen=True)
class Lab:
    """What attempts work with; none changes it.

    ``input_folder`` has ``phantom/`` and ``datasets/phantom``; ``folds`` is a cross-validation of folds 0 to 2 on it,
    ``features`` a copy of it with its features; ``folder`` is for what attempts write.
    """

    input_folder: Path
    folds: Path
    features: Path
    folder: Path

    @property
    def flags(self) -> list[str]:
        return [f"--data_input_folder={self.input_folder}", "--data_dataset=phantom"]

    def place(self, name: str) -> Path:
        """Return a new folder for an attempt."""
        return Path(tempfile.mkdtemp(prefix=f"{name}_", dir=self.folder))

    def copied_input(self, *options: str) -> Path:
        """Return a copy of the input folder, whose folds are made anew where there are ``options`` of preprocessing."""
        import preprocessing

        target = self.place("input")
        shutil.copytree(self.input_folder / "datasets", target / "datasets")
        shutil.copy(self.input_folder / "pseudonyms.key", target)
        if options:
            place = [f"--data_input_folder={target}", "--data_dataset=phantom", "--n_jobs=1"]
            quietly(preprocessing.main, [*place, f"--pre_source={self.input_folder / 'phantom'}", *options])
        return target

    def changed(self, change: Callable[[Any], Any]) -> Path:
        """Return a copy of the input folder with another metadata.csv, and folds that agree with it."""
        import pandas as pd

        target = self.copied_input()
        folder = target / "datasets" / "phantom"
        table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
        table = change(table)
        table.to_csv(folder / "metadata.csv", index=False)
        known = table.set_index("id")
        for path in folder.glob("dataset_phantom_*.csv"):
            rows = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")
            for name in ("patient_id", "study_id", "group_id"):
                rows[name] = known[name].reindex(rows.index)
            rows.to_csv(path)
        return target

    def experiment(self, fold: int = 0) -> Path:
        """Return a results folder with a copy of a fold's experiment, ``one``."""
        results = self.place("results")
        shutil.copytree(self.folds / f"fold_{fold}", results / "one")
        return results

    def old(self, path: Path, **config: Any) -> None:
        """Make a checkpoint one of an earlier version, which doesn't say what it learnt from."""
        from common.checkpoint import load_checkpoint, save_checkpoint

        checkpoint = load_checkpoint(path)
        checkpoint.pop("lineage", None)
        save_checkpoint(path, checkpoint | {"config": checkpoint["config"] | config})

    def leaky_folds(self, source: Path) -> Path:
        """Return a results folder with a cross-validation ``cv`` whose first network had an ancestor that saw all."""
        import pandas as pd

        from common.checkpoint import load_checkpoint, save_checkpoint
        from rsna.training.lineage import checkpoint_lineage, dataset_images, learnt_from

        results = self.place("leaky")
        shutil.copytree(source, results / "cv")
        dataset = self.input_folder / "datasets" / "phantom"
        path = results / "cv" / "fold_0" / "best.pt"
        checkpoint = load_checkpoint(path)
        own = checkpoint_lineage(checkpoint, str(path), self.input_folder)
        everything = learnt_from(dataset, dataset_images(dataset)[0])
        save_checkpoint(path, checkpoint | {"lineage": (own | everything).state()})
        (results / "cv" / "predictions_oof.lineage.npz").unlink()  # it then follows from the folds' checkpoints
        assert len(pd.read_csv(results / "cv" / "predictions_oof.csv"))
        return results


def quietly(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> Any:
    """Call a command that is no attempt, without a word; what it raises is raised."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main([str(part) for part in argv])


def tried(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> Outcome:
    """Call a command and return what came of it."""
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main([str(part) for part in argv])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Outcome(code, said.getvalue())


def judge(results: Path, *more: str, experiment: str = "one") -> Outcome:
    """Try evaluate.py on an experiment."""
    import evaluate

    flags = [f"--experiment_id={experiment}", f"--output_dir={results}", "--eval_draws=100", "--n_jobs=1"]
    return tried(evaluate.main, [*flags, *more])


def start(lab: Lab, weights: Path, *more: str, place: Path | None = None) -> Outcome:
    """Try train.py from starting weights."""
    import train

    source = [f"--data_input_folder={place}", "--data_dataset=phantom"] if place else lab.flags
    results = [f"--output_dir={lab.place('results')}", f"--net_weight_file={weights}"]
    return tried(train.main, [*source, *TINY, *results, *more])


def predicted(lab: Lab, split: str, fold: int = 0) -> Path:
    """Return predictions of a split by a fold's network, in an experiment ``one``."""
    import predict

    results = lab.experiment(fold)
    return quietly(predict.main, [f"--net_weight_file={results / 'one' / 'best.pt'}", f"--split={split}", "--n_jobs=1"])


def names_changed(table: Any) -> Any:
    """Give all patients and studies other names: the same pictures, handed over once more."""
    changed = {name: "new" + table[name] for name in ("patient_id", "study_id", "group_id")}
    return table.assign(**changed)


def pictures_changed(table: Any) -> Any:
    """Make all pictures others, as after another reconstruction."""
    return table.assign(picture_hash=table["picture_hash"].str[::-1])


def strangers(table: Any) -> Any:
    """Make the dataset one of other patients."""
    return pictures_changed(names_changed(table))


def first_slice_kept(table: Any) -> Any:
    """Make all pictures but one of each study others, and all names."""
    first = ~table["study_id"].duplicated()
    solid = table["solid"].astype(float) >= 0.01
    kept = table.index.isin(table[solid].index[~table[solid]["study_id"].duplicated()]) if solid.any() else first
    changed = strangers(table)
    return changed.assign(picture_hash=changed["picture_hash"].where(~kept, table["picture_hash"]))


# --- the attempts -----------------------------------------------------------------------------------------------------


def remade_folds(lab: Lab) -> Outcome:
    return judge(lab.experiment(), f"--data_input_folder={lab.copied_input(REMADE)}")


def remade_folds_views(lab: Lab) -> Outcome:
    return judge(lab.experiment(), f"--data_input_folder={lab.copied_input(REMADE)}", "--tta=train_demo.json")


def remade_folds_predicted(lab: Lab) -> Outcome:
    import predict

    weights, place = lab.folds / "fold_0" / "best.pt", lab.copied_input(REMADE)
    output = lab.place("predicted") / "valid.csv"
    flags = [f"--net_weight_file={weights}", "--split=valid", f"--data_input_folder={place}", f"--output_file={output}"]
    return tried(predict.main, [*flags, "--n_jobs=1"])


def remade_folds_old_checkpoint(lab: Lab) -> Outcome:
    results = lab.experiment()
    place = lab.copied_input(REMADE)
    lab.old(results / "one" / "best.pt", data_input_folder=str(place))
    return judge(results)


def old_checkpoint_ancestor_gone(lab: Lab) -> Outcome:
    results = lab.experiment()
    lab.old(results / "one" / "best.pt", net_weight_file=str(results / "gone.pt"))
    return judge(results)


def overfitted(lab: Lab) -> Outcome:
    import train

    results = lab.place("results")
    flags = [*lab.flags, *TINY, f"--output_dir={results}", "--experiment_id=one", "--tr_overfit=2"]
    quietly(train.main, flags)
    return judge(results)


def study_of_two_patients_over_folds(lab: Lab) -> Outcome:
    """Folds of an earlier version tore a study whose slices have two PatientIDs."""
    import pandas as pd

    place = lab.copied_input()
    folder = place / "datasets" / "phantom"
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    rows = pd.read_csv(folder / "dataset_phantom_fold_0.csv", dtype=str, keep_default_na=False)
    for kind in ("train", "valid"):  # a study of either side gets one StudyInstanceUID
        study = rows.loc[rows["sample_type"] == kind, "study_id"].iloc[0]
        for part in (table, rows):
            part.loc[part["study_id"] == study, "study_id"] = "ID_0000000000"
    table.drop(columns="group_id").to_csv(folder / "metadata.csv", index=False)
    rows.drop(columns="group_id").to_csv(folder / "dataset_phantom_fold_0.csv", index=False)
    return judge(lab.experiment(), f"--data_input_folder={place}")


def starting_weights(lab: Lab) -> Outcome:
    return start(lab, lab.folds / "fold_1" / "best.pt", "--data_fold=0")


def starting_weights_of_all_folds(lab: Lab) -> Outcome:
    return start(lab, lab.folds / "fold_1" / "best.pt", "--data_fold=0,1,2")


def starting_weights_two_links_back(lab: Lab) -> Outcome:
    import train

    place, results = lab.changed(strangers), lab.place("results")
    flags = [f"--data_input_folder={place}", "--data_dataset=phantom", *TINY, f"--output_dir={results}"]
    between = quietly(train.main, [*flags, f"--net_weight_file={lab.folds / 'fold_1' / 'best.pt'}"])
    return start(lab, between / "best.pt", "--data_fold=0")


def starting_weights_other_names(lab: Lab) -> Outcome:
    return start(lab, lab.folds / "fold_1" / "best.pt", "--data_fold=0", place=lab.changed(names_changed))


def starting_weights_other_pictures(lab: Lab) -> Outcome:
    return start(lab, lab.folds / "fold_1" / "best.pt", "--data_fold=0", place=lab.changed(pictures_changed))


def starting_weights_shared_without_lineage(lab: Lab) -> Outcome:
    """export.py --lineage=0 of a network whose fold was remade since."""
    import export

    place = lab.copied_input(REMADE)
    results = lab.experiment(1)
    lab.old(results / "one" / "best.pt", data_input_folder=str(place))
    flags = [f"--net_weight_file={results / 'one' / 'best.pt'}", "--export_format=checkpoint", "--lineage=0"]
    return start(lab, quietly(export.main, flags), "--data_fold=0", place=place)


def external_same_patients(lab: Lab) -> Outcome:
    return judge(lab.experiment(), "--data_dataset=phantom")


def external_other_names(lab: Lab) -> Outcome:
    place = lab.changed(names_changed)
    return judge(lab.experiment(), "--data_dataset=phantom", f"--data_input_folder={place}")


def external_other_pictures(lab: Lab) -> Outcome:
    place = lab.changed(pictures_changed)
    return judge(lab.experiment(), "--data_dataset=phantom", f"--data_input_folder={place}")


def external_one_picture_the_same(lab: Lab) -> Outcome:
    place = lab.changed(first_slice_kept)
    return judge(lab.experiment(), "--data_dataset=phantom", f"--data_input_folder={place}")


def external_mean_of_folds(lab: Lab) -> Outcome:
    results = lab.place("results")
    shutil.copytree(lab.folds, results / "one")
    return judge(results, "--data_dataset=phantom", f"--data_input_folder={lab.changed(names_changed)}")


def external_lineage_lost(lab: Lab) -> Outcome:
    """Nobody can know: the result counts what could not be checked."""
    results = lab.experiment()
    lab.old(results / "one" / "best.pt", data_input_folder=str(results), data_dataset="elsewhere")
    outcome = judge(results, "--data_dataset=phantom", f"--data_input_folder={lab.input_folder}")
    return with_lineage(outcome, results / "one" / "evaluation_phantom.json")


def external_another_key(lab: Lab) -> Outcome:
    """Names under another key can't be compared: pictures are, and the result counts what they are checked by."""
    place = lab.changed(strangers)
    info = place / "datasets" / "phantom" / "dataset.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"pseudonyms": "0123456789abcdef"}))
    results = lab.experiment()
    outcome = judge(results, "--data_dataset=phantom", f"--data_input_folder={place}")
    return with_lineage(outcome, results / "one" / "evaluation_phantom.json")


def foreign_starting_weights(lab: Lab) -> Outcome:
    """The weights of a network that saw what validates, as a plain file of torch: the result says that nobody knows."""
    import torch

    import train
    from common.checkpoint import load_checkpoint

    results = lab.place("results")
    torch.save(load_checkpoint(lab.folds / "fold_1" / "best.pt")["model"], results / "plain.pt")
    flags = [*lab.flags, *TINY, f"--output_dir={results}", "--experiment_id=one"]
    quietly(train.main, [*flags, f"--net_weight_file={results / 'plain.pt'}", "--data_fold=0"])
    return with_lineage(judge(results), results / "one" / "evaluation.json")


def member_of_unknown_origin(lab: Lab) -> Outcome:
    import ensemble

    results = lab.experiment()
    shutil.copy(results / "one" / "predictions_valid.csv", results / "mine.csv")
    labels = lab.input_folder / "datasets" / "phantom" / "metadata.csv"
    flags = [results / "mine.csv", f"--ens_labels={labels}", f"--output_dir={results}", "--experiment_id=both"]
    outcome = tried(ensemble.main, ["one", *flags, "--ens_draws=100"])
    return with_lineage(outcome, results / "both" / "evaluation.json")


def with_lineage(outcome: Outcome, path: Path) -> Outcome:
    """Return an outcome with what the written result says of its images and networks."""
    if outcome.code:
        return outcome
    found = json.loads(path.read_text(encoding="utf-8"))["lineage"]
    counts = {key: value for key, value in found.items() if key != "notes"}
    return Outcome(0, f"lineage in {path.name}: {json.dumps(counts)}\n{outcome.text}")


def held_out_later(lab: Lab) -> Outcome:
    import predict

    place = lab.copied_input("--pre_holdout=0.4", "--pre_folds=2")
    flags = [f"--net_weight_file={lab.folds / 'fold_0' / 'best.pt'}", "--split=holdout", "--n_jobs=1"]
    output = lab.place("predicted") / "held.csv"
    return tried(predict.main, [*flags, f"--data_input_folder={place}", f"--output_file={output}"])


def held_out_later_mean(lab: Lab) -> Outcome:
    import predict

    place = lab.copied_input("--pre_holdout=0.4", "--pre_folds=2")
    flags = [f"--net_weight_file={lab.folds}", "--split=holdout", "--n_jobs=1"]
    output = lab.place("predicted") / "held.csv"
    return tried(predict.main, [*flags, f"--data_input_folder={place}", f"--output_file={output}"])


def features_reordered(lab: Lab, name: str = "rows.csv") -> Outcome:
    import numpy as np
    import pandas as pd

    import train

    results = lab.place("results")
    shutil.copytree(lab.features, results / "cv")
    path = results / "cv" / "features" / "train" / name
    if path.suffix == ".csv":
        pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    else:
        np.save(path, np.load(path)[::-1])
    flags = [*lab.flags, *SEQUENCE, f"--seq_features={results / 'cv'}", f"--output_dir={results}", "--data_fold=0"]
    return tried(train.main, flags)


def features_arrays_reordered(lab: Lab) -> Outcome:
    return features_reordered(lab, "features.npy")


def features_of_a_leaky_network(lab: Lab) -> Outcome:
    import train

    results = lab.leaky_folds(lab.features)
    (results / "cv" / "features" / "train" / "lineage.npz").unlink()  # it then follows from the folds' checkpoints
    flags = [*lab.flags, *SEQUENCE, "--seq_features=cv", f"--output_dir={results}", "--data_fold=0"]
    return tried(train.main, flags)


def ensemble_of_training_images(lab: Lab) -> Outcome:
    import ensemble

    path = predicted(lab, "train")
    labels = lab.input_folder / "datasets" / "phantom" / "metadata.csv"
    output = f"--ens_output={path.parent / 'out.csv'}"
    return tried(ensemble.main, [path, f"--ens_labels={labels}", output, "--ens_calibrate=temperature"])


def ensemble_of_leaky_folds(lab: Lab) -> Outcome:
    import ensemble

    results = lab.leaky_folds(lab.folds)
    return tried(ensemble.main, ["cv", f"--output_dir={results}", "--ens_draws=100"])


def second_level_of_leaky_folds(lab: Lab) -> Outcome:
    import second_level

    results = lab.leaky_folds(lab.folds)
    return tried(second_level.main, ["cv", f"--output_dir={results}", "--level_trees=2"])


def evaluation_of_leaky_folds(lab: Lab) -> Outcome:
    return judge(lab.leaky_folds(lab.folds), experiment="cv")


def folds_of_an_earlier_version_remade(lab: Lab) -> Outcome:
    """Out-of-fold predictions whose networks don't say what they learnt from, of folds that are gone."""
    results, place = lab.place("results"), lab.copied_input(REMADE)
    shutil.copytree(lab.folds, results / "cv")
    (results / "cv" / "predictions_oof.lineage.npz").unlink()
    for path in results.glob("cv/fold_*/best.pt"):
        lab.old(path, data_input_folder=str(place))
    return judge(results, f"--data_input_folder={place}", experiment="cv")


def out_of_fold_predictions_replaced(lab: Lab) -> Outcome:
    """Predictions of the same images by a network that was trained on most of them, in the place of the honest ones."""
    import pandas as pd

    results = lab.place("results")
    shutil.copytree(lab.folds, results / "cv")
    parts = [pd.read_csv(predicted(lab, split)) for split in ("train", "valid")]
    path = results / "cv" / "predictions_oof.csv"
    together = pd.concat(parts).set_index("id").loc[pd.read_csv(path)["id"]]
    together.to_csv(path)
    outcome = judge(results, experiment="cv")
    return with_lineage(outcome, results / "cv" / "evaluation.json")


def compared_with_training_images(lab: Lab) -> Outcome:
    import evaluate

    other = predicted(lab, "train", fold=1)
    honest = lab.folds / "fold_0" / "predictions_valid.csv"
    flags = [f"--eval_file={honest}", f"--eval_compare={other}", *lab.flags, "--eval_draws=100"]
    return tried(evaluate.main, flags)


def file_of_training_images(lab: Lab) -> Outcome:
    import evaluate

    return tried(evaluate.main, [f"--eval_file={predicted(lab, 'train')}", *lab.flags, "--eval_draws=100"])


ATTEMPTS: dict[str, tuple[str, Callable[[Lab], Outcome]]] = {
    "evaluate.py after the folds were made anew": (REFUSED, remade_folds),
    "the same with --tta": (REFUSED, remade_folds_views),
    "predict.py --split=valid after the folds were made anew": (REFUSED, remade_folds_predicted),
    "evaluate.py of a checkpoint of before, folds made anew": (REFUSED, remade_folds_old_checkpoint),
    "evaluate.py of a checkpoint of before, its ancestor gone": (REFUSED, old_checkpoint_ancestor_gone),
    "evaluate.py of a run of --tr_overfit": (REFUSED, overfitted),
    "a study of two PatientIDs on both sides of an old fold": (REFUSED, study_of_two_patients_over_folds),
    "starting weights that saw what validates": (REFUSED, starting_weights),
    "the same for a cross-validation": (REFUSED, starting_weights_of_all_folds),
    "starting weights whose ancestor's ancestor saw it": (REFUSED, starting_weights_two_links_back),
    "starting weights, the same pictures under other names": (REFUSED, starting_weights_other_names),
    "starting weights, the same patients in other pictures": (REFUSED, starting_weights_other_pictures),
    "starting weights handed on by --lineage=0, fold gone": (REFUSED, starting_weights_shared_without_lineage),
    "--data_dataset: the training's own patients": (LEFT_OUT, external_same_patients),
    "--data_dataset: the same pictures under other names": (LEFT_OUT, external_other_names),
    "--data_dataset: the same patients in other pictures": (LEFT_OUT, external_other_pictures),
    "--data_dataset: one picture of each study the same": (LEFT_OUT, external_one_picture_the_same),
    "--data_dataset: mean of folds that together saw all": (REFUSED, external_mean_of_folds),
    "--data_dataset: lineage lost": (SAID, external_lineage_lost),
    "--data_dataset: names under another key": (SAID, external_another_key),
    "weights of another program": (SAID, foreign_starting_weights),
    "an ensemble's member of unknown origin": (SAID, member_of_unknown_origin),
    "images held out after the network learnt from them": (REFUSED, held_out_later),
    "the same by the mean of folds": (REFUSED, held_out_later_mean),
    "features/train/rows.csv reordered": (REFUSED, features_reordered),
    "features/train/features.npy reordered": (REFUSED, features_arrays_reordered),
    "features by a network whose ancestor saw their images": (REFUSED, features_of_a_leaky_network),
    "ensemble.py of predictions of training images": (REFUSED, ensemble_of_training_images),
    "ensemble.py of folds whose ancestor saw all": (REFUSED, ensemble_of_leaky_folds),
    "second_level.py of folds whose ancestor saw all": (REFUSED, second_level_of_leaky_folds),
    "evaluate.py of folds whose ancestor saw all": (REFUSED, evaluation_of_leaky_folds),
    "out-of-fold predictions of before, folds made anew": (REFUSED, folds_of_an_earlier_version_remade),
    "predictions_oof.csv replaced by another network's": (SAID, out_of_fold_predictions_replaced),
    "--eval_compare with predictions of training images": (REFUSED, compared_with_training_images),
    "--eval_file of predictions of training images": (REFUSED, file_of_training_images),
}


def kind_of(outcome: Outcome) -> str:
    """Return what came of an attempt; "GOT THROUGH" where the command ran and said nothing."""
    if outcome.code in (1, 2) and "error:" in outcome.text and "Traceback" not in outcome.text:
        return REFUSED
    if outcome.code == 0 and "are of patients that the model was trained on: left out" in outcome.text:
        return LEFT_OUT
    return SAID if outcome.code == 0 and "lineage in " in outcome.text else "GOT THROUGH"


def make_lab(folder: Path) -> Lab:
    """Make the phantom, its dataset, a cross-validation and its features in ``folder``."""
    import predict
    import preprocessing
    import rsna_phantom
    import train

    source = folder / "input" / "phantom"
    place = [f"--data_input_folder={folder / 'input'}", "--data_dataset=phantom"]
    quietly(rsna_phantom.main, [f"--phantom_folder={source}", *PHANTOM])
    quietly(preprocessing.main, [*place, f"--pre_source={source}", "--n_jobs=1"])
    flags = [*place, *TINY, "--data_fold=0,1,2", f"--output_dir={folder / 'results'}", "--experiment_id=cv"]
    folds = quietly(train.main, flags)
    shutil.copytree(folds, folder / "features" / "cv")
    features = folder / "features" / "cv"
    quietly(predict.main, [f"--net_weight_file={features}", "--features=1", "--n_jobs=1"])
    (folder / "attempts").mkdir()
    return Lab(folder / "input", folds, features, folder / "attempts")


def main(argv: Sequence[str] | None = None) -> int:
    """Try everything; print the table and return how many attempts didn't end as they should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work, a folder that is made; none: a temporary one")
    config = parser.parse_args(argv)
    wrong = 0
    with contextlib.ExitStack() as stack:
        folder = config.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leaks")))
        lab = make_lab(folder)
        width = max(map(len, ATTEMPTS))
        print(f"{'attempt':{width}}  {'due':9} {'came':12} what was said")
        for name, (due, attempt) in ATTEMPTS.items():
            outcome = attempt(lab)
            found = kind_of(outcome)
            wrong += found != due
            said = str(outcome).replace(str(folder), "…")
            print(f"{name:{width}}  {due:9} {found:12} {said[:160]}", flush=True)
    print(f"{len(ATTEMPTS)} attempts, {wrong} of them not as they should be")
    return wrong


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(1 if main() else 0)
