"""A pretended CUDA device on a machine without one: the project's own code, real numbers, a GPU's rules.

Tensors stay CPU tensors, so that every value is right. Which of them "lie on the GPU" is kept beside them, by storage.

* :class:`Names` sees what Python asks: it answers ``.device`` and ``.is_cuda``, and takes "cuda" out of factories and
  ``.to``.
* :class:`Kernels` sees every kernel, the backward pass's too. It refuses operations that mix devices, hands the mark on
  to results, and notes what makes the host wait: a read, a copy that is blocking or of pageable memory, a mask.
* Streams are checked by vector clocks: what one stream wrote, another may use after it waited for it. Memory that
  another stream than its own used needs ``record_stream`` before it is given back.
* A copy to pinned memory arrives when its event or stream is waited for. Until then garbage stands there, and a read is
  an error.
* ``torch.cuda``, ``torch.accelerator``, pinning and autocast are stubs. NCCL is gloo.

What it can't show: speed, memory, kernels that a GPU lacks, cuDNN, NCCL, numerical differences, compilation.

``tests/pretended_site`` puts it into every process of a command, except those that load; ``tests/pretended_run.py``
runs commands under it.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "PRETENDED_CUDA"  # JSON of Settings; without it there is no pretended GPU
CPU = torch.device("cpu")
SMALL_BYTES = 2**16  # so much pageable memory is taken over at once, and the host goes on
SWEEP_KERNELS = 4096  # between two looks for memory that was given back
BACKLOG_KERNELS = 20  # so much work behind an event keeps the device busy while the host waits for it
CHAIN = 4  # callers that a finding names


@dataclass(frozen=True)
class Settings:
    """``capability`` of the ``gpus``; ``findings``: a folder where each process writes what was found at its end."""

    gpus: int = 1
    capability: tuple[int, int] = (9, 0)
    findings: str = ""

    def environment(self) -> dict[str, str]:
        """Return the variables of a process that shall have the pretended GPUs, and whose children shall."""
        path = os.pathsep.join([str(ROOT / "tests" / "pretended_site"), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def settings_of(environment: str) -> Settings:
    """Return the settings that a variable holds."""
    values = json.loads(environment)
    return Settings(values["gpus"], tuple(values["capability"]), values["findings"])


class MixedDevicesError(RuntimeError):
    """What a GPU would refuse."""


@dataclass(frozen=True)
class Finding:
    """Something found ``count`` times at a ``place`` ("file:function"), first by the callers ``chain``.

    ``region``: iteration (of a training, between validations), validation, or elsewhere.
    """

    text: str
    place: str
    region: str
    count: int
    chain: str


# ------------------------------------------------------------------------------------------------- streams and events


class Stream:
    """A stream whose work is done when it is asked for; a clock tells what others may know of it."""

    count = 0

    def __init__(self, device: object = None, priority: int = 0, **kwargs: object) -> None:
        Stream.count += 1
        self.number = self.cuda_stream = self.stream_id = Stream.count
        self.device = device
        self.tick = 0
        self.seen: dict[Stream, int] = {}  # the last tick of each other stream that this one waited for
        self.pending: list[tuple[int, Callable[[], None]]] = []  # copies to the host that have not arrived

    def wait_stream(self, other: Stream) -> None:
        """What comes next in this stream comes after all that is in ``other``."""
        for stream, tick in {**other.seen, other: other.tick}.items():
            self.seen[stream] = max(self.seen.get(stream, -1), tick)

    def wait_event(self, event: Event) -> None:
        """What comes next in this stream comes after the event."""
        if event.stream is not None:
            self.seen[event.stream] = max(self.seen.get(event.stream, -1), event.tick)

    def record_event(self, event: Event | None = None) -> Event:
        """Put an event behind what is in the stream."""
        event = event or Event()
        event.record(self)
        return event

    def land(self, tick: int) -> None:
        """Let the copies that were asked for up to ``tick`` arrive."""
        due = [arrive for asked, arrive in self.pending if asked <= tick]
        self.pending = [item for item in self.pending if item[0] > tick]
        for arrive in due:
            arrive()

    def synchronize(self) -> None:
        """Let the host wait for the stream."""
        MACHINE.note("stream.synchronize")
        self.land(self.tick)

    def query(self) -> bool:
        """Say whether all is done."""
        return not self.pending

    def is_capturing(self) -> bool:
        """Say that no graph is captured here."""
        return False


class Event:
    """A place in a stream."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.stream: Stream | None = None
        self.tick = -1

    def record(self, stream: Stream | None = None) -> None:
        """Stand behind what is in the stream now."""
        self.stream = stream or MACHINE.stream
        self.tick = self.stream.tick

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream wait for the event."""
        (stream or MACHINE.stream).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait for the event."""
        behind = 0 if self.stream is None else self.stream.tick - self.tick
        MACHINE.note("event.synchronize" if behind >= BACKLOG_KERNELS else "event.synchronize, the device idles")
        if self.stream is not None:
            self.stream.land(self.tick)

    def query(self) -> bool:
        """Say whether it has come."""
        return self.stream is None or all(asked > self.tick for asked, _ in self.stream.pending)

    def elapsed_time(self, other: Event) -> float:
        """Return no milliseconds: nothing here takes time."""
        return 0.0


