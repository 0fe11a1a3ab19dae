"""common/models/sequence*.py and common/datasets/sequences.py: padding, orders, places, study outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets.sequences import LengthSampler, SequenceDataset, collate_sequences, known_places
from common.errors import UsageError
from common.models.sequence import SEQUENCE_MODELS, build_sequence_model, sequence_settings
from common.models.sequence_layers import in_series, noisy_or, of_slices, packed

FEATURES, CLASSES = 7, 6
SMALL = {"seq_width": 16, "seq_layers": 2}


def model(name: str, **options):
    torch.manual_seed(0)
    built = build_sequence_model(name, {**SMALL, **options}, FEATURES, CLASSES).eval()
    for parameter in built.parameters():  # also those that start at 0
        torch.nn.init.normal_(parameter, std=0.2)
    return built


def dataset(lengths: list[int], reverse: float = 0.0, positions: np.ndarray | None = None) -> SequenceDataset:
    """Series of these lengths; images, and rows of the features, in an order of their own."""
    generator = np.random.default_rng(0)
    count = sum(lengths)
    series = np.repeat([f"series_{number}" for number in range(len(lengths))], lengths)
    index = np.concatenate([np.arange(length) for length in lengths])
    shuffled = generator.permutation(count)
    place = 2.5 * index if positions is None else positions
    ids = np.array([f"{name}_{number:03d}" for name, number in zip(series, index, strict=True)])
    targets = generator.integers(0, 2, (count, CLASSES))
    features = generator.normal(size=(count, FEATURES)).astype(np.float16)
    logits = generator.normal(size=(count, CLASSES)).astype(np.float32)
    rows = generator.permutation(count)
    return SequenceDataset(
        ids[shuffled], series[shuffled], place[shuffled], index[shuffled], targets[shuffled], rows, features, logits,
        reverse, 3,
    )  # fmt: skip


@pytest.mark.parametrize("study", ["max", "noisy_or", "learned"])
@pytest.mark.parametrize("name", SEQUENCE_MODELS)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), more=st.integers(0, 20), garbage=st.floats(-9, 9))
@settings(max_examples=10)
def test_padding_changes_nothing_whatever_stands_in_it(name, study, lengths, more, garbage) -> None:
    built, data = model(name, seq_study=study), dataset(lengths)
    batch = collate_sequences([data[index] for index in range(len(lengths))]).inputs
    mask = torch.nn.functional.pad(batch["mask"], (0, more))
    padded = {}
    for key in ("features", "logits", "position_mm"):
        shape = (len(lengths), mask.shape[1], *batch[key].shape[2:])
        padded[key] = torch.full(shape, garbage)
        padded[key][:, : batch[key].shape[1]][batch["mask"]] = batch[key][batch["mask"]]
    with torch.inference_mode():
        together = built(padded["features"], padded["logits"], padded["position_mm"], mask)
        for index, length in enumerate(lengths):
            one = collate_sequences([data[index]]).inputs
            alone = built(one["features"], one["logits"], one["position_mm"], one["mask"])
            torch.testing.assert_close(together.slices[index, :length], alone.slices[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.study[index], alone.study[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), more=st.integers(0, 3))
@settings(max_examples=8)
def test_recurrent_layers_give_what_torchs_own_packing_of_unsorted_sequences_gives_to_the_bit(kind, lengths, more):
    torch.manual_seed(0)
    cell = getattr(torch.nn, kind)(5, 4, 2, batch_first=True, bidirectional=True)
    mask = torch.arange(max(lengths) + more) < torch.tensor(lengths)[:, None]
    found, expected = (torch.randn(*mask.shape, 5, requires_grad=True) for _ in range(2))
    expected.data.copy_(found.data)
    rnn = torch.nn.utils.rnn
    sequences = rnn.pack_padded_sequence(expected, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    theirs, _ = rnn.pad_packed_sequence(cell(sequences)[0], batch_first=True, total_length=mask.shape[1])
    for given_lengths in (None, lengths):
        ours = packed(cell, found, mask, given_lengths)
        assert torch.equal(ours, theirs)
    weights = torch.randn(theirs.shape)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(found.grad, expected.grad)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_a_batch_knows_on_the_host_what_its_mask_says(lengths: list[int]) -> None:
    data = dataset(lengths)
    batch = collate_sequences([data[index] for index in range(len(lengths))])
    mask, places = batch.inputs["mask"], batch.inputs["places"]
    assert batch.lengths == tuple(mask.sum(dim=1).tolist()) == tuple(lengths)
    assert torch.equal(of_slices(batch.inputs["logits"], places), batch.inputs["logits"][mask])
    padded = in_series(batch.target, places, mask.shape)
    assert torch.equal(padded[mask], batch.target)
    assert not padded[~mask].any()


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
@pytest.mark.parametrize("length", [1, 400])
def test_a_series_of_one_slice_and_one_of_400_have_finite_logits_and_gradients(name: str, length: int) -> None:
    built = model(name, seq_study="learned").train()
    batch = collate_sequences([dataset([length])[0]]).inputs
    output = built(batch["features"], batch["logits"], batch["position_mm"], batch["mask"])
    (output.slices.sum() + output.study.sum()).backward()
    assert output.slices.shape == (1, length, CLASSES)
    assert all(parameter.grad.isfinite().all() for parameter in built.parameters())


@pytest.mark.parametrize("inputs", ["both", "features", "logits"])
def test_an_untrained_model_says_what_the_slices_own_network_said(inputs: str) -> None:
    built = build_sequence_model("gru", {**SMALL, "seq_inputs": inputs, "seq_study": "learned"}, FEATURES, CLASSES)
    batch = collate_sequences([dataset([5, 9])[index] for index in range(2)]).inputs
    output = built.eval()(batch["features"], batch["logits"], batch["position_mm"], batch["mask"])
    torch.testing.assert_close(output.slices, batch["logits"])
    torch.testing.assert_close(output.study[0], batch["logits"][0, :5].amax(dim=0))


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_every_slice_hears_of_its_neighbours_and_of_nothing_in_other_series(name: str) -> None:
    built, data = model(name), dataset([12, 8])
    batch = collate_sequences([data[0], data[1]]).inputs
    changed = batch["features"].clone()
    changed[0, 6] *= -1
    first, second = (
        built(features, batch["logits"], batch["position_mm"], batch["mask"]).slices
        for features in (batch["features"], changed)
    )
    assert not torch.allclose(first[0, 5], second[0, 5])
    assert not torch.allclose(first[0, 7], second[0, 7])
    torch.testing.assert_close(first[1, :8], second[1, :8])


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=60))
def test_noisy_or_is_one_minus_the_product_of_what_is_left(values: list[float]) -> None:
    logits = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1)
    found = noisy_or(torch.cat([logits, logits + 1e3], dim=1), torch.arange(2 * len(values))[None] < len(values))
    left = -np.logaddexp(0, np.array(values, dtype=np.float32).astype(np.float64)).sum()
    expected = np.log(-np.expm1(left)) - left
    np.testing.assert_allclose(float(found), expected, rtol=1e-4, atol=1e-4)


def test_series_are_in_geometric_order_with_their_own_rows_targets_and_centred_places() -> None:
    data = dataset([3, 5])
    for index, length in enumerate((3, 5)):
        sample = data[index]
        assert sample.image_ids == [f"series_{index}_{number:03d}" for number in range(length)]
        np.testing.assert_allclose(sample.position_mm, 2.5 * (np.arange(length) - (length - 1) / 2))
        for place, name in enumerate(sample.image_ids):
            image = data.image_ids.tolist().index(name)
            np.testing.assert_array_equal(sample.features[place], data.features[data.rows[image]].astype(np.float32))
            np.testing.assert_array_equal(sample.logits[place], data.logits[data.rows[image]])
            np.testing.assert_array_equal(sample.target[place], data.targets[image])


def test_a_reversed_series_has_everything_reversed_and_depends_on_epoch_and_series_alone() -> None:
    plain, reversed_ = dataset([6])[0], dataset([6], reverse=1.0)[0]
    assert reversed_.image_ids == plain.image_ids[::-1]
    for name in ("features", "logits", "target"):
        torch.testing.assert_close(getattr(reversed_, name), getattr(plain, name).flip(0))
    torch.testing.assert_close(reversed_.position_mm, -plain.position_mm.flip(0))
    data = dataset([2] * 40, reverse=0.5)
    drawn = [[data[(index, epoch, 0)].image_ids[0].endswith("001") for index in range(40)] for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 8 < sum(drawn[0]) < 32


def test_slices_without_a_position_stand_behind_the_others_and_a_series_without_any_is_5_mm_apart() -> None:
    series, index = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    places = known_places(series, np.array([10.0, 13.0, np.nan, np.nan, np.nan]), index)
    np.testing.assert_array_equal(places, [10, 13, 16, 0, 5])


def test_slices_without_a_position_are_as_far_apart_as_those_before_them() -> None:
    """Thin slices below and thick ones above, and a head scanned twice, half a millimetre beside: 5 mm, not the median.

    The series stand in the file one slice of each after another.
    """
    thin = [0, 2, 4, 6, 8, 10, 15, 20, 25, 30, np.nan, np.nan]
    twice = [place + scan / 2 for place in (0, 5, 10, 15, 20) for scan in (0, 1)] + [np.nan, np.nan]
    series, index = np.tile([0, 1], 12), np.repeat(np.arange(12), 2)
    places = known_places(series, np.ravel([thin, twice], order="F"), index)
    np.testing.assert_array_equal(places[series == 0][-2:], [35, 40])
    np.testing.assert_array_equal(places[series == 1][-2:], [25.5, 30.5])


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_has_each_series_once_and_can_be_entered_anywhere(lengths, batch_size, epoch) -> None:
    sampler = LengthSampler(np.array(lengths), batch_size, 1)
    order = sampler.order(epoch)
    assert sorted(order) == list(range(len(lengths)))
    np.testing.assert_array_equal(order, sampler.order(epoch))
    sampler.seek(epoch, 1)
    assert [key.index for key in sampler] == order[1:].tolist()


@given(
    lengths=st.lists(st.integers(1, 40), min_size=27, max_size=40), batch=st.integers(1, 3), world=st.integers(2, 3),
    offset=st.integers(0, 2),
)  # fmt: skip
def test_processes_share_the_batches_of_one_and_weigh_their_means_by_their_slices(
    lengths, batch, world, offset
) -> None:
    """Means, so weighted, have the mean of all slices as their own mean."""
    lengths = np.array(lengths)
    one = LengthSampler(lengths, batch * world, 5)
    shared = [LengthSampler(lengths, batch, 5, rank, world) for rank in range(world)]
    for sampler, start in [(one, offset * batch * world), *((part, offset * batch) for part in shared)]:
        sampler.seek(2, start)
    whole, parts = list(one), [list(part) for part in shared]
    values = np.random.default_rng(0).normal(size=len(lengths)) * lengths  # sums over the slices of each series
    for number in range(len(whole) // (batch * world)):
        together = [key.index for key in whole[number * batch * world :][: batch * world]]
        own = [part[number * batch :][:batch] for part in parts]
        assert sorted(key.index for keys in own for key in keys) == sorted(together)
        means = []
        for keys in own:
            series = [key.index for key in keys]
            (share,) = {key.share for key in keys}
            means.append(share * values[series].sum() / lengths[series].sum())
        np.testing.assert_allclose(np.mean(means), values[together].sum() / lengths[together].sum(), rtol=1e-9)
    assert all(key.share == 1 for key in whole)


def test_batches_hold_like_lengths_and_their_order_is_random() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 200)
    sampler = LengthSampler(lengths, 8, 0)
    batches = lengths[sampler.order(0)].reshape(-1, 8)
    assert batches.sum() / (batches.max(axis=1) * 8).sum() > 0.9  # share that is no padding; in random order 0.57
    assert np.any(np.diff(batches[:, 0]) < 0)
    assert not np.array_equal(sampler.order(0), sampler.order(1))


@pytest.mark.parametrize(
    ("name", "given", "part"),
    [
        ("gru", {"seq_heads": 4}, "--seq_heads: --seq_model=gru doesn't know it"),
        ("transformer", {"seq_width": 30, "seq_heads": 4}, "--seq_width=30 is not a multiple of --seq_heads=4"),
        ("conv", {"seq_kernel": 4}, "--seq_kernel=4 must be odd"),
    ],
)
def test_options_that_a_model_cannot_have_are_refused(name: str, given: dict, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        build_sequence_model(name, given, FEATURES, CLASSES)
    assert sequence_settings("conv", {})["seq_kernel"] == 5
