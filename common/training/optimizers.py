"""Table of torch's and timm's optimizers by name. A new optimizer is a new row.

``lookahead_<name>`` wraps any of them in Lookahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.cli.arguments import option
from common.cli.choices import Row, choose, load, settings, table
from common.cli.values import format_numbers, parse_numbers
from common.errors import UsageError
from common.models.layers import head_parameters, layer_indices, undecayed_names

if TYPE_CHECKING:
    import torch
    from torch import nn

ParameterGroups = list[dict[str, Any]]

LOOKAHEAD = "lookahead_"
# Rates where none is given: where a network that sees pictures starts from random weights, and else.
RANDOM_LR, LR = 3e-3, 1e-3
# Options of every optimizer: how parameters are grouped.
GROUPING = {"optim_layer_decay": 1.0, "optim_head_factor": 1.0}


@dataclass(frozen=True)
class OptimizerRow(Row):
    """One optimizer: the dotted ``path`` of its class, its options, and the ``fixed`` arguments.

    The option ``optim_momentum`` becomes the argument ``momentum``. ``head`` is added to the group of the model's head.
    ``fused``: the class has a fused GPU kernel, which also lets the loop guard a step without waiting.
    """

    path: str
    fixed: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    head: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    fused: bool = field(default=False, kw_only=True)


def optimizer_row(
    name: str,
    summary: str,
    path: str,
    *,
    fixed: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    fused: bool = False,
    **parameters: Any,
) -> OptimizerRow:
    """Return a row. ``parameters`` are the class's arguments that options ``--optim_<argument>`` set."""
    known = {f"optim_{argument}": default for argument, default in parameters.items()}
    return OptimizerRow(
        name, summary, path, parameters=known | GROUPING, fixed=fixed or {}, head=head or {}, fused=fused
    )


ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}

