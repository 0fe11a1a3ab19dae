"""The project's commands on pretended GPUs: nothing mixes devices, races a stream, or lets the host wait for nothing.

See ``tests/pretended_cuda.py`` for what it sees and what it can't. Most of the time goes into starting processes: each
fixture is one, which runs several commands.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from pprint import pformat

import albumentations as A
import pytest

from common.albumentations import DicomWindowShift
from common.checkpoint import load_checkpoint
from common.trackers.jsonl import read_metrics
from tests.conftest import SmallDataset
from tests.pretended_cuda import Settings
from tests.pretended_run import BROKEN, Request, Result, found_in, run_pretended

TINY = ["--tr_batch_size=4", "--data_image_size=32", "--tr_report=0"]
TWO = [*TINY, "--tr_iteration_num=2", "--tr_iteration_valid=2"]
LOADED = "--n_jobs=2"  # loading processes, two that load training images
ALONE = "--n_jobs=1"  # none
OVERFIT = "--tr_overfit=1"  # four images to validate on


def allowed(late: int, *, decided: int = 0, skipped: int = 0) -> Counter[tuple[str, str]]:
    """Where the host may wait for the device within a training, and how often.

    ``late``: for what was asked for an iteration before, so that the device goes on meanwhile: the flags of every step
    but the last, and each logged line but the last. ``decided``: steps of an optimizer without fused kernels, which the
    host decides on. ``skipped``: steps left out, whose images are named.
    """
    return Counter(
        {
            ("event.synchronize", "common/training/arrival.py:wait"): late,
            ("_local_scalar_dense", "common/networks/guard.py:_step"): decided,
            ("tolist", "common/networks/guard.py:<listcomp>"): skipped,
        }
    )


def faults(result: Result, waits: Counter[tuple[str, str]] | None = None, code: int = 0) -> list[str]:
    """What is wrong: another end, what a GPU refuses, more waits in iterations than ``waits`` (None: any)."""
    found = [f"{error.count} times {error.text}: {error.chain}" for error in result.errors]
    if result.code != code:
        found.append(f"code {result.code}: {result.output}")
    if code == 0 and result.kernels == 0:
        found.append("nothing was computed")
    if waits is not None:
        found += [
            f"{count} waits too many: {kind} in {place}" for (kind, place), count in beyond(result, waits).items()
        ]
    return found


def beyond(result: Result, waits: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """How often the host waited, by kind and place, between the validations of a training, more than allowed."""
    found = {(wait.text, wait.place): wait.count for wait in result.waits if wait.region == "iteration"}
    return Counter(found) - waits


@pytest.fixture(scope="module")
def flags(small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*small_dataset.flags, f"--output_dir={tmp_path_factory.mktemp('pretended')}"]


@pytest.fixture(scope="module")
def slices(flags: list[str]) -> dict[str, Result]:
    """In one process: the default command, one that an error ends, and those in which a rule is broken, by its name."""
    failing = [*TWO, ALONE, OVERFIT, "--tr_iteration_log=1", "--experiment_id=ended"]
    requests = [Request("train", [*flags, *TWO, LOADED]), Request("train", [*flags, *failing], nan_at=[2])]
    requests += [Request("train", [*flags, *TWO, ALONE, OVERFIT], broken=rule) for rule in BROKEN]
    (results,) = run_pretended(requests)
    return dict(zip(["", "ended", *BROKEN], results, strict=True))


def test_the_default_command_trains_and_validates(slices: dict[str, Result]) -> None:
    assert not faults(slices[""], allowed(1))
    assert (Path(slices[""].last_line) / "best.pt").is_file()
    assert "computed on the CPU" not in slices[""].output


def test_the_line_before_an_error_is_logged(slices: dict[str, Result], flags: list[str]) -> None:
    assert "error: the loss of iteration 2 is not finite" in slices["ended"].last_line
    logged = read_metrics(Path(flags[-1].partition("=")[2]) / "ended" / "metrics.jsonl")
    (first, last) = [point for point in logged if "train/loss" in point]
    assert (first["iteration"], first["step"], last["iteration"], last["step"]) == (1, 1, 2, 1)
    assert first["train/loss"] > 0
    assert last["train/loss"] is None


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("wait_stream", "wait_stream is missing"),
        ("record_stream", "record_stream is missing"),
        ("arrival", "before its copy has arrived"),
        ("devices", "are mixed"),
    ],
)
def test_a_training_that_breaks_a_rule_is_found_out(slices: dict[str, Result], rule: str, found: str) -> None:
    assert any(found in fault for fault in faults(slices[rule]))


def test_a_training_that_reads_a_value_in_each_iteration_is_found_out(slices: dict[str, Result]) -> None:
    assert beyond(slices["haste"], allowed(1)) == {("_local_scalar_dense", "tests/pretended_run.py:look"): 2}


def test_a_training_that_waits_for_the_newest_step_is_found_out(slices: dict[str, Result]) -> None:
    idle = "event.synchronize, the device idles"
    assert beyond(slices["patience"], allowed(0)) == {(idle, "common/training/arrival.py:wait"): 2}


EVERY_STEP = [
    A.HorizontalFlip(),
    DicomWindowShift((70, 150, 350), (90, 250, 400), (30, 60, 35), (50, 100, 45)),
    *(A.Affine(rotate=(-30, 30), scale=(0.6, 1.2), border_mode=mode, fill=0.4, p=0.6) for mode in (0, 1, 2, 4)),
    A.Rotate((-40, 40), border_mode=0, fill=(0.1, 0.5, 0.9), p=0.7),
    A.GridDistortion(normalized=False, border_mode=4, p=0.7),
    A.OneOf([A.Rotate(border_mode=4), A.VerticalFlip()]),
    A.CoarseDropout((2, 9), (3, 8), (3, 8), fill=0.6, p=0.7),
    A.GaussNoise((0.01, 0.2), (-0.1, 0.1), p=0.9),
    A.RandomResizedCrop((32, 32), (0.4, 0.9)),
    A.Normalize((0.27176, 0.26492, 0.46473), (0.35144, 0.29973, 0.23607), max_pixel_value=1.0),
]


@pytest.mark.slow
def test_options_of_a_training_in_every_precision(flags: list[str], tmp_path: Path) -> None:
    steps = tmp_path / "every_step.json"
    steps.write_text(json.dumps(A.to_dict(A.Compose(EVERY_STEP))))
    mixed = "--tr_use_amp=1"
    half = [mixed, "--tr_amp_dtype=float16"]
    three = [*TINY, "--tr_iteration_num=3", "--tr_iteration_valid=3"]
    four = [*TINY, "--tr_iteration_num=4", "--tr_iteration_valid=4", "--tr_accumulation_step=2"]
    averaged = ["--tr_ema=1", "--tr_swa=1", "--tr_swa_start=0"]
    skip, log_each = "--tr_nonfinite=skip", "--tr_iteration_log=1"
    table = "host to device, blocking", "common/datasets/finish.py:_table"  # of the noise, once
    cases = {
        "bfloat16": (
            [*four, LOADED, mixed, *averaged, "--tr_clip_norm=1", "--data_sampler=hard", "--experiment_id=bfloat16"],
            {"heard": 1},
            allowed(4),  # a step, and the losses of each batch but the first
        ),
        "float16": (
            [*three, ALONE, OVERFIT, *half, "--optim=sgd", skip, "--tr_ema=1", "--tr_channels_last=1"],
            {"nan_at": [1]},
            allowed(2, skipped=1),
        ),
        "float16, not fused": ([*TWO, ALONE, OVERFIT, *half, "--optim=rmsprop"], {}, allowed(1, decided=2)),
        "float32, not fused": (
            [*three, ALONE, OVERFIT, "--optim=lookahead_adamw", skip, "--tr_clip_norm=1"],
            {"nan_at": [2]},
            allowed(2, decided=3, skipped=1),
        ),
        "older GPU": (
            [*TWO, ALONE, OVERFIT, mixed, "--tr_clip_norm=1", *averaged, "--experiment_id=older"],
            {"capability": (7, 5)},
            allowed(1),
        ),
        "from an older to a newer GPU": (["--tr_resume=older", "--tr_iteration_num=4"], {}, allowed(1)),
        "from a newer to an older GPU": (
            ["--tr_resume=bfloat16", "--tr_iteration_num=8"],
            {"capability": (7, 5)},
            None,
        ),
        "every step": ([*TWO, LOADED, f"--data_train_transform={steps}"], {}, allowed(1) + Counter({table: 1})),
        "one warp, neighbours": (
            [*TWO, ALONE, f"--data_train_transform={steps}", "--data_transform_fuse=1", "--loss=focal", log_each],
            {},
            allowed(2),
        ),
        "repeatable": (
            [*TWO, ALONE, OVERFIT, "--tr_deterministic=1", "--tr_grad_checkpoint=1", "--data_context=1"],
            {},
            allowed(1),
        ),
        "finders": (
            [*TWO, ALONE, *half, "--optim=sgd", "--tr_lr_find=1", "--tr_batch_find=1", "--optim_lr=0.01"],
            {"fits": 16, "rates": 30},
            allowed(1),
        ),
        "stop": ([*three, ALONE, OVERFIT], {"nan_at": [2]}, None),
    }
    requests = [Request("train", [*flags, *arguments], **more) for arguments, more, _ in cases.values()]
    (results,) = run_pretended(requests)
    found = dict(zip(cases, results, strict=True))
    ends = {"stop": 1, "from a newer to an older GPU": 2}
    wrong = {name: faults(found[name], waits, ends.get(name, 0)) for name, (_, _, waits) in cases.items()}
    assert not any(wrong.values()), pformat(wrong)
    assert "this GPU has no bfloat16" in found["from a newer to an older GPU"].output
    assert "float16" in (Path(flags[-1].partition("=")[2]) / "older" / "config.yaml").read_text()
    assert "that fits: --tr_batch_size=16" in found["finders"].output
    assert "iteration 2 is not finite; images: ID_" in found["stop"].output
    for name in ("float16", "float32, not fused"):
        assert "its update is skipped (1 of 10)" in found[name].output
    assert "computed on the CPU" not in found["every step"].output


@pytest.mark.slow
def test_what_is_done_with_a_trained_slice_network(flags: list[str], small_dataset: SmallDataset, tmp_path) -> None:
    output_dir = Path(flags[-1].partition("=")[2])
    weights = f"--net_weight_file={output_dir / 'whole' / 'best.pt'}"
    views = ["--tta=train_demo.json", "--tta_views=2"]
    place = f"--predict_output={tmp_path / 'studies'}"
    requests = [
        Request("train", [*flags, *TWO, ALONE, "--tr_report=1", "--tr_ema=1", "--experiment_id=whole"]),
        Request("predict", [weights, LOADED]),
        Request("predict", [weights, ALONE, *views, f"--output_file={tmp_path / 'tta.csv'}"]),
        Request("evaluate", ["--experiment_id=whole", f"--output_dir={output_dir}", LOADED, "--eval_draws=100"]),
        Request("predict", [weights, ALONE, f"--source={small_dataset.source / 'stage_2_test'}", place]),
        Request("report", ["--experiment_id=whole", f"--output_dir={output_dir}"]),
        Request("export", [weights, "--export_format=torch_export", ALONE]),
    ]
    (results,) = run_pretended(requests)
    wrong = {str(request): faults(result) for request, result in zip(requests, results, strict=True)}
    assert not any(wrong.values()), pformat(wrong)
    assert (output_dir / "whole" / "report.html").is_file()
    assert (tmp_path / "studies" / "studies.csv").is_file()


@pytest.mark.slow
def test_models_over_series_and_studies(
    flags: list[str], finished: Path, with_features: Path, small_dataset: SmallDataset, tmp_path: Path
) -> None:
    folds = tmp_path / "folds"
    shutil.copytree(finished, folds)
    output_dir = Path(flags[-1].partition("=")[2])
    over = ["--seq_width=16", "--seq_study=learned", "--tr_batch_size=2", "--tr_report=0"]
    two = ["--tr_iteration_num=2", "--tr_iteration_valid=2"]
    sequence = [*over, *two, "--net_kind=sequence", f"--seq_features={with_features}", ALONE]
    slices = f"--net_weight_file={finished / 'fold_0' / 'best.pt'}"
    study = [*over, *two, "--net_kind=study", "--study_chunk=8", "--data_image_size=32", slices]
    files = f"--source={small_dataset.source / 'stage_2_test'}"
    mixed, half = "--tr_use_amp=1", "--tr_amp_dtype=float16"
    trainings = [
        [*sequence, "--seq_model=gru", "--experiment_id=gru"],
        [*sequence, "--seq_model=transformer", mixed],
        [*sequence, "--seq_model=lstm", mixed, half, "--tr_ema=1"],
        [*study, LOADED, "--experiment_id=study"],
        [*study, ALONE, mixed, "--seq_model=conv"],
    ]
    requests = [
        *(Request("train", [*flags, *arguments]) for arguments in trainings),
        *(
            Request("evaluate", [f"--experiment_id={name}", f"--output_dir={output_dir}", ALONE, "--eval_draws=100"])
            for name in ("gru", "study")
        ),
        Request(
            "predict",
            [f"--net_weight_file={output_dir / 'study' / 'best.pt'}", LOADED, "--tta=train_demo.json", "--tta_views=2"],
        ),
        Request("predict", [f"--net_weight_file={folds}", "--features=1", ALONE]),
        Request(
            "predict",
            [
                *(files, f"--net_weight_file={with_features}", f"--sequence={output_dir / 'gru' / 'best.pt'}", ALONE),
                f"--predict_output={tmp_path / 'studies'}",
            ],
        ),
    ]
    (results,) = run_pretended(requests)
    waits = [allowed(1)] * len(trainings) + [None] * (len(requests) - len(trainings))
    wrong = {str(request): faults(result, wait) for request, result, wait in zip(requests, results, waits, strict=True)}
    assert not any(wrong.values()), pformat(wrong)


@pytest.mark.slow
def test_two_processes_train_together(flags: list[str], finished: Path) -> None:
    slices = f"--net_weight_file={finished / 'fold_0' / 'best.pt'}"
    series = ["--net_kind=study", slices, "--study_chunk=8", "--seq_width=16"]
    requests = [
        Request("train", [*flags, *TWO, LOADED, "--tr_ema=1", "--tr_use_amp=1", "--experiment_id=together"]),
        Request("train", [*flags, *TWO, ALONE, *series, "--tr_batch_size=1", "--experiment_id=series_together"]),
    ]
    wrong = [faults(result) for results in run_pretended(requests, processes=2) for result in results]
    assert not any(wrong), pformat(wrong)
    for request in requests:
        folder = Path(flags[-1].partition("=")[2]) / request.arguments[-1].partition("=")[2]
        assert load_checkpoint(folder / "last.pt")["iteration"] == 2


@pytest.mark.slow
def test_sweeps_and_folds_run_on_two_gpus(flags: list[str], tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    lines = tmp_path / "lines"
    shared = " ".join([*flags[:-1], *TWO, ALONE])
    lines.write_text("".join(f"--experiment_id=swept_{seed} --seed={seed}\n" for seed in range(2)))
    requests = [
        Request("sweep", [f"--lines={lines}", f"--flags={shared}", flags[-1]]),
        Request("train", [*flags, *TWO, ALONE, "--data_fold=0,1", "--experiment_id=folded"]),
    ]
    (results,) = run_pretended(requests, settings=Settings(gpus=2, findings=str(found)))
    assert [result.code for result in results] == [0, 0], [result.output for result in results]
    trained = [process for process in found_in(found) if process["command"][0].endswith("train.py")]
    assert sorted(process["visible"] for process in trained) == ["0", "0", "1", "1"]
    assert all(process["kernels"] > 0 and not process["errors"] for process in trained)
