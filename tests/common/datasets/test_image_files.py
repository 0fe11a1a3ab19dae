"""common/datasets/image_files.py, and datasets whose images are compressed."""

from __future__ import annotations

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import preprocessing
from common.datasets.image_files import SUFFIXES, encode_image, load_image
from common.datasets.loaders import make_loader
from common.datasets.samplers import RandomSampler
from common.errors import WorkError
from common.transforms.documents import find_transform
from common.transforms.pipeline import load_pipeline
from rsna_dataset import RSNADataset, read_dataset_info, read_fold

WINDOWS = ((40.0, 80.0), (80.0, 200.0), (40.0, 380.0))


def write(path: Path, image: np.ndarray) -> Path:
    path.write_bytes(b"".join(encode_image(image, path.suffix)))
    return path


@pytest.fixture(scope="module")
def packed(small_dataset, tmp_path_factory) -> Path:
    """The small dataset again, with compressed images."""
    flags = [f"--data_input_folder={tmp_path_factory.mktemp('packed')}", "--data_dataset=phantom", "--n_jobs=1"]
    return preprocessing.main([*flags, f"--pre_source={small_dataset.source}", "--pre_format=blosc2"])


@settings(max_examples=60, deadline=None)
@given(
    image=hnp.arrays(
        st.sampled_from([np.int16, np.uint8, np.float32]), hnp.array_shapes(min_dims=2, max_dims=3, max_side=40)
    ),
    suffix=st.sampled_from(list(SUFFIXES.values())),
)
def test_an_image_comes_back_with_its_shape_type_and_bits(tmp_path_factory, image: np.ndarray, suffix: str) -> None:
    path = write(tmp_path_factory.mktemp("image") / f"x{suffix}", image)
    found = load_image(path)
    assert (found.dtype, found.shape) == (image.dtype, image.shape)
    assert found.tobytes() == image.tobytes()


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(st.sampled_from(["<i2", "u1", "<f4", "<i8"]), hnp.array_shapes(min_dims=2, max_dims=3, max_side=200)))
def test_a_npy_file_has_the_bytes_of_numpy_s_own(image: np.ndarray) -> None:
    expected = io.BytesIO()
    np.save(expected, image)
    assert b"".join(encode_image(image, ".npy")) == expected.getvalue()


def test_an_array_that_is_not_contiguous_is_stored_as_it_looks(tmp_path) -> None:
    image = np.arange(60, dtype=np.int16).reshape(6, 10)[::2, ::-1]
    np.testing.assert_array_equal(load_image(write(tmp_path / "x.b2nd", image)), image)


def test_a_noisy_slice_takes_at_most_205_kb(tmp_path) -> None:
    """White noise of 20 HU all over the scanner's circle: more than a head scan's sharpest kernel has."""
    generator = np.random.default_rng(0)
    y, x = np.ogrid[-256:256, -256:256]
    tissue = np.where(y**2 + x**2 < 200**2, 35, -1000) + generator.normal(0, 20, (512, 512))
    hu = np.where(y**2 + x**2 > 256**2, -1024, tissue.round().clip(-1024)).astype(np.int16)
    assert write(tmp_path / "x.b2nd", hu).stat().st_size <= 205_000


