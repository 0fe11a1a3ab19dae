"""common/datasets/context.py, and pictures with their neighbours from dataset to command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evaluate
import predict
import train
from common.albumentations import fixed_windows
from common.checkpoint import load_checkpoint
from common.datasets.batch import collate
from common.datasets.context import describe_lacks, find_neighbours, slice_places
from common.errors import UsageError, WorkError
from common.models.backbone import create_model
from common.transforms.device import DevicePart
from common.transforms.documents import find_transform
from common.transforms.pipeline import load_pipeline, pipeline_from_dict
from rsna_dataset import LABELS, RSNADataset, read_fold, read_metadata
from tests.runs import failure

WINDOWS = ((40.0, 80.0), (80.0, 200.0))


def neighbours(places: list[float], count: int, series: list[int] | None = None) -> list[list[int]]:
    codes = np.zeros(len(places), int) if series is None else np.array(series)
    return find_neighbours(codes, np.array(places, float), np.arange(len(places)), count).tolist()


def test_neighbours_follow_the_position_and_edges_are_repeated() -> None:
    assert neighbours([10, 0, 5], 1) == [[2, 0, 0], [1, 1, 2], [1, 2, 0]]
    assert neighbours([0, 5, 10], 2)[0] == [0, 0, 0, 1, 2]


def test_what_a_gap_lacks_is_repeated_from_the_middle_and_what_lies_beyond_it_stays_in_its_place() -> None:
    assert neighbours([0, 5, 10, 20, 25], 2)[2] == [0, 1, 2, 2, 3]


def test_slices_at_one_place_are_not_each_others_neighbours_and_keep_to_their_own_scan() -> None:
    assert neighbours([0, 0, 5, 5, 10], 1) == [[0, 0, 2], [1, 1, 3], [0, 2, 4], [1, 3, 4], [2, 4, 4]]


def test_a_slice_without_a_place_stands_alone_and_a_series_without_any_goes_by_its_order() -> None:
    assert neighbours([0, np.nan, 5], 1) == [[0, 0, 2], [1, 1, 1], [0, 2, 2]]
    series, index = np.array([0, 0, 1, 1]), np.array([1, 0, 0, 1])
    places = slice_places(series, np.array([np.nan, np.nan, 3.0, np.nan]), index)
    np.testing.assert_array_equal(places, [1, 0, 3, np.nan])


def test_thin_slices_below_and_thick_ones_above_have_the_neighbours_beside_them() -> None:
    """The posterior fossa at 2.5 mm, the rest at 5 (dcm2niix issue 22): one spacing for all left six slices alone."""
    places = [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5, 20, 25, 30, 35, 40, 45, 50]
    last = len(places) - 1
    assert neighbours(places, 1) == [[max(row - 1, 0), row, min(row + 1, last)] for row in range(last + 1)]
    assert neighbours(places, 2)[8] == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("offset", [0.0, 0.3, 1.0])
def test_a_head_scanned_twice_is_not_mixed(offset: float) -> None:
    places = [place + scan * offset for place in (0, 5, 10, 15) for scan in (0, 1)]
    assert neighbours(places, 1) == [[max(row - 2, row % 2), row, min(row + 2, 6 + row % 2)] for row in range(8)]
    thrice = [place + scan * offset / 2 for place in (0, 5, 10) for scan in (0, 1, 2)]
    assert neighbours(thrice, 1) == [[max(row - 3, row % 3), row, min(row + 3, 6 + row % 3)] for row in range(9)]


def test_thin_slices_beside_a_gap_stay_each_others_neighbours() -> None:
    places = [0, 0.6, 1.2, 1.8, 20, 20.6, 21.2, 21.8]
    assert neighbours(places, 1) == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3], [4, 4, 5], [4, 5, 6], [5, 6, 7],
                                     [6, 7, 7]]  # fmt: skip


def slow(series: list[int], places: list[float], count: int) -> list[list[int]]:
    """The rule once more, slice by slice."""
    found = []
    for row in range(len(places)):
        own = sorted(
            (other for other in range(len(places)) if series[other] == series[row]), key=lambda o: (places[o], o)
        )
        exact = sorted({places[other] for other in own})
        steps = [float(step) for step in np.diff(exact)]
        merged = set()
        for start in range(len(steps)):
            for run in (1, 2):
                bounds = [steps[k] for k in (start - 1, start + run) if 0 <= k < len(steps)]
                inner = steps[start : start + run]
                if len(inner) == run and bounds and max(inner) < 0.3 * min(bounds):
                    merged |= set(range(start, start + run))
        sites: list[list[float]] = []
        for number, value in enumerate(exact):
            if number - 1 in merged:
                sites[-1].append(value)
            else:
                sites.append([value])
        groups = [[other for other in own if places[other] in site] for site in sites]
        centers = [float(np.mean([places[other] for other in group])) for group in groups]
        gaps = np.diff(centers)
        spacings = [
            float(np.median(around)) if len(around := gaps[max(site - 3, 0) : site + 3]) else 1.0
            for site in range(len(sites))
        ]
        mine = next(number for number, group in enumerate(groups) if row in group)
        slots = {0: row}
        for direction in (-1, 1):
            here, position, spacing = mine, centers[mine], spacings[mine]
            for j in range(1, count + 1):
                position += direction * spacing
                beside = [site for site in range(len(centers)) if abs(centers[site] - position) <= spacing / 2 + 1e-3]
                near = min(beside, key=lambda site: direction * centers[site], default=here)
                if near != here:
                    here, position, spacing = near, centers[near], spacings[near]
                    slots[direction * j] = groups[near][min(groups[mine].index(row), len(groups[near]) - 1)]
                else:
                    slots[direction * j] = slots[direction * (j - 1)]
        found.append([slots[j] for j in range(-count, count + 1)])
    return found


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 20)), min_size=1, max_size=40),
    st.integers(0, 3),
)
def test_neighbours_of_any_series_are_those_of_the_rule(rows: list[tuple[int, int]], count: int) -> None:
    codes, _ = pd.factorize(pd.Series([series for series, _ in rows]))
    places = [place / 2 for _, place in rows]
    assert neighbours(places, count, codes.tolist()) == slow(codes.tolist(), places, count)


def dataset(folder: Path, context: int, transform=None, size: int = 0, rows: pd.DataFrame | None = None) -> RSNADataset:
    rows = read_fold(folder, "phantom", 0) if rows is None else rows
    pipeline = transform or load_pipeline(
        find_transform("valid_demo.json"), (*WINDOWS, (40, 380)), slices=2 * context + 1
    )
    return RSNADataset(folder, rows, pipeline, size, 0, context)


def test_channels_are_the_windows_of_each_neighbour_in_their_order(small_dataset) -> None:
    alone, beside = dataset(small_dataset.folder, 0, size=48), dataset(small_dataset.folder, 1, size=48)
    table = read_metadata(small_dataset.folder)
    ids = alone.image_ids.tolist()
    series = table.loc[ids[5], "series_id"]
    order = table[table["series_id"] == series].sort_values("position_mm").index
    middle = order[len(order) // 2]
    place = order.get_loc(middle)
    wanted = [alone[ids.index(name)].image for name in order[place - 1 : place + 2]]
    found = beside[ids.index(middle)].image
    assert found.shape == (9, 48, 48)
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-5)  # nine channels go another way than three


def test_slices_that_lack_a_neighbour_are_counted_by_side() -> None:
    found = describe_lacks(np.array(neighbours([0, 5, 10, 20, 25, np.nan], 1)))
    assert found.startswith("5 of 6 slices lack a neighbour")
    assert found.endswith("4 at one side, 0 at both, 1 that have none at all")


def test_how_many_slices_lack_a_neighbour_is_said_once_at_the_start(small_dataset, tmp_path, capsys) -> None:
    folder = tmp_path / "datasets/phantom"
    shutil.copytree(small_dataset.folder, folder)
    capsys.readouterr()
    for _ in range(2):
        dataset(folder, 1, size=48)
    lines = [line for line in capsys.readouterr().err.splitlines() if "lack a neighbour" in line]
    assert len(lines) == 1
    assert f" of {len(read_metadata(folder))} slices lack a neighbour" in lines[0]


def test_whole_batches_on_the_device_are_the_pictures_with_their_neighbours(small_dataset) -> None:
    steps = [fixed_windows(WINDOWS), A.HorizontalFlip(p=0.5), A.Rotate((-20, 20), border_mode=4), A.GaussNoise(p=0.5)]
    steps.append(A.Normalize((0.2, 0.3), (0.4, 0.5), 1.0))
    document = json.loads(json.dumps(A.to_dict(A.Compose(steps))))
    for fuse in (False, True):
        pipeline = pipeline_from_dict(document, "f.json", WINDOWS, fuse=fuse, slices=3)
        whole, parts = (dataset(small_dataset.folder, 1, one, 48) for one in (pipeline, DevicePart(pipeline)))
        expected = collate([whole[index] for index in range(8)]).inputs["image"]
        batch = collate([parts[index] for index in range(8)])
        assert batch.inputs["image"].shape == (8, 3, 48, 48)
        found = batch.finished().inputs["image"]
        assert found.shape == expected.shape == (8, 6, 48, 48)
        assert (found - expected).abs().mean() < 1e-3


def test_pictures_that_are_windowed_already_stand_slice_by_slice(small_dataset, tmp_path) -> None:
    folder = tmp_path / "datasets/phantom"
    shutil.copytree(small_dataset.folder, folder)
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "image_form": "window", "windows": "40/80,80/200"}))
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        np.save(path, np.full((8, 8, 2), [number % 250, 255], dtype=np.uint8))
    document = {
        "__version__": A.__version__,
        "transform": {"__class_fullname__": "Compose", "transforms": [], "p": 1.0},
    }
    pipeline = pipeline_from_dict(document, "f.json", WINDOWS, windowed=True, slices=3)
    picture = dataset(folder, 1, pipeline)[3].image
    assert picture.shape == (6, 8, 8)
    np.testing.assert_array_equal(picture[1::2], 1)


def test_neighbours_of_other_sizes_cropped_boxes_and_missing_files_are_one_line(small_dataset, tmp_path) -> None:
    folder = tmp_path / "datasets/phantom"
    shutil.copytree(small_dataset.folder, folder)
    table = read_metadata(folder)
    rows = read_fold(folder, "phantom", 0)
    series = table[table["series_id"] == table.loc[rows.index[0], "series_id"]].sort_values("position_mm").index
    np.save(folder / "images" / f"{series[1]}.npy", np.zeros((9, 9), np.int16))
    data = dataset(folder, 1)
    place = data.image_ids.tolist().index(series[0])
    with pytest.raises(WorkError, match=r"neighbours of different sizes.*--data_image_size"):
        data[place]
    (folder / "images" / f"{series[1]}.npy").unlink()
    with pytest.raises(WorkError, match="is missing"):
        dataset(folder, 1, rows=rows.loc[[series[0]]]).check_files()
    info = json.loads((folder / "dataset.json").read_text())
    info["options"]["pre_crop"] = "head"
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="--pre_crop=none"):
        dataset(folder, 1)


def test_training_with_context_resumes_predicts_and_evaluates_by_its_weight_file_alone(
    small_dataset, tmp_path, capsys
) -> None:
    document = json.loads((find_transform("train_demo.json")).read_text())
    thick = {"__class_fullname__": "common.albumentations.SliceThickness", "slices_range": [1.0, 2.0], "p": 1.0}
    document["transform"]["transforms"].insert(0, thick)
    (tmp_path / "thick.json").write_text(json.dumps(document))
    weights = tmp_path / "three.pth"
    torch.save(create_model("test_resnet").state_dict(), weights)
    flags = [*small_dataset.flags, "--net_model=test_resnet", "--data_image_size=32", "--tr_batch_size=8", "--n_jobs=1"]
    flags += [f"--data_train_transform={tmp_path / 'thick.json'}", f"--output_dir={tmp_path / 'results'}"]
    line = failure(train.main, flags, capsys)
    assert "--data_context=1" in line
    flags += ["--data_context=1", f"--net_weight_file={weights}", "--tr_report=0"]
    line = failure(train.main, flags, capsys)
    assert "--net_weight_adapt=1 would adapt it" in line
    assert "conv1.0.weight: 3 input channels in the file, 9 here" in line
    folder = train.main([*flags, "--net_weight_adapt=1", "--tr_iteration_num=2", "--tr_iteration_valid=2"])
    assert load_checkpoint(folder / "best.pt")["model"]["conv1.0.weight"].shape[1] == 9
    train.main([f"--tr_resume={folder / 'last.pt'}", "--tr_iteration_num=4"])
    evaluate.main([f"--experiment_id={folder.name}", f"--output_dir={folder.parent}", "--tta=valid_demo.json",
                   "--tta_views=2", "--eval_draws=100"])  # fmt: skip
    assert "reproduces the logged" in capsys.readouterr().out
    predict.main([f"--net_weight_file={folder / 'best.pt'}", "--split=valid"])
    written = pd.read_csv(folder / "predictions_valid.csv", index_col="id")
    assert list(written.columns) == list(LABELS)
