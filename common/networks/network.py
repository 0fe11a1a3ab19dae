"""The training loop: iteration-based, with mixed precision, gradient accumulation and periodic validation."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

from common.callbacks.callback import Callback, by_name
from common.checkpoint import RAW, metric_key
from common.datasets.batch import Batch, LoadingFailed
from common.errors import UsageError, WorkError
from common.models.freezing import train_mode
from common.networks.guard import Evidence, StepGuard, batch_statistics
from common.training import distributed
from common.training.arrival import arrived
from common.training.reproducibility import rng_state, set_rng_state

if TYPE_CHECKING:
    from common.training.schedulers import Schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """The result of one forward pass: ``loss`` scalar, ``logits`` and ``targets`` (N, C), N ``image_ids``."""

    loss: Tensor
    logits: Tensor
    targets: Tensor
    image_ids: Sequence[str]


@dataclass(frozen=True)
class Predictions:
    """Outputs for a whole set in the loader's order: ``logits`` float32 (N, C), ``targets`` float32 (N, C) or None."""

    image_ids: list[str]
    logits: np.ndarray
    targets: np.ndarray | None


class Average(Protocol):
    """An average of the trained weights, such as an EMA. Once ``started``, it is validated as ``valid_<name>/…``.

    ``model`` is a copy of the network's module that holds the averaged weights and buffers.
    """

    model: nn.Module

    def started(self, step: int) -> bool:
        """Whether the average has taken in an update, after ``step`` finished updates."""

    def update(self, model: nn.Module, step: int, landed: Tensor | None = None) -> None:
        """Take in the weights of ``model`` after optimizer update number ``step`` (from 1).

        On a GPU the host doesn't know yet whether the update landed. ``landed`` (bool scalar on the device) says so. If
        it is false, nothing may change, and the next update gets the same number.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors; ``model`` holds the averaged model's own state_dict."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class Training:
    """What :meth:`AbstractNetwork.fit` needs beside the model.

    ``iteration_num`` and ``iteration_valid`` count micro-batches: in the run, and between two validations.
    ``accumulation_step`` micro-batches make one optimizer step. The sampler of ``train_loader`` needs ``seek``.
    ``clip_norm``, ``nonfinite`` and ``nonfinite_limit`` go to :class:`StepGuard`. ``averages`` are updated after each
    update that landed. The schedule hears of the metric ``monitor`` (``valid/…``); empty: of none.
    """

    train_loader: DataLoader
    valid_loader: DataLoader
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    iteration_num: int
    iteration_valid: int
    accumulation_step: int = 1
    callbacks: Sequence[Callback] = ()
    monitor: str = ""
    averages: Mapping[str, Average] = field(default_factory=dict)
    clip_norm: float = 0.0
    nonfinite: str = "stop"
    nonfinite_limit: int = 10

    @property
    def step_num(self) -> int:
        """Optimizer steps of the whole run: ceil(iterations / accumulation)."""
        return -(-self.iteration_num // self.accumulation_step)

    @property
    def iterations_per_epoch(self) -> int:
        """Whole batches in an epoch of this process' sampler: samples // batch size."""
        return self.train_loader.sampler.epoch_length // self.train_loader.batch_size


