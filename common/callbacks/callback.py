"""The one interface for code that watches a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import UsageError

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput


class Callback:
    """Nine events with empty bodies. Override the ones you need.

    Callbacks observe: they never change the loss, the batch or the weights. To end a run early, set
    ``network.should_stop = True``. The network calls them in the order of its list.

    A checkpoint keeps the state of each under its ``name``, by default its class's name. If a run has two of one class,
    give one another name: ``self.name = "Second"`` in its constructor.
    """

    name = "Callback"

    def __init_subclass__(cls) -> None:
        """Set the default name of a subclass."""
        cls.name = cls.__dict__.get("name", cls.__name__)

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Before the first iteration of this ``fit``."""

    def on_epoch_begin(self, network: AbstractNetwork) -> None:
        """Before the first batch of an epoch, or of its rest in a resumed run."""

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """After each micro-batch, which ``network.iteration`` already counts."""

    def on_step_end(self, network: AbstractNetwork) -> None:
        """After each optimizer update, which ``network.step`` already counts. Its ``on_iteration_end`` comes later."""

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """After a validation over the whole set. Keys are such as ``valid/weighted_log_loss``."""

    def on_epoch_end(self, network: AbstractNetwork) -> None:
        """After the last batch of an epoch."""

    def on_train_end(self, network: AbstractNetwork) -> None:
        """After the last iteration of this ``fit``. Not called after an error."""

    def on_interrupt(self, network: AbstractNetwork) -> None:
        """In place of ``on_train_end``, at a step boundary, when a signal ended this ``fit`` early."""

    def on_error(self, network: AbstractNetwork) -> None:
        """After an error anywhere in this ``fit``, which it ends. Wait for no other process: it may be gone.

        An error in here becomes a warning: the run ends by the first one.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""


def by_name(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Return the callbacks by name. UsageError if two share a name: a checkpoint would lose one's state."""
    named = {callback.name: callback for callback in callbacks}
    if len(named) < len(callbacks):
        names = [callback.name for callback in callbacks]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two callbacks are called {twice}: set another name in the constructor of one")
    return named
