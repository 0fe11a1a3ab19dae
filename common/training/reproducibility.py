"""Seeds, generators for loaders, and the state of the global random generators."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

from common.errors import UsageError
from common.hashing import HASH_BITS, stable_hash

logger = logging.getLogger(__name__)

NUMPY_SEED_BITS = 32


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device) with ``seed``, a number in [0, 2**63).

    numpy takes only 32 bits. It gets a hash of the seed, not its lower half.
    """
    if not 0 <= seed < 2**HASH_BITS:
        raise UsageError(f"--seed={seed}: must be from 0 to 2**{HASH_BITS} - 1")
    random.seed(seed)
    np.random.seed(stable_hash("numpy", seed) % 2**NUMPY_SEED_BITS)  # noqa: NPY002 - libraries draw from this one
    torch.manual_seed(seed)


def seed_process(seed: int, rank: int) -> None:
    """Give each process after the first random numbers of its own. The first one keeps its numbers."""
    if rank:
        seed_everything(stable_hash("process", seed, rank))


def loader_generator(seed: int, *parts: str | int) -> torch.Generator:
    """Return a CPU generator for one DataLoader, seeded by ``seed`` and the ``parts`` that name the loader.

    A DataLoader without a generator draws from the global one, and a resumed run would differ from one in one go.
    """
    return torch.Generator().manual_seed(stable_hash("loader", seed, *parts))


def rng_state() -> dict[str, Any]:
    """Return the state of the global generators as plain types and tensors, which ``weights_only`` loads.

    Keys: ``python`` and ``numpy`` (Mersenne twister: ``words`` int64 tensor of its 32-bit words, position, the normal
    number kept for the next call), ``torch`` (uint8 tensor), ``cuda`` (one uint8 tensor for each device in use).
    """
    version, words, gauss = random.getstate()
    _, numpy_words, position, has_gauss, cached_gauss = np.random.get_state()  # noqa: NPY002 - the global generator
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "words": torch.from_numpy(numpy_words.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached_gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the global generators to ``state`` (from :func:`rng_state`). They go on with the same bits.

    A state for another number of GPUs is restored as far as it goes, with a warning: results may differ.
    """
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(  # noqa: NPY002 - the global generator
        (
            "MT19937",
            numpy_state["words"].numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["cached_gauss"],
        )
    )
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if state["cuda"] else 0
    if devices != len(state["cuda"]):
        logger.warning(
            "the checkpoint has the random state of %d GPU(s), this machine has %d: numbers drawn on a GPU will differ",
            len(state["cuda"]),
            devices,
        )
    for device, device_state in enumerate(state["cuda"][:devices]):
        torch.cuda.set_rng_state(device_state, device)
