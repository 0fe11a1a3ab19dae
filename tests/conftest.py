"""Data that several modules' tests share: one small phantom, preprocessed once for each test process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something about the machine, not about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where torch sees none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch  # here: most modules' tests need none of it

        for item in wanting if not torch.cuda.is_available() else ():
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@dataclass(frozen=True)
class SmallDataset:
    """``input_folder`` holds ``phantom/`` (DICOM files and CSVs) and ``datasets/phantom/``; never change them."""

    input_folder: Path

    @property
    def source(self) -> Path:
        return self.input_folder / "phantom"

    @property
    def folder(self) -> Path:
        return self.input_folder / "datasets" / "phantom"

    @property
    def flags(self) -> list[str]:
        return [f"--data_input_folder={self.input_folder}", "--data_dataset=phantom"]


_shared: dict[Path, dict[str, tuple[int, int]]] = {}  # what all modules' tests read, as it was made


def _share(folder: Path) -> None:
    _shared[folder] = _state(folder)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): ((status := path.stat()).st_mtime_ns, status.st_size) for path in files}


@pytest.fixture(scope="module", autouse=True)
def what_is_shared_stays_as_it_was_made(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a module whose tests change a shared folder; otherwise others would fail, depending on who ran first."""
    yield
    for folder, made in _shared.items():
        now = _state(folder)
        if changed := sorted(name for name in made.keys() | now.keys() if made.get(name) != now.get(name)):
            _shared[folder] = now
            pytest.fail(f"{request.module.__name__} changed {folder}, which all tests share: {', '.join(changed[:5])}")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> SmallDataset:
    """Twelve phantom studies at 64 pixels, from DICOM files to folds."""
    import preprocessing  # here: most modules' tests need none of this
    import rsna_phantom

    dataset = SmallDataset(tmp_path_factory.mktemp("input"))
    rsna_phantom.main(
        [
            f"--phantom_folder={dataset.source}",
            "--phantom_studies=12",
            "--phantom_image_size=64",
            "--phantom_difficulty=demo",
            "--n_jobs=1",
        ]
    )
    preprocessing.main([*dataset.flags, f"--pre_source={dataset.source}", "--n_jobs=1"])
    _share(dataset.input_folder)
    return dataset


@pytest.fixture(scope="session")
def hospital_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four studies of four vendors with ten series each at 64 pixels, with archive_truth.csv and study_labels.csv."""
    import rsna_phantom

    folder = tmp_path_factory.mktemp("hospital") / "phantom"
    rsna_phantom.main(
        [
            f"--phantom_folder={folder}",
            "--phantom_archive=1",
            "--phantom_studies=4",
            "--phantom_slices=20",
            "--phantom_image_size=64",
            "--phantom_difficulty=demo",
            "--n_jobs=1",
        ]
    )
    _share(folder)
    return folder


TINY = [
    "--tr_iteration_num=4",
    "--tr_iteration_valid=2",
    "--tr_batch_size=4",
    "--data_image_size=32",
    "--n_jobs=1",
    "--tr_report=0",
]


@pytest.fixture(scope="session")
def finished(small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation of folds 0 to 2: each trained here by the flags that the command would give it, then joined.

    Never change it.
    """
    folder = cross_validated([*small_dataset.flags, *TINY, "--data_fold=0,1,2"], tmp_path_factory.mktemp("results"))
    _share(folder)
    return folder


@pytest.fixture(scope="session")
def with_features(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the cross-validation with its features. Never change it."""
    import predict

    folder = tmp_path_factory.mktemp("features") / "cv"
    shutil.copytree(finished, folder)
    assert predict.main([f"--net_weight_file={folder}", "--features=1", "--n_jobs=1"]) == folder / "features"
    _share(folder)
    return folder


def cross_validated(flags: list[str], results: Path) -> Path:
    """Train the folds of a cross-validation ``cv`` in this process, put them together and return its folder."""
    import train
    from common.cli.arguments import parse_args
    from config import TrainConfig
    from rsna.training.folds import claimed, fold_plan

    flags = [*flags, "--experiment_id=cv", f"--output_dir={results}"]
    config = parse_args(TrainConfig, flags)
    with claimed(config, None, flags) as parent:
        for fold in config.data_fold:
            train.main(fold_plan(config, parent.folder, fold).command)
    assert train.main(flags) == results / "cv"  # all folds are finished: nothing but putting together
    return results / "cv"