PLAIN_OPTIMIZERS: dict[str, OptimizerRow] = table(
    (
        optimizer_row("sgd", "SGD with momentum", "torch.optim.SGD", fused=True, momentum=0.9, nesterov=True),
        optimizer_row("rmsprop", "RMSprop", "torch.optim.RMSprop", momentum=0.0, alpha=0.99, eps=1e-8),
        optimizer_row("adagrad", "Adagrad", "torch.optim.Adagrad", fused=True, eps=1e-10),
        optimizer_row("adadelta", "Adadelta (its usual rate is 1)", "torch.optim.Adadelta", rho=0.9, eps=1e-6),
        optimizer_row("adam", "Adam, weight decay inside the gradient", "torch.optim.Adam", fused=True, **ADAM),
        optimizer_row("adamw", "Adam, decoupled weight decay", "torch.optim.AdamW", fused=True, **ADAM),
        optimizer_row("adamax", "Adam with the infinity norm", "torch.optim.Adamax", **ADAM),
        optimizer_row("nadam", "Adam with Nesterov momentum", "torch.optim.NAdam", **ADAM),
        optimizer_row(
            "nadamw",
            "NAdam, decoupled weight decay",
            "torch.optim.NAdam",
            fixed={"decoupled_weight_decay": True},
            **ADAM,
        ),
        optimizer_row("radam", "rectified Adam", "torch.optim.RAdam", **ADAM),
        optimizer_row(
            "radamw",
            "rectified Adam, decoupled weight decay",
            "torch.optim.RAdam",
            fixed={"decoupled_weight_decay": True},
            **ADAM,
        ),
        optimizer_row("adabelief", "AdaBelief", "timm.optim.AdaBelief", betas=(0.9, 0.999), eps=1e-16),
        optimizer_row(
            "adopt",
            "ADOPT, decoupled weight decay",
            "timm.optim.Adopt",
            fixed={"decoupled": True},
            betas=(0.9, 0.9999),
            eps=1e-6,
        ),
        optimizer_row("adan", "Adan (three betas)", "timm.optim.Adan", betas=(0.98, 0.92, 0.99), eps=1e-8),
        optimizer_row(
            "adafactor", "Adafactor: factored second moments, little memory", "timm.optim.Adafactor", eps=1e-30
        ),
        optimizer_row("lamb", "LAMB, for large batches", "timm.optim.Lamb", betas=(0.9, 0.999), eps=1e-6),
        optimizer_row("lars", "LARS, for large batches", "timm.optim.Lars", momentum=0.9, nesterov=False, eps=1e-8),
        optimizer_row("lion", "Lion (about a tenth of AdamW's rate)", "timm.optim.Lion", betas=(0.9, 0.99)),
        optimizer_row("laprop", "LaProp", "timm.optim.LaProp", betas=(0.9, 0.999), eps=1e-15),
        optimizer_row(
            "madgrad",
            "MADGRAD, decoupled weight decay",
            "timm.optim.MADGRAD",
            fixed={"decoupled_decay": True},
            momentum=0.9,
            eps=1e-6,
        ),
        optimizer_row("mars", "MARS on AdamW", "timm.optim.Mars", betas=(0.9, 0.99), eps=1e-8),
        optimizer_row(
            "muon",
            "Muon for matrices and kernels, AdamW (--optim_betas) for vectors and the head; rates as AdamW's",
            "timm.optim.Muon",
            head={"use_fallback": True},
            momentum=0.95,
            nesterov=True,
            betas=(0.9, 0.95),
        ),
    )
)
LOOKAHEAD_PARAMETERS = {"optim_lookahead_k": 6, "optim_lookahead_alpha": 0.5}
OPTIMIZERS: dict[str, OptimizerRow] = PLAIN_OPTIMIZERS | table(
    OptimizerRow(
        f"{LOOKAHEAD}{row.name}",
        f"Lookahead over {row.name}",
        row.path,
        parameters={**row.parameters, **LOOKAHEAD_PARAMETERS},
        fixed=row.fixed,
        head=row.head,
    )
    for row in PLAIN_OPTIMIZERS.values()
)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer. Where an option says "none", the optimizer's own value holds, and one it doesn't know is refused."""

    optim: str = option(
        "adamw",
        "optimizer, also as lookahead_<name>; --list=optim describes each and its options",
        choices=tuple(OPTIMIZERS),
        own_rows=True,
        metavar="NAME",
    )
    optim_lr: float | None = option(
        None,
        f"highest learning rate. none: {RANDOM_LR:g} for a network for single slices that starts from random weights, "
        f"{LR:g} for one that starts from trained ones and for other kinds. config.yaml has the number",
        minimum=0,
    )
    optim_weight_decay: float = option(
        1e-2, "weight decay of matrices and kernels; biases, norms and position embeddings have none", minimum=0
    )
    optim_layer_decay: float | None = option(
        None,
        "factor of the learning rate from each layer to the one before it, counted from the head (1: the same rate)",
        minimum=0,
        maximum=1,
    )
    optim_head_factor: float | None = option(None, "learning rate of the head as a multiple of --optim_lr", minimum=0)
    optim_momentum: float | None = option(None, "momentum", minimum=0, maximum=0.9999)
    optim_nesterov: bool | None = option(None, "1: use Nesterov's momentum")
    optim_betas: tuple[float, ...] | None = option(
        None, "decay rates of the running means, as in 0.9,0.999", parse=parse_numbers, form=format_numbers
    )
    optim_eps: float | None = option(None, "small number added to the denominator", minimum=0)
    optim_alpha: float | None = option(None, "rmsprop: decay rate of the squared gradient", minimum=0, maximum=0.999999)
    optim_rho: float | None = option(None, "adadelta: decay rate of the squared gradient", minimum=0, maximum=1)
    optim_lookahead_k: int | None = option(None, "lookahead_...: steps between updates of the slow weights", minimum=1)
    optim_lookahead_alpha: float | None = option(
        None, "lookahead_...: share of the way that the slow weights move", minimum=0, maximum=1
    )


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    head_factor: float = 1.0,
    head_options: Mapping[str, Any] | None = None,
) -> ParameterGroups:
    """Return the model's trainable parameters in groups of equal rate and decay, each with its ``lr``.

    Vectors and scalars (biases, scale and shift of norms) don't decay, nor do parameters that the model exempts
    (position embeddings, class tokens): pulling them to zero regularizes nothing. timm and most published recipes have
    this rule. ``layer_decay`` d gives layer i of n the rate lr · d^(n − i), the head lr · ``head_factor``. timm's
    ``group_matcher`` defines the layers. ``head_options`` go into the groups of the head. A decay of 0 doesn't merge
    groups, so that an optimizer's saved state fits for any decay.

    Raises UsageError if the model doesn't tell its layers or its head and they are needed.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    head = head_parameters(model) if head_factor != 1 or head_options else frozenset()
    layers = layer_indices(model) if layer_decay != 1 else dict.fromkeys(parameters, 0)
    last = max(layers.values(), default=0)
    exempt = undecayed_names(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        in_head = name in head
        decays = parameter.ndim > 1 and name not in exempt
        key = (layers[name], in_head, not decays)
        if key not in groups:
            scale = layer_decay ** (last - layers[name]) * (head_factor if in_head else 1.0)
            groups[key] = {"params": [], "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0}
            groups[key] |= (head_options or {}) if in_head else {}
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def check_optimizer(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option values of the optimizer called ``name``.

    Raises UsageError for an unknown name, an option that the optimizer doesn't know, and a wrong number of betas. A
    momentum of 0 switches off Nesterov's momentum.
    """
    row = choose("optim", name, OPTIMIZERS)
    values = settings("optim", row, given)
    usual, betas = row.parameters.get("optim_betas", ()), values.get("optim_betas", ())
    if len(betas) != len(usual) or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(
            f"--optim_betas={','.join(f'{beta:g}' for beta in betas)}: --optim={name} takes {len(usual)} numbers of at "
            "least 0 and below 1"
        )
    if values.get("optim_momentum") == 0 and values.get("optim_nesterov"):
        if given.get("optim_nesterov"):
            raise UsageError("--optim_nesterov=1 needs an --optim_momentum above 0")
        values["optim_nesterov"] = False
    return values


def build_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float, given: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer called ``name`` over the trainable parameters of ``model``.

    ``given`` are the other ``optim_…`` options, None if not given. Raises UsageError as :func:`check_optimizer` and
    :func:`parameter_groups`, and if no parameter is trainable.
    """
    values = {key.removeprefix("optim_"): value for key, value in check_optimizer(name, given or {}).items()}
    row = choose("optim", name, OPTIMIZERS)
    grouping = {"layer_decay": values.pop("layer_decay"), "head_factor": values.pop("head_factor")}
    groups = parameter_groups(model, lr, weight_decay, **grouping, head_options=row.head)
    if not groups:
        raise UsageError("the model has no trainable parameter; --net_freeze leaves nothing to train")
    wrapping = {key: values.pop(f"lookahead_{key}") for key in ("alpha", "k") if f"lookahead_{key}" in values}
    on_gpu = next(model.parameters()).device.type == "cuda"
    fused = {"fused": True} if row.fused and on_gpu else {}
    optimizer = load(row.path)(groups, lr=lr, weight_decay=weight_decay, **values, **row.fixed, **fused)
    return load("timm.optim.Lookahead")(optimizer, **wrapping) if wrapping else optimizer
