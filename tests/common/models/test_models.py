"""Tests of common/models: timm's models by name, pretrained weights from caches and a hub, and weight files."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import ClassVar

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from common.checkpoint import save_checkpoint
from common.errors import UsageError, WorkError
from common.foreign import MOST_BYTES
from common.models.backbone import check_model_name, create_model
from common.models.freezing import freeze, train_mode
from common.models.layers import layer_indices
from common.models.pool_layers import AttentionMean
from common.models.pooling import POOLS
from common.models.weights import build_within, load_weights
from tests import PROJECT

# timm's own models for tests: 0.5 million parameters and less, published with weights.
TINY = "test_resnet"
TINY_TAG = "test_resnet.r160_in1k"
TINY_VIT = "test_vit"
CLOSED_PORT = "http://127.0.0.1:9"  # nothing listens there

CREATE = """
import json, sys, time
import torch
from common.errors import UserError
from common.models.backbone import create_model
for number, options in enumerate(json.loads(sys.argv[1])):
    torch.manual_seed(1)
    start = time.monotonic()
    try:
        torch.save(create_model(pretrained=True, **options).state_dict(), f"{sys.argv[2]}/{number}.pt")
    except UserError as error:
        print(json.dumps([number, f"{type(error).__name__}: {error}", time.monotonic() - start]))
"""


def create_in_process(jobs, folder, endpoint=CLOSED_PORT, **environment):
    """Create pretrained models in one process whose caches lie in ``folder``: the hub reads its settings at import.

    Returns a list: for each of the ``jobs`` (options of create_model) the state dict, or the error's (line, seconds).
    """
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TORCH_HOME"))},
        "HF_HOME": str(folder / "hf"),
        "TORCH_HOME": str(folder / "torch"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    target = folder / f"created{len(list(folder.glob('created*')))}"
    target.mkdir()
    arguments = [sys.executable, "-c", CREATE, json.dumps(jobs), str(target)]
    done = subprocess.run(
        arguments, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = {int(path.stem): torch.load(path, weights_only=True) for path in target.glob("*.pt")}
    for line in done.stdout.splitlines():
        number, text, seconds = json.loads(line)
        results[number] = (text, seconds)
    return [results[number] for number in range(len(jobs))]


def put_into_hub_cache(folder, name, content):
    """Put a file into the Hugging Face cache under ``folder`` as a download would."""
    repository = folder / "hf" / "hub" / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(content)
    return snapshot / "model.safetensors"


def weights_of(name, **options):
    torch.manual_seed(5)
    return timm.create_model(name, **options).state_dict()


def assert_body_is_that_of(loaded, published, head):
    assert {key for key in loaded if not key.startswith(head)} == {key for key in published if not key.startswith(head)}
    for key, value in published.items():
        if not key.startswith(head):
            assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("name", [TINY, TINY_TAG, "test_efficientnet", TINY_VIT, "resnet18"])
@pytest.mark.parametrize("channels", [1, 3, 9])
def test_a_model_gives_float_logits_for_six_labels_and_tells_its_width(name, channels):
    model = create_model(name, in_channels=channels, image_size=64)
    logits = model(torch.zeros(2, channels, 64, 64))
    assert logits.shape == (2, 6)
    assert logits.dtype == torch.float32
    assert model.num_features == model.get_classifier().in_features
    assert model.training


def test_the_same_seed_gives_the_same_weights_whether_or_not_the_size_was_tried():
    torch.manual_seed(3)
    first = create_model(TINY).state_dict()
    torch.manual_seed(3)
    second = create_model(TINY, image_size=64).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"--net_model=resnet81: timm [\d.]+ has no such model; did you mean 'resnet\d+\w*' or .* or "),
        ("qqqqq", r"--net_model=qqqqq: .*list_models"),
        ("", r"--net_model=: "),
        ("hf-hub:timm/resnet18", r"has no such model"),
        ("resnet18.nonsense", r"resnet18 has no weights called 'nonsense'; its weight tags are .*a1_in1k"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest_names(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_model(name)
    assert "\n" not in str(caught.value)


def test_a_name_with_a_weight_tag_is_known():
    check_model_name("resnet18.tv_in1k")


def test_a_size_that_the_model_cannot_take_is_one_line():
    with pytest.raises(UsageError, match=r"--data_image_size=32: inception_v3 can't take pictures") as caught:
        create_model("inception_v3", image_size=32)
    assert "\n" not in str(caught.value)


def test_a_transformer_made_for_one_size_takes_the_asked_one():
    model = create_model("vit_tiny_patch16_224", image_size=96)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 6)


NAFLEX = "naflexvit_base_patch16_gap.e300_s576_in1k"  # its first layer is linear, over unfolded patches
TORCH_CACHED = "legacy_seresnet18"  # timm names an address for it, and no hub
UNCACHED = "test_byobnet"


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A folder of caches, what was put into it, and what one process without network made of it."""
    folder = tmp_path_factory.mktemp("caches")
    published = {name: weights_of(name) for name in (TINY, TINY_VIT, TORCH_CACHED)}
    for name in (TINY, TINY_VIT):
        put_into_hub_cache(folder, name, safetensors.torch.save(published[name]))
    put_into_hub_cache(folder, NAFLEX, b"never opened")
    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(published[TORCH_CACHED], checkpoints / Path(timm.get_pretrained_cfg(TORCH_CACHED).url).name)
    jobs = {
        "resnet": {"name": TINY},
        "vit": {"name": TINY_VIT},
        "torch": {"name": TORCH_CACHED},
        "nine": {"name": TINY, "in_channels": 9},
        "naflex": {"name": NAFLEX, "in_channels": 9},
        "uncached": {"name": UNCACHED},
        "uncached address": {"name": "legacy_seresnet34"},
        "no weights": {"name": "densenet264d"},
    }
    return folder, published, dict(zip(jobs, create_in_process(list(jobs.values()), folder), strict=True))


