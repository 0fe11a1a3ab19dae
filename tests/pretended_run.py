"""Runs the project's commands, one after another in one process, on pretended GPUs (``tests/pretended_cuda.py``).

:func:`run_pretended` starts the process and returns what each command did and what was found. A request is a command's
script and arguments, and may carry ``nan_at``, iterations whose pictures are not finite, and ``broken``, a rule of
:data:`BROKEN` that is broken on purpose, in the project's own loop.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.pretended_cuda import MACHINE, ROOT, Finding, Settings

LIMIT_S = 2400  # for the whole of a process: what hangs is an error, also where the machine is busy


@dataclass(frozen=True)
class Request:
    """A command of the project, what goes wrong in it, and the capability of the GPU that it sees.

    ``fits``: the largest batch that the GPU's memory holds; 0: any. ``rates``: how many the finder of learning rates
    tries, and ``heard``: of how many batches the losses are sent to the host at once; 0: as many as a user's.
    """

    script: str
    arguments: Sequence[str]
    nan_at: Sequence[int] = ()
    broken: str = ""
    capability: tuple[int, int] = (9, 0)
    fits: int = 0
    rates: int = 0
    heard: int = 0


@dataclass(frozen=True)
class Result:
    """How a command ended: exit code, both its streams, and what the pretended GPU found."""

    code: int
    output: str
    errors: list[Finding]
    waits: list[Finding]
    kernels: int

    @property
    def last_line(self) -> str:
        """What the command printed last: a folder, a file."""
        return self.output.strip().splitlines()[-1]


def run_pretended(
    requests: Sequence[Request], *, processes: int = 1, settings: Settings | None = None
) -> list[list[Result]]:
    """Run the requests on pretended GPUs and return the results, of each of so many processes that train together."""
    if processes > 1 and len(requests) > 1:
        # Processes of their own for each: the quicker one would find the port of the group that is just ending.
        parts = [run_pretended([request], processes=processes, settings=settings) for request in requests]
        return [[result for (result,) in of_a_process] for of_a_process in zip(*parts, strict=True)]
    settings = settings or Settings(gpus=processes)
    text = json.dumps([asdict(request) for request in requests])
    command = [sys.executable, "-m", "tests.pretended_run", text]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=settings.environment() | place)
        for place in places(processes)
    ]
    try:
        answers = [process.communicate(timeout=LIMIT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [[result_of(json.loads(line)) for line in answer.splitlines()] for answer in answers]


def places(processes: int) -> list[dict[str, str]]:
    """Return torchrun's variables for each of several processes; none for one."""
    if processes == 1:
        return [{}]
    from tests.run_driver import free_port

    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def result_of(answer: dict[str, Any]) -> Result:
    """Return a result that came as JSON."""
    errors, waits = ([Finding(**item) for item in answer[name]] for name in ("errors", "waits"))
    return Result(answer["code"], answer["output"], errors, waits, answer["kernels"])


