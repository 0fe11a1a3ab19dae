"""Orders in which images are drawn. They follow from seed and epoch, so that a run can be resumed anywhere.

Every process of a distributed run computes the order of the whole epoch and takes every ``world_size``-th image of it,
starting at its rank. An iteration therefore has the same images, however many processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.datasets.images import SampleKey
from common.errors import UsageError, nearest
from common.hashing import stable_hash

HEARD_AT_MOST = 1000  # batches whose losses wait on the device before they are sent to the host


class EpochSampler:
    """Base of all samplers. Iterating yields this process' keys of an epoch, from the place set by :meth:`seek`.

    An epoch is cut to a multiple of ``world_size`` images, so that all processes get equally many.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """``length``: images that all processes together draw in an epoch."""
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.offset = 0

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of a whole epoch (``length``,) in order; an index may be repeated."""
        raise NotImplementedError

    def seek(self, epoch: int, offset: int) -> None:
        """Make the next iteration start in ``epoch`` after ``offset`` samples of this process."""
        self.epoch = epoch
        self.offset = offset

    @property
    def epoch_length(self) -> int:
        """Samples of this process in a whole epoch."""
        return self.length // self.world_size

    def __len__(self) -> int:
        """Samples of this process from the offset to the end of the epoch."""
        return self.epoch_length - self.offset

    def __iter__(self) -> Iterator[SampleKey]:
        order = self.order(self.epoch)
        occurrences = count_occurrences(order)
        own = slice(self.rank + self.offset * self.world_size, self.epoch_length * self.world_size, self.world_size)
        for index, occurrence in zip(order[own].tolist(), occurrences[own].tolist(), strict=True):
            yield SampleKey(index, self.epoch, occurrence)

    def observe(self, image_ids: Sequence[str], losses: Any) -> None:
        """Take the losses (N,) of images that were just trained on. Only hard-example sampling uses them."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on besides seed and epoch, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""

    def random(self, purpose: str, epoch: int) -> np.random.Generator:
        """Return the random generator of an epoch, the same in every process."""
        return np.random.default_rng(stable_hash(purpose, self.seed, epoch))


class SequentialSampler(EpochSampler):
    """Each image once in an epoch, in the dataset's order."""

    def order(self, epoch: int) -> np.ndarray:
        """Return 0, 1, …"""
        return np.arange(self.length)


class RandomSampler(EpochSampler):
    """Each image once in an epoch, in a new random order each epoch."""

    def order(self, epoch: int) -> np.ndarray:
        """Return a permutation drawn from (seed, epoch)."""
        return self.random("order", epoch).permutation(self.length)