@pytest.mark.parametrize(
    ("job", "name", "head"),
    [("resnet", TINY, "fc."), ("vit", TINY_VIT, "head."), ("torch", TORCH_CACHED, "last_linear.")],
)
def test_pretrained_weights_come_from_a_cache_to_the_bit_with_a_fresh_head(cached, job, name, head):
    _, published, created = cached
    assert_body_is_that_of(created[job], published[name], head)
    assert created[job][f"{head}weight"].shape == (6, published[name][f"{head}weight"].shape[1])
    assert created[job][f"{head}weight"].std() > 0


def test_the_first_layer_is_adapted_to_nine_channels(cached):
    _, published, created = cached
    first = timm.get_pretrained_cfg(TINY).first_conv + ".weight"
    loaded = dict(created["nine"])
    # Nine channels that repeat three, at a third of the weight: a picture repeated three times gives what it gave.
    torch.testing.assert_close(loaded.pop(first), published[TINY][first].repeat(1, 3, 1, 1) / 3)
    rest = {key: value for key, value in published[TINY].items() if key != first}
    assert_body_is_that_of(loaded, rest, "fc.")


def test_a_first_layer_that_cannot_be_adapted_is_refused_and_not_left_at_random(cached):
    line, _ = cached[2]["naflex"]
    assert line.startswith(f"UsageError: --net_pretrained=1: the first layer of {NAFLEX} can't be adapted from 3 to 9")
    assert "\n" not in line


def test_without_network_and_cache_one_line_says_within_seconds_what_is_missing(cached):
    folder, _, created = cached
    line, seconds = created["uncached"]
    assert seconds < 10  # alone, the hub's client repeats its question for 23 s
    assert line.startswith(f"UsageError: --net_pretrained=1: the weights of {UNCACHED} are not cached")
    assert "hf download timm/test_byobnet.r160_in1k model.safetensors" in line
    assert str(folder / "hf" / "hub" / "models--timm--test_byobnet.r160_in1k") in line
    assert "--net_weight_file" in line
    assert "\n" not in line


def test_the_line_names_address_and_place_where_timm_knows_no_hub(cached):
    folder, _, created = cached
    line, seconds = created["uncached address"]
    assert seconds < 10
    assert "https://github.com/" in line
    assert str(folder / "torch" / "hub" / "checkpoints" / "seresnet34-a4004e63.pth") in line
    assert "\n" not in line


