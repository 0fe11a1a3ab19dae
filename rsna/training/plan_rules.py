"""The rules of plan.py as tables: which networks, which schemes, which GPUs, what each command costs.

To change a plan, change a row here. A number without a source is this project's guess, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import TrainConfig
    from rsna.training.fingerprint import Fingerprint


@dataclass(frozen=True)
class Candidate:
    """A slice network that a plan may take.

    - ``flags``: of train.py, the recipe among them.
    - ``fewest``, ``most``: passes over the training images of a fold, below which a plan takes a smaller network, and
      above which it spends no more time. Published solutions trained 3 to 5 passes from ImageNet's weights.
    - ``rate_3090``: training images a second at 224 pixels on an RTX 3090 with mixed precision, as timm measured them
      (its results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv); None: not for GPUs.
    """

    name: str
    flags: tuple[str, ...]
    fewest: float
    most: float
    why: str
    rate_3090: float | None = None


# The three that a machine measures, the best first: with a GPU, and without.
CANDIDATES: Mapping[str, tuple[Candidate, ...]] = {
    "cuda": (
        Candidate(
            "resnext50",
            ("--config=experiments/rsna_large.yaml",),
            *(2.5, 5),
            "the network of most published solutions, at full size",
            1001,
        ),
        Candidate(
            "convnext",
            ("--config=experiments/rsna_other.yaml",),
            *(2.5, 5),
            "another family at middle size: it errs in other places than a ResNeXt",
            819,
        ),
        Candidate(
            "resnet34",
            ("--config=experiments/rsna_evening.yaml",),
            *(1.5, 5),
            "small pictures and a small network: an evening is enough",
            2037,
        ),
    ),
    "cpu": (
        Candidate(
            "resnet18",
            ("--net_model=resnet18", "--data_image_size=128", "--tr_batch_size=16", "--sched=onecycle"),
            *(10, 40),
            "the largest network that a CPU trains in hours",
        ),
        Candidate(
            "resnet10",
            ("--net_model=resnet10t", "--data_image_size=96", "--tr_batch_size=16", "--sched=onecycle"),
            *(5, 40),
            "the network of train.sh's main job",
        ),
        Candidate(
            "resnet10_small",
            ("--net_model=resnet10t", "--data_image_size=64", "--tr_batch_size=16", "--sched=onecycle"),
            *(3, 40),
            "the smallest pictures that show a bleeding",
        ),
    ),
}


@dataclass(frozen=True)
class Scheme:
    """What is trained beside single networks.

    ``folds``: how many of the dataset's folds, None: all. ``networks``: slice networks, from the chosen candidate on
    down the table. ``sequences``: models over the features of each network; they need three folds or more.
    """

    name: str
    folds: int | None
    networks: int = 1
    sequences: tuple[str, ...] = ()
    second_level: bool = False


# A plan takes the first scheme for which some candidate has its fewest passes, with the best such candidate.
SCHEMES = (
    Scheme(
        "two networks on all folds, two sequence models on each, second level, ensemble",
        *(None, 2, ("lstm", "transformer"), True),
    ),
    Scheme("one network on all folds, a sequence model, second level, ensemble", None, 1, ("lstm",), True),
    Scheme("one network on all folds, a sequence model", None, 1, ("lstm",)),
    Scheme("one network on three folds, a sequence model", 3, 1, ("lstm",)),
    Scheme("one network on one fold", 1),
)


@dataclass(frozen=True)
class Adjustment:
    """An option that follows from the dataset: ``value`` returns it, or None where the candidate's own stays."""

    option: str
    value: Callable[[TrainConfig, Fingerprint], int | None]
    why: str


ADJUSTMENTS = (
    Adjustment(
        "data_image_size",
        lambda config, data: data.pixels if config.data_image_size > data.pixels else None,
        "the stored pictures have no more pixels",
    ),
    Adjustment(
        "data_context",
        lambda config, data: 0 if config.data_context and data.slices[1] < 2 * config.data_context + 1 else None,
        "the series are too short for neighbouring slices",
    ),
    Adjustment(
        "tr_batch_size",
        lambda config, data: data.train_images if config.tr_batch_size > data.train_images else None,
        "a fold has no more training images",
    ),
)

VALIDATIONS = 4  # of a run, the last one included
FEWEST_ITERATIONS = 20  # of a run in the poorest plan; below it nothing is learnt
SEQUENCE_FLAGS = ("--config=experiments/rsna_sequence.yaml",)
SEQUENCE_BATCH = 32  # series, or all of a small fold
SEQUENCE_SHARE = 0.15  # of the hours, for all sequence models together, but at most
SEQUENCE_SERIES_S = {"cuda": 0.02, "cpu": 0.3}  # seconds for each series and fold: a guess
SEQUENCE_FEWEST_S = 15.0  # of training in each fold
RESERVE = 0.03  # of the hours stays free
MEMORY_SHARE = 0.9  # of a GPU's memory may be filled


@dataclass(frozen=True)
class Cost:
    """What a command costs: ``starts`` (times the start of a training, which is measured), and seconds for images."""

    starts: float
    image_s: float = 0.0


# Guesses by the size of what each command does; only the start of a training is measured.
COSTS = {
    "evaluate.py": Cost(1.0, 0.001),
    "predict.py": Cost(1.0),
    "second_level.py": Cost(1.5, 0.003),
    "ensemble.py": Cost(1.0, 0.001),
    "join": Cost(0.2),  # a cross-validation: folds to one experiment
}


@dataclass(frozen=True)
class GPU:
    """A GPU: memory in GB, and its bandwidth in GB/s by NVIDIA's data sheet, to which training rates are scaled.

    Training of convolutional networks in mixed precision waits for memory, so that bandwidth foretells its speed better
    than the number of operations does. Real rates may be half or twice the estimate.
    """

    memory_gb: float
    bandwidth: float


GPUS: Mapping[str, GPU] = {
    "T4": GPU(16, 320),
    "L4": GPU(24, 300),
    "V100": GPU(16, 900),
    "3090": GPU(24, 936),
    "A100": GPU(80, 2039),
    "H100": GPU(80, 3350),
    "H200": GPU(141, 4800),
}
REFERENCE = "3090"  # the GPU of Candidate.rate_3090
REFERENCE_PIXELS = 224
ESTIMATED_START_S = 30.0  # of a training on a machine that isn't here, with the competition's tables: a guess
VALIDATION_SPEED = 3.0  # validation images a second, in training images a second: a forward pass is a third of a step