# ------------------------------------------------------------------------------------------------- what is known


class Memory:
    """A storage on the device: whose stream's memory it is (``home``), who wrote it last, who used it."""

    __slots__ = ("home", "place", "recorded", "reference", "tick", "users", "writer")

    def __init__(self, storage: torch.UntypedStorage, stream: Stream, place: str) -> None:
        self.reference = StorageWeakRef(storage)
        self.home = self.writer = stream
        self.tick = stream.tick
        self.users: set[Stream] = set()
        self.recorded: set[Stream] = set()
        self.place = place


@dataclass
class Machine:
    """The pretended GPU of this process: what lies on it, its streams, and what was found."""

    settings: Settings = field(default_factory=Settings)
    on_device: dict[int, Memory] = field(default_factory=dict)
    pinned: dict[int, StorageWeakRef] = field(default_factory=dict)
    arriving: dict[int, torch.Tensor] = field(default_factory=dict)  # pinned memory that a copy is on its way to
    waits: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    chains: dict[tuple[str, str, str], str] = field(default_factory=dict)
    copies: Counter = field(default_factory=Counter)
    kernels: int = 0
    inherit: bool = False  # what is made now is made on the device: within an operation on the device's tensors
    quiet: int = 0
    sync_debug_mode: int | str = 0
    lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.default = self.stream = Stream()

    @property
    def device(self) -> torch.device:
        """The GPU of this process."""
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    # marks

    @staticmethod
    def key(tensor: torch.Tensor) -> int | None:
        """Return what names a tensor's storage; None where it has none."""
        with torch._C.DisableTorchFunction():
            try:
                return tensor.untyped_storage()._cdata
            except (RuntimeError, NotImplementedError):
                return None

    def known(self, table: dict[int, Any], tensor: torch.Tensor) -> Any:
        """Return what a table holds of a tensor's storage; None where it is gone, or was never there."""
        key = self.key(tensor)
        found = table.get(key)
        if found is not None and _reference(found).expired():
            self.bury(table, key)
            return None
        return found

    def bury(self, table: dict[int, Any], key: int) -> None:
        """Forget a storage that was given back; an error where another stream used it and nobody said so."""
        memory = table.pop(key)
        if not isinstance(memory, Memory) or self.quiet:
            return
        if memory.users - memory.recorded - {memory.home}:
            self.error("memory was given back while another stream used it: record_stream is missing", memory.place)

    def sweep(self) -> None:
        """Forget all storages that were given back."""
        for table in (self.on_device, self.pinned):
            for key, found in list(table.items()):
                if _reference(found).expired():
                    self.bury(table, key)

    def mark(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put a tensor on the device, written by the current stream."""
        with self.lock, torch._C.DisableTorchFunction():
            memory = self.known(self.on_device, tensor)
            if memory is None:
                storage = tensor.untyped_storage()
                memory = self.on_device[storage._cdata] = Memory(storage, self.stream, place_of(sys._getframe(1))[0])
            memory.writer, memory.tick = self.stream, self.stream.tick
        return tensor

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor lies on the device."""
        return self.known(self.on_device, tensor) is not None

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make a tensor's memory page-locked."""
        with self.lock, torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            self.pinned[storage._cdata] = StorageWeakRef(storage)
        return tensor

    # what is found

    def note(self, text: str) -> None:
        """Note that the host waits for the device; an error where the debug mode says so, but for events."""
        if not self.quiet:
            self._count(self.waits, text)
            if self.sync_debug_mode in (2, "error") and not text.startswith(("event.", "stream.")):
                raise RuntimeError(f"called a synchronizing CUDA operation: {text} at {place_of(sys._getframe(1))[1]}")

    def error(self, text: str, place: str | None = None) -> None:
        """Note what would be wrong on a GPU without being refused there."""
        self._count(self.errors, text, place)

    def refuse(self, text: str) -> None:
        """Note and raise what a GPU refuses."""
        self._count(self.errors, text)
        raise MixedDevicesError(f"{text} at {place_of(sys._getframe(1))[1]}")

    def _count(self, counter: Counter, text: str, place: str | None = None) -> None:
        found, chain, region = place_of(sys._getframe(2))
        key = (text, place or found, region)
        counter[key] += 1
        self.chains.setdefault(key, chain)

    def findings(self) -> dict[str, Any]:
        """Return all that was found since the last :meth:`reset`, in JSON's types."""
        self.sweep()
        lists = {
            name: [
                asdict(Finding(text, place, region, count, self.chains[text, place, region]))
                for (text, place, region), count in counter.most_common()
            ]
            for name, counter in (("errors", self.errors), ("waits", self.waits))
        }
        return {**lists, "copies": dict(self.copies), "kernels": self.kernels}

    def reset(self) -> None:
        """Forget what was found."""
        self.sweep()
        for counter in (self.waits, self.errors, self.copies):
            counter.clear()
        self.chains.clear()
        self.kernels = 0

    # copies

    def read_by_host(self, tensor: torch.Tensor) -> None:
        """Refuse that the host looks at what has not arrived."""
        if self.arriving and self.key(tensor) in self.arriving:
            self.refuse("the host reads pinned memory before its copy has arrived")

    def to_host(
        self, source: torch.Tensor, target: torch.Tensor | None = None, non_blocking: bool = False
    ) -> torch.Tensor:
        """Copy from the device, into ``target`` where given."""
        if target is None or not (non_blocking and self.known(self.pinned, target) is not None):
            self.note("device to host, into pageable memory" if non_blocking else "device to host, blocking")
            self.stream.land(self.stream.tick)
            if target is None:
                return source.clone() if source.requires_grad else source.detach().clone()
            unseen(lambda: target.copy_(source))
            return target
        value, key = source.detach().clone().to(target.dtype), self.key(target)
        unseen(lambda: target.copy_(garbage(target)))
        self.arriving[key] = target

        def arrive() -> None:
            unseen(lambda: target.copy_(value))
            self.arriving.pop(key, None)

        self.stream.tick += 1
        self.stream.pending.append((self.stream.tick, arrive))
        self.copies["device to host, asynchronous"] += 1
        return target

    def from_host(self, source: torch.Tensor, non_blocking: bool) -> None:
        """Note whether a copy to the device makes the host wait."""
        if non_blocking and self.known(self.pinned, source) is not None:
            self.copies["host to device, asynchronous"] += 1
        elif source.numel() and not (non_blocking and source.numel() * source.element_size() <= SMALL_BYTES):
            self.note("host to device, pageable" if non_blocking else "host to device, blocking")


def _reference(found: Memory | StorageWeakRef) -> StorageWeakRef:
    return found.reference if isinstance(found, Memory) else found


def place_of(frame: FrameType | None) -> tuple[str, str, str]:
    """Return the place ("file:function") in the project, its callers, and the region of a frame."""
    places, lines, region = [], [], "elsewhere"
    while frame is not None:
        if name := project_file(frame.f_code.co_filename):
            function = frame.f_code.co_name
            if name == "common/networks/network.py" and region == "elsewhere":
                region = {"validate": "validation", "_fit_epoch": "iteration"}.get(function, region)
            places.append(f"{name}:{function}")
            lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return (places or ["?"])[0], " < ".join(lines[:CHAIN]), region


@cache
def project_file(path: str) -> str:
    """Return a file's name within the project; empty for this one and those of others."""
    own = path.startswith(f"{ROOT}/") and not path.startswith(f"{ROOT}/.venv") and path != __file__
    return path.removeprefix(f"{ROOT}/") if own else ""


def unseen(function: Callable[[], Any]) -> Any:
    """Call a function that neither mode sees."""
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        return function()


def garbage(tensor: torch.Tensor) -> torch.Tensor:
    """Return what stands in pinned memory before a copy arrives."""
    if tensor.dtype == torch.bool:
        return torch.rand(tensor.shape) < 0.5
    return torch.full(tensor.shape, float("nan") if tensor.is_floating_point() else -77, dtype=tensor.dtype)


MACHINE = Machine()


# ------------------------------------------------------------------------------------------------- the two modes


def is_cuda(device: object) -> bool:
    """Say whether what was given as a device means a GPU."""
    if device is None or isinstance(device, bool):
        return False
    if isinstance(device, int):
        return True
    try:
        return torch.device(device).type == "cuda"
    except (RuntimeError, TypeError):
        return False


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors within lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)


