"""Guards the optimizer: a step with a gradient or loss that is not finite never changes the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from common.errors import WorkError
from common.training import distributed
from common.training.arrival import HostCopy

logger = logging.getLogger(__name__)

SCALER_SKIPS_IN_A_ROW = 30  # they halve the scale from 65536 to 6e-5; the fault is then not the scale
NAMED_IMAGES = 8


@dataclass(frozen=True)
class Evidence:
    """A micro-batch's ``loss`` (scalar) and ``logits`` (N, C), kept until its update is known to have landed."""

    iteration: int
    image_ids: Sequence[str]
    loss: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Attempt:
    """An update whose outcome the host doesn't know yet.

    ``flags`` (2,), on their way to the host: the gradient is not finite, the loss is not finite. ``first``: the
    optimizer had no state before this update.
    """

    flags: HostCopy
    evidence: Sequence[Evidence]
    first: bool


class Statistics:
    """Tensors, such as running statistics, that are restored if an update did not land. One NaN would stay in them.

    One flat copy holds all tensors of a type, so that a few kernels serve all of them.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Keep a copy of ``tensors``."""
        dtypes = dict.fromkeys(tensor.dtype for tensor in tensors)
        self.groups = [[tensor.view(-1) for tensor in tensors if tensor.dtype == dtype] for dtype in dtypes]
        self.keep()

    def keep(self) -> None:
        """Copy the current values."""
        self.kept = [torch.cat(group) for group in self.groups]

    def settle(self, landed: Tensor) -> None:
        """Copy the current values if ``landed`` (bool scalar, on their device) is true, else restore the copy."""
        for group, kept in zip(self.groups, self.kept, strict=True):
            torch.where(landed, torch.cat(group), kept, out=kept)
            torch._foreach_copy_(group, kept.split([len(flat) for flat in group]))


