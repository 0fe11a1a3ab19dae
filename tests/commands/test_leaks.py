"""benchmarks/leaks.py: no network is judged by what it learnt from, and what nobody knows is said; plain uses go on."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
from benchmarks.leaks import ATTEMPTS, REFUSED, Lab, kind_of
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import WorkError
from common.lineage import (
    Images,
    Lineage,
    Provenance,
    learnt,
    name_hashes,
    picture_hashes,
    read_lineage,
    read_provenance,
)
from rsna.training.lineage import checkpoint_lineage, learnt_from, overlap
from rsna_dataset import read_fold, read_metadata
from tests.conftest import SmallDataset

# What takes a training or several predictions; the others end before anything is predicted.
LONG = {name for name, (due, _) in ATTEMPTS.items() if due != REFUSED} | {
    "evaluate.py of a run of --tr_overfit",
    "starting weights whose ancestor's ancestor saw it",
    "the same with --tta",
    "ensemble.py of predictions of training images",
    "--eval_compare with predictions of training images",
    "--eval_file of predictions of training images",
    "the same by the mean of folds",
    "out-of-fold predictions of before, folds made anew",
    "features/train/features.npy reordered",
}


@pytest.fixture(scope="module")
def lab(
    small_dataset: SmallDataset, finished: Path, with_features: Path, tmp_path_factory: pytest.TempPathFactory
) -> Lab:
    return Lab(small_dataset.input_folder, finished, with_features, tmp_path_factory.mktemp("attempts"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in ATTEMPTS]
)
def test_no_network_is_judged_by_what_it_learnt_from(name: str, lab: Lab) -> None:
    due, attempt = ATTEMPTS[name]
    outcome = attempt(lab)
    assert kind_of(outcome) == due, outcome.text


def test_a_checkpoint_knows_its_training_images_and_no_others(finished: Path, small_dataset: SmallDataset) -> None:
    path = finished / "fold_0" / "best.pt"
    own = checkpoint_lineage(load_checkpoint(path), str(path), small_dataset.input_folder)
    rows = read_fold(small_dataset.folder, "phantom", 0)
    table = read_metadata(small_dataset.folder, described=True)
    train = table.loc[rows.index[rows["sample_type"] == "train"]]
    telling = train[(train["solid"] >= 0.01) & (train["hu_min"] < train["hu_max"])]
    assert {f"{value:016x}" for value in own.pictures.tolist()} == set(telling["picture_hash"].str[:16])
    assert list(own.names) == ["public"]
    found = overlap(Provenance.of([own], len(rows)), small_dataset.folder, rows.index)
    np.testing.assert_array_equal(found.seen, rows["sample_type"] == "train")
    assert not found.unchecked.any()
    assert (own.unknown, own.lost) == ((), ())


def test_a_checkpoint_of_before_has_the_same_lineage_where_its_fold_is_as_it_was(
    finished: Path, small_dataset: SmallDataset
) -> None:
    path = finished / "fold_1" / "best.pt"
    checkpoint = load_checkpoint(path)
    said = checkpoint_lineage(checkpoint, "one", small_dataset.input_folder)
    old = {key: value for key, value in checkpoint.items() if key != "lineage"}
    derived = checkpoint_lineage(old, "one", small_dataset.input_folder)
    np.testing.assert_array_equal(said.pictures, derived.pictures)
    np.testing.assert_array_equal(said.names["public"], derived.names["public"])
    gone = {**old, "data_hash": "another"}
    assert checkpoint_lineage(gone, "one", small_dataset.input_folder).lost == ("one",)


def test_plain_prediction_is_never_refused_whatever_a_checkpoint_says_of_its_lineage(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(finished / "fold_0", folder)
    checkpoint = load_checkpoint(folder / "best.pt")
    for damage in ({"lineage": {"format_version": 1, "pictures": "x", "names": {}, "unknown": []}}, {}):
        kept = {key: value for key, value in checkpoint.items() if key != "lineage"}
        changed = kept["config"] | {"net_weight_file": str(tmp_path / "gone.pt")}
        save_checkpoint(folder / "best.pt", kept | damage | {"config": changed})
        output = tmp_path / "test.csv"
        predict.main([f"--net_weight_file={folder / 'best.pt'}", f"--output_file={output}", "--n_jobs=1"])
        assert output.is_file()
        output.unlink()


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {"format_version": 2, "pictures": torch.zeros(1, dtype=torch.int64), "names": {}, "unknown": []},
        {"format_version": 1, "pictures": torch.zeros(1), "names": {}, "unknown": []},
        {"format_version": 1, "pictures": torch.zeros((2, 2), dtype=torch.int64), "names": {}, "unknown": []},
        {"format_version": 1, "pictures": torch.zeros(1, dtype=torch.int64), "names": [1], "unknown": []},
    ],
)
def test_a_damaged_lineage_is_one_line_that_names_the_file(state: object) -> None:
    with pytest.raises(WorkError, match=r"x/best.pt: what it says of its lineage is damaged"):
        read_lineage(state, "x/best.pt")


def random_images(seed: int, count: int = 200) -> Images:
    generator = np.random.default_rng(seed)
    pictures = picture_hashes([f"{value:032x}" if value else "" for value in generator.integers(0, 150, count)])
    patients = np.char.add("P", generator.integers(0, 40, count).astype(str))
    names = np.stack([name_hashes(patients), np.zeros(count, np.uint64)], axis=1)
    groups = np.unique(patients, return_inverse=True)[1]
    return Images(pictures, names, "key", groups)


@pytest.mark.parametrize("seed", range(5))
def test_the_comparison_is_that_of_the_definition(seed: int) -> None:
    """By sets and loops: a group was seen where one of its images has a picture or a name that was learnt from."""
    images = random_images(seed)
    train = np.arange(0, 200, 7 + 20 * seed)
    lineage = learnt(images, train)
    pictures = {value for value in images.pictures[train].tolist() if value}
    names = {value for value in images.names[train].ravel().tolist() if value}
    pairs = zip(images.pictures.tolist(), images.names.tolist(), strict=True)
    direct = [image in pictures or bool(names & set(own)) for image, own in pairs]
    groups = {group for group, seen in zip(images.groups.tolist(), direct, strict=True) if seen}
    found = Provenance.of([lineage], 200).overlap(images, np.arange(200))
    assert found.seen.tolist() == [group in groups for group in images.groups.tolist()]
    other = Images(images.pictures, images.names, "another key", images.groups)
    by_picture = Provenance.of([lineage], 200).overlap(other, np.arange(200))
    direct = [image in pictures for image in images.pictures.tolist()]
    groups = {group for group, seen in zip(images.groups.tolist(), direct, strict=True) if seen}
    assert by_picture.seen.tolist() == [group in groups for group in images.groups.tolist()]
    left = ~by_picture.seen
    assert (by_picture.unchecked == (left & (images.pictures == 0))).all()
    assert (by_picture.by_picture == (left & (images.pictures != 0))).all()


def test_the_file_beside_predictions_reads_back_the_same_and_belongs_to_them_alone(tmp_path: Path) -> None:
    images = random_images(0)
    parts = [learnt(images, np.arange(start, 200, 3)) for start in range(3)] + [Lineage(unknown=("x.csv",))]
    used = np.random.default_rng(0).random((200, 4)) < 0.5
    Provenance(tuple(parts), used).write(tmp_path / "a.npz", b"predictions")
    found = read_provenance(tmp_path / "a.npz", b"predictions")
    np.testing.assert_array_equal(found.used, used)
    for part, own in zip(found.lineages, parts, strict=True):
        np.testing.assert_array_equal(part.pictures, own.pictures)
        assert {key: values.tolist() for key, values in part.names.items()} == {
            key: values.tolist() for key, values in own.names.items()
        }
        assert (part.unknown, part.lost) == (own.unknown, own.lost)
    assert read_provenance(tmp_path / "a.npz", b"others") is None
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(WorkError, match=r"a.npz: damaged"):
        read_provenance(tmp_path / "a.npz", b"predictions")


def npy(shape: tuple[int, ...]) -> bytes:
    """An array's header, without the array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def arrays(path: Path, **changed: np.ndarray | bytes) -> None:
    """A file of lineages, some of its arrays changed: to others, or to the bytes of one."""
    Provenance.of([Lineage()], 8).write(path, b"predictions")
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files} | changed
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in parts.items():
            if isinstance(value, np.ndarray):
                file = io.BytesIO()
                np.save(file, value)
                value = file.getvalue()
            archive.writestr(f"{name}.npy", value)