class AbstractNetwork(ABC):
    """A model with its device and precision, which can :meth:`fit`, :meth:`validate` and :meth:`predict`.

    ``iteration`` counts finished micro-batches, ``step`` finished optimizer updates. The epoch and the position in it
    follow from ``iteration``, so that starting and resuming are the same code. Subclasses define what a step computes:
    :meth:`training_step`, :meth:`prediction_step`, :meth:`compute_metrics`.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
    ) -> None:
        """Put ``model`` on ``device``. ``amp_dtype`` None computes in float32. Only fit needs ``training``."""
        if amp_dtype is torch.float16 and device.type == "cpu":
            raise UsageError("--tr_amp_dtype=float16 needs a GPU; on a CPU use bfloat16, or --tr_use_amp=0")
        self.model = model.to(device)
        self.training_model = self.model if training is None else distributed.data_parallel(self.model, device)
        self.device = device
        self.amp_dtype = amp_dtype
        self.training = training
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Only float16 can underflow; a disabled scaler passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)
        self.guard: StepGuard | None = None
        if training is not None:
            self.guard = StepGuard(
                training.optimizer,
                self.scaler,
                late=device.type == "cuda",
                clip_norm=training.clip_norm,
                mode=training.nonfinite,
                limit=training.nonfinite_limit,
                statistics=batch_statistics(self.model),
            )
        self.iteration = 0
        self.step = 0
        self.group: list[Evidence] = []  # the micro-batches since the last optimizer step
        self.resumed_at = 0  # the iteration of the checkpoint that the run went on from
        self.validated = 0  # the iteration of the last validation
        self.should_stop = False
        self.interrupt_asked = False  # in this process
        self.interrupt_requested = False  # in any process; all know of it
        self.valid_predictions: dict[str, Predictions] = {}
        self.wait_seconds = 0.0  # fit's waiting for batches, in total
        self.validation_seconds = 0.0  # the last validation's duration

    @abstractmethod
    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of ``model`` for a batch on the device; called under autocast."""

    @abstractmethod
    def prediction_step(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the logits (N, C) of ``model`` for a batch on the device.

        ``model`` may be an average's. Called under autocast, without gradients.
        """

    @abstractmethod
    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Compute the metrics of a whole set; the keys have no prefix."""

    @property
    def epoch(self) -> int:
        """Epoch (from 0) of the next iteration."""
        return self.iteration // self.training.iterations_per_epoch

    @property
    def finished(self) -> bool:
        """Whether no iteration is left to do."""
        return self.should_stop or self.iteration >= self.training.iteration_num

    @property
    def at_step_boundary(self) -> bool:
        """Whether no gradient waits for its optimizer step. Only then can the state be saved and resumed."""
        return not self.group

    @property
    def settled_step(self) -> int:
        """Optimizer updates that landed for certain. On a GPU the last one is still open."""
        return self.step - (self.guard.pending is not None)

    @property
    def interrupted(self) -> bool:
        """Whether :meth:`interrupt` stops the run here, at a point from which it can be resumed."""
        return self.interrupt_requested and self.at_step_boundary

    @property
    def validation_due(self) -> bool:
        """Whether the set must be validated before the next iteration."""
        on_grid = self.iteration % self.training.iteration_valid == 0 or self.iteration == self.training.iteration_num
        return on_grid and self.validated < self.iteration

    def interrupt(self) -> None:
        """Ask a running :meth:`fit` to stop at the next step boundary.

        A single process breaks off a running validation too; several first agree at an optimizer step.
        """
        self.interrupt_asked = True
        self.interrupt_requested = distributed.world_size() == 1

    def fit(self) -> None:
        """Train until ``iteration_num`` iterations are done, ``should_stop`` is set or :meth:`interrupt` is called.

        If loading fails between two updates of a single process, save the state, then raise the error.
        """
        self._check_training()
        train_mode(self.model)
        self.training.optimizer.zero_grad(set_to_none=True)
        try:
            self._emit("on_train_begin")
            if self.validation_due:  # the run was interrupted before or during a validation
                self.validate()
            while not (self.finished or self.interrupted):
                self._emit("on_epoch_begin")
                self._fit_epoch()
                self._emit("on_epoch_end")
            self._emit("on_interrupt" if self.interrupted else "on_train_end")
        except BaseException as error:
            if not isinstance(error, LoadingFailed) or not self.at_step_boundary or distributed.world_size() > 1:
                self._tell_error()
                raise
            self._emit("on_interrupt")
            raise LoadingFailed(
                f"{error}; the state after iteration {self.iteration} is saved: --tr_resume goes on from there"
            ) from error

    def _fit_epoch(self) -> None:
        """Train the rest of the epoch, or less where the run ends or stops."""
        loader = self.training.train_loader
        epoch, position = divmod(self.iteration, self.training.iterations_per_epoch)
        loader.sampler.seek(epoch, position * loader.batch_size)
        for batch in self._timed_batches(loader):
            output = self._fit_iteration(self.prepare_batch(batch))
            self._emit("on_iteration_end", output)
            if self.validation_due:
                self.validate()
            if self.finished or self.interrupted:
                break

    def _timed_batches(self, loader: DataLoader) -> Iterator[Batch]:
        """Yield the batches of ``loader``; add the seconds spent waiting for them to ``wait_seconds``."""
        batches = iter(loader)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _fit_iteration(self, batch: Batch) -> StepOutput:
        """Train on one micro-batch; the last one of its accumulation group makes the optimizer step."""
        accumulation = self.training.accumulation_step
        first = self.iteration - self.iteration % accumulation
        group_start = max(first, self.resumed_at)
        group_end = min(first + accumulation, self.training.iteration_num)
        with distributed.gradients_exchanged(self.training_model, self.iteration + 1 == group_end):
            with phase("forward"), self.autocast():
                output = self.training_step(self.training_model, batch)
            with phase("backward"):
                size = group_end - group_start
                self.scaler.scale(output.loss / size if size > 1 else output.loss).backward()
        self.iteration += 1
        self.group.append(Evidence(self.iteration, output.image_ids, output.loss.detach(), output.logits.detach()))
        if self.iteration == group_end:
            with phase("step"):
                self._optimizer_step()
        return output

    def _optimizer_step(self) -> None:
        """Close the last update, then make this group's: set the rate, step the optimizer, update the averages."""
        training = self.training
        self.settle()
        training.schedule.on_step((self.iteration - 1) // training.accumulation_step)
        self.guard.attempt(self.group)
        self.group = []
        training.optimizer.zero_grad(set_to_none=True)
        self.interrupt_requested = distributed.any_process(self.interrupt_asked)
        self.step += 1
        if not self.guard.late and not self.settle():
            return
        for average in training.averages.values():
            average.update(self.model, self.step, self.guard.landed if self.guard.late else None)
        self._emit("on_step_end")

    def settle(self) -> bool:
        """Close the last update, which on a GPU is open until now, so that ``step`` counts only updates that landed.

        Return whether the last update landed. Raises :class:`WorkError` where a loss or gradient that is not finite
        ends the run. Call this before reporting or saving ``step``.
        """
        if self.guard is None:
            return True
        skips = self.guard.skips
        try:
            return self.guard.settle()
        finally:
            self.step -= self.guard.skips - skips

    def validate(self) -> dict[str, float]:
        """Predict the whole validation set and compute its metrics, pooled over the set.

        The keys are ``valid/…`` for the trained weights and ``valid_<name>/…`` for each average. After an interruption
        the result is empty, and callbacks don't hear of this validation.
        """
        self.settle()
        started = time.perf_counter()
        distributed.share_buffers(self.model)
        averages = {name: item.model for name, item in self.training.averages.items() if item.started(self.step)}
        batches = takewhile(lambda _: not self.interrupt_requested, self.training.valid_loader)
        predictions = self.predict_by_each(batches, {RAW: self.model, **averages})
        if self.interrupt_requested:
            return {}
        self.valid_predictions = self._pooled(predictions)
        self.validated = self.iteration
        metrics = {}
        for name, predictions in self.valid_predictions.items():
            values = self.compute_metrics(predictions)
            metrics |= {metric_key(f"valid/{key}", name): value for key, value in values.items()}
        self.validation_seconds = time.perf_counter() - started
        if self.training.monitor:
            self.training.schedule.on_metric(metrics[self.training.monitor])
        self._emit("on_validation_end", metrics)
        return metrics

    def predict(self, batches: Iterable[Batch]) -> Predictions:
        """Compute the logits of all batches in evaluation mode, then restore the model's mode.

        Raises :class:`WorkError` where there is no batch, or naming the first image whose prediction is not finite.
        """
        return self.predict_by_each(batches, {RAW: self.model})[RAW]

    def predict_by_each(self, batches: Iterable[Batch], models: Mapping[str, nn.Module]) -> dict[str, Predictions]:
        """Compute the logits of several models in one pass over the batches; {} if interrupted or without a batch."""
        image_ids: list[str] = []
        logits: dict[str, list[Tensor]] = {name: [] for name in models}
        targets: list[Tensor] = []
        with evaluation_mode(models.values()), torch.inference_mode():
            for (names, target), found in arrived(self._logits(batches, models.values())):
                image_ids += names
                if target is not None:
                    targets.append(target)
                for parts, part in zip(logits.values(), found, strict=True):
                    parts.append(part)
        if self.interrupt_requested or (not image_ids and distributed.world_size() > 1):
            return {}
        if not image_ids:
            raise WorkError("there is no image to predict")
        known = torch.cat(targets).numpy() if targets else None
        return {name: checked_predictions(image_ids, torch.cat(parts), known) for name, parts in logits.items()}

    def _logits(
        self, batches: Iterable[Batch], models: Iterable[nn.Module]
    ) -> Iterator[tuple[tuple[list[str], Tensor | None], list[Tensor]]]:
        """Yield each batch's names and targets (on the host) and the logits of each model (on the device)."""
        for batch in batches:
            ready, found = self.prepare_batch(batch), []
            for model in models:
                with self.autocast():
                    found.append(self.prediction_step(model, ready).float())
            yield (batch.image_id, batch.target), found

    def _pooled(self, predictions: dict[str, Predictions]) -> dict[str, Predictions]:
        """Gather the predictions of all processes: each image once, in the order of a single process."""
        if distributed.world_size() == 1:
            return predictions
        sampler = self.training.valid_loader.sampler
        parts = distributed.gather(predictions)  # {} from a process that had no batch
        order = np.argsort(np.concatenate([sampler.predictions(rank) for rank, part in enumerate(parts) if part]))
        return {name: joined([part[name] for part in parts if part], order) for name in parts[0]}

    def prepare_batch(self, batch: Batch) -> Batch:
        """Move a batch to the device and finish its transforms there.

        On a GPU this overlaps with the computation of the batch before: the copy runs in a stream of its own, from
        pinned memory, and starts as soon as the batch is loaded. Only the computation on this batch waits for it.
        """
        if self.copies is None:
            with phase("copy"):
                return batch.to(self.device).finished()
        with phase("copy"), torch.cuda.stream(self.copies):
            ready = batch.to(self.device, non_blocking=True).finished()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.copies)
        for tensor in (*ready.inputs.values(), ready.target):
            if tensor is not None:
                tensor.record_stream(current)  # keeps its memory until the computation is done
        return ready

    def state_dict(self) -> dict[str, Any]:
        """Return weights and counters and, with ``training``, what a resumed run needs, as plain types and tensors."""
        self.settle()
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "iteration": self.iteration,
            "step": self.step,
        }
        if self.training is not None:
            state["optimizer"] = self.training.optimizer.state_dict()
            state["scheduler"] = self.training.schedule.state_dict()
            state["scaler"] = self.scaler.state_dict()
            state["guard"] = self.guard.state_dict()
            state["loop"] = {"validated": self.validated, "should_stop": self.should_stop}
            state["sampler"] = self.training.train_loader.sampler.state_dict()
            state["averages"] = {name: average.state_dict() for name, average in self.training.averages.items()}
            state["callbacks"] = {
                name: callback.state_dict() for name, callback in by_name(self.training.callbacks).items()
            }
            state["rng"] = distributed.gather(rng_state())
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, keep_options: bool = False) -> None:
        """Take back what :meth:`state_dict` returned; without ``training`` only weights and counters.

        ``keep_options``: keep the optimizer's options (learning rate, weight decay, …), callbacks and averages that
        the network was built with, even where the state has others or lacks them.
        """
        if self.training is not None and len(state["rng"]) != distributed.world_size():
            raise UsageError(
                f"--tr_resume: the run had {len(state['rng'])} process(es) and this one {distributed.world_size()}: "
                "its batches would be others; start torchrun with as many as before"
            )
        self.model.load_state_dict(state["model"])
        self.iteration = self.resumed_at = state["iteration"]
        self.step = state["step"]
        if self.training is not None:
            self._load_optimizer(state, keep_options)
            self.validated = state["loop"]["validated"]
            self.should_stop = state["loop"]["should_stop"] and not keep_options
            self.training.train_loader.sampler.load_state_dict(state["sampler"])
            if state["scaler"]:  # empty from a run in another precision; an enabled scaler refuses that
                self.scaler.load_state_dict(state["scaler"])
            self.guard.load_state_dict(state["guard"])
            for name, average in self.training.averages.items():
                if name in state["averages"] or not keep_options:
                    average.load_state_dict(state["averages"].get(name, {}))
            for name, callback in by_name(self.training.callbacks).items():
                if name in state["callbacks"]:  # one that only observes may come and go
                    callback.load_state_dict(state["callbacks"][name])
            set_rng_state(state["rng"][distributed.rank()])

    def _load_optimizer(self, state: Mapping[str, Any], keep_options: bool) -> None:
        optimizer, schedule = self.training.optimizer, self.training.schedule
        options = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        base_lrs = schedule.base_lrs
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict({**state["scheduler"], "base_lrs": base_lrs} if keep_options else state["scheduler"])
        if keep_options:
            for group, own in zip(optimizer.param_groups, options, strict=True):
                group.update({name: value for name, value in own.items() if name != "lr"})

    def _check_training(self) -> None:
        if self.training is None:
            raise ValueError("fit needs the network to be built with a Training")
        by_name(self.training.callbacks)
        if self.training.iterations_per_epoch == 0:
            raise UsageError(
                f"--tr_batch_size={self.training.train_loader.batch_size}, in {distributed.world_size()} process(es), "
                "is larger than the training set of "
                f"{len(self.training.train_loader.dataset)} images"
            )
        if self.training.iteration_valid % self.training.accumulation_step:
            raise UsageError("the validation interval must be a multiple of the accumulation steps")

    def _emit(self, event: str, *details: Any) -> None:
        for callback in self.training.callbacks:
            getattr(callback, event)(self, *details)

    def _tell_error(self) -> None:
        """Tell each callback that an error ends the run. What fails in one becomes a warning."""
        for callback in self.training.callbacks:
            try:
                callback.on_error(self)
            except Exception as error:
                logger.warning("callback %s: %s, after the error that ends the run", callback.name, error)

    def autocast(self) -> AbstractContextManager:
        """Return the context of a step's computation: mixed precision, if it is on."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)


def phase(name: str) -> AbstractContextManager:
    """Return a context that names a phase of the loop for a profiler; without a profiler it costs nothing."""
    return record_function(f"phase: {name}") if torch.autograd._profiler_enabled() else nullcontext()


@contextmanager
def evaluation_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put models into evaluation mode for this context; afterwards restore the mode of each of their modules."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def joined(parts: Sequence[Predictions], order: np.ndarray) -> Predictions:
    """Join the predictions of several processes; ``order`` gives each result row's place in their concatenation."""
    image_ids = [image_id for part in parts for image_id in part.image_ids]
    targets = None if parts[0].targets is None else np.concatenate([part.targets for part in parts])[order]
    logits = np.concatenate([part.logits for part in parts])[order]
    return Predictions([image_ids[place] for place in order.tolist()], logits, targets)


def checked_predictions(image_ids: list[str], logits: Tensor, targets: np.ndarray | None) -> Predictions:
    """Bring logits (N, C) to the host. Raises WorkError naming the first image whose logits are not finite."""
    values = logits.cpu().numpy()
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        name = image_ids[int(np.argmin(finite))]
        raise WorkError(f"the prediction of image {name} is not finite; lower --optim_lr or check the image")
    return Predictions(image_ids, values, targets)