def test_the_file_is_a_plain_blosc2_array_of_one_chunk(tmp_path) -> None:
    import blosc2

    image = np.arange(2000, dtype=np.int16).reshape(40, 50)
    stored = blosc2.open(str(write(tmp_path / "x.b2nd", image)), mode="r")
    assert stored.chunks == (40, 50)
    np.testing.assert_array_equal(stored[:], image)


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_a_file_cut_anywhere_is_damaged_and_says_so(tmp_path, suffix: str) -> None:
    content = write(tmp_path / f"x{suffix}", np.arange(2000, dtype=np.int16).reshape(40, 50)).read_bytes()
    for length in [*range(0, len(content), max(1, len(content) // 60)), len(content) - 1]:
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"."):
            load_image(path)


def test_flipped_bytes_never_end_the_process(tmp_path) -> None:
    content = write(tmp_path / "x.b2nd", np.arange(2000, dtype=np.int16).reshape(40, 50)).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] = generator.integers(256)
        (tmp_path / "y.b2nd").write_bytes(damaged)
        try:
            load_image(tmp_path / "y.b2nd")
        except ValueError:
            refused += 1
    assert refused > 50


def test_a_compressed_dataset_gives_the_same_pictures(small_dataset, packed) -> None:
    assert read_dataset_info(packed)["format"] == "blosc2"
    assert {path.suffix for path in (packed / "images").iterdir()} == {".b2nd"}
    pipeline = load_pipeline(find_transform("train_demo.json"), WINDOWS)
    rows = read_fold(small_dataset.folder, "phantom", 0)
    plain, compressed = (RSNADataset(folder, rows, pipeline, 32, 0) for folder in (small_dataset.folder, packed))
    assert len(plain) == len(rows)
    shapes = set()
    for index in range(len(rows)):
        image_id = rows.index[index]
        np.testing.assert_array_equal(plain.read(image_id), compressed.read(image_id))
        np.testing.assert_array_equal(plain[index].image, compressed[index].image)
        shapes.add(load_image(packed / "images" / f"{image_id}.b2nd").shape)
    assert len(shapes) > 1  # the phantom has series of other sizes
    np.testing.assert_array_equal(
        [path.read_bytes() for path in sorted(small_dataset.folder.glob("*_fold_*"))],
        [path.read_bytes() for path in sorted(packed.glob("*_fold_*"))],
    )


def read_all(folder: Path, names: list[str]) -> list[bytes]:
    return [load_image(folder / name).tobytes() for name in names]


def test_spawned_processes_and_threads_read_at_the_same_time(packed) -> None:
    folder = packed / "images"
    names = sorted(path.name for path in folder.iterdir())[:40]
    expected = read_all(folder, names)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        assert all(found == expected for found in processes.map(read_all, [folder] * 4, [names] * 4))
    with ThreadPoolExecutor(8) as threads:
        assert all(found == expected for found in threads.map(read_all, [folder] * 16, [names] * 16))


def test_loading_processes_read_compressed_images(packed) -> None:
    rows = read_fold(packed, "phantom", 0).iloc[:12]
    data = RSNADataset(packed, rows, load_pipeline(find_transform("valid_demo.json"), WINDOWS), 32, 0)
    batches = [
        torch.cat([batch.inputs["image"] for batch in make_loader(data, RandomSampler(12, 0), 4, workers,
                                                                  drop_last=False, seed=0)])
        for workers in (0, 2)
    ]  # fmt: skip
    assert torch.equal(*batches)


def test_a_compressed_image_that_is_cut_or_missing_is_one_line_that_names_it(packed, tmp_path) -> None:
    rows = read_fold(packed, "phantom", 0).iloc[:1]
    data = RSNADataset(packed, rows, load_pipeline(find_transform("valid_demo.json"), WINDOWS), 32, 0)
    name = f"{rows.index[0]}.b2nd"
    data.image_folder = tmp_path
    with pytest.raises(WorkError, match=rf"{name}: the image is missing"):
        data[0]
    (tmp_path / name).write_bytes((packed / "images" / name).read_bytes()[:-50])
    with pytest.raises(WorkError, match=rf"{name}: the image is cut or damaged"):
        data[0]


def test_a_second_run_does_nothing_and_one_after_a_kill_mends_what_was_cut(small_dataset, packed, capsys) -> None:
    flags = [f"--data_input_folder={packed.parent.parent}", "--data_dataset=phantom", "--n_jobs=1"]
    flags += [f"--pre_source={small_dataset.source}", "--pre_format=blosc2"]
    before = {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    preprocessing.main(flags)
    assert "nothing has changed" in capsys.readouterr().err
    images = sorted((packed / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-1])
    (packed / "images" / ".ID_x.b2nd.123.tmp").write_bytes(b"what a killed writer leaves")
    preprocessing.main(flags)
    assert "2 of them to convert" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} <= {".converted.csv"}
