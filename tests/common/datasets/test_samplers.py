from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.samplers import EpochSampler, HardExampleSampler, TrainingImages, count_occurrences
from common.datasets.sampling import SAMPLERS, build_sampler
from common.errors import UsageError

LABELS = ("bleeding", "any")


def images(length: int = 40, seed: int = 3, rank: int = 0, world_size: int = 1, gather=None) -> TrainingImages:
    """Every fifth image is positive for any, every tenth for bleeding; studies have 1, 2, 3, … images."""
    numbers = np.arange(length)
    targets = np.stack([numbers % 10 == 0, numbers % 5 == 0], axis=1).astype(np.float32)
    studies = [f"study{round((2 * number) ** 0.5)}" for number in numbers]
    ids = [f"ID_{number * 7 % length if length % 7 else number:03}" for number in numbers]  # not sorted
    return TrainingImages(ids, targets, LABELS, studies, seed, rank, world_size, gather)


def build(name: str, given: dict | None = None, **where) -> EpochSampler:
    return build_sampler(name, given or {}, images(**where))


def indices(sampler: EpochSampler, epoch: int = 0, offset: int = 0) -> list[int]:
    sampler.seek(epoch, offset)
    return [key.index for key in sampler]


@pytest.mark.parametrize("name", ["random", "sequential"])
@given(length=st.integers(0, 50), seed=st.integers(0, 1000), epoch=st.integers(0, 100))
def test_an_epoch_has_each_image_once(name: str, length: int, seed: int, epoch: int) -> None:
    sampler = build(name, length=length, seed=seed)
    sampler.seek(epoch, 0)
    keys = list(sampler)
    assert sorted(key.index for key in keys) == list(range(length))
    assert {(key.epoch, key.occurrence) for key in keys} <= {(epoch, 0)}


@pytest.mark.parametrize("name", SAMPLERS)
@given(length=st.integers(5, 50), offset=st.integers(0, 50), epoch=st.integers(0, 3))
def test_seeking_to_an_offset_gives_the_rest_of_the_epoch(name: str, length: int, offset: int, epoch: int) -> None:
    whole, rest = build(name, length=length), build(name, length=length)
    whole.seek(epoch, 0)
    offset = min(offset, whole.epoch_length)
    rest.seek(epoch, offset)
    assert list(rest) == list(whole)[offset:]
    assert len(rest) == whole.epoch_length - offset


@pytest.mark.parametrize("name", SAMPLERS)
@given(length=st.integers(8, 60), world_size=st.integers(1, 4), offset=st.integers(0, 5))
def test_processes_share_the_order_of_one_without_overlap(name: str, length: int, world_size: int, offset: int) -> None:
    single = build(name, length=length)
    single.seek(1, 0)
    whole = list(single)
    shards = []
    for rank in range(world_size):
        sampler = build(name, length=length, rank=rank, world_size=world_size)
        offset = min(offset, sampler.epoch_length)
        sampler.seek(1, offset)
        shards.append(list(sampler))
        assert len(shards[-1]) == sampler.epoch_length - offset
    interleaved = [key for keys in zip(*shards, strict=True) for key in keys]
    assert interleaved == whole[offset * world_size : len(whole) // world_size * world_size]


@pytest.mark.parametrize("name", ["random", "balanced", "study", "hard"])
def test_random_epochs_differ_and_the_same_epoch_of_the_same_seed_does_not(name: str) -> None:
    assert indices(build(name), 0) == indices(build(name), 0)
    assert indices(build(name), 0) != indices(build(name), 1)
    assert indices(build(name), 0) != indices(build(name, seed=4), 0)
    assert indices(build(name), 0) != sorted(indices(build(name), 0))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.875, 1.0])
@pytest.mark.parametrize("label", LABELS)
def test_a_balanced_epoch_has_the_target_share_and_goes_evenly_through_both_sides(label: str, share: float) -> None:
    data = images()
    sampler = build_sampler("balanced", {"sampler_label": label, "sampler_share": share}, data)
    drawn = Counter(indices(sampler))
    positive = data.targets[:, LABELS.index(label)] == 1
    assert sum(drawn.values()) == 40
    assert sum(count for index, count in drawn.items() if positive[index]) == share * 40
    for side in (positive, ~positive):
        counts = [drawn[index] for index in np.flatnonzero(side)]
        assert max(counts) - min(counts) <= 1


def test_a_repeated_image_gets_another_occurrence_and_so_another_augmentation() -> None:
    sampler = build("balanced", {"sampler_share": 0.9})
    keys = list(sampler)
    assert len(set(keys)) == len(keys)
    assert max(key.occurrence for key in keys) == 4  # 36 draws of 8 positives


def test_balancing_by_a_label_that_no_image_has_is_refused() -> None:
    data = images(length=9)
    empty = TrainingImages(data.image_ids, data.targets * 0, LABELS, data.study_ids, 0)
    with pytest.raises(UsageError, match=r"--sampler_share=0.5 needs positive images"):
        build_sampler("balanced", {}, empty)


def test_balancing_by_an_unknown_label_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"--sampler_label=bleding: .* bleeding, any; did you mean 'bleeding'"):
        build("balanced", {"sampler_label": "bleding"})


