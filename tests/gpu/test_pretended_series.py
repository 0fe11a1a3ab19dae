"""Networks over whole series on pretended GPUs: what tests/test_pretended_cuda.py, whose rules hold, doesn't try."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import SmallDataset
from tests.gpu.test_pretended_cuda import ALONE, LOADED, allowed, faults
from tests.pretended_run import Request, run_pretended

SERIES = [
    "--tr_iteration_num=2", "--tr_iteration_valid=2", "--tr_batch_size=2", "--tr_report=0", "--seq_width=16",
    "--seq_study=learned",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(small_dataset: SmallDataset, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a training from the pictures of whole series."""
    place = f"--output_dir={tmp_path_factory.mktemp('pretended')}"
    start = [f"--net_weight_file={finished / 'fold_0' / 'best.pt'}", "--net_kind=study", "--study_chunk=16"]
    return [*small_dataset.flags, *SERIES, place, *start, "--data_image_size=32"]


def of_features(small_dataset: SmallDataset, with_features: Path, folder: Path, *more: str) -> Request:
    """A training from features."""
    flags = [*small_dataset.flags, *SERIES, f"--output_dir={folder}", "--net_kind=sequence", ALONE]
    return Request("train", [*flags, f"--seq_features={with_features}", *more])


@pytest.mark.slow
def test_series_of_pictures_that_processes_load_and_series_of_features_are_never_waited_for(
    small_dataset, with_features, pictures, tmp_path
) -> None:
    """The processes draw what each picture gets, and the device does it."""
    loaded = Request("train", [*pictures, LOADED])
    (results,) = run_pretended([loaded, of_features(small_dataset, with_features, tmp_path)])
    assert not [fault for result in results for fault in faults(result, allowed(1))]
    assert "computed on the CPU" not in results[0].output


@pytest.mark.slow
def test_a_batch_of_series_that_is_not_finite_is_skipped(pictures) -> None:
    careful = ["--tr_nonfinite=skip", "--tr_clip_norm=1", "--tr_swa=1", "--tr_accumulation_step=2"]
    ((result,),) = run_pretended([Request("train", [*pictures, ALONE, *careful, "--tr_iteration_num=4"], nan_at=[3])])
    assert not faults(result)
    assert "its update is skipped" in result.output


@pytest.mark.slow
def test_predictions_views_features_and_evaluation_are_read_two_batches_late(pictures, finished, tmp_path) -> None:
    """What is waited for is an event and never the newest batch."""
    shutil.copytree(finished, tmp_path / "cv")
    ((trained,),) = run_pretended([Request("train", [*pictures, ALONE, "--experiment_id=judged"])])
    assert not faults(trained, allowed(1))
    folder = Path(trained.last_line)
    weights, views = f"--net_weight_file={folder / 'best.pt'}", ["--tta=train_intermediate_128.json", "--tta_views=2"]
    requests = [
        Request("predict", [weights, "--split=valid", ALONE]),
        Request("predict", [weights, "--split=test", *views, ALONE]),
        Request("evaluate", ["--experiment_id=judged", f"--output_dir={folder.parent}", "--eval_draws=100", ALONE]),
        Request("predict", [f"--net_weight_file={tmp_path / 'cv'}", "--features=1", ALONE]),
    ]
    (results,) = run_pretended(requests)
    readers = ("rsna/prediction/embeddings.py", "rsna/kinds/series.py:keep", "common/networks/")
    for result in results:
        assert not faults(result)
        assert not [wait for wait in result.waits if "to host" in wait.text and wait.place.startswith(readers)]
        assert any(wait.place.startswith("common/training/arrival.py") for wait in result.waits)


@pytest.mark.slow
def test_two_processes_share_series(small_dataset, with_features, tmp_path) -> None:
    request = of_features(small_dataset, with_features, tmp_path, "--tr_batch_size=1")
    assert not [fault for (result,) in run_pretended([request], processes=2) for fault in faults(result)]
