"""Finds timm's pretrained weights as a local file, in a cache or over the network, without a long wait.

timm asks the network even for cached files. Without a network it retries for 23 s (measured) and prints six warnings.
This module looks into the caches first and asks the network once, with a short time-out.
"""

from __future__ import annotations

import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from timm.models import PretrainedCfg

from common.errors import UsageError, nearest

TIMEOUT_S = 3.0
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def pretrained_config(name: str) -> PretrainedCfg | None:
    """Return timm's description of the weights of ``name`` (without a tag: of its default tag), or None."""
    return timm.get_pretrained_cfg(name)


def find_weights(name: str) -> Path:
    """Return the local file with the pretrained weights of the timm model ``name``. Fetch it if it is not cached.

    The order is the Hugging Face cache (``HF_HOME``), torch's cache (``TORCH_HOME``, hub/checkpoints), the Hugging Face
    hub, and the address that timm names. Raises UsageError if the model has no pretrained weights, or if they can't be
    found; the message names the missing file and where to put it.
    """
    config = pretrained_config(name)
    if config is None or not config.has_weights:
        known = timm.list_models(pretrained=True)
        raise UsageError(
            f"--net_pretrained=1: timm has no pretrained weights for {name}{nearest(name, known, count=3)}"
            " (use --net_pretrained=0 to start at random)"
        )
    cached = _cached_file(config)
    if cached is not None:
        return cached
    try:
        return _fetch(config)
    except Exception as error:  # a failing connection raises classes of the hub's http library
        raise UsageError(_explain_missing(name, config, error)) from error


def _cached_file(config: PretrainedCfg) -> Path | None:
    for file in _hub_files(config):
        repository, revision = _hub_address(config)
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(found, str):  # other results: not cached, or known not to exist
            return Path(found)
    if config.url:
        path = _torch_cache() / _url_file(config)
        if path.is_file():
            return path
    return None


def _fetch(config: PretrainedCfg) -> Path:
    if config.hf_hub_id:
        return _fetch_from_hub(config)
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    path = _torch_cache() / _url_file(config)
    request = urllib.request.Request(_url(config), method="HEAD")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass  # torch's own download has no time-out, so detect a silent host here
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(_url(config), str(path), _hash_prefix(path.name))
    return path


def _fetch_from_hub(config: PretrainedCfg) -> Path:
    repository, revision = _hub_address(config)
    files = _hub_files(config)
    for file in files:
        address = huggingface_hub.hf_hub_url(repository, file, revision=revision)
        try:
            # One question, without the retries of hf_hub_download.
            huggingface_hub.get_hf_file_metadata(address, timeout=TIMEOUT_S)
        except EntryNotFoundError:
            continue
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision, etag_timeout=TIMEOUT_S))
    raise FileNotFoundError(f"the hub's {repository} holds no {' and no '.join(files)}")


def _explain_missing(name: str, config: PretrainedCfg, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    start = f"--net_pretrained=1: the weights of {name} are not cached and can't be fetched ({reason}); "
    if config.hf_hub_id:
        repository, _ = _hub_address(config)
        file = _hub_files(config)[0]
        folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        recipe = f"where there is a network, run 'hf download {repository} {file}' and copy the folder to {folder}"
    else:
        recipe = f"put the file {_url(config)} at {_torch_cache() / _url_file(config)}"
    return f"{start}{recipe}; or start from own weights (--net_weight_file) or at random (--net_pretrained=0)"


def _hub_address(config: PretrainedCfg) -> tuple[str, str | None]:
    repository, _, revision = str(config.hf_hub_id).partition("@")
    return repository, revision or None


def _hub_files(config: PretrainedCfg) -> tuple[str, ...]:
    if not config.hf_hub_id:
        return ()
    return (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _url(config: PretrainedCfg) -> str:
    return config.url if isinstance(config.url, str) else config.url[0]


def _url_file(config: PretrainedCfg) -> str:
    """The name in the cache: the last part of the address, or the one that timm gives beside it."""
    return Path(urlparse(config.url).path).name if isinstance(config.url, str) else config.url[1]


def _hash_prefix(file: str) -> str | None:
    """The start of the sha256 that torch puts into a file's name, as in name-0123abcd.pth, or None."""
    match = torch.hub.HASH_REGEX.search(file)
    return match.group(1) if match else None
