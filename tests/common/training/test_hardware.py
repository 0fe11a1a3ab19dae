"""common/training/hardware.py: what is asked for is done or refused, and changes no result beyond rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from common.errors import UsageError
from common.training import hardware
from common.training.hardware import (
    arrange_model,
    check_architecture,
    check_graphs,
    loader_workers,
    select_device,
    set_computation,
    training_loader_workers,
    unused_gpu,
)

CPU = torch.device("cpu")


def arranged(model: nn.Module, **more) -> nn.Module:
    return arrange_model(model, **more)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    model.train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model(images).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=6)


def build_small() -> nn.Module:
    """A model that compiles in seconds; the smallest of timm's take minutes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 6),
    )


@pytest.mark.parametrize(
    ("cores", "predicting", "training"), [(1, 0, (0, 0)), (2, 2, (2, 1)), (8, 8, (8, 2)), (64, 16, (12, 4))]
)
def test_a_run_has_at_most_16_loading_processes_and_fewer_for_validation(cores, predicting, training) -> None:
    assert loader_workers(cores, torch.device("cuda")) == predicting
    assert training_loader_workers(cores, torch.device("cuda")) == training
    assert training_loader_workers(cores, CPU) == (min(cores - 1, 1), min(cores - 1, 1))


CUDA = torch.device("cuda")
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 5), WHEEL, True),
        ((7, 0), WHEEL, False),  # a V100 under a torch for CUDA 13
        ((6, 1), WHEEL, False),
        ((8, 9), WHEEL, True),  # by kernels of sm_86
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((10, 0), ["sm_80", "sm_90a"], False),
        ((12, 1), ["sm_120f"], True),
        ((12, 0), ["sm_90", "compute_90"], True),  # translated when it is loaded
        ((3, 7), ["sm_50", "compute_50"], False),
        ((9, 4), ["gfx942", "gfx90a"], True),  # ROCm has names of its own
        ((8, 0), [], True),
    ],
)
def test_a_gpu_for_which_torch_has_no_kernels_is_one_line(monkeypatch, capability, built, runs: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    refused = pytest.raises(UsageError, match=r"Some GPU is an sm_\d+ and torch .* is built for")
    with nullcontext() if runs else refused:
        check_architecture(CUDA)


OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder@U16)"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021"


@pytest.fixture
def devices(tmp_path: Path, monkeypatch) -> Path:
    """A machine with a GPU, which torch can't use."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "version").write_text(f"{CLOSED}\nGCC version:  gcc version 9\n")
    monkeypatch.setattr(hardware, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(hardware, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_torch_cannot_use_is_told_of_before_the_cpu_computes(devices, monkeypatch, caplog) -> None:
    select_device(1, tf32=False, deterministic=False)
    assert "there is a GPU here and this computes on the CPU: its driver 470.82.01 doesn't serve torch" in caplog.text
    (devices / "version").write_text(OPEN)
    assert "its driver 550.54.15 doesn't" in unused_gpu()
    (devices / "version").unlink()
    assert "its driver doesn't" in unused_gpu()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA; install a build that has it" in unused_gpu()


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "none"])
def test_a_gpu_that_the_user_hides_is_not_spoken_of(devices, monkeypatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unused_gpu() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert unused_gpu() is not None


def test_without_a_gpu_that_may_be_opened_nothing_is_said(devices) -> None:
    (devices / "nvidia0").unlink()
    assert unused_gpu() is None
    (devices / "nvidia0").symlink_to(devices / "gone")  # as little to be opened as another job's
    assert unused_gpu() is None


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_outputs_of_a_model_that_writes_each_into_the_same_memory_stay_as_they_are(monkeypatch, mode: str) -> None:
    def replayed(function, **options):
        """Compile as CUDA graphs do: what a call gives lies where that of the call before lay."""
        memory = []

        def call(*arguments):
            result = function(*arguments)
            if not memory:
                memory.append(result)
            memory[0].copy_(result)
            return memory[0]

        return call

    plain = build_small().eval()
    images = torch.randn(4, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "compile", replayed)
    monkeypatch.setattr(hardware, "check_compiler", lambda: None)
    compiled = arranged(build_small(), compile_mode=mode).eval()
    with torch.inference_mode():
        for one, other in zip([compiled(batch) for batch in images], [plain(batch) for batch in images], strict=True):
            torch.testing.assert_close(one, other)


def test_gradients_are_not_added_up_in_cuda_graphs() -> None:
    with pytest.raises(UsageError, match="--tr_accumulation_step=4 batches; use --tr_compile=default"):
        check_graphs("reduce-overhead", 4, CUDA)
    for mode, step, device in (("default", 4, CUDA), ("max-autotune", 1, CUDA), ("max-autotune", 4, CPU)):
        check_graphs(mode, step, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tf32_without_a_gpu_is_refused_by_the_flags_name() -> None:
    with pytest.raises(UsageError, match="--tr_tf32=1 needs a GPU"):
        set_computation(CPU, tf32=True, deterministic=False)


def test_determinism_holds_for_the_run_that_asks_for_it_and_not_for_the_next() -> None:
    set_computation(CPU, tf32=False, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    set_computation(CPU, tf32=False, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


@pytest.fixture
def ampere(monkeypatch) -> Iterator[None]:
    """A device that has TF32, as far as its settings go."""
    monkeypatch.setattr(hardware, "has_tf32", lambda device: True)
    yield
    set_computation(CPU, tf32=False, deterministic=False)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_the_same_for_products_convolutions_and_recurrent_layers_whoever_asks(ampere, tf32: bool) -> None:
    backends = torch.backends
    set_computation(CPU, tf32=not tf32, deterministic=False)
    set_computation(CPU, tf32=tf32, deterministic=False)
    for place in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn):
        assert place.fp32_precision == ("tf32" if tf32 else "ieee")
    # Torch's older interface, which Inductor, torch.export and others ask: after the newer one alone it raises.
    assert backends.cuda.matmul.allow_tf32 == tf32
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    with backends.cudnn.flags(enabled=True, allow_tf32=not tf32):
        assert backends.cudnn.allow_tf32 != tf32
    assert backends.cudnn.allow_tf32 == tf32
    assert backends.cudnn.rnn.fp32_precision == ("tf32" if tf32 else "ieee")


@pytest.mark.parametrize("more", [{"channels_last": True}, {"grad_checkpoint": True}])
def test_layout_and_checkpointing_change_no_gradient_and_no_name(more) -> None:
    plain, changed = build("test_resnet"), arranged(build("test_resnet"), **more)
    assert list(plain.state_dict()) == list(changed.state_dict())
    for one, other in zip(gradients(plain), gradients(changed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_channels_last_lays_kernels_out_so() -> None:
    model = arranged(build("test_resnet"), channels_last=True)
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_a_model_without_gradient_checkpointing_is_refused() -> None:
    with pytest.raises(UsageError, match="--tr_grad_checkpoint=1: this model has no"):
        arranged(nn.Linear(3, 2), grad_checkpoint=True)


def test_without_a_compiler_compiling_is_refused(monkeypatch) -> None:
    def broken(function):
        def call(*arguments):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UsageError, match=r"--tr_compile: torch can't compile here \(InvalidCxxCompiler"):
        arranged(nn.Linear(3, 2), compile_mode="default")


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_gradients_under_the_same_names() -> None:
    plain, compiled = (build_small() for _ in range(2))
    try:
        arranged(compiled, compile_mode="default")
    except UsageError as error:
        pytest.skip(str(error))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for one, other in zip(gradients(plain), gradients(compiled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
