"""Output of ``--list``: rows of a table, models, or transform files. It imports only what it needs."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

from common.cli.choices import PROJECT, describe, load
from common.errors import UsageError, nearest

TRANSFORM_FOLDER = PROJECT / "transforms"
TABLES = {
    "optim": "common.training.optimizers.OPTIMIZERS",
    "sched": "common.training.schedulers.SCHEDULES",
    "sampler": "common.datasets.sampling.SAMPLERS",
    "loss": "common.training.losses.LOSSES",
    "tracker": "common.trackers.table.TRACKERS",
    "pool": "common.models.pooling.POOLS",
    "seq": "common.models.sequence.SEQUENCE_MODELS",
}


def listing(question: str) -> list[str]:
    """Return the lines that answer ``question``: a table's name, ``transform``, or ``model[:pattern]``.

    Raises UsageError for another question and for a pattern that no model matches.
    """
    kind, _, pattern = question.partition(":")
    if kind in TABLES and not pattern:
        return describe(load(TABLES[kind]))
    answers: dict[str, Callable[[str], list[str]]] = {"model": model_names, "transform": transform_files}
    if kind not in answers or (pattern and kind != "model"):
        known = (*TABLES, "transform", "model", "model:pattern")
        raise UsageError(f"--list={question}: choose from {', '.join(known)}{nearest(kind, known)}")
    return answers[kind](pattern)


def model_names(pattern: str) -> list[str]:
    """Return timm's models that match ``pattern`` (with * and ?, or part of a name), and say which have weights."""
    import timm

    names = timm.list_models()
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in names if fnmatch.fnmatch(name, wanted)]
    if not found:
        raise UsageError(
            f"--list=model:{pattern}: timm {timm.__version__} has no such model{nearest(pattern, names, 3)}"
        )
    weighted = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return [f"{name}{'  (pretrained weights)' if name in weighted else ''}" for name in found]


def transform_files(pattern: str) -> list[str]:
    """Return the names of the files in ``transforms/``."""
    return sorted(path.name for path in TRANSFORM_FOLDER.glob("*.json"))