T = torch.Tensor
DEVICE_OF = T.device.__get__
IS_CUDA, IS_CPU = T.is_cuda.__get__, T.is_cpu.__get__
PLAIN = {
    *(getattr(T, name).__get__ for name in ("requires_grad", "grad", "shape", "dtype", "ndim", "is_leaf")),
    *(T.size, T.numel, T.dim, T.stride, T.untyped_storage, T.data_ptr),
}


class Names(TorchFunctionMode):
    """Where Python asks for devices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in PLAIN:
            return func(*args, **kwargs)
        special = SPECIAL.get(func)
        if special is not None:
            return special(self, func, args, kwargs)
        pinned = bool(kwargs.pop("pin_memory", False))
        device = is_cuda(kwargs.get("device"))
        if device:
            kwargs["device"] = CPU
        on = not device and any(MACHINE.is_on_device(tensor) for tensor in tensors_of((args, kwargs)))
        before, MACHINE.inherit = MACHINE.inherit, MACHINE.inherit or on
        try:
            result = func(*args, **kwargs)
        finally:
            MACHINE.inherit = before
        for tensor in tensors_of(result) if device or pinned else ():
            (MACHINE.mark if device else MACHINE.pin)(tensor)
        if device and getattr(func, "__name__", "") in ("tensor", "as_tensor", "asarray"):
            MACHINE.note("host to device, blocking")
        return result

    def _device(self, func: Any, args: Any, kwargs: Any) -> torch.device:
        return MACHINE.device if MACHINE.is_on_device(args[0]) else func(*args)

    def _is_cuda(self, func: Any, args: Any, kwargs: Any) -> bool:
        return MACHINE.is_on_device(args[0]) == (func == IS_CUDA)

    def _is_pinned(self, func: Any, args: Any, kwargs: Any) -> bool:
        return MACHINE.known(MACHINE.pinned, args[0]) is not None

    def _backward(self, func: Any, args: Any, kwargs: Any) -> None:
        before, MACHINE.inherit = MACHINE.inherit, True
        try:
            with self:
                torch.autograd.backward(
                    args[0],
                    kwargs.get("gradient"),
                    kwargs.get("retain_graph"),
                    kwargs.get("create_graph", False),
                    inputs=kwargs.get("inputs"),
                )
        finally:
            MACHINE.inherit = before

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not MACHINE.is_on_device(args[0]):
            MACHINE.read_by_host(args[0])
        elif func is T.tolist:
            MACHINE.note("tolist")
        else:
            MACHINE.refuse("can't convert a cuda tensor to numpy")
        return func(*args, **kwargs)

    def _deepcopy(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        MACHINE.quiet += 1
        try:
            result = func(*args, **kwargs)
        finally:
            MACHINE.quiet -= 1
        return MACHINE.mark(result) if MACHINE.is_on_device(args[0]) else result

    def _move(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        tensor, *args = args
        wanted: bool | None = None  # on the device
        if func is not T.to:
            wanted, args = func is T.cuda, []
            kwargs = {key: value for key, value in kwargs.items() if key == "non_blocking"}
        elif "device" in kwargs:
            device = kwargs.pop("device")
            wanted = None if device is None else is_cuda(device)
        elif args and isinstance(args[0], T):
            other = args.pop(0)
            wanted, kwargs["dtype"] = MACHINE.is_on_device(other), other.dtype
        elif args and isinstance(args[0], (torch.device, str, int)) and not isinstance(args[0], bool):
            wanted = is_cuda(args.pop(0))
            if args and (args[0] is None or isinstance(args[0], torch.dtype)):
                dtype = args.pop(0)
                kwargs.update({} if dtype is None else {"dtype": dtype})
            if args and isinstance(args[0], bool):
                kwargs["non_blocking"] = args.pop(0)
        non_blocking = bool(kwargs.get("non_blocking", False))
        if wanted is None or wanted == MACHINE.is_on_device(tensor):
            if not args and not {key for key, value in kwargs.items() if key != "non_blocking" and value}:
                return tensor
            return T.to(tensor, *args, **kwargs)
        kwargs.pop("non_blocking", None)
        if wanted:
            MACHINE.read_by_host(tensor)
            MACHINE.from_host(tensor, non_blocking)
            moved = MACHINE.mark(tensor.clone())
            if not non_blocking:  # the host waited until all was there: no stream needs to
                MACHINE.known(MACHINE.on_device, moved).tick = -1
        else:
            moved = MACHINE.to_host(tensor, non_blocking=non_blocking)
            MACHINE.on_device.pop(MACHINE.key(moved), None)
        return T.to(moved, *args, **kwargs) if args or kwargs else moved


SPECIAL: dict[Any, Callable[..., Any]] = {
    DEVICE_OF: Names._device,
    IS_CUDA: Names._is_cuda,
    IS_CPU: Names._is_cuda,
    T.is_pinned: Names._is_pinned,
    T.backward: Names._backward,
    **dict.fromkeys((T.numpy, T.__array__, T.tolist), Names._read),
    T.__deepcopy__: Names._deepcopy,
    **dict.fromkeys((T.to, T.cpu, T.cuda), Names._move),
}

COPIES = {"copy_", "_to_copy", "_foreach_copy_"}
RECURRENT = {"gru", "lstm"}
# These take the lengths of sequences from the host.
HOST_LENGTHS = {*RECURRENT, "_pack_padded_sequence", "_pad_packed_sequence", "_pack_padded_sequence_backward"}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
READING = {"_local_scalar_dense", "is_nonzero"}
WAITING = READING | {
    "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount", "equal", "allclose",
    "repeat_interleave",
}  # fmt: skip
VIEWS = {
    "detach", "alias", "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "permute", "unsqueeze",
    "squeeze", "as_strided", "split", "unbind", "narrow", "lift_fresh", "_reshape_alias",
}  # fmt: skip
# Kernels that raise under torch.use_deterministic_algorithms(True) on CUDA (torch 2.14's documentation).
NOT_DETERMINISTIC = {
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward", "fractional_max_pool2d_backward", "max_unpool2d", "upsample_linear1d_backward",
    "upsample_bicubic2d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "_ctc_loss_backward",
    "replication_pad2d_backward", "nll_loss2d_forward", "histc", "bincount", "kthvalue", "median", "put_", "cumsum",
    "_embedding_bag_backward", "scatter_reduce", "resize_", "bilinear2d_aa_backward",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Where something is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._compute(func, args, dict(kwargs or {}))

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        MACHINE.kernels += 1
        if MACHINE.kernels % SWEEP_KERNELS == 0:
            MACHINE.sweep()
        name = func._schema.name.split("::")[-1]
        created = is_cuda(kwargs.get("device"))
        if created:
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if name == "copy_":
            return self._copy(func, args, kwargs)
        given = list(tensors_of((args, kwargs)))
        found = [MACHINE.known(MACHINE.on_device, tensor) for tensor in given]
        on = any(memory is not None for memory in found)
        if on:
            self._check(func, name, args, given, found)
            if torch.are_deterministic_algorithms_enabled() and name in NOT_DETERMINISTIC:
                MACHINE.error(f"{name} has no deterministic kernel on CUDA")
            if name in WAITING or (name in INDEXING and _has_mask(args[1])):
                MACHINE.note(name if name in WAITING else f"{name} by a mask (nonzero)")
                MACHINE.stream.land(MACHINE.stream.tick)
        elif name in READING:
            MACHINE.read_by_host(given[0])
        result = func(*_of_one_type(args), **kwargs) if name in RECURRENT else func(*args, **kwargs)
        if on or created or (not given and MACHINE.inherit):
            MACHINE.stream.tick += 1
            outputs = list(tensors_of(result))
            if name == "_pack_padded_sequence":
                outputs = outputs[:1]  # the other is of the host
            for tensor in outputs if name not in VIEWS else ():
                MACHINE.mark(tensor)
            for tensor in _written(func, args):
                MACHINE.mark(tensor)
        return result

    def _check(self, func: Any, name: str, args: Any, given: list, found: list) -> None:
        stream = MACHINE.stream
        for tensor, memory in zip(given, found, strict=True):
            if memory is not None:
                if memory.writer is not stream and stream.seen.get(memory.writer, -1) < memory.tick:
                    MACHINE.error(f"{name}: a stream uses what another may still write: wait_stream is missing")
                if memory.home is not stream:
                    memory.users.add(stream)
            elif tensor.dim() == 0 and not any(tensor is one for one in _written(func, args)):
                MACHINE.read_by_host(tensor)  # a number of the host goes along with the kernel
            elif name in INDEXING and tensor is not args[0]:
                MACHINE.note("host to device, an index")
            elif name not in HOST_LENGTHS | COPIES and tensor.shape != (0,):
                if not _of_ddp():
                    MACHINE.refuse(f"{name}: cuda and cpu {tuple(tensor.shape)} tensors are mixed")
                MACHINE.mark(tensor)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        target, source = args[0], args[1]
        non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking", False))
        to, of = MACHINE.is_on_device(target), MACHINE.is_on_device(source)
        if of and not to:
            if not _of_ddp():
                return MACHINE.to_host(source, target, non_blocking)
            MACHINE.mark(target)
            to = True
        if to and not of and source.dim():
            MACHINE.from_host(source, non_blocking)
        result = func(*args, **kwargs)
        if to:
            both = [target, source]
            self._check(func, "copy_", args, both, [MACHINE.known(MACHINE.on_device, tensor) for tensor in both])
            MACHINE.stream.tick += 1
            MACHINE.mark(target)
        return result


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _written(func: Any, args: Any) -> Iterator[torch.Tensor]:
    """Yield the arguments that a kernel writes."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_of(value)


