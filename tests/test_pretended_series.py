"""Networks over whole series on pretended GPUs: as tests/test_pretended_cuda.py, which says what is allowed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import SmallDataset
from tests.pretended_run import Request, Result, run_pretended
from tests.test_pretended_cuda import ALONE, LOADED, TWO, check

SERIES = [*TWO, "--tr_batch_size=2", "--seq_width=16", "--seq_study=learned"]


@pytest.fixture(scope="module")
def series(small_dataset: SmallDataset, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a training from the pictures of whole series."""
    place = f"--output_dir={tmp_path_factory.mktemp('pretended')}"
    start = [f"--net_weight_file={finished / 'fold_0' / 'best.pt'}", "--net_kind=study", "--study_chunk=16"]
    return [*small_dataset.flags, *SERIES, place, *start]


def of_features(small_dataset: SmallDataset, with_features: Path, folder: Path, *more: str) -> Request:
    """A training from features."""
    flags = [flag for flag in SERIES if not flag.startswith("--data_image_size")]
    flags = [*small_dataset.flags, *flags, f"--output_dir={folder}", ALONE, "--net_kind=sequence"]
    return Request("train", [*flags, f"--seq_features={with_features}", *more])


def trained(result: Result) -> str:
    """Return the flag that names the weights of a training that ended well."""
    check(result)
    return f"--net_weight_file={Path(result.last_line) / 'best.pt'}"


def test_series_of_pictures_that_processes_load_and_series_of_features_are_never_waited_for(
    small_dataset, with_features, series, tmp_path
) -> None:
    """The processes draw what each picture gets, and the device does it."""
    pictures = Request("train", [*series, LOADED, "--experiment_id=study"])
    (results,) = run_pretended([pictures, of_features(small_dataset, with_features, tmp_path)])
    for result in results:
        check(result)
    assert "computed on the CPU" not in results[0].output


@pytest.mark.slow
def test_every_encoder_both_precisions_averages_and_skips(small_dataset, with_features, series, tmp_path) -> None:
    kinds = [
        of_features(small_dataset, with_features, tmp_path, f"--seq_model={name}", "--tr_ema=1", "--tr_use_amp=1")
        for name in ("lstm", "transformer", "conv")
    ]
    careful = ["--tr_nonfinite=skip", "--tr_clip_norm=1", "--tr_swa=1", "--tr_accumulation_step=2"]
    kinds.append(Request("train", [*series, ALONE, *careful, "--tr_iteration_num=4"], nan_at=[3]))
    (results,) = run_pretended(kinds)
    for result in results[:-1]:
        check(result)
    assert results[-1].code == 0, results[-1].output
    assert not results[-1].errors
    assert "its update is skipped" in results[-1].output


@pytest.mark.slow
def test_predictions_views_features_and_evaluation_are_read_two_batches_late(series, finished, tmp_path) -> None:
    """A whole set is read two batches late: what is waited for is an event and never the newest batch."""
    ((result,),) = run_pretended([Request("train", [*series, ALONE, "--experiment_id=judged"])])
    weights = trained(result)
    folder = Path(result.last_line)
    shutil.copytree(finished, tmp_path / "cv")
    views = ["--tta=train_intermediate_128.json", "--tta_views=2"]
    evaluated = ["--experiment_id=judged", f"--output_dir={folder.parent}", "--eval_draws=100"]
    requests = [
        Request("predict", [weights, "--split=valid", ALONE]),
        Request("predict", [weights, "--split=test", *views, ALONE]),
        Request("evaluate", [*evaluated, ALONE]),
        Request("predict", [f"--net_weight_file={tmp_path / 'cv'}", "--features=1", ALONE]),
    ]
    (results,) = run_pretended(requests)
    for result in results:
        assert result.code == 0, result.output
        assert not result.errors, result.errors
        blocking = [wait for wait in result.waits if "device to host" in wait.text and "arrival" in wait.place]
        assert not blocking
        assert any("common/networks/arrival.py" in wait.place for wait in result.waits)


@pytest.mark.slow
def test_two_processes_share_series(small_dataset, with_features, tmp_path) -> None:
    request = of_features(small_dataset, with_features, tmp_path, "--tr_batch_size=1", "--experiment_id=shared")
    for (result,) in run_pretended([request], processes=2):
        assert result.code == 0, result.output
        assert not result.errors, result.errors
