"""common/training/reproducibility.py: seeds, hashes and random states that hold across processes."""

from __future__ import annotations

import hashlib
import io
import logging
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.hashing import stable_hash
from common.training.reproducibility import loader_generator, rng_state, seed_everything, set_rng_state
from tests import PROJECT

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers(-(2**70), 2**70)), max_size=4)


def draw() -> tuple[float, float, float, list[float], float, list[int]]:
    """Numbers from every global generator, the kept second normal number of Python and numpy included."""
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.standard_normal()),  # noqa: NPY002 - the global generator is what is tested
        torch.rand(5).tolist(),
        float(torch.randn(1)),
        torch.randperm(7).tolist(),
    )


@pytest.fixture(autouse=True)
def _leave_the_generators_alone():
    state = rng_state()
    yield
    set_rng_state(state)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw()[:5], first[:5], strict=True))


def test_seeds_that_share_their_lower_32_bits_differ_in_numpy_too():
    seed_everything(1)
    first = np.random.random()  # noqa: NPY002
    seed_everything(1 + 2**32)
    assert np.random.random() != first  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_seed_in_the_range_is_taken(seed):
    seed_everything(seed)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_names_the_flag(seed):
    with pytest.raises(UsageError, match=f"--seed={seed}: must be from 0"):
        seed_everything(seed)


def test_a_state_goes_through_a_weights_only_file_and_continues_to_the_bit():
    seed_everything(3)
    draw()  # odd numbers of normal draws: the second one of the pair is kept
    file = io.BytesIO()
    torch.save(rng_state(), file)
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    draw()
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_taking_a_state_draws_nothing():
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    rng_state()
    assert draw() == expected


def test_a_state_of_gpus_that_this_machine_lacks_is_warned_about_and_the_rest_is_set(caplog):
    seed_everything(5)
    state = rng_state()
    expected = draw()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    if torch.cuda.is_available():
        state["cuda"][:-1] = torch.cuda.get_rng_state_all()
    with caplog.at_level(logging.WARNING):
        set_rng_state(state)
    assert len(caplog.records) == 1
    assert "numbers drawn on a GPU will differ" in caplog.text
    assert draw() == expected


def test_the_hash_is_the_one_written_down():
    def framed(kind: bytes, text: bytes) -> bytes:
        return kind + len(text).to_bytes(8, "little") + text

    data = framed(b"i", b"42") + framed(b"s", b"ID_0f0e0d0c0") + framed(b"i", b"-1")
    expected = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") & (2**63 - 1)
    assert stable_hash(42, "ID_0f0e0d0c0", -1) == expected


def test_the_hash_is_the_same_in_another_process_with_another_hash_seed():
    code = "from common.hashing import stable_hash; print(stable_hash('a', 1, 'ä'))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == stable_hash("a", 1, "ä")


@given(PARTS, PARTS)
def test_different_parts_have_different_hashes_in_range(first, second):
    assert 0 <= stable_hash(*first) < 2**63
    assert (stable_hash(*first) == stable_hash(*second)) == (
        [(type(part), part) for part in first] == [(type(part), part) for part in second]
    )


def test_where_the_parts_are_split_matters():
    hashes = {stable_hash("ab", "c"), stable_hash("a", "bc"), stable_hash("abc"), stable_hash("abc", ""), stable_hash()}
    assert len(hashes) == 5


@pytest.mark.parametrize("part", [1.0, True, None, b"a", np.int64(1)])
def test_the_hash_refuses_what_has_no_text_of_its_own(part):
    with pytest.raises(TypeError, match="text and whole numbers"):
        stable_hash(part)


def test_a_loader_generator_depends_on_its_parts_and_not_on_the_global_generator():
    first = torch.randperm(50, generator=loader_generator(1, "train")).tolist()
    torch.rand(3)
    assert torch.randperm(50, generator=loader_generator(1, "train")).tolist() == first
    assert torch.randperm(50, generator=loader_generator(1, "valid")).tolist() != first
    assert torch.randperm(50, generator=loader_generator(2, "train")).tolist() != first