def _of_one_type(args: Any) -> list[Any]:
    """Return a recurrent kernel's arguments as the CPU's takes them: states and inputs in its weights' type."""
    dtype = args[3][0].dtype if torch.is_floating_point(args[0]) else torch.float32
    states = [state.to(dtype) for state in args[2]] if isinstance(args[2], (list, tuple)) else args[2].to(dtype)
    return [args[0].to(dtype), args[1], states, *args[3:]]


def _of_ddp() -> bool:
    """Say whether a tensor may be one of DistributedDataParallel's buckets, which C++ makes."""
    return MACHINE.inherit and torch.distributed.is_initialized()


# ------------------------------------------------------------------------------------------------- stubs


class Properties:
    """What ``torch.cuda.get_device_properties`` tells."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.name = "Pretended GPU"
        self.major, self.minor = capability
        self.total_memory, self.L2_cache_size = 80 * 2**30, 50 * 2**20
        self.multi_processor_count, self.warp_size = 132, 32
        self.regs_per_multiprocessor, self.max_threads_per_multi_processor = 65536, 2048


@contextmanager
def use_stream(stream: Stream | None) -> Iterator[None]:
    """Stand for ``torch.cuda.stream``."""
    before, MACHINE.stream = MACHINE.stream, stream or MACHINE.stream
    try:
        yield
    finally:
        MACHINE.stream = before


def visible_gpus(count: int) -> int:
    """Return how many of ``count`` GPUs CUDA_VISIBLE_DEVICES leaves; an entry that names none ends the list.

    The UUID of number 0 is GPU-0.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return count
    names = {name for number in range(count) for name in (str(number), f"GPU-{number}")}
    return len(list(takewhile(names.__contains__, (entry.strip() for entry in listed.split(",")))))


