"""Resumes a run: finds its checkpoint, joins its options with new ones, and cuts its folder back to the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from common.checkpoint import LAST, PREVIOUS, load_checkpoint
from common.cli.arguments import changeable_options, parse_args, to_dict
from common.errors import UsageError, WorkError, nearest
from common.experiments.folder import experiment_folder, lock_experiment
from common.files import remove_temporaries
from common.foreign import read_yaml
from common.trackers.jsonl import FILE_NAME, cut_metrics
from common.training import distributed

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Run(Generic[ConfigT]):
    """A new run or one to resume, with its options and its checkpoint.

    ``folder`` is None for a new run, whose folder is not claimed yet. ``checkpoint`` is None for a new run, and for one
    that was killed before its first checkpoint, which starts over in its folder. ``config`` holds the run's options
    with the changes of the command line. ``changed`` names the changed options that change the result.
    """

    config: ConfigT
    folder: Path | None = None
    changed: tuple[str, ...] = ()
    checkpoint: dict[str, Any] | None = None

    @property
    def iteration(self) -> int:
        """Finished micro-batches."""
        return 0 if self.checkpoint is None else self.checkpoint["iteration"]

    def is_finished(self, iteration_num: int) -> bool:
        """Return whether all ``iteration_num`` iterations are done and validated, or the run stopped early."""
        if self.checkpoint is None:
            return False
        loop = self.checkpoint["loop"]
        done = self.iteration >= iteration_num and loop["validated"] == self.iteration
        return done or (loop["should_stop"] and not self.changed)

    def check_data(self, data_hash: str, transforms: Mapping[str, Any]) -> None:
        """Raise WorkError if images, labels or transform files changed since the run began."""
        if self.checkpoint is None:
            return
        what = [
            name
            for name, same in (
                ("the fold's images or labels", self.checkpoint["data_hash"] == data_hash),
                ("the transform files or features", self.checkpoint["transforms"] == transforms or bool(self.changed)),
            )
            if not same
        ]
        if what:
            raise WorkError(
                f"{self.folder}: {' and '.join(what)} changed since the run began; bring them back, or start a new "
                f"experiment from --net_weight_file={self.folder / LAST}"
            )

    def cut_back(self) -> None:
        """Remove what was logged or half written since the checkpoint."""
        remove_temporaries(self.folder)
        validated = 0 if self.checkpoint is None else self.checkpoint["loop"]["validated"]
        cut_metrics(self.folder / FILE_NAME, self.iteration, validated)

    def restore(self, network: AbstractNetwork) -> None:
        """Load the checkpoint, if there is one, into the network."""
        if self.checkpoint is not None:
            network.load_state_dict(self.checkpoint, keep_options=bool(self.changed))


@contextmanager
def resume_run(
    config_class: type[ConfigT], arguments: Sequence[str], resume: str, changes: Sequence[str], output_dir: Path
) -> Iterator[Run[ConfigT]]:
    """Find the run called ``resume``, lock its folder for this context, and join its options with ``arguments``.

    ``resume`` is an experiment's id or the path of its last.pt. An option that differs from the run's must be marked as
    changeable or named in ``changes``, else UsageError is raised, as for a run that can't be found or resumed. Raises
    WorkError for a damaged checkpoint and for a run that is in progress.
    """
    folder, file = _find(resume, output_dir)
    with lock_experiment(folder) if distributed.is_main() else nullcontext():
        checkpoint = None if file is None else load_checkpoint(file)
        if checkpoint is not None and "optimizer" not in checkpoint:
            raise UsageError(
                f"--tr_resume={file}: has weights only, which a run can't go on with; give last.pt, or start a new "
                f"experiment from --net_weight_file={file}"
            )
        saved = read_options(folder) if checkpoint is None else checkpoint["config"]
        before = parse_args(config_class, [], saved)
        config = as_settled(before, parse_args(config_class, arguments, saved), changes)
        changed = changed_options(before, config, changes)
        yield Run(config, folder, changed, checkpoint)


def as_settled(before: ConfigT, config: ConfigT, changes: Sequence[str]) -> ConfigT:
    """Replace each "auto" in ``config`` by what the run chose, unless ``changes`` names the option."""
    free = {*changeable_options(type(config)), *changes}
    old, new = to_dict(before), to_dict(config)
    settled = [name for name, value in new.items() if value == "auto" and name not in free and old[name] != value]
    return replace(config, **{name: getattr(before, name) for name in settled})


def check_place(config: Any, folder: Path) -> None:
    """Raise UsageError if a command line names another experiment or results folder than the resumed ``folder``."""
    if config.experiment_id not in (None, folder.name):
        raise UsageError(f"--experiment_id={config.experiment_id}: --tr_resume goes on in {folder}; leave it out")
    if config.output_dir != type(config).output_dir and config.output_dir.resolve() != folder.resolve().parent:
        raise UsageError(f"--output_dir={config.output_dir}: --tr_resume goes on in {folder}; leave it out")


def _find(resume: str, output_dir: Path) -> tuple[Path, Path | None]:
    """Return the experiment's folder, and its checkpoint or None."""
    path = Path(resume)
    if len(path.parts) > 1 and not path.exists() and (output_dir / resume).is_dir():
        path = output_dir / resume  # its name on the leaderboard
    if path.suffix == ".pt" or (len(path.parts) > 1 and not path.is_dir()):
        if not path.is_file():
            raise UsageError(f"--tr_resume={resume}: no such file; give an experiment's id or the path of its last.pt")
        return path.resolve().parent, path.resolve()
    folder = path.resolve() if len(path.parts) > 1 else experiment_folder(output_dir, resume, "--tr_resume")
    for name in (LAST, PREVIOUS):
        if (folder / name).is_file():
            return folder, folder / name
    if not (folder / "config.yaml").is_file():
        raise UsageError(
            f"--tr_resume={resume}: {folder} is not an experiment's folder: it has no {LAST} or config.yaml"
        )
    return folder, None


def read_options(folder: Path) -> dict[str, Any]:
    """Return the options of an experiment's config.yaml as text. WorkError if it can't be read."""
    try:
        document = read_yaml(folder / "config.yaml", texts=True)
    except (OSError, ValueError) as error:
        raise WorkError(f"{folder / 'config.yaml'}: cannot be read; start a new experiment") from error
    if not isinstance(document, dict):
        raise WorkError(f"{folder / 'config.yaml'}: is damaged; start a new experiment")
    return document


def changed_options(before: Any, config: Any, changes: Sequence[str], instead: str | None = None) -> tuple[str, ...]:
    """Return the options that differ and change the result. UsageError for those not named in ``changes``.

    ``instead`` tells the user what to do, if not --tr_resume_change.
    """
    old, new = to_dict(before), to_dict(config)
    unknown = [name for name in changes if name not in new]
    if unknown:
        raise UsageError(f"--tr_resume_change={unknown[0]}: no such option{nearest(unknown[0], new)}")
    free = changeable_options(type(config))
    changed = [name for name in new if name not in free and new[name] != old[name]]
    refused = [name for name in changed if name not in changes]
    if refused:
        listing = ", ".join(f"--{name}={new[name]} (the run has {old[name]})" for name in refused)
        instead = instead or f"name it: --tr_resume_change={','.join([*changes, *refused])}"
        raise UsageError(
            f"--tr_resume: {listing} would give another result than the run in one go; leave it out, or {instead}"
        )
    return tuple(changed)