class BalancedSampler(EpochSampler):
    """As many images as there are, of which a target share is positive for one label.

    Both sides are drawn in random rounds, each image once before any comes twice: the rare side repeats, the common
    side is thinned out evenly. Each epoch draws its images anew.
    """

    def __init__(self, positive: np.ndarray, share: float, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """``positive`` (N,) bool. ``share`` in 0..1 of an epoch's images is positive, rounded to whole images.

        Raises UsageError if the share needs images of a side that has none.
        """
        super().__init__(len(positive), seed, rank, world_size)
        self.positives = np.flatnonzero(positive)
        self.negatives = np.flatnonzero(~positive)
        self.positive_count = round(share * self.length)
        for wanted, found, side in (
            (self.positive_count, self.positives, "positive"),
            (self.length - self.positive_count, self.negatives, "negative"),
        ):
            if wanted and not len(found):
                raise UsageError(
                    f"--sampler_share={share:g} needs {side} images of --sampler_label and the training set has none"
                )

    def order(self, epoch: int) -> np.ndarray:
        """Return the epoch's positives and negatives, shuffled together."""
        random = self.random("balanced", epoch)
        chosen = [
            _repeated(self.positives, self.positive_count, random),
            _repeated(self.negatives, self.length - self.positive_count, random),
        ]
        return random.permutation(np.concatenate(chosen))


class StudySampler(EpochSampler):
    """The same number of images from every study, so that long studies don't count more than short ones.

    A study with fewer images repeats them, each once before any comes twice.
    """

    def __init__(self, study_ids: Sequence[str], slices: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """``study_ids`` (N,) names each image's study. An epoch has ``slices`` images of each study."""
        studies, codes = np.unique(np.asarray(study_ids, dtype=np.str_), return_inverse=True)
        super().__init__(len(studies) * slices, seed, rank, world_size)
        self.slices = slices
        self.by_study = np.argsort(codes, kind="stable")
        self.counts = np.bincount(codes, minlength=len(studies))
        self.starts = np.cumsum(self.counts) - self.counts

    def order(self, epoch: int) -> np.ndarray:
        """Return the chosen images of all studies, shuffled together."""
        random = self.random("study", epoch)
        # Rank each study's images at random; the k-th image wanted is the one of rank k modulo their count.
        keys = np.lexsort((random.random(len(self.by_study)), np.repeat(np.arange(len(self.counts)), self.counts)))
        shuffled = self.by_study[keys]
        places = self.starts[:, None] + np.arange(self.slices)[None] % self.counts[:, None]
        return random.permutation(shuffled[places.ravel()])


class HardExampleSampler(EpochSampler):
    """Draws images in proportion to their last loss ** power, with repeats, so that hard ones come more often.

    Until a loss is known, an epoch is a random order. An image without a known loss counts as the mean of the known
    ones. A ``floor`` share of the chances is even, so that easy images are seen again too. The losses known at the
    start of an epoch decide its order. These and the later ones are saved.
    """

    def __init__(
        self,
        image_ids: Sequence[str],
        power: float,
        floor: float,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        gather: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None,
    ) -> None:
        """``gather`` returns the arrays of all processes in order of rank; None for a single process.

        It is called at the start of each epoch and when the state is saved. Both happen in every process.
        """
        super().__init__(len(image_ids), seed, rank, world_size)
        ids = np.asarray(image_ids, dtype=np.str_)
        self.by_id = np.argsort(ids)
        self.sorted_ids = ids[self.by_id]
        self.power = power
        self.floor = floor
        self.gather = gather
        self.losses = np.full(len(ids), np.nan, dtype=np.float32)
        self.heard_at = np.full(len(ids), -1, dtype=np.int64)  # batch of the last loss, counted since sharing
        self.epoch_losses = self.losses.copy()
        self.losses_epoch = 0  # the epoch of epoch_losses
        self.heard: list[tuple[Sequence[str], Any]] = []
        self.sent: tuple[Sequence[Sequence[str]], Any] | None = None  # names of batches, a HostCopy
        self.batches = 0

    def seek(self, epoch: int, offset: int) -> None:
        """Seek as the base. At the start of a new epoch, take the losses known so far for its order."""
        super().seek(epoch, offset)
        if epoch != self.losses_epoch:
            self._share()
            self.epoch_losses = self.losses.copy()
            self.losses_epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """Return the images of the epoch, drawn by the losses at its start."""
        random = self.random("hard", epoch)
        known = np.isfinite(self.epoch_losses)
        if not known.any():
            return random.permutation(self.length)
        losses = self.epoch_losses.astype(np.float64)
        weights = np.where(known, losses, losses[known].mean()) ** self.power
        even = np.full(self.length, 1 / self.length)
        total = weights.sum()
        chances = self.floor * even + (1 - self.floor) * (weights / total if total > 0 else even)
        # Systematic sampling: of n draws, an image with chance p comes floor(np) or ceil(np) times, nothing else.
        points = (np.arange(self.length) + random.random()) / self.length
        drawn = np.searchsorted(np.cumsum(chances), points, side="right").clip(max=self.length - 1)
        return random.permutation(drawn)

    def observe(self, image_ids: Sequence[str], losses: Any) -> None:
        """Keep the losses (N,), a tensor on any device, without waiting for them."""
        self.heard.append((image_ids, losses.detach()))
        if len(self.heard) == HEARD_AT_MOST:
            self._receive()  # of as many batches before
            self._send()

    def state_dict(self) -> dict[str, Any]:
        """Return the last losses and those that decided the current epoch."""
        import torch  # here and below: samplers that keep no losses need no torch, and --list none at all

        self._share()
        return {
            "losses": torch.from_numpy(self.losses.copy()),
            "epoch_losses": torch.from_numpy(self.epoch_losses.copy()),
            "losses_epoch": self.losses_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the losses. Raises UsageError if they belong to another number of images."""
        if len(state["losses"]) != self.length:
            raise UsageError(
                f"the checkpoint has the losses of {len(state['losses'])} images and the training set {self.length} "
                "images; go on with the data that the run began with"
            )
        self.losses = state["losses"].numpy().copy()
        self.epoch_losses = state["epoch_losses"].numpy().copy()
        self.losses_epoch = state["losses_epoch"]
        self.heard, self.sent, self.batches = [], None, 0
        self.heard_at[:] = -1

    def _share(self) -> None:
        """Give all processes the same losses. The latest loss of an image counts."""
        self._take_in()
        if self.gather is not None:
            # float64 holds both exactly. At equal batch numbers the higher rank wins, in every process.
            both = np.stack(self.gather(np.stack([self.heard_at, self.losses.astype(np.float64)])))
            latest = len(both) - 1 - np.argmax(both[::-1, 0], axis=0)
            self.losses = np.take_along_axis(both[:, 1], latest[None], axis=0)[0].astype(np.float32)
        self.heard_at[:] = -1
        self.batches = 0

    def _take_in(self) -> None:
        """Store all losses observed so far."""
        self._receive()
        self._send()
        self._receive()

    def _send(self) -> None:
        """Start copying the observed losses to the host."""
        import torch

        from common.training.arrival import HostCopy

        if self.heard:
            names, losses = zip(*self.heard, strict=True)
            self.sent = (names, HostCopy([torch.cat(losses).float()]))
        self.heard = []

    def _receive(self) -> None:
        """Store the losses that :meth:`_send` sent before."""
        if self.sent is None:
            return
        (names, copy), self.sent = self.sent, None
        ends = np.cumsum([len(image_ids) for image_ids in names])
        for image_ids, losses in zip(names, np.split(copy.wait()[0].numpy(), ends[:-1]), strict=True):
            places = self.by_id[np.searchsorted(self.sorted_ids, np.asarray(image_ids, dtype=np.str_))]
            self.losses[places] = losses
            self.heard_at[places] = self.batches
            self.batches += 1


@dataclass(frozen=True)
class TrainingImages:
    """What samplers may know: the training set of N images, and this process' place among all.

    ``targets`` (N, K) in 0..1 with K ``label_names``, N ``study_ids``. ``gather``: see :class:`HardExampleSampler`.
    """

    image_ids: Sequence[str]
    targets: np.ndarray
    label_names: Sequence[str]
    study_ids: Sequence[str]
    seed: int
    rank: int = 0
    world_size: int = 1
    gather: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Seed, rank and number of processes, the last arguments of every sampler."""
        return self.seed, self.rank, self.world_size


def build_sequential(images: TrainingImages, values: Mapping[str, Any]) -> EpochSampler:
    """The dataset's order."""
    return SequentialSampler(len(images.image_ids), *images.place)


def build_random(images: TrainingImages, values: Mapping[str, Any]) -> EpochSampler:
    """A permutation for each epoch."""
    return RandomSampler(len(images.image_ids), *images.place)


def build_balanced(images: TrainingImages, values: Mapping[str, Any]) -> EpochSampler:
    """Balanced by the label ``sampler_label``. Raises UsageError for an unknown label."""
    label = values["sampler_label"]
    if label not in images.label_names:
        known = ", ".join(images.label_names)
        raise UsageError(f"--sampler_label={label}: choose from {known}{nearest(label, images.label_names)}")
    positive = np.asarray(images.targets)[:, list(images.label_names).index(label)] >= 0.5
    return BalancedSampler(positive, values["sampler_share"], *images.place)


def build_study(images: TrainingImages, values: Mapping[str, Any]) -> EpochSampler:
    """``sampler_slices`` images of each study."""
    return StudySampler(images.study_ids, values["sampler_slices"], *images.place)


def build_hard(images: TrainingImages, values: Mapping[str, Any]) -> EpochSampler:
    """By the last loss of each image."""
    power, floor = values["sampler_power"], values["sampler_floor"]
    return HardExampleSampler(images.image_ids, power, floor, *images.place, gather=images.gather)


def count_occurrences(order: np.ndarray) -> np.ndarray:
    """Count for each position how often its value occurs before it: (5, 2, 5, 5) gives (0, 0, 1, 2)."""
    if len(order) == 0:
        return np.zeros(0, dtype=np.int64)
    by_value = np.argsort(order, kind="stable")
    starts = np.flatnonzero(np.diff(order[by_value], prepend=order[by_value[0]] - 1))
    lengths = np.diff(starts, append=len(order))
    occurrences = np.empty(len(order), dtype=np.int64)
    occurrences[by_value] = np.arange(len(order)) - np.repeat(starts, lengths)
    return occurrences


def _repeated(indices: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return ``count`` of ``indices`` in random rounds: each once before any comes twice."""
    if count == 0:
        return indices[:0]
    rounds = -(-count // len(indices))
    return np.concatenate([random.permutation(indices) for _ in range(rounds)])[:count]
