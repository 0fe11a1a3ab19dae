"""Every row of the table of optimizers against the class itself in a plain loop, and the groups."""

from __future__ import annotations

import io

import pytest
import timm
import timm.optim
import torch
from torch import nn

from common.checkpoint import _check_plain
from common.errors import UsageError
from common.training.optimizers import OPTIMIZERS, PLAIN_OPTIMIZERS, build_optimizer, parameter_groups
from common.training.schedulers import build_schedule

BETAS = {"betas": (0.9, 0.999), "eps": 1e-8}
# What each name stands for, written down apart from the table.
REFERENCES = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8, "momentum": 0}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-10}),
    "adadelta": (torch.optim.Adadelta, {"rho": 0.9, "eps": 1e-6}),
    "adam": (torch.optim.Adam, BETAS),
    "adamw": (torch.optim.AdamW, BETAS),
    "adamax": (torch.optim.Adamax, BETAS),
    "nadam": (torch.optim.NAdam, BETAS),
    "nadamw": (torch.optim.NAdam, {**BETAS, "decoupled_weight_decay": True}),
    "radam": (torch.optim.RAdam, BETAS),
    "radamw": (torch.optim.RAdam, {**BETAS, "decoupled_weight_decay": True}),
    "adabelief": (timm.optim.AdaBelief, {}),
    "adopt": (timm.optim.Adopt, {"decoupled": True}),
    "adan": (timm.optim.Adan, {}),
    "adafactor": (timm.optim.Adafactor, {}),
    "lamb": (timm.optim.Lamb, {}),
    "lars": (timm.optim.Lars, {"momentum": 0.9}),
    "lion": (timm.optim.Lion, {}),
    "laprop": (timm.optim.LaProp, {}),
    "madgrad": (timm.optim.MADGRAD, {"decoupled_decay": True}),
    "mars": (timm.optim.Mars, {}),
    "muon": (timm.optim.Muon, {"nesterov": True}),
}
# Other values than the defaults, to see that each option arrives.
OTHER_VALUES = {
    "optim_momentum": 0.7,
    "optim_nesterov": None,  # turned round
    "optim_betas": {2: (0.8, 0.95), 3: (0.9, 0.8, 0.95)},
    "optim_eps": 1e-3,
    "optim_alpha": 0.8,
    "optim_rho": 0.7,
    "optim_lookahead_k": 3,
    "optim_lookahead_alpha": 0.8,
}


