"""The kinds of network that ``--net_kind`` chooses from. To add a kind, write a file and a row.

This module imports nothing heavy, so that a command line can be checked without torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from common.cli.arguments import option, refuse_given
from common.cli.choices import Row, table
from common.errors import UsageError
from common.training.optimizers import LR, RANDOM_LR


@dataclass(frozen=True)
class KindRow(Row):
    """One kind: the dotted path of its class, a :class:`rsna.kinds.kind.Kind`, and the options that it refuses.

    - ``meaningless``: patterns of options that mean nothing to the kind, as in ``seq_*``; ``but``: exceptions.
    - ``needs``: at least one of these options must be given; ``why``: the error message if none is.
    - ``random_lr``: learning rate from random weights, where none is given.
    """

    path: str = field(kw_only=True)
    meaningless: tuple[str, ...] = field(default=(), kw_only=True)
    but: tuple[str, ...] = field(default=(), kw_only=True)
    needs: tuple[str, ...] = field(default=(), kw_only=True)
    why: str = field(default="", kw_only=True)
    random_lr: float = field(default=LR, kw_only=True)

    def refuses(self, names: Iterable[str]) -> list[str]:
        """Return the options among ``names`` that mean nothing to this kind."""
        matching = [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.meaningless)]
        return [name for name in matching if name not in self.but]

    def learning_rate(self, config: Any) -> float:
        """Return the learning rate of a run where --optim_lr is not given."""
        return LR if config.net_pretrained or config.net_weight_file is not None else self.random_lr

    def check(self, config: Any) -> None:
        """Raise UsageError if an option is given that means nothing to this kind, or none that it needs."""
        fields = config.__dataclass_fields__
        refuse_given(config, self.refuses(fields), f"means nothing to --net_kind={config.net_kind}; leave it out")
        if self.needs and all(getattr(config, name) == fields[name].default for name in self.needs):
            raise UsageError(f"--net_kind={config.net_kind} {self.why}")


# Options that kinds over whole series don't support.
OF_SINGLE_SLICES = ("tr_channels_last", "tr_compute", "tr_compile", "tr_grad_checkpoint", "tr_sync_bn", "tr_overfit")
SAMPLER = ("data_sampler", "sampler_*")

KINDS: dict[str, KindRow] = table(
    (
        KindRow(
            "slice",
            "a network for single slices",
            path="rsna.kinds.slices.SliceKind",
            meaningless=("seq_*", "study_*"),
            random_lr=RANDOM_LR,
        ),
        KindRow(
            "sequence",
            "a model over all slices of a series, which learns from the features of slice networks",
            path="rsna.kinds.sequences.SequenceKind",
            meaningless=("data_*", *SAMPLER, "net_*", "study_*", *OF_SINGLE_SLICES),
            but=("net_kind", "data_input_folder", "data_dataset", "data_fold"),
            needs=("seq_features",),
            why="needs --seq_features, the experiment of a cross-validation",
        ),
        KindRow(
            "study",
            "both as one network, which learns from the pictures of whole series and starts from a slice network "
            "(--net_weight_file)",
            path="rsna.kinds.studies.StudyKind",
            meaningless=(*SAMPLER, "seq_features", *OF_SINGLE_SLICES),
            needs=("net_weight_file", "net_pretrained"),
            why="starts from a slice network: --net_weight_file=<best.pt of the same fold>, or --net_pretrained=1",
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Networks over whole series of pictures (--net_kind=study)."""

    study_chunk: int = option(
        16,
        "number of slices that go through the slice network at once; more need more memory",
        minimum=1,
        changeable=True,
    )
