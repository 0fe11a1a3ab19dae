"""python -m common.transforms, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest

from common.datasets.image_files import encode_image
from common.transforms.__main__ import main
from common.transforms.pipeline import load_pipeline
from tests import PROJECT
from tests.runs import failure

FILES = PROJECT / "tests" / "albumentations_files"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in range(5):
        hu = np.random.default_rng(i).integers(-1024, 300, (40, 32)).astype(np.int16)
        np.save(tmp_path / "set" / "images" / f"ID_{i:09x}.npy", hu)
    return tmp_path / "set"


def test_show_says_what_each_step_does_with_units_shapes_and_probabilities(capsys) -> None:
    main(["show", "train_complex_512.json"])
    lines = capsys.readouterr().out.splitlines()
    assert "Hounsfield units" in lines[1]
    for number, parts in {
        2: ["DicomWindowShift", "40/80, 80/200, 40/380", "(H, W, 3)"],
        3: ["70 to 100 % of the area", "(512, 512, 3)"],
        4: ["HorizontalFlip", "probability 0.5"],
        5: ["± 12.5 %", "probability 0.6"],
        6: ["± 30°", "probability 0.75", "reflect"],
        8: ["4–8 holes", "8–16 pixels"],
        9: ["3.162 to 7.071 of 255"],
        11: ["float32 (512, 512, 3)"],
    }.items():
        assert all(part in lines[number] for part in parts), lines[number]


def test_show_lists_the_choices_of_one_of_with_their_weights(tmp_path: Path, capsys) -> None:
    choice = A.OneOf([A.HorizontalFlip(p=0.2), A.Blur(p=0.6)], p=0.3)
    A.save(A.Compose([choice]), tmp_path / "t.json")
    main(["show", str(tmp_path / "t.json")])
    out = capsys.readouterr().out
    assert "OneOf, probability 0.3:" in out
    assert "HorizontalFlip, weight 0.25" in out
    assert "Blur, weight 0.75: blur_limit (3, 7)" in out


@pytest.mark.parametrize("release", ["0.4.5", "0.5.2"])
def test_convert_writes_what_the_library_itself_loads_without_a_warning(release: str, tmp_path: Path, capsys) -> None:
    new = tmp_path / "new.json"
    main(["convert", str(FILES / f"old_complex_{release}.json"), str(new)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [type(transform).__module__.split(".")[0] for transform in A.load(new).transforms]
    assert names == ["common", *["albumentations"] * 2, "common", *["albumentations"] * 5]  # window, ShiftScaleRotate
    old, again = load_pipeline(FILES / f"old_complex_{release}.json"), load_pipeline(new)
    hu = np.random.default_rng(0).integers(-1024, 300, (530, 530)).astype(np.int16)
    for pipeline in (old, again):
        pipeline.set_random_seed(1)
    np.testing.assert_array_equal(old(image=hu)["image"], again(image=hu)["image"])


def test_convert_keeps_a_crop_scale_above_1_in_a_class_of_our_own(tmp_path: Path) -> None:
    main(["convert", str(FILES / "old_tta_0.4.5.json"), str(tmp_path / "new.json")])
    crop = json.loads((tmp_path / "new.json").read_text())["transform"]["transforms"][0]
    assert crop["__class_fullname__"] == "common.albumentations.RandomResizedCrop"
    assert crop["scale"] == [0.7, 1.1]


def test_convert_refuses_in_one_line_and_writes_nothing(tmp_path: Path, capsys) -> None:
    content = json.loads((FILES / "old_train_0.4.5.json").read_text())
    content["transform"]["transforms"][0]["__class_fullname__"] = "albumentations.augmentations.transforms.RandomRain"
    (tmp_path / "old.json").write_text(json.dumps(content))
    message = failure(main, ["convert", str(tmp_path / "old.json"), str(tmp_path / "new.json")], capsys, 1)
    assert "RandomRain" in message
    assert not (tmp_path / "new.json").exists()
    shutil.copy(FILES / "old_train_0.4.5.json", tmp_path / "new.json")
    assert "exists already" in failure(
        main, ["convert", str(tmp_path / "new.json"), str(tmp_path / "new.json")], capsys
    )


def test_preview_draws_a_row_for_each_image_and_window(dataset: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    main(["preview", "train_intermediate.json", f"--dataset={dataset}", f"--output={sheet}", "--images=2", "--views=3"])
    picture = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (20 + 2 * 3 * 196, 4 * 196)
    # The first tile is the second image in the brain window, by hand.
    hu = np.load(dataset / "images" / "ID_000000001.npy").astype(float)
    expected = np.clip(hu / 80, 0, 1)
    assert abs(picture[40 : 20 + 192, :153].mean() / 255 - expected[4:].mean()) < 0.03


def test_preview_reads_packed_images_and_fuses_where_asked(dataset: Path, tmp_path: Path) -> None:
    for path in sorted((dataset / "images").iterdir()):
        path.with_suffix(".b2nd").write_bytes(b"".join(encode_image(np.load(path), ".b2nd")))
        path.rename(tmp_path / path.name)
    flags = [f"--dataset={dataset}", "--images=2", "--views=3"]
    sheets = []
    for name, more in (("plain", []), ("fused", ["--fuse"])):
        main(["preview", "train_intermediate.json", *flags, f"--output={tmp_path / name}.png", *more])
        sheets.append(cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_GRAYSCALE).astype(int))
    difference = np.abs(sheets[0] - sheets[1])
    assert difference[:, :196].max() == 0  # before
    assert difference.max() > 3  # interpolated once instead of twice


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["show", "nothing.json"], "no such transform file"),
        (["shw", "train_demo.json"], "shw"),
        (["preview", "train_demo.json", "--dataset=none", "--output=x.png"], "--dataset=none"),
        (["preview", "train_demo.json", "--dataset=none", "--output=x.jpg"], "ends in .png"),
        (["preview", "train_demo.json", "--dataset=none", "--output=x.png", "--views=0"], "--views"),
        (["convert", "train_demo.json"], "NEW"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], part: str, capsys) -> None:
    assert part in failure(main, arguments, capsys)


def test_it_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "common.transforms", "--help"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=True,
    )
    assert "convert" in result.stdout
