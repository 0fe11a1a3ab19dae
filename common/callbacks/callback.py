"""The one interface for code that watches a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import UsageError

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput


class Callback:
    """Eight events with empty bodies; override the ones you need.

    Callbacks observe: they never change the loss, the batch or the weights. To end a run early set
    ``network.should_stop = True``. They are called in the order of the list that the network was given.

    A checkpoint keeps the state of each under its ``name``, by default that of its class. Of two of one class one needs
    a name of its own: ``self.name = "Second"`` in its constructor.
    """

    name = "Callback"

    def __init_subclass__(cls) -> None:
        """Name a subclass by itself, where its body doesn't."""
        cls.name = cls.__dict__.get("name", cls.__name__)

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Before the first iteration of this ``fit``."""

    def on_epoch_begin(self, network: AbstractNetwork) -> None:
        """Before the first batch of an epoch, or of the rest of one."""

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """After each micro-batch; ``network.iteration`` counts it already."""

    def on_step_end(self, network: AbstractNetwork) -> None:
        """After each optimizer update; ``network.step`` counts it already. Comes before its ``on_iteration_end``."""

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """After a validation over the whole set; keys such as ``valid/weighted_log_loss``."""

    def on_epoch_end(self, network: AbstractNetwork) -> None:
        """After the last batch of an epoch."""

    def on_train_end(self, network: AbstractNetwork) -> None:
        """After the last iteration of this ``fit``; not called when an error ended it."""

    def on_interrupt(self, network: AbstractNetwork) -> None:
        """In place of ``on_train_end``, at a step boundary, where a signal ended this ``fit`` before its time."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""


def by_name(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Return the callbacks by their names; UsageError where two have the same: one's state would be lost."""
    named = {callback.name: callback for callback in callbacks}
    if len(named) < len(callbacks):
        names = [callback.name for callback in callbacks]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two callbacks are called {twice}: set another name in the constructor of one")
    return named