@pytest.mark.parametrize("slices", [1, 4, 13])
def test_every_study_gives_the_same_number_of_images_each_as_often_as_the_others(slices: int) -> None:
    data = images()
    drawn = Counter(indices(build_sampler("study", {"sampler_slices": slices}, data)))
    for study in set(data.study_ids):
        counts = [drawn[index] for index in range(40) if data.study_ids[index] == study]
        assert sum(counts) == slices
        assert max(counts) - min(counts) <= 1


def test_a_study_gives_other_images_in_another_epoch() -> None:
    sampler = build("study", {"sampler_slices": 2})
    assert set(indices(sampler, 0)) != set(indices(sampler, 1))


def hard(length: int = 40, **where) -> HardExampleSampler:
    return build("hard", {"sampler_power": 1.0, "sampler_floor": 0.25}, length=length, **where)


def hear(sampler: HardExampleSampler, losses: np.ndarray) -> None:
    ids = images(len(losses)).image_ids
    for start in range(0, len(losses), 8):
        sampler.observe(ids[start : start + 8], torch.from_numpy(losses[start : start + 8]))


def test_hard_images_come_in_proportion_to_their_loss_and_easy_ones_still_come() -> None:
    losses = np.arange(40, dtype=np.float32) % 8
    sampler = hard()
    hear(sampler, losses)
    drawn = sum((Counter(indices(sampler, epoch)) for epoch in range(1, 201)), Counter())
    expected = 200 * 40 * (0.25 / 40 + 0.75 * losses / losses.sum())
    found = np.array([drawn[index] for index in range(40)])
    assert np.abs(found - expected).max() < 0.1 * expected.max()
    assert found.min() > 0


def test_losses_of_the_running_epoch_change_only_the_next_one() -> None:
    sampler = hard()
    first = indices(sampler, 0)
    hear(sampler, np.linspace(0, 9, 40, dtype=np.float32))
    assert indices(sampler, 0, 10) == first[10:]
    assert indices(sampler, 1) != indices(hard(), 1)


@pytest.mark.parametrize("saved_at", ["in the epoch", "at its end"])
def test_a_continued_run_draws_hard_images_in_the_same_order(saved_at: str) -> None:
    early, late = np.linspace(9, 1, 40, dtype=np.float32), np.linspace(0, 9, 40, dtype=np.float32)
    whole, first, second = hard(), hard(), hard()
    for sampler in (whole, first):
        sampler.seek(0, 0)
        hear(sampler, early)
        sampler.seek(1, 0)
        hear(sampler, late[:24])
        if saved_at == "at its end":
            hear(sampler, late)
    second.load_state_dict(first.state_dict())
    rest = [indices(sampler, 1, 24) for sampler in (whole, second)]
    for sampler in (whole, second):
        hear(sampler, late)
    assert rest[0] == rest[1]
    assert indices(whole, 2) == indices(second, 2)


def test_processes_agree_on_the_latest_loss_of_an_image() -> None:
    """Two ranks in one process: each is asked for its array first, as an all-gather does."""
    ranks = [hard(rank=rank, world_size=2, gather=None) for rank in range(2)]
    ids = images().image_ids
    ranks[0].observe(ids[:4], torch.tensor([1.0, 1.0, 1.0, 1.0]))
    ranks[1].observe(ids[2:6], torch.tensor([2.0, 2.0, 2.0, 2.0]))  # the same batch number: the higher rank counts
    ranks[0].observe(ids[5:7], torch.tensor([3.0, 3.0]))  # a later batch
    ranks[1].observe(ids[8:9], torch.tensor([4.0]))
    arrays = []
    for sampler in ranks:
        sampler._take_in()
        arrays.append(np.stack([sampler.heard_at, sampler.losses.astype(np.float64)]))
    for sampler in ranks:
        sampler.gather = lambda array: arrays
        sampler.seek(1, 0)
        np.testing.assert_array_equal(sampler.losses[:10], [1, 1, 2, 2, 2, 3, 3, np.nan, 4, np.nan])
    assert not set(indices(ranks[0], 1)) - set(range(40))


def test_losses_of_another_number_of_images_are_refused() -> None:
    with pytest.raises(UsageError, match="40 images and the training set 41"):
        hard(length=41).load_state_dict(hard().state_dict())


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_option_that_a_sampler_does_not_know_is_refused(name: str) -> None:
    every = {key: value for row in SAMPLERS.values() for key, value in row.parameters.items()}
    for option, value in every.items():
        if option in SAMPLERS[name].parameters:
            build(name, {option: value})
        else:
            with pytest.raises(UsageError, match=rf"--{option}: --data_sampler={name} doesn't know it; it knows "):
                build(name, {option: value})


@given(st.lists(st.integers(0, 6), max_size=40))
def test_occurrences_count_how_often_an_index_came_before(values: list[int]) -> None:
    seen: Counter[int] = Counter()
    expected = []
    for value in values:
        expected.append(seen[value])
        seen[value] += 1
    assert count_occurrences(np.array(values, dtype=np.int64)).tolist() == expected