def install(settings: Settings) -> None:
    """Put the stubs in place; the modes are entered by :func:`begin`."""
    MACHINE.settings = settings
    _install_cuda(settings)
    _install_tensors()
    _install_autocast()
    _install_grouping()
    initialize = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, **kwargs: initialize(
        "gloo", **{key: value for key, value in kwargs.items() if key != "device_id"}
    )


def _install_cuda(settings: Settings) -> None:
    cuda, accelerator = torch.cuda, torch.accelerator

    def device_count() -> int:
        return visible_gpus(settings.gpus)

    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index or 0
        if index >= device_count():
            raise RuntimeError("CUDA error: invalid device ordinal")

    def synchronize(device: object = None) -> None:
        MACHINE.note("cuda.synchronize")
        MACHINE.stream.land(MACHINE.stream.tick)

    def set_rng_state(state: torch.Tensor, device: object = "cuda") -> None:
        if MACHINE.is_on_device(state):
            MACHINE.error("the random state of a GPU must be a tensor on the CPU")

    stubs: dict[str, Any] = {
        "is_available": lambda: device_count() > 0,
        "is_initialized": lambda: device_count() > 0,
        "_is_in_bad_fork": lambda: False,
        "device_count": device_count,
        "current_device": lambda: MACHINE.device.index,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "set_device": set_device,
        "get_device_capability": lambda device=None: MACHINE.settings.capability,
        "get_device_properties": lambda device=None: Properties(MACHINE.settings.capability),
        "get_device_name": lambda device=None: "Pretended GPU",
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90"],
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (70 * 2**30, 80 * 2**30),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: MACHINE.stream,
        "default_stream": lambda device=None: MACHINE.default,
        "is_current_stream_capturing": lambda: False,
        "stream": use_stream,
        "device": lambda device: nullcontext(),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)] * device_count(),
        "set_rng_state": set_rng_state,
        "set_sync_debug_mode": lambda mode: setattr(MACHINE, "sync_debug_mode", mode),
        **dict.fromkeys(
            ("max_memory_allocated", "memory_allocated", "max_memory_reserved", "memory_reserved"),
            lambda device=None: 10**9,
        ),
    }
    for name, stub in stubs.items():
        setattr(cuda, name, stub)
    stubs = {
        "is_available": cuda.is_available,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "device_count": device_count,
        "current_device_index": cuda.current_device,
        "current_device_idx": cuda.current_device,
        "current_stream": cuda.current_stream,
        "set_device_index": lambda index: None,
        "set_device_idx": lambda index: None,
    }
    for name, stub in stubs.items():
        setattr(accelerator, name, stub)
    torch.backends.cudnn.is_acceptable = lambda tensor: False  # a recurrent network's weights stay apart