def found_in(folder: Path) -> list[dict[str, Any]]:
    """Return what the processes found that wrote to a folder of :class:`Settings`."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


# ------------------------------------------------------------------------------------------------- in the process


def break_wait_stream() -> Callable[[], None]:
    """Let no stream wait for another."""
    from tests.pretended_cuda import Stream

    return swapped(Stream, "wait_stream", lambda self, other: None)


def break_record_stream() -> Callable[[], None]:
    """Let no memory know who uses it."""
    import torch

    return swapped(torch.Tensor, "record_stream", lambda tensor, stream: None)


def break_arrival() -> Callable[[], None]:
    """Read what has not arrived."""
    from tests.pretended_cuda import Event

    return swapped(Event, "synchronize", lambda self: None)


def break_devices() -> Callable[[], None]:
    """Leave the labels on the host."""
    return changed_step(lambda network, batch: replace(batch, target=batch.target.cpu()))


def break_haste() -> Callable[[], None]:
    """Look at a value in each iteration."""

    def look(network: Any, batch: Any) -> Any:
        batch.target.sum().item()
        return batch

    return changed_step(look)


def break_patience() -> Callable[[], None]:
    """Ask of each step at once whether it landed."""
    from common.networks.guard import StepGuard

    attempt = StepGuard.attempt

    def ask(guard: Any, evidence: Any) -> None:
        attempt(guard, evidence)
        guard.settle()

    return swapped(StepGuard, "attempt", ask)


BROKEN: dict[str, Callable[[], Callable[[], None]]] = {
    "wait_stream": break_wait_stream,
    "record_stream": break_record_stream,
    "arrival": break_arrival,
    "devices": break_devices,
    "haste": break_haste,
    "patience": break_patience,
}


def swapped(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute and return what puts the old one back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def changed_step(change: Callable[[Any, Any], Any]) -> Callable[[], None]:
    """Give each training step of every kind of network another batch; return what undoes it."""
    from rsna.kinds.series import RSNASequenceNetwork
    from rsna_network import RSNANetwork

    def changing(step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, model, batch: step(self, model, change(self, batch))

    kinds = (RSNANetwork, RSNASequenceNetwork)
    undo = [swapped(kind, "training_step", changing(kind.training_step)) for kind in kinds]

    def back() -> None:
        for one in undo:
            one()

    return back


def spoiled(iterations: Sequence[int]) -> Callable[[Any, Any], Any]:
    """Return a change that makes the pictures, or features, of iterations (from 1) not finite."""

    def spoil(network: Any, batch: Any) -> Any:
        if network.iteration + 1 not in iterations:
            return batch
        name = "image" if "image" in batch.inputs else "features"
        return replace(batch, inputs={**batch.inputs, name: batch.inputs[name] * float("nan")})

    return spoil


def limited(size: int) -> Callable[[Any, Any], Any]:
    """Return a change that lets batches of more than ``size`` run out of memory."""

    def fit(network: Any, batch: Any) -> Any:
        if len(batch) > size:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return batch

    return fit


def fewer_rates(steps: int) -> Callable[[], None]:
    """Let the finder of learning rates take fewer steps; return what undoes it."""
    from common.networks.finders import find_learning_rate

    lowest, highest, _ = find_learning_rate.__defaults__
    return swapped(find_learning_rate, "__defaults__", (lowest, highest, steps))


def fewer_heard(batches: int) -> Callable[[], None]:
    """Let the sampler of hard examples send the losses of fewer batches at once; return what undoes it."""
    from common.datasets import samplers

    return swapped(samplers, "HEARD_AT_MOST", batches)


@contextmanager
def captured(file: Any) -> Iterator[None]:
    """Within this context ``file`` gets what this process and its children print."""
    kept = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def run(request: Request) -> dict[str, Any]:
    """Run a command and return how it ended."""
    MACHINE.reset()
    MACHINE.settings = replace(MACHINE.settings, capability=tuple(request.capability))
    undo = [BROKEN[request.broken]()] if request.broken else []
    undo += [changed_step(spoiled(request.nan_at))] if request.nan_at else []
    undo += [changed_step(limited(request.fits))] if request.fits else []
    undo += [fewer_rates(request.rates)] if request.rates else []
    undo += [fewer_heard(request.heard)] if request.heard else []
    code = 0
    with tempfile.TemporaryFile() as file:
        with captured(file):
            try:
                importlib.import_module(request.script).main(list(request.arguments))
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 99
        file.seek(0)
        output = file.read().decode(errors="replace")
    for back in reversed(undo):
        back()
    return {"code": code, "output": output, **MACHINE.findings()}


def main() -> None:
    """Run the requests of the command line; an answer is a line on stdout."""
    for item in json.loads(sys.argv[1]):
        print(json.dumps(run(Request(**item))), flush=True)


if __name__ == "__main__":
    main()
