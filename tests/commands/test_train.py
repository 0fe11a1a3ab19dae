"""The main job by its entry points: train, evaluate, predict, ensemble on a small phantom."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import log_loss

import ensemble
import evaluate
import predict
import train
from common.checkpoint import load_checkpoint
from common.cli.arguments import parse_args
from common.errors import UsageError
from common.experiments.resume import Run
from common.models.backbone import create_model
from common.trackers.jsonl import read_metrics
from common.transforms.device import DevicePart
from common.transforms.joining import Joiner
from common.transforms.pipeline import Pipeline
from config import TrainConfig
from rsna.forms import read_submission
from rsna.kinds.slices import SliceKind
from rsna.prediction.trained import load_network
from rsna.training.run import choose_precision
from rsna_dataset import LABELS, read_fold, read_metadata
from rsna_network import RSNANetwork
from tests.runs import failure

KEY = "valid/weighted_log_loss"
SMALL = [
    "--net_model=resnet10t",
    "--data_image_size=32",
    "--tr_batch_size=8",
    "--tr_iteration_num=12",
    "--tr_report=0",
    "--tr_iteration_valid=4",
    "--tr_iteration_log=2",
    "--n_jobs=1",
]


@dataclass(frozen=True)
class Trained:
    folder: Path
    flags: list[str]

    @property
    def output_dir(self) -> Path:
        return self.folder.parent


@pytest.fixture(scope="module")
def trained(small_dataset, tmp_path_factory) -> Trained:
    flags = [*small_dataset.flags, *SMALL, f"--output_dir={tmp_path_factory.mktemp('results')}"]
    return Trained(train.main(flags), flags)


def logged(folder: Path, key: str) -> dict[int, float]:
    return {int(row["iteration"]): row[key] for row in read_metrics(folder / "metrics.jsonl") if key in row}


def weighted(frame: pd.DataFrame, rows: pd.DataFrame) -> float:
    """The competition's metric by scikit-learn and hand."""
    p = np.clip(frame.loc[rows.index, list(LABELS)].to_numpy(), 1e-15, 1 - 1e-15)
    y = rows[list(LABELS)].to_numpy()
    each = [log_loss(y[:, c], p[:, c], labels=[0, 1]) for c in range(6)]
    return sum(each[:5]) / 7 + each[5] * 2 / 7


def test_a_run_leaves_the_documented_files(trained) -> None:
    names = {path.name for path in trained.folder.iterdir()}
    assert {"config.yaml", "environment.json", "train.log", "metrics.jsonl", "best.pt", "last.pt"} <= names
    assert "predictions_valid.csv" in names
    assert not [name for name in names if name.endswith(".tmp")]
    assert yaml.safe_load((trained.folder / "config.yaml").read_text())["net_model"] == "resnet10t"
    assert (
        json.loads((trained.folder / "environment.json").read_text())["packages"]["torch"]
        == torch.__version__.split("+")[0]
    )


def test_validation_and_loss_are_logged_where_the_options_say(trained) -> None:
    assert list(logged(trained.folder, KEY)) == [4, 8, 12]
    assert list(logged(trained.folder, "train/loss")) == [2, 4, 6, 8, 10, 12]


def test_valid_predictions_are_exactly_the_folds_images_and_give_the_best_logged_value(trained, small_dataset) -> None:
    frame = pd.read_csv(trained.folder / "predictions_valid.csv", index_col="id")
    fold = read_fold(small_dataset.folder, "phantom", 0)
    rows = fold[fold["sample_type"] == "valid"]
    assert list(frame.columns) == list(LABELS)
    assert sorted(frame.index) == sorted(rows.index)
    assert weighted(frame, rows) == pytest.approx(min(logged(trained.folder, KEY).values()), abs=1e-12)


def test_evaluate_reproduces_the_best_logged_value(trained, capsys) -> None:
    table = evaluate.main([f"--experiment_id={trained.folder.name}", f"--output_dir={trained.output_dir}"])
    best = min(logged(trained.folder, KEY).values())
    assert table.loc["weighted", "log_loss"] == pytest.approx(best, abs=1e-9)
    assert "reproduces the logged valid/weighted_log_loss" in capsys.readouterr().out
    written = pd.read_csv(trained.folder / "evaluation.csv", index_col=0)
    assert list(written.index) == [*LABELS, "weighted"]


