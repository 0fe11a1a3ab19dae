"""Tests of common/training/arrival.py: results come in order, and without a GPU at once."""

from __future__ import annotations

import torch

from common.training.arrival import arrived


def test_without_a_gpu_each_part_comes_as_it_is_before_the_next_is_computed() -> None:
    computed: list[int] = []
    tensors = [torch.randn(2, 3) for _ in range(5)]

    def parts():
        for number, tensor in enumerate(tensors):
            computed.append(number)
            yield number, (tensor, tensor + 1)

    for number, (first, second) in arrived(parts()):
        assert computed == list(range(number + 1))
        assert first is tensors[number]
        assert torch.equal(second, tensors[number] + 1)
    assert len(computed) == 5