HOSTILE = {
    "deflated": lambda path: np.savez_compressed(path, used=np.zeros(10**8, np.uint8)),
    "endless": lambda path: path.open("wb").truncate(9 * 10**11),  # a hole, it takes no disk
    "an array that isn't there": lambda path: arrays(path, used=npy((10**13, 1))),
    "flags beyond the file": lambda path: arrays(path, used=npy((2**40, 2**20))),
    "a deep text": lambda path: arrays(path, meta=np.frombuffer(b"[" * 100_000, np.uint8)),
    "flags of fewer networks": lambda path: arrays(
        path,
        used=np.zeros((10**6, 1), np.uint8),
        meta=np.frombuffer(
            b'{"format_version": 1, "keys": [], "made_for": "", "sources": [' + b"{}," * 60_000 + b"{}]}", "u1"
        ),
    ),
    "pickled": lambda path: np.savez(path, used=np.array([{}], dtype=object)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_of_lineages_is_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.npz"
    HOSTILE[what](path)
    with pytest.raises(WorkError, match=r"a.npz: damaged") as caught:
        read_provenance(path, b"predictions")
    assert "\n" not in str(caught.value)


def test_a_lineage_holds_its_ancestors_and_a_few_megabytes_of_a_whole_competition(small_dataset: SmallDataset) -> None:
    ids = read_metadata(small_dataset.folder).index
    first, second = learnt_from(small_dataset.folder, ids[:50]), learnt_from(small_dataset.folder, ids[40:90])
    both = learnt_from(small_dataset.folder, ids[:90])
    np.testing.assert_array_equal((first | second).pictures, both.pictures)
    np.testing.assert_array_equal((first | second).names["public"], both.names["public"])
    many = Lineage(np.arange(752_803, dtype=np.uint64), {"key": np.arange(39_000, dtype=np.uint64)})
    state = many.state()
    assert sum(part.nbytes for part in (state["pictures"], *state["names"].values())) < 8e6
