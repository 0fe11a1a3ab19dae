"""--tr_compute and --net_compute: the quickest way is found, said, kept, and changes little."""

from __future__ import annotations

import re

import pytest
import timm
import torch

import train
from common.checkpoint import load_checkpoint
from common.cli.arguments import parse_args
from common.errors import UsageError
from common.experiments.resume import read_options
from common.training.computing import keep_ends_exact, measure, measure_ways, quickest
from common.training.ways import WAYS
from config import TrainConfig


def test_the_quickest_way_is_taken_and_a_plainer_one_where_the_difference_is_nothing() -> None:
    assert quickest({"float32": 1.0, "channels_last": 0.9, "bfloat16": 0.4}) == "bfloat16"
    assert quickest({"float32": 1.0, "channels_last": 0.97, "bfloat16": 7.0}) == "float32"
    assert quickest({"float32": 1.0, "channels_last": 0.5, "bfloat16": 0.49}) == "channels_last"


def test_hopeless_ways_are_measured_once_and_near_ones_by_the_median_of_rounds() -> None:
    now, calls = [0.0], []
    lasting = {"slow": iter([9.0]), "near": iter([1.2, 1.0, 8.0, 1.1]), "quick": iter([1.0, 0.9, 0.8, 7.0])}

    def step(name: str):
        def run() -> None:
            calls.append(name)
            now[0] += next(lasting[name])

        return run

    found = measure({name: step(name) for name in lasting}, clock=lambda: now[0])
    assert found == {"slow": 9.0, "near": pytest.approx(1.1), "quick": pytest.approx(0.9)}
    assert calls == ["slow", *["near", "quick"] * 4]


@pytest.mark.parametrize("training", [False, True])
def test_measuring_changes_neither_the_model_nor_the_random_numbers(training) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6, drop_rate=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    times = measure_ways(
        model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), training=training
    )
    assert list(times) == list(WAYS)
    assert all(seconds > 0 for seconds in times.values())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_first_layer_and_head_compute_in_float32_within_bfloat16_and_alone_nothing_changes(name) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=6).eval()
    pictures = torch.randn(2, *model.pretrained_cfg["input_size"])
    first, head = (model.get_submodule(model.pretrained_cfg[key]) for key in ("first_conv", "classifier"))
    seen: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in (first, head):
        layer.register_forward_hook(lambda layer, inputs, output: seen.update({layer: (inputs[0], output)}))

    def logits(bfloat16: bool) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            return model(pictures)

    exact, stem = logits(False), seen[first][1]
    keep_ends_exact(model)
    assert torch.equal(logits(False), exact)
    rounded = logits(True)
    assert torch.equal(seen[first][1], stem)
    assert rounded.dtype == seen[head][0].dtype == torch.float32
    assert not torch.equal(rounded, exact)  # what lies between is in bfloat16
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_a_run_that_measures_is_the_run_that_is_given_what_it_found(small_dataset, tmp_path, capsys) -> None:
    flags = [
        *small_dataset.flags, f"--output_dir={tmp_path}", "--net_model=test_resnet", "--data_image_size=32",
        "--tr_batch_size=4", "--tr_iteration_num=2", "--tr_iteration_valid=2", "--tr_report=0", "--n_jobs=1",
    ]  # fmt: skip
    measured = train.main([*flags, "--experiment_id=measured", "--tr_compute=auto"])
    way = WAYS[re.search(r"computes in the way (\w+)", capsys.readouterr().err)[1]]
    options = read_options(measured)
    assert options["tr_compute"] == "given"
    assert options["tr_channels_last"] == str(way.channels_last).lower()
    assert options["tr_use_amp"] == str(way.amp).lower()
    settled = [f"--{name}={options[name]}" for name in ("tr_channels_last", "tr_use_amp", "tr_amp_dtype")]
    given = train.main([*flags, "--experiment_id=given", *settled])
    one, other = (load_checkpoint(folder / "last.pt") for folder in (measured, given))
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    longer = ["--tr_iteration_num=3", f"--tr_resume={measured / 'last.pt'}", "--tr_compute=auto"]
    train.main([*flags[:-4], "--tr_report=0", "--n_jobs=1", "--tr_iteration_valid=2", *longer])
    assert "computes in the way" not in capsys.readouterr().err
    resumed = load_checkpoint(measured / "last.pt")
    assert resumed["iteration"] == 3
    assert [resumed["config"][name] for name in ("tr_channels_last", "tr_use_amp")] == [way.channels_last, way.amp]


@pytest.mark.parametrize("more", ["--tr_use_amp=1", "--tr_channels_last=1", "--tr_compile=default"])
def test_what_a_measurement_would_overrule_is_refused_before_there_is_a_folder(small_dataset, tmp_path, more) -> None:
    flags = [*small_dataset.flags, f"--output_dir={tmp_path}", "--tr_batch_size=4", "--n_jobs=1"]
    with pytest.raises(SystemExit) as ended:
        train.main([*flags, "--tr_compute=auto", more])
    assert ended.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        (TrainConfig, "--tr_compute=auto", "--data_fold=all"),
        (TrainConfig, "--tr_compute=auto", "--net_kind=sequence", "--seq_features=cv"),
    ],
)
def test_options_with_which_a_way_to_compute_means_nothing_are_refused(flags) -> None:
    with pytest.raises(UsageError, match="_compute"):
        parse_args(flags[0], flags[1:])