def _install_tensors() -> None:
    def pin_memory(tensor: torch.Tensor, device: object = None) -> torch.Tensor:
        if MACHINE.is_on_device(tensor):
            MACHINE.refuse("only dense CPU tensors can be pinned")
        with torch._C.DisableTorchFunction():
            return MACHINE.pin(tensor.clone())

    def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
        memory = MACHINE.known(MACHINE.on_device, tensor)
        if memory is None:
            MACHINE.refuse("record_stream of a tensor on the CPU")
        memory.recorded.add(stream)

    torch.Tensor.pin_memory = pin_memory
    torch.Tensor.record_stream = record_stream


def _install_autocast() -> None:
    autocast = torch.autocast

    class Autocast(autocast):
        """The CPU's, whatever it is asked for."""

        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = Autocast


def _install_grouping() -> None:
    """Group tensors by where they are said to lie: torch does it in C++, which sees them as they are."""

    def by_device(lists: Any, with_indices: bool = False, *, group: Any) -> dict[Any, Any]:
        named = {}
        for (device, dtype), value in group(lists, with_indices).items():
            first = next((tensor for one in value[0] for tensor in one if tensor is not None), None)
            on = first is not None and MACHINE.is_on_device(first)
            named[MACHINE.device if on else device, dtype] = value
        return named

    optimizer, clipping = torch.optim.Optimizer, sys.modules["torch.nn.utils.clip_grad"]
    for owner, wrap in ((optimizer, staticmethod), (clipping, lambda function: function)):
        group = owner._group_tensors_by_device_and_dtype

        def grouped(lists: Any, with_indices: bool = False, group: Any = group) -> dict[Any, Any]:
            return by_device(lists, with_indices, group=group)

        owner._group_tensors_by_device_and_dtype = wrap(grouped)


def begin(settings: Settings) -> None:
    """Give this process, which has no GPU, pretended ones until it ends."""
    install(settings)
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None  # beside a GPU it matters little; here threads would wait for each other
    Kernels().__enter__()
    Names().__enter__()
    if settings.findings:
        atexit.register(_write, Path(settings.findings))


def _write(folder: Path) -> None:
    about = {"command": sys.argv, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(about | MACHINE.findings()))
