"""The project's commands on pretended GPUs: nothing mixes devices, races a stream, or lets the host wait for nothing.

See ``tests/pretended_cuda.py`` for what it sees and what it can't.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import SmallDataset
from tests.pretended_run import BROKEN, Request, Result, run_pretended

TWO = ["--tr_iteration_num=2", "--tr_iteration_valid=2", "--tr_batch_size=4", "--data_image_size=32", "--tr_report=0"]
LOADED = "--n_jobs=2"  # so many loading processes, of each loader
ALONE = "--n_jobs=1"  # none

# Where the host may wait for the device within a training of two iterations, and how often.
ALLOWED = {
    ("event.synchronize", "common/networks/guard.py:settle"): 2,  # the flags of a step, read one step late
    ("_local_scalar_dense", "common/networks/guard.py:_step"): 1,  # until a step has landed the host decides
    ("_local_scalar_dense", "common/callbacks/metric_logger.py:_log_training"): 2,  # once in --tr_iteration_log
    ("_local_scalar_dense", "common/callbacks/telemetry.py:values"): 1,  # likewise
}
# An optimizer without fused kernels has no other way: the host decides on each step.
NOT_FUSED = {**ALLOWED, ("_local_scalar_dense", "common/networks/guard.py:_step"): 2}


def waits_in_iterations(result: Result) -> Counter[tuple[str, str]]:
    """How often the host waited, by kind and place, between the validations of a training."""
    return Counter({(wait.text, wait.place): wait.count for wait in result.waits if wait.region == "iteration"})


def check(result: Result, allowed: Mapping[tuple[str, str], int] = ALLOWED, code: int = 0) -> None:
    """Fail where a command ended otherwise, did what a GPU refuses, or waited more than is allowed."""
    assert result.code == code, result.output
    assert not result.errors, result.errors
    assert not waits_in_iterations(result) - Counter(allowed)
    assert result.kernels > 0


@pytest.fixture(scope="module")
def flags(small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*small_dataset.flags, f"--output_dir={tmp_path_factory.mktemp('pretended')}"]


@pytest.fixture(scope="module")
def slices(flags: list[str]) -> dict[str, Result]:
    """The default command, in one process with trainings in which a rule is broken on purpose, by the rule's name."""
    learnt = [*flags, *TWO, ALONE, "--tr_overfit=1"]  # a batch to validate on
    requests = [Request("train", [*flags, *TWO, LOADED, "--experiment_id=default"])]
    requests += [Request("train", learnt, broken=rule) for rule in BROKEN]
    (results,) = run_pretended(requests)
    return dict(zip(["", *BROKEN], results, strict=True))


def test_the_default_command_trains_and_validates(slices: dict[str, Result]) -> None:
    check(slices[""])
    folder = Path(slices[""].last_line)
    assert (folder / "best.pt").is_file()
    assert "computed on the CPU" not in slices[""].output


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
    assert any(found in error.text for error in slices[rule].errors)
    with pytest.raises(AssertionError):
        check(slices[rule])


def test_a_training_that_reads_a_value_in_each_iteration_is_found_out(slices: dict[str, Result]) -> None:
    beyond = waits_in_iterations(slices["haste"]) - Counter(ALLOWED)
    assert beyond == {("_local_scalar_dense", "tests/pretended_run.py:look"): 2}


def test_every_rule_is_broken_above() -> None:
    assert set(BROKEN) == {"wait_stream", "record_stream", "arrival", "devices", "haste"}