def test_evaluate_on_a_dataset_takes_its_labelled_images_of_patients_it_was_not_trained_on(
    trained, small_dataset, capsys
) -> None:
    flags = [f"--experiment_id={trained.folder.name}", f"--output_dir={trained.output_dir}"]
    table = evaluate.main([*flags, "--data_dataset=phantom"])
    labelled = read_metadata(small_dataset.folder).query("split == 'train'")
    fold = read_fold(small_dataset.folder, "phantom", 0)
    seen = fold["patient_id"][fold["sample_type"] == "train"]
    assert table.loc["weighted", "images"] == (~labelled["patient_id"].isin(seen)).sum()
    assert (trained.folder / "evaluation_phantom.csv").is_file()
    assert "the logged" not in capsys.readouterr().out


def test_evaluate_prints_the_difference_where_the_value_is_not_reproduced(trained, capsys, tmp_path) -> None:
    contents = torch.load(trained.folder / "best.pt", weights_only=True)
    contents["metrics"][KEY] += 1e-3
    (tmp_path / "7").mkdir()
    torch.save(contents, tmp_path / "7" / "best.pt")
    evaluate.main(["--experiment_id=7", f"--output_dir={tmp_path}"])
    assert "differs by 0.001 from the logged" in capsys.readouterr().out


def test_the_submission_has_every_row_of_the_sample_once_in_order(trained, small_dataset, tmp_path) -> None:
    path = predict.main([f"--net_weight_file={trained.folder / 'best.pt'}", "--split=test"])
    assert path == trained.folder / "submission.csv"
    written = pd.read_csv(path)
    sample = pd.read_csv(small_dataset.source / "stage_2_sample_submission.csv")
    assert list(written.columns) == ["ID", "Label"]
    assert list(written["ID"]) == list(sample["ID"])
    assert written["Label"].between(0, 1).all()


def test_a_test_image_without_a_picture_gets_the_training_prevalence_and_a_warning(
    trained, small_dataset, tmp_path, caplog
) -> None:
    path = predict.main([f"--net_weight_file={trained.folder / 'best.pt'}", f"--output_file={tmp_path / 's.csv'}"])
    metadata = pd.read_csv(small_dataset.folder / "metadata.csv")
    missing = sorted(set(read_submission(path).index) - set(metadata["id"]))
    fold = read_fold(small_dataset.folder, "phantom", 0)
    prevalence = fold.loc[fold["sample_type"] == "train", list(LABELS)].mean()
    for name in missing:
        np.testing.assert_allclose(read_submission(path).loc[name, list(LABELS)], prevalence, atol=1e-12)
    if missing:
        assert f"{len(missing)} of " in caplog.text


def test_predicting_the_valid_split_gives_the_runs_own_predictions(trained, tmp_path) -> None:
    path = predict.main(
        [f"--net_weight_file={trained.folder / 'best.pt'}", "--split=valid", f"--output_file={tmp_path / 'v.csv'}"]
    )
    again = pd.read_csv(path, index_col="id")
    first = pd.read_csv(trained.folder / "predictions_valid.csv", index_col="id")
    pd.testing.assert_frame_equal(again, first, rtol=0, atol=1e-9)


def test_tta_averages_views_that_differ_and_repeats_exactly(trained, tmp_path) -> None:
    def views(count: int, name: str) -> pd.DataFrame:
        flags = [f"--net_weight_file={trained.folder / 'best.pt'}", "--split=valid", f"--output_file={tmp_path / name}"]
        return pd.read_csv(predict.main([*flags, "--tta=train_demo.json", f"--tta_views={count}"]), index_col="id")

    one, two = views(1, "one.csv"), views(2, "two.csv")
    assert not np.allclose(one, two, atol=1e-9)
    pd.testing.assert_frame_equal(two, views(2, "again.csv"))