def test_a_model_without_pretrained_weights_is_refused(cached):
    line, _ = cached[2]["no weights"]
    assert line.startswith("UsageError: --net_pretrained=1: timm has no pretrained weights for densenet264d")
    assert "\n" not in line


@pytest.mark.slow
def test_a_hub_that_accepts_and_stays_silent_is_given_up_within_seconds(tmp_path):
    with create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ((line, seconds),) = create_in_process([{"name": TINY}], tmp_path, endpoint)
    assert seconds < 20
    assert line.startswith("UsageError: --net_pretrained=1")
    assert "\n" not in line


@pytest.mark.slow
def test_an_offline_hub_is_not_asked(tmp_path):
    jobs = [{"name": TINY}, {"name": TORCH_CACHED}]
    for line, _ in create_in_process(jobs, tmp_path, HF_HUB_OFFLINE="1"):
        assert "HF_HUB_OFFLINE" in line
        assert "\n" not in line


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does for the files of its table; any other is missing."""

    contents: ClassVar[dict[str, bytes]] = {}  # repository/file -> bytes

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
        content = self.contents.get(f"{repository}/{rest.partition('/')[2]}")
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        return content or b""

    def log_message(self, *parts):
        """Keep the test's output clean."""


def test_weights_are_fetched_from_a_hub_once_and_then_come_from_the_cache(tmp_path):
    published = {TINY: weights_of(TINY), TINY_VIT: weights_of(TINY_VIT)}
    pickled = io.BytesIO()
    torch.save(published[TINY_VIT], pickled)
    HubHandler.contents = {
        f"{timm.get_pretrained_cfg(TINY).hf_hub_id}/model.safetensors": safetensors.torch.save(published[TINY]),
        f"{timm.get_pretrained_cfg(TINY_VIT).hf_hub_id}/pytorch_model.bin": pickled.getvalue(),
    }
    jobs = [{"name": TINY}, {"name": TINY_VIT}]
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetched = create_in_process(jobs, tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    for results in (fetched, create_in_process(jobs, tmp_path)):
        assert_body_is_that_of(results[0], published[TINY], "fc.")
        assert_body_is_that_of(results[1], published[TINY_VIT], "head.")


def test_a_bad_file_in_the_cache_is_one_line_and_never_a_random_start(tmp_path):
    published = weights_of(TINY)
    whole = safetensors.torch.save(published)
    contents = {
        TINY: whole[: len(whole) // 2],
        TINY_VIT: b"<html>sign in to this network</html>",
        "test_efficientnet": whole,  # another model's
        "test_convnext": safetensors.torch.save(
            dict(list(weights_of("test_convnext").items())[1:])
        ),  # a layer is missing
    }
    paths = {name: put_into_hub_cache(tmp_path, name, content) for name, content in contents.items()}
    results = create_in_process([{"name": name} for name in contents], tmp_path)
    for name, (line, _) in zip(contents, results, strict=True):
        assert line.startswith(f"WorkError: {paths[name]}: cannot be loaded as the pretrained weights of {name}")
        assert "\n" not in line


# Weight files


def make_checkpoint(path, model, **config):
    contents = {
        "model": model.state_dict(),
        "config": config,
        "transforms": {},
        "class_names": ["a"],
        "prevalences": [0.5],
        "iteration": 0,
        "step": 0,
        "metrics": {},
        "averages": {},
        "best_weights": "raw",
    }
    save_checkpoint(path, contents)
    return path


def same_weights(first, second):
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("form", ["checkpoint", "plain file", "state dict"])
def test_own_weights_are_loaded_to_the_bit(tmp_path, form):
    source, target = create_model(TINY), create_model(TINY)
    assert not same_weights(source, target)
    path = tmp_path / "weights.pth"
    if form == "checkpoint":
        load_weights(target, make_checkpoint(path, source, net_model=TINY), model_name=TINY)
    elif form == "plain file":
        torch.save(source.state_dict(), path)
        load_weights(target, path)
    else:
        load_weights(target, source.state_dict(), "somewhere")
    assert same_weights(source, target)


def test_a_checkpoint_of_another_model_says_which_and_which_keys_differ(tmp_path):
    path = make_checkpoint(tmp_path / "best.pt", create_model("test_efficientnet"), net_model="test_efficientnet")
    target = create_model(TINY)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(target, path, model_name=TINY)
    line = str(caught.value)
    assert line.startswith(f"{path}: holds weights of test_efficientnet, not of {TINY}: ")
    missing = set(target.state_dict()) - set(create_model("test_efficientnet").state_dict())
    unexpected = set(create_model("test_efficientnet").state_dict()) - set(target.state_dict())
    for kind, keys in (("missing", missing), ("unexpected", unexpected)):
        count, named = re.search(rf"(\d+) {kind} \(([^)]*)\)", line).groups()
        assert int(count) == len(keys)
        shown = named.removesuffix(", ...").split(", ")
        assert len(shown) == 3
        assert set(shown) <= keys
    assert "\n" not in line
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_weights_of_another_shape_name_both_shapes():
    source = create_model(TINY, num_classes=4)
    with pytest.raises(UsageError) as caught:
        load_weights(create_model(TINY), source.state_dict(), "old.pth", TINY)
    width = source.num_features
    expected = f"2 of another shape (fc.weight 4x{width} instead of 6x{width}, fc.bias 4 instead of 6)"
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"old.pth: holds weights of another model than {TINY}: ")


class Trap:
    """Unpickling an object of this class would run code."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", ["text", "pickle", "object", "a list", "cut"])
def test_a_file_that_is_no_weight_file_is_one_line_and_runs_nothing(tmp_path, capsys, content):
    path = tmp_path / "weights.pt"
    if content == "text":
        path.write_text("hello")
    elif content == "pickle":
        path.write_bytes(pickle.dumps(Trap()))
    elif content == "object":
        torch.save({"model": Trap()}, path)
    elif content == "a list":
        torch.save([1, 2], path)
    else:
        torch.save(create_model(TINY).state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WorkError, match=re.escape(str(path))) as caught:
        load_weights(create_model(TINY), path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_weight_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.pt"):
        load_weights(create_model(TINY), tmp_path / "nothing.pt")


# Files of other programs, and adaptation


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", "resnet18"),
        ("densenet121", "densenet121"),
        ("vgg11", "vgg11"),
        ("vgg11_bn", "vgg11_bn"),
        ("regnety_004", "regnet_y_400mf"),
    ],
)
def test_a_torchvision_file_gives_torchvisions_outputs(tmp_path, name, theirs):
    torch.manual_seed(2)
    source = torchvision.models.get_model(theirs, weights=None, num_classes=6).eval()
    torch.save(source.state_dict(), tmp_path / "theirs.pth")
    target = create_model(name)
    load_weights(target, tmp_path / "theirs.pth")
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(target.eval()(image), source(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "wrapped", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_other_forms_of_a_state_dict_are_loaded_to_the_bit(tmp_path, form):
    source, target = create_model(TINY), create_model(TINY)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    elif form == "wrapped":
        torch.save({"state_dict": source.state_dict(), "epoch": 3}, path)
    else:
        torch.save({form + key: value for key, value in source.state_dict().items()}, path)
    load_weights(target, path)
    assert same_weights(source, target)


def as_safetensors(header: str | bytes, length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header


def one_tensor(kind: str, shape: list[int], size: int) -> str:
    return json.dumps({"w": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}})


HOSTILE_SAFETENSORS = {
    "an endless header": as_safetensors("{}", 2**62),
    "a header larger than any": as_safetensors(b" " * (MOST_BYTES + 1)),
    "a deep header": as_safetensors('{"a": ' + "[" * 100_000),
    "a million empty entries": as_safetensors('{"a": [' + "[]," * 1_000_000 + "1]}"),
    "offsets beyond the file": as_safetensors(
        '{"w": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}'
    ),
    "a shape of another size": as_safetensors('{"w": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 0]}}'),
    "a shape beyond all numbers": as_safetensors(
        '{"w": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'
    ),
}


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x10\0\0\0\0\0\0\0{}", *[pytest.param(one, id=key) for key, one in HOSTILE_SAFETENSORS.items()]],
)
def test_a_damaged_safetensors_file_is_one_line(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WorkError, match=re.escape(f"{path}: cut, damaged or no safetensors file")):
        load_weights(create_model(TINY), path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_weight_file_that_was_never_written_is_refused_before_it_is_read(tmp_path, name):
    """As a download leaves it that took its space first: 900 GB of nothing, which to read takes hours."""
    header = one_tensor("U8", [9 * 10**11], 9 * 10**11)
    with (tmp_path / name).open("wb") as file:
        file.write(as_safetensors(header) if name.endswith("tensors") else b"PK\x03\x04")
        file.truncate(file.tell() + 9 * 10**11)
    with pytest.raises(WorkError, match="bytes were never written; copy it again"):
        load_weights(create_model(TINY), tmp_path / name)


@pytest.mark.parametrize("name", [TINY, TINY_VIT, "test_convnext"])
def test_another_class_count_and_other_channels_are_adapted_only_on_request_with_a_list(name):
    source = create_model(name, num_classes=11)
    target = create_model(name, in_channels=6)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UsageError, match=r"--net_weight_adapt=1 would adapt it: head .*first layer"):
        load_weights(target, source.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    notes = load_weights(target, source.state_dict(), adapt=True)
    assert len(notes) == 2
    assert re.match(r"head .*weight.*: starts fresh \(11", notes[0])
    assert "3 input channels in the file, 6 here" in notes[1]
    head = {key for key in before if key.startswith(("fc.", "head.fc.", "head.weight", "head.bias"))}
    first = f"{timm.get_pretrained_cfg(name).first_conv}.weight"
    for key, value in target.state_dict().items():
        if key in head:
            assert torch.equal(value, before[key]), key
        elif key != first:
            assert torch.equal(value, source.state_dict()[key]), key
    # A picture repeated in the new channels gives what it gave in the old ones.
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    if name != TINY_VIT:  # it takes its own size only
        with torch.no_grad():
            features = target.eval().forward_features(image.repeat(1, 2, 1, 1))
            torch.testing.assert_close(features, source.eval().forward_features(image), rtol=1e-3, atol=1e-4)


def test_adaptation_never_leaves_out_anything_else():
    state = create_model(TINY, num_classes=11).state_dict()
    key = next(key for key in state if key.startswith("layer2") and key.endswith("weight"))
    del state[key]
    with pytest.raises(UsageError, match=re.escape(f"1 missing ({key})")):
        load_weights(create_model(TINY), state, adapt=True)


# Pooling, rates, freezing


@pytest.mark.parametrize("name", [TINY, "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("pool", POOLS)
def test_every_pooling_takes_the_place_of_the_models_own(name, pool):
    torch.manual_seed(4)
    model = create_model(name, image_size=64, pool=pool).eval()
    layer = model.get_submodule("global_pool" if name != "test_convnext" else "head.global_pool")
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert model(image).shape == (2, 6)
    features, pooled = seen[0]
    places = features.flatten(2).double()
    expected = {
        "avg": places.mean(2),
        "max": places.max(2).values,
        "gem": (places.clamp(min=1e-6) ** 3).mean(2) ** (1 / 3),
        "attention": places.mean(2),  # scores start at 0
    }[pool]
    torch.testing.assert_close(pooled.flatten(1).double(), expected, rtol=1e-4, atol=1e-5)


def test_attention_pooling_weights_places_by_their_scores():
    layer = AttentionMean(3)
    torch.nn.init.normal_(layer.score.weight)
    x = torch.randn(2, 3, 4, 5)
    scores = torch.einsum("nchw,c->nhw", x, layer.score.weight[0, :, 0, 0]).flatten(1).softmax(1)
    torch.testing.assert_close(layer(x), torch.einsum("ncp,np->nc", x.flatten(2), scores), rtol=1e-5, atol=1e-6)


def test_a_transformer_pools_tokens_by_timms_own_ways_and_refuses_the_other():
    assert create_model(TINY_VIT, pool="max").global_pool == "max"
    assert create_model(TINY_VIT, pool="attention").global_pool == "map"
    with pytest.raises(UsageError, match="--net_pool=gem: test_vit pools tokens and knows avg, max, attention"):
        create_model(TINY_VIT, pool="gem")


def test_rates_arrive_or_are_refused():
    model = create_model("resnet18", drop=0.3, drop_path=0.2)
    assert model.drop_rate == 0.3
    assert max(getattr(module, "drop_prob", 0) or 0 for module in model.modules()) == pytest.approx(0.2)
    with pytest.raises(UsageError, match="drop_path"):
        create_model("vgg11", drop_path=0.2)


@pytest.mark.parametrize("what", ["norms", "backbone", "1", "3"])
def test_what_is_frozen_keeps_weights_and_statistics_and_the_rest_learns(what):
    model = create_model(TINY)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # some start at 0, and nothing before them would learn
    freeze(model, what)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    train_mode(model)
    for seed in range(2):
        image = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        model(image).square().sum().backward()
        optimizer.step()
    layers = layer_indices(model)
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for key, value in model.state_dict().items():
        parent = key.rpartition(".")[0]
        layer = layers.get(key, layers.get(f"{parent}.weight"))
        still = {"norms": parent in norms, "backbone": not key.startswith("fc.")}.get(what)
        still = layer < int(what) if still is None else still
        assert torch.equal(value, before[key]) == still, key


@pytest.mark.parametrize(("what", "message"), [("head", "choose none"), ("99", "layers before its head")])
def test_what_cannot_be_frozen_is_refused(what, message):
    with pytest.raises(UsageError, match=message):
        freeze(create_model(TINY), what)


def timm_train(state, path):
    torch.save({"state_dict": state, "arch": TINY, "args": argparse.Namespace(model=TINY, lr=0.1)}, path)


OTHERS = {  # how others write the weights of a model, and what the lines must say of it
    "torch before 1.6": (lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False), []),
    "timm's training": (timm_train, []),
    "torchvision's references": (lambda s, p: torch.save({"model": s, "args": argparse.Namespace(lr=0.1)}, p), []),
    "Lightning, compiled": (
        lambda s, p: torch.save(
            {"state_dict": {**{f"model._orig_mod.{k}": v for k, v in s.items()}, "criterion.weight": torch.ones(6)}}, p
        ),
        ["criterion.weight"],
    ),
    "AveragedModel": (
        lambda s, p: torch.save({"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}}, p),
        ["n_averaged"],
    ),
    "DistributedDataParallel": (lambda s, p: torch.save({f"module.{k}": v for k, v in s.items()}, p), []),
    "half precision": (
        lambda s, p: torch.save({k: v.half() if v.is_floating_point() else v for k, v in s.items()}, p), []
    ),
    "torch before 0.4.1": (
        lambda s, p: torch.save({k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}, p),
        ["num_batches_tracked"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("who", OTHERS)
def test_the_weights_of_other_programs_are_taken_and_the_lines_say_what_not(tmp_path, who):
    write, said = OTHERS[who]
    source, target = create_model(TINY), create_model(TINY)
    write(source.state_dict(), tmp_path / "weights.pth")
    notes = load_weights(target, tmp_path / "weights.pth")
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))
    for key, value in target.state_dict().items():
        expected = source.state_dict()[key]
        if who == "half precision" and expected.is_floating_point():
            expected = expected.half().float()
        assert torch.equal(value, expected)


def test_numbers_of_another_kind_are_not_taken():
    state = create_model(TINY).state_dict()
    key = next(key for key, value in state.items() if value.is_floating_point())
    for other, kind in ((torch.complex64, "complex"), (torch.int64, "whole")):
        with pytest.raises(UsageError, match=rf"1 of another kind of numbers \({re.escape(key)} {kind} instead"):
            load_weights(create_model(TINY), {**state, key: state[key].to(other)}, "w.pth")


def test_a_model_takes_no_memory_before_its_weights_are_known_to_fit():
    built = []

    def build():
        model = create_model(TINY)
        built.append(next(model.parameters()).device.type)
        return model

    state = create_model(TINY).state_dict()
    assert same_weights(build_within(build, state, "w.pth"), create_model_with(state))
    assert built == ["meta", "cpu"]
    with pytest.raises(UsageError, match="holds weights of another model"):
        build_within(build, create_model("test_efficientnet").state_dict(), "w.pth")
    assert built == ["meta", "cpu", "meta"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_model_that_computes_while_it_is_built_is_built_all_the_same(pool):
    def build():
        return create_model(TINY, pool=pool)

    state = build().state_dict()
    model = build_within(build, state, "w.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def create_model_with(state):
    model = create_model(TINY)
    model.load_state_dict(state)
    return model