class Net(nn.Module):
    """A convolution, a norm and a head that it tells of, as timm's models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))

    def get_classifier(self):
        return self.fc


def train(model, optimizer, steps, schedule=None):
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    targets = (torch.arange(16).reshape(8, 2) % 3 == 0).float()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if schedule is not None:
            schedule.on_step(step + 1)
    return losses


def by_hand(model, name, lr, weight_decay, **values):
    """The optimizer as one would write it without this project: two groups, the class, its arguments."""
    plain = name.removeprefix("lookahead_")
    kind, fixed = REFERENCES[plain]
    decayed = [model.conv.weight, model.fc.weight]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [model.conv.bias, model.norm.weight, model.norm.bias, model.fc.bias], "weight_decay": 0.0},
    ]
    if plain == "muon":
        groups[0]["params"] = [model.conv.weight]
        groups[1]["params"] = groups[1]["params"][:3]
        groups.append({"params": [model.fc.weight], "weight_decay": weight_decay, "use_fallback": True})
        groups.append({"params": [model.fc.bias], "weight_decay": 0.0, "use_fallback": True})
    lookahead = {key: values.pop(f"lookahead_{key}") for key in ("k", "alpha") if f"lookahead_{key}" in values}
    optimizer = kind(groups, lr=lr, **{**fixed, **values})
    return timm.optim.Lookahead(optimizer, **lookahead) if name != plain else optimizer


def same_weights(first, second):
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


def test_every_row_has_a_reference():
    assert set(PLAIN_OPTIMIZERS) == set(REFERENCES)
    assert set(OPTIMIZERS) == set(REFERENCES) | {f"lookahead_{name}" for name in REFERENCES}
    assert all(name == row.name and row.summary for name, row in OPTIMIZERS.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_to_the_bit_as_its_class_in_a_plain_loop(name):
    ours, theirs = Net(), Net()
    train(ours, build_optimizer(name, ours, lr=0.01, weight_decay=0.1), 13)
    train(theirs, by_hand(theirs, name, 0.01, 0.1), 13)
    assert same_weights(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_an_optimizer_arrives_and_changes_the_training(name):
    row = OPTIMIZERS[name]
    options = [option for option in row.parameters if option in OTHER_VALUES]
    for option in options:
        default = row.parameters[option]
        other = OTHER_VALUES[option]
        value = not default if option == "optim_nesterov" else other[len(default)] if isinstance(other, dict) else other
        ours, theirs, unchanged = Net(), Net(), Net()
        momentum = {"optim_momentum": 0.7} if option == "optim_nesterov" else {}
        train(ours, build_optimizer(name, ours, 0.01, 0.1, {option: value, **momentum}), 13)
        arguments = {key.removeprefix("optim_"): given for key, given in {option: value, **momentum}.items()}
        train(theirs, by_hand(theirs, name, 0.01, 0.1, **arguments), 13)
        train(unchanged, build_optimizer(name, unchanged, 0.01, 0.1), 13)
        assert same_weights(ours, theirs), option
        assert not same_weights(ours, unchanged), option


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_from_its_saved_state_to_the_bit(name):
    whole, first, second = Net(), Net(), Net()
    optimizers = [build_optimizer(name, model, 0.01, 0.1) for model in (whole, first, second)]
    train(whole, optimizers[0], 11)
    train(first, optimizers[1], 4)
    state = {"model": first.state_dict(), "optimizer": optimizers[1].state_dict()}
    _check_plain(state, "state")
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second.load_state_dict(loaded["model"])
    optimizers[2].load_state_dict(loaded["optimizer"])
    train(second, optimizers[2], 7)
    assert same_weights(whole, second)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_under_a_schedule(name):
    model = Net()
    rate = {"adadelta": 1.0, "lars": 1.0, "adafactor": 0.1, "radam": 0.1, "radamw": 0.1}.get(
        name.removeprefix("lookahead_"), 0.02
    )
    optimizer = build_optimizer(name, model, lr=rate, weight_decay=1e-4)
    losses = train(model, optimizer, 60, build_schedule("cosine", optimizer, 60))
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize("name", ["adamw", "lookahead_sgd", "adan", "lion"])
def test_an_option_that_an_optimizer_does_not_know_is_refused(name):
    known = OPTIMIZERS[name].parameters
    for option in OTHER_VALUES:
        if option not in known:
            with pytest.raises(UsageError, match=rf"^--{option}: --optim={name} doesn't know it; it knows --optim_"):
                build_optimizer(name, Net(), 0.1, 0.0, {option: 0.5})


def test_another_number_of_betas_is_refused():
    with pytest.raises(UsageError, match=r"--optim_betas=0.9,0.99: --optim=adan takes 3 numbers"):
        build_optimizer("adan", Net(), 0.1, 0.0, {"optim_betas": (0.9, 0.99)})
    with pytest.raises(
        UsageError, match=r"--optim_betas=0.9,1: --optim=adamw takes 2 numbers of at least 0 and below 1"
    ):
        build_optimizer("adamw", Net(), 0.1, 0.0, {"optim_betas": (0.9, 1.0)})


@pytest.mark.parametrize("name", ["sgd", "lookahead_sgd"])
def test_without_momentum_sgd_is_plain_and_has_none_of_nesterovs(name):
    model = nn.Linear(3, 2)
    assert build_optimizer(name, model, 0.1, 0.0, {"optim_momentum": 0.0}).param_groups[0]["nesterov"] is False
    with pytest.raises(UsageError, match="--optim_nesterov=1 needs an --optim_momentum above 0"):
        build_optimizer(name, model, 0.1, 0.0, {"optim_momentum": 0.0, "optim_nesterov": True})


def test_one_step_of_adamw_decays_weights_by_the_rate_and_leaves_biases_and_norms():
    model = Net()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer("adamw", model, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def rates(model, **options):
    """Learning rate and decay of every parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1.0, 0.1, **options)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_layer_wise_decay_gives_the_rates_that_timm_gives(name):
    model = timm.create_model(name, num_classes=6)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    expected = {}
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    for group in timm.optim.param_groups_layer_decay(model, 0.1, exempt, layer_decay=0.7):
        for parameter in group["params"]:
            expected[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    found = rates(model, layer_decay=0.7)
    assert set(found) == set(expected)
    for key, (rate, decay) in found.items():
        assert rate == pytest.approx(expected[key][0]), key
        assert decay == expected[key][1], key
    assert len({rate for rate, _ in found.values()}) > 2


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_heads_rate_is_a_multiple_of_the_others(name):
    model = timm.create_model(name, num_classes=6)
    head = {f"{'fc' if name == 'test_resnet' else 'head'}.{kind}" for kind in ("weight", "bias")}
    for key, (rate, _) in rates(model, head_factor=10.0).items():
        assert rate == (10.0 if key in head else 1.0)


def test_position_embeddings_and_class_tokens_do_not_decay():
    found = rates(timm.create_model("test_vit"))
    assert found["pos_embed"][1] == 0
    assert found["cls_token"][1] == 0
    assert found["blocks.0.attn.qkv.weight"][1] == 0.1


def test_each_trainable_parameter_stands_in_exactly_one_group():
    model = Net()
    model.conv.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1, 0.1)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_a_group_without_parameters_is_left_out():
    assert len(parameter_groups(nn.Linear(3, 2, bias=False), 0.1, 0.1)) == 1


def test_a_model_that_tells_neither_layers_nor_head_is_refused_where_they_are_needed():
    with pytest.raises(UsageError, match="layers"):
        parameter_groups(nn.Linear(3, 2), 0.1, 0.1, layer_decay=0.5)
    with pytest.raises(UsageError, match="--optim_head_factor"):
        parameter_groups(nn.Linear(3, 2), 0.1, 0.1, head_factor=2.0)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match=r"--optim=adamv.*sgd, .*adam, adamw.*did you mean"):
        build_optimizer("adamv", Net(), lr=0.1, weight_decay=0.0)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(UsageError, match="no trainable parameter"):
        build_optimizer("sgd", nn.ReLU(), lr=0.1, weight_decay=0.0)