def test_tta_in_logits_is_the_sigmoid_of_the_views_mean_logit(trained, tmp_path) -> None:
    def views(*flags: str) -> pd.DataFrame:
        path = tmp_path / "p.csv"
        common = [f"--net_weight_file={trained.folder / 'best.pt'}", "--split=valid", f"--output_file={path}"]
        return pd.read_csv(predict.main([*common, "--tta=train_demo.json", *flags]), index_col="id")

    one, both = views("--tta_views=1"), views("--tta_views=2")
    second = 2 * both - one  # the mean of the probabilities, solved for the second view
    expected = 1 / (1 + np.exp(-(np.log(one / (1 - one)) + np.log(second / (1 - second))) / 2))
    np.testing.assert_allclose(views("--tta_views=2", "--tta_mean=logit"), expected, atol=1e-9)


def test_evaluate_says_what_tta_changes_and_whether_it_is_sure(trained, small_dataset, capsys) -> None:
    flags = [f"--experiment_id={trained.folder.name}", f"--output_dir={trained.output_dir}"]
    table = evaluate.main([*flags, "--tta=train_demo.json", "--tta_views=2"])
    plain = pd.read_csv(trained.folder / "evaluation.csv", index_col=0).loc["weighted", "log_loss"]
    augmented = table.loc["weighted", "log_loss"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test-time augmentation"))
    assert f"from {plain:.5f} to {augmented:.5f}: {augmented - plain:+.5f}" in line
    assert line.endswith("no interval: 1 patient, and an interval needs 20")
    assert (trained.folder / "evaluation_tta.csv").is_file()


def test_a_fused_run_is_recorded_validated_and_averaged_fused(trained, tmp_path, monkeypatch, capsys) -> None:
    folder = train.main([*trained.flags, f"--output_dir={tmp_path}", "--data_transform_fuse=1"])
    assert load_checkpoint(folder / "best.pt")["config"]["data_transform_fuse"] is True
    assert "data_transform_fuse: true" in (folder / "config.yaml").read_text()
    fused = []
    init = Joiner.__init__
    monkeypatch.setattr(Joiner, "__init__", lambda self, *a, fuse: (fused.append(fuse), init(self, *a, fuse=fuse))[1])
    flags = [f"--experiment_id={folder.name}", f"--output_dir={tmp_path}", "--n_jobs=1"]
    evaluate.main([*flags, "--tta=train_demo.json", "--tta_views=2"])
    assert "reproduces the logged" in capsys.readouterr().out
    assert set(fused) == {True}


def test_transforms_in_whole_batches_give_the_run_of_transforms_picture_by_picture(
    trained, tmp_path, monkeypatch
) -> None:
    """The code of the GPU, made to run where there is none."""
    monkeypatch.setattr("rsna.kinds.pictures.transforms_on_device", lambda config, device: True)
    folder = train.main([*trained.flags, f"--output_dir={tmp_path}"])
    one, other = (logged(run, "valid/weighted_log_loss") for run in (trained.folder, folder))
    assert one == pytest.approx(other, abs=2e-3)
    shown = [f"--net_weight_file={folder / 'best.pt'}", "--split=valid", "--tta=train_demo.json", "--tta_views=2"]
    batches = pd.read_csv(predict.main([*shown, f"--output_file={tmp_path / 'batches.csv'}"]), index_col="id")
    monkeypatch.undo()
    single = pd.read_csv(predict.main([*shown, f"--output_file={tmp_path / 'single.csv'}"]), index_col="id")
    assert np.abs(batches - single).to_numpy().max() < 1e-4


def test_a_file_with_a_step_that_has_no_form_for_batches_stays_on_the_cpu_and_says_which(
    small_dataset, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr("rsna.kinds.pictures.transforms_on_device", lambda config, device: True)
    document = json.loads((Path(train.__file__).parent / "transforms/train_demo.json").read_text())
    document["transform"]["transforms"].insert(0, {"__class_fullname__": "Blur", "p": 0.5})
    (tmp_path / "blur.json").write_text(json.dumps(document))
    flags = [*small_dataset.flags, *SMALL, f"--data_train_transform={tmp_path / 'blur.json'}"]
    data = SliceKind().build_data(parse_args(TrainConfig, flags), torch.device("cpu"))
    assert isinstance(data.train_loader.dataset.pipeline, Pipeline)
    assert isinstance(data.valid_loader.dataset.pipeline, DevicePart)
    assert "blur.json: computed on the CPU: Blur is not among the transforms that work on batches" in caplog.text


def test_training_pictures_of_another_size_than_validation_pictures_are_warned_of(small_dataset, caplog) -> None:
    flags = [*small_dataset.flags, *SMALL, "--data_train_transform=train_complex_128.json"]
    SliceKind().build_data(parse_args(TrainConfig, flags), torch.device("cpu"))
    assert "training pictures are 128 x 128 pixels and validation pictures 32 x 32" in caplog.text


def test_windows_mean_nothing_to_pictures_that_have_theirs(trained, small_dataset, tmp_path, capsys) -> None:
    shutil.copytree(small_dataset.folder, tmp_path / "datasets/phantom")
    info = tmp_path / "datasets/phantom/dataset.json"
    known = json.loads(info.read_text())
    info.write_text(json.dumps(known | {"image_form": "window", "windows": "40/80,80/200,40/380"}))
    flags = [*trained.flags, f"--data_input_folder={tmp_path}", f"--output_dir={tmp_path / 'results'}"]
    line = failure(train.main, [*flags, "--data_windows=30/60,80/200,40/380"], capsys)
    assert "--data_windows means nothing to" in line
    assert not (tmp_path / "results").exists()


def test_tta_pictures_of_another_size_are_refused(trained, capsys) -> None:
    assert "128 x 128 pixels, the network was validated on 32 x 32" in failure(
        predict.main,
        [f"--net_weight_file={trained.folder / 'best.pt'}", "--tta=test_intermediate_tta_128.json"],
        capsys,
    )


def test_an_ensemble_of_two_submissions_is_their_mean(trained, tmp_path) -> None:
    best, last = (
        predict.main([f"--net_weight_file={trained.folder / name}", f"--output_file={tmp_path / name}.csv"])
        for name in ("best.pt", "last.pt")
    )
    output = tmp_path / "mean.csv"
    ensemble.main([str(best), str(last), f"--ens_output={output}"])
    mean = (read_submission(best) + read_submission(last)) / 2
    np.testing.assert_allclose(read_submission(output).loc[mean.index], mean, atol=1e-15)


def test_a_second_run_takes_the_next_number_and_the_same_seed_gives_the_same_weights(trained) -> None:
    again = train.main(trained.flags)
    assert again == trained.output_dir / str(int(trained.folder.name) + 1)
    first, second = (load_checkpoint(folder / "last.pt")["model"] for folder in (trained.folder, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_gives_other_weights(trained, tmp_path) -> None:
    other = train.main([*trained.flags, "--seed=1", f"--output_dir={tmp_path}"])
    first, second = (load_checkpoint(folder / "last.pt")["model"] for folder in (trained.folder, other))
    assert not all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_loading_in_other_processes_gives_the_same_losses(trained, tmp_path) -> None:
    """Two cores compute with other threads, so the last bits may differ; another order of images would show at once."""
    other = train.main([*trained.flags, "--n_jobs=2", f"--output_dir={tmp_path}"])
    first, second = logged(trained.folder, "train/loss"), logged(other, "train/loss")
    assert list(first.values())[:2] == pytest.approx(list(second.values())[:2], abs=1e-4)


def test_accumulation_and_mixed_precision_train(trained, tmp_path) -> None:
    flags = [
        "--tr_accumulation_step=4",
        "--tr_use_amp=1",
        "--optim=sgd",
        "--sched=constant",
        "--data_sampler=sequential",
    ]
    folder = train.main([*trained.flags, *flags, f"--output_dir={tmp_path}"])
    checkpoint = load_checkpoint(folder / "last.pt")
    assert (checkpoint["iteration"], checkpoint["step"]) == (12, 3)
    evaluate.main([f"--experiment_id={folder.name}", f"--output_dir={tmp_path}"])
    # The type that auto meant is the run's from then on, also where the same words are said again.
    assert checkpoint["config"]["tr_amp_dtype"] == "bfloat16"
    more = ["--tr_amp_dtype=auto", "--tr_iteration_num=16", f"--output_dir={tmp_path}"]
    train.main([f"--tr_resume={folder.name}", *more])
    assert load_checkpoint(folder / "last.pt")["iteration"] == 16


def test_a_run_goes_on_in_the_type_of_its_begin_or_not_at_all(monkeypatch) -> None:
    """Begun on a GPU that has bfloat16 and gone on with on one that has it not, and the other way round."""
    gpu = torch.device("cuda")
    auto = parse_args(TrainConfig, ["--tr_use_amp=1"])

    def chosen(has_bfloat16: bool, config: TrainConfig = auto, **run) -> tuple[TrainConfig, torch.dtype | None]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
        return choose_precision(Run(config, **run), gpu)

    (newer, bfloat16), (older, float16) = chosen(True), chosen(False)
    assert (bfloat16, float16) == (torch.bfloat16, torch.float16)
    assert (newer.tr_amp_dtype, older.tr_amp_dtype) == ("bfloat16", "float16")
    assert chosen(True, older, folder=Path("x"), checkpoint={"scaler": {"scale": 1.0}})[1] is torch.float16
    with pytest.raises(UsageError, match="use float16, with --tr_resume_change=tr_amp_dtype"):
        chosen(False, newer, folder=Path("x"), checkpoint={"scaler": {}})
    # Checkpoints of before say auto; whether there was a scaler says what that was.
    assert chosen(True, folder=Path("x"), checkpoint={"scaler": {"scale": 1.0}})[1] is torch.float16
    with pytest.raises(UsageError, match="x was trained so: --tr_amp_dtype=bfloat16: this GPU has no bfloat16"):
        chosen(False, folder=Path("x"), checkpoint={"scaler": {}})
    assert chosen(True, replace(auto, tr_use_amp=False))[1] is None


def test_predictions_are_computed_in_the_trainings_memory_format_and_in_batches_of_any_size(
    trained, tmp_path, capsys
) -> None:
    more = ["--tr_channels_last=1", "--tr_report=0", f"--output_dir={tmp_path}"]
    folder = train.main([*trained.flags, *more])
    network = load_network(folder / "best.pt").network
    kernels = [p for p in network.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    place = [f"--experiment_id={folder.name}", f"--output_dir={tmp_path}"]
    evaluate.main(place)
    assert "reproduces the logged" in capsys.readouterr().out
    first = pd.read_csv(folder / "predictions_valid.csv", index_col="id")
    sizes = []
    forward = RSNANetwork.prediction_step

    def counted(self, model, batch):
        sizes.append(len(batch))
        return forward(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RSNANetwork, "prediction_step", counted)
        output = predict.main(
            [
                f"--net_weight_file={folder / 'best.pt'}",
                "--split=valid",
                "--batch_size=3",
                f"--output_file={tmp_path / 'x.csv'}",
            ]
        )
        assert set(sizes[:-1]) == {3}
        assert sum(sizes) == len(first)
        sizes.clear()
        evaluate.main([*place, "--batch_size=5"])
        assert set(sizes[:-1]) == {5}
        assert sum(sizes) == len(first)
    pd.testing.assert_frame_equal(pd.read_csv(output, index_col="id"), first, rtol=0, atol=1e-6)


def test_training_starts_from_a_weight_file_of_ours(trained, tmp_path) -> None:
    weights = trained.folder / "best.pt"
    flags = [f"--net_weight_file={weights}", "--optim_lr=0", "--optim_weight_decay=0", "--optim=sgd"]
    folder = train.main([*trained.flags, *flags, "--experiment_id=warm", f"--output_dir={tmp_path}"])
    before, after = (load_checkpoint(path)["model"] for path in (weights, folder / "last.pt"))
    learned = [key for key in before if key.endswith(("weight", "bias"))]
    assert all(torch.equal(before[key], after[key]) for key in learned)


def test_a_rehearsal_uses_a_part_of_the_data_logs_on_the_console_and_leaves_trackers_alone(
    trained, tmp_path, capsys
) -> None:
    folder = train.main([*trained.flags, "--dev_enabled=1", "--nml_enabled=1", f"--output_dir={tmp_path}"])
    assert len(pd.read_csv(folder / "predictions_valid.csv")) <= 256
    assert "best.pt written" in capsys.readouterr().err
    assert not (folder / ".neptune").exists()


def test_the_neptune_run_is_kept_as_files_in_the_experiments_folder_and_the_console_names_all_places(
    trained, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    trackers = "--trackers=neptune,tensorboard"
    folder = train.main([*trained.flags, trackers, "--tr_report=1", f"--output_dir={tmp_path}"])
    text = "".join(path.read_text() for path in (folder / ".neptune").rglob("*.log"))
    assert "weighted_log_loss" in text
    printed = capsys.readouterr()
    assert printed.out == f"{folder}\n"
    lines = printed.err.splitlines()
    assert lines[0].startswith(f"neptune: offline in {folder / '.neptune'};")
    assert lines[1] == f"tensorboard: curves of all experiments: tensorboard --logdir {tmp_path}"
    places = dict(line.rsplit(maxsplit=1) for line in lines[-5:])
    assert list(places) == ["report", "weights", "all values", "log", "leaderboard"]
    names = ("report.html", "best.pt", "metrics.jsonl", "train.log")
    assert list(places.values()) == [*(str(folder / name) for name in names), str(tmp_path / "leaderboard.html")]
    assert all(Path(place).is_file() for place in places.values())


def test_a_quiet_run_says_where_it_is_and_nothing_else_and_its_log_says_all(trained, tmp_path, capsys) -> None:
    folder = train.main([*trained.flags, "--verbosity=0", f"--output_dir={tmp_path}"])
    assert capsys.readouterr() == (f"{folder}\n", "")
    log = (folder / "train.log").read_text()
    assert "model resnet10t" in log
    assert "iteration 12/12: valid/weighted_log_loss" in log
    evaluate.main(["--experiment_id=1", f"--output_dir={tmp_path}", "--verbosity=0"])
    assert capsys.readouterr() == (f"{folder / 'evaluation.csv'}\n", "")


def test_an_experiment_that_exists_is_refused(trained, capsys) -> None:
    line = failure(train.main, [*trained.flags, f"--experiment_id={trained.folder.name}"], capsys)
    assert "exists" in line


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--data_dataset=phantm"], ["phantm", "phantom"]),
        (["--data_fold=7"], ["--data_fold=7"]),
        (["--net_model=resnet1O1"], ["resnet1O1", "did you mean"]),
        (["--data_train_transform=nothing.json"], ["nothing.json", "train_demo.json"]),
        (["--tr_batch_size=100000"], ["--tr_batch_size=100000", "training images"]),
        (["--tr_batch_size=1"], ["--tr_batch_size=1: resnet10t normalizes over maps of 1 x 1", "--net_freeze=norms"]),
        (["--tr_use_amp=1", "--tr_amp_dtype=float16"], ["float16", "GPU"]),
        (["--net_weight_file=/nope/best.pt"], ["/nope/best.pt"]),
        (["--experiment_id=../x"], ["--experiment_id"]),
        (["--optim=lion", "--optim_momentum=0.9"], ["--optim_momentum", "--optim=lion", "--optim_betas"]),
        (["--sched_power=2"], ["--sched_power", "--sched=cosine", "--sched_cycles"]),
        (["--sampler_share=0.5"], ["--sampler_share", "--data_sampler=random"]),
        (["--tr_amp_dtype=bfloat16"], ["--tr_amp_dtype", "--tr_use_amp=1"]),
        (
            [
                "--data_windows=30/60",
                "--data_train_transform=train_complex_128.json",
                "--data_valid_transform=train_complex_128.json",
            ],
            ["--data_windows", "DicomWindowShift"],
        ),
        pytest.param(
            ["--data_transform_device=cuda"],
            ["--data_transform_device=cuda needs a GPU", "auto or cpu"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2_and_no_experiment(
    trained, tmp_path, capsys, flags: list[str], parts: list[str]
) -> None:
    line = failure(train.main, [*trained.flags, f"--output_dir={tmp_path / 'results'}", *flags], capsys)
    assert all(part in line for part in parts), line
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


def spoil(folder: Path, fold: pd.DataFrame, what: str) -> None:
    """Do to a dataset what users and disks do to it."""
    ids = {split: fold.index[fold["sample_type"] == split] for split in ("train", "valid")}
    if what == "an image of each part is gone":
        for split in ids:
            (folder / "images" / f"{ids[split][-1]}.npy").unlink()
    elif what == "no validation images":
        path = folder / "dataset_phantom_fold_0.csv"
        path.write_text(path.read_text().replace(",valid,", ",train,"))
    else:
        (folder / "dataset.json").write_text('{"format_version": 1, "image_form": "window", "windows": "40"}')


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("an image of each part is gone", "the image is missing (1 of "),
        ("no validation images", "fold 0 has no validation images"),
        ("damaged windows", "dataset.json: its windows are damaged"),
    ],
)
def test_a_spoilt_dataset_is_one_line_before_there_is_an_experiment(
    trained, small_dataset, tmp_path, capsys, what: str, part: str
) -> None:
    shutil.copytree(small_dataset.folder, tmp_path / "datasets/phantom")
    spoil(tmp_path / "datasets/phantom", read_fold(small_dataset.folder, "phantom", 0), what)
    flags = [*trained.flags, f"--data_input_folder={tmp_path}", f"--output_dir={tmp_path / 'results'}"]
    line = failure(train.main, flags, capsys, 1)
    assert part in line
    assert not (tmp_path / "results").exists()


def test_a_validation_transform_that_fails_is_found_before_the_run(trained, tmp_path, capsys) -> None:
    document = json.loads((Path(train.__file__).parent / "transforms/valid_demo.json").read_text())
    crop = {"__class_fullname__": "RandomCrop", "height": 500, "width": 500, "p": 1.0}
    document["transform"]["transforms"].insert(0, crop)
    (tmp_path / "crop.json").write_text(json.dumps(document))
    flags = [f"--data_valid_transform={tmp_path / 'crop.json'}", f"--output_dir={tmp_path / 'results'}"]
    line = failure(train.main, [*trained.flags, *flags], capsys)
    assert "crop.json" in line
    assert not (tmp_path / "results").exists()


def test_pictures_of_several_sizes_as_stored_are_refused_before_the_run(trained, tmp_path, capsys) -> None:
    flags = ["--data_image_size=0", f"--output_dir={tmp_path / 'results'}"]
    line = failure(train.main, [*trained.flags, *flags], capsys)
    assert "--data_image_size=0: the pictures have different sizes" in line
    assert "64x64" in line
    largest = max(int(side) for sides in re.findall(r"(\d+)x(\d+) \(", line) for side in sides)
    assert f"--data_image_size={largest} keeps all detail" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("class_names", ["any", *LABELS[:5]], "its classes are any, epidural"),
        ("transforms", {}, "the validation transform"),
        ("prevalences", [0.5], "not one prevalence for each"),
        ("metrics", {}, KEY),
    ],
)
def test_a_checkpoint_of_another_task_is_one_line(trained, tmp_path, capsys, key: str, value, part: str) -> None:
    contents = torch.load(trained.folder / "best.pt", weights_only=True)
    torch.save({**contents, key: value}, tmp_path / "other.pt")
    line = failure(predict.main, [f"--net_weight_file={tmp_path / 'other.pt'}"], capsys, 1)
    assert "other.pt" in line
    assert part in line
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tr_tf32": 1}, "--tr_tf32=1"),
        ({"tr_use_amp": 1, "tr_amp_dtype": "float16"}, "--tr_amp_dtype=float16"),
    ],
)
def test_what_a_gpu_trained_is_predicted_without_one(trained, tmp_path, caplog, options, named: str) -> None:
    contents = torch.load(trained.folder / "best.pt", weights_only=True)
    contents["config"] |= options
    torch.save(contents, tmp_path / "gpu.pt")
    frames = []
    for file in (trained.folder / "best.pt", tmp_path / "gpu.pt"):
        path = predict.main([f"--net_weight_file={file}", "--split=valid", f"--output_file={tmp_path / 'x.csv'}"])
        frames.append(pd.read_csv(path, index_col="id"))
    pd.testing.assert_frame_equal(*frames)
    assert f"gpu.pt: trained with {named}, which this machine can't: computed in float32" in caplog.text


@pytest.mark.parametrize(("name", "part"), [("file/x.csv", "can't be written"), ("", "is a folder")])
def test_an_output_that_cannot_be_written_is_found_before_the_prediction(
    trained, tmp_path, capsys, monkeypatch, name: str, part: str
) -> None:
    monkeypatch.setattr(
        "rsna.prediction.trained.predict_with_studies", lambda *_: pytest.fail("predicted before the output was tried")
    )
    (tmp_path / "file").write_text("")
    flags = [f"--net_weight_file={trained.folder / 'best.pt'}", f"--output_file={tmp_path / name}"]
    line = failure(predict.main, flags, capsys)
    assert "--output_file=" in line
    assert part in line


def test_weights_of_another_model_are_refused_with_the_keys_that_differ(trained, tmp_path, capsys) -> None:
    flags = ["--net_model=resnet18", f"--net_weight_file={trained.folder / 'best.pt'}", f"--output_dir={tmp_path}"]
    line = failure(train.main, [*trained.flags, *flags], capsys)
    assert "resnet10t" in line
    assert "missing" in line


@pytest.mark.parametrize("script", [evaluate, predict])
def test_an_experiment_or_weight_file_that_is_missing_is_named(script, tmp_path, capsys) -> None:
    flags = {
        evaluate: ["--experiment_id=9", f"--output_dir={tmp_path}"],
        predict: [f"--net_weight_file={tmp_path}/9/best.pt"],
    }
    line = failure(script.main, flags[script], capsys)
    assert str(tmp_path) in line


def test_averages_other_losses_samplers_and_finders_work_together_and_evaluate_picks_the_weights(
    trained, tmp_path, capsys
) -> None:
    flags = [
        "--optim=lookahead_radam",
        "--sched=plateau",
        "--data_sampler=hard",
        "--loss=focal",
        "--net_pool=gem",
        "--net_freeze=1",
        "--tr_ema=1",
        "--tr_swa=1",
        "--tr_swa_start=0.5",
        "--tr_lr_find=1",
        *("--optim_lr=1e-3", "--net_head_init=random"),  # best at the end, when all averages have begun
    ]
    folder = train.main([*trained.flags, *flags, f"--output_dir={tmp_path}"])
    printed = capsys.readouterr().err
    assert "M parameters" in printed
    assert "the loss falls fastest at --optim_lr=" in printed
    assert (folder / "lr_find.svg").is_file()
    checkpoint = load_checkpoint(folder / "best.pt")
    assert set(checkpoint["averages"]) == {"ema", "swa"}
    for name in ("raw", "ema", "swa"):
        capsys.readouterr()
        evaluate.main([f"--experiment_id={folder.name}", f"--output_dir={tmp_path}", f"--net_weights={name}"])
        assert "reproduces the logged" in capsys.readouterr().out, name


def test_overfitting_a_batch_trains_and_validates_on_its_images(trained, tmp_path) -> None:
    folder = train.main([*trained.flags, "--tr_overfit=1", f"--output_dir={tmp_path}"])
    values = list(logged(folder, KEY).values())
    assert values[-1] < values[0]
    assert len(pd.read_csv(folder / "predictions_valid.csv")) == 8


def test_weights_of_another_class_count_start_a_training_on_request_with_a_printed_list(
    trained, tmp_path, capsys
) -> None:
    path = tmp_path / "eleven.pth"
    torch.save(create_model("resnet10t", num_classes=11).state_dict(), path)
    flags = [*trained.flags, f"--net_weight_file={path}", f"--output_dir={tmp_path / 'results'}"]
    line = failure(train.main, flags, capsys)
    assert "--net_weight_adapt=1" in line
    train.main([*flags, "--net_weight_adapt=1"])
    assert "fc.weight: starts fresh" in capsys.readouterr().err