class StepGuard:
    """Clips gradients and steps the optimizer, except where a loss or gradient is not finite.

    With ``late`` (on a GPU) the device decides, by fused kernels (``found_inf``). The host reads the decision one
    attempt later, so that it never waits. It does wait for an optimizer without such kernels. ``landed`` says on the
    device whether the last attempt landed.

    ``mode`` "stop" ends the run at the first update that is not finite; "skip" goes on until more than ``limit`` were
    skipped. A float16 gradient that overflows while the loss is finite is the scaler's normal work and counted apart.
    After a skip the ``statistics`` are restored to their values before the update's micro-batches.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        late: bool,
        clip_norm: float,
        mode: str,
        limit: int,
        statistics: Sequence[Tensor] = (),
    ) -> None:
        """``clip_norm`` limits the norm of all gradients, 0: no limit. ``statistics``: see :func:`batch_statistics`."""
        self.optimizer = optimizer
        self.scaler = scaler
        self.late = late
        self.clip_norm = clip_norm
        self.mode = mode
        self.limit = limit
        self.statistics = Statistics(statistics if scaler.is_enabled() or mode == "skip" else ())
        self.nonfinite_skips = 0
        self.scaler_skips = 0
        self.scaler_skips_in_a_row = 0
        self.gradient_norm: Tensor | None = None
        self.landed: Tensor | None = None
        self.pending: Attempt | None = None

    @property
    def skips(self) -> int:
        """Updates that did not land."""
        return self.nonfinite_skips + self.scaler_skips

    def attempt(self, evidence: Sequence[Evidence]) -> None:
        """Unscale, clip and step. :meth:`settle` tells later whether the update landed."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters])
        self.gradient_norm = norm.detach()
        if self.clip_norm:
            clip_grads_with_norm_(parameters, self.clip_norm, norm)
        loss = torch.stack([item.loss for item in evidence]).sum()
        flags = distributed.maximum_(~torch.isfinite(torch.stack([norm.float(), loss.float()])))
        self.landed = ~flags.any()
        first = not self.optimizer.state
        self._step()
        self.statistics.settle(self.landed)
        self.pending = Attempt(HostCopy([flags]), evidence, first)

    def settle(self) -> bool:
        """Return whether the last attempt landed (True if none is open). Raises WorkError where the run must end."""
        attempt = self.pending
        if attempt is None:
            return True
        gradient_bad, loss_bad = self.read_flags()
        if self.scaler.is_enabled() and gradient_bad and not loss_bad:
            self.scaler_skips += 1
            self.scaler_skips_in_a_row += 1
            if self.scaler_skips_in_a_row > SCALER_SKIPS_IN_A_ROW:
                raise WorkError(
                    f"{self.scaler_skips_in_a_row} updates in a row had a float16 gradient that is not finite, up to "
                    f"iteration {attempt.evidence[-1].iteration}; use --tr_amp_dtype=bfloat16 or lower --optim_lr"
                )
            return False
        self.scaler_skips_in_a_row = 0
        if not (gradient_bad or loss_bad):
            return True
        self._refuse(attempt.evidence, "loss" if loss_bad else "gradient")
        return False

    def read_flags(self) -> tuple[bool, bool]:
        """Close the open attempt without counting it. Return whether its gradient and its loss are not finite."""
        attempt, self.pending = self.pending, None
        (flags,) = attempt.flags.wait()
        gradient_bad, loss_bad = flags.tolist()
        if attempt.first and (gradient_bad or loss_bad):
            # Fused SGD has allocated momentum without setting it. The first step that lands must make it anew.
            self.optimizer.state.clear()
        return gradient_bad, loss_bad

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of skipped updates and the last norm."""
        return {
            "nonfinite_skips": self.nonfinite_skips,
            "scaler_skips": self.scaler_skips,
            "scaler_skips_in_a_row": self.scaler_skips_in_a_row,
            "gradient_norm": None if self.gradient_norm is None else self.gradient_norm.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.nonfinite_skips = state["nonfinite_skips"]
        self.scaler_skips = state["scaler_skips"]
        self.scaler_skips_in_a_row = state["scaler_skips_in_a_row"]
        self.gradient_norm = state["gradient_norm"]
        self.statistics.keep()

    def _step(self) -> None:
        """Step the optimizer if the attempt lands. Unlike the scaler's own ``step`` this looks at the loss too."""
        if self.late and getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.grad_scale = None
            self.optimizer.found_inf = (~self.landed).float()
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf
        elif bool(self.landed):
            self.optimizer.step()
        self.scaler.update()

    def _refuse(self, evidence: Sequence[Evidence], what: str) -> None:
        self.nonfinite_skips += 1
        iterations = str(evidence[-1].iteration)
        if len(evidence) > 1:
            iterations = f"{evidence[0].iteration} to {iterations}"
        line = f"the {what} of iteration {iterations} is not finite; images: {suspects(evidence)}"
        if self.mode == "stop":
            raise WorkError(f"{line}; lower --optim_lr, set --tr_clip_norm, check the images, or --tr_nonfinite=skip")
        if self.nonfinite_skips > self.limit:
            raise WorkError(
                f"{line}; {self.nonfinite_skips} updates were skipped and --tr_nonfinite_limit={self.limit}: lower "
                "--optim_lr or check the images"
            )
        logger.warning("%s; its update is skipped (%d of %d)", line, self.nonfinite_skips, self.limit)


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running statistics of the model's batch norms, which each training forward pass changes."""
    return [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers(False)]


def suspects(evidence: Sequence[Evidence]) -> str:
    """Name the images whose logits are not finite, else those of batches whose loss is not finite, else all."""
    names = [
        name
        for item in evidence
        for name, good in zip(item.image_ids, torch.isfinite(item.logits).all(dim=1).tolist(), strict=True)
        if not good
    ]
    if not names:
        blamed = [item for item in evidence if not bool(torch.isfinite(item.loss))] or evidence
        names = [name for item in blamed for name in item.image_ids]
    listing = ", ".join(names[:NAMED_IMAGES])
    return listing if len(names) <= NAMED_IMAGES else f"{listing} and {len(names) - NAMED_IMAGES} more"
