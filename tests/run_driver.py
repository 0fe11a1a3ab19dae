"""Runs train.py again and again in forked processes of one that has imported everything, and kills them on request.

A line of JSON on stdin is a run: ``arguments``; ``script``, where it is another than train; ``signal`` (a number) sent
``times`` (1) by the run to itself in ``place`` (iteration, validation or save) at iteration ``at``, and with ``fail``
an error with this text; in place ``write`` when ``file`` is about to get its name for the ``at``-th time; or ``after``
seconds for a kill from outside.
``processes`` train together, and ``rank`` (0) is the one that gets the signal or the error. With ``bound`` what is left
is killed so many seconds after the first process ended. A line of JSON on stdout is the answer: ``code`` and, of all
processes, ``codes`` (the exit code, or minus the signal that ended it), ``seconds``, ``output`` (both streams) and, of
each process, ``outputs``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import albumentations  # noqa: F401 - so that no run has to
import timm  # noqa: F401
import torch

import rsna.training.run  # noqa: F401
import train  # noqa: F401
from common import checkpoint, files
from common.errors import WorkError
from common.networks.network import AbstractNetwork
from rsna.kinds.series import RSNASequenceNetwork
from rsna_network import RSNANetwork


def send(request: dict[str, Any], network: AbstractNetwork) -> None:
    """Send the signal if this is the iteration for it."""
    if network.iteration != request["at"]:
        return
    if "fail" in request:
        raise WorkError(request["fail"])
    for _ in range(request.get("times", 1)):
        os.kill(os.getpid(), request["signal"])


def arm(request: dict[str, Any]) -> None:
    """Make this process send itself the signal at the asked place."""
    if "at" not in request or int(os.environ.get("RANK", "0")) != request.get("rank", 0):
        return
    place = request.get("place", "iteration")
    if place == "write":
        atomic_path, names = files.atomic_path, []

        @contextlib.contextmanager
        def killed_before_the_name(path: Path) -> Iterator[Path]:
            with atomic_path(path) as temporary:
                yield temporary
                names.append(path.name)
                if names.count(request["file"]) == request["at"]:
                    os.kill(os.getpid(), request["signal"])

        files.atomic_path = killed_before_the_name
        return
    if place == "save":
        save, saves = torch.save, []

        def half(contents: Any, file: Any) -> None:
            saves.append(contents["iteration"])
            if contents["iteration"] == request["at"]:
                file.write(b"half a checkpoint")
                file.flush()
                os.kill(os.getpid(), request["signal"])
            save(contents, file)

        checkpoint.torch.save = half
        return
    name = {"iteration": "training_step", "validation": "prediction_step"}[place]
    for network in (RSNANetwork, RSNASequenceNetwork):
        setattr(network, name, signalling(getattr(network, name), request))


def signalling(step: Callable[..., Any], request: dict[str, Any]) -> Callable[..., Any]:
    """Return a network's step that first sends the signal where it was asked for."""

    def stepping(self: Any, *arguments: Any) -> Any:
        send(request, self)
        return step(self, *arguments)

    return stepping


def child(request: dict[str, Any], output: Any) -> None:
    """Be the run; never returns."""
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    arm(request)
    code = 0
    try:
        importlib.import_module(request.get("script", "train")).main(request["arguments"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(request: dict[str, Any], rank: int, port: int, output: Any) -> int:
    """Fork one process of a run, with torchrun's variables where there are several, and return its id."""
    pid = os.fork()
    if pid == 0:
        processes = str(request.get("processes", 1))
        if processes != "1":
            place = {"RANK": str(rank), "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ.update(place, LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=processes)
        child(request, output)
    return pid


def ended(pids: list[int], bound: float | None) -> list[int]:
    """Wait for all processes and return their exit codes; where one is killed after ``bound`` seconds, -9."""
    codes: dict[int, int] = {}
    end = float("inf")
    while len(codes) < len(pids):
        for pid in (pid for pid in pids if pid not in codes):
            found, status = os.waitpid(pid, os.WNOHANG if bound else 0)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                end = min(end, time.monotonic() + (bound or 0))
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        if bound:
            time.sleep(0.01)
    return [codes[pid] for pid in pids]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do one run."""
    begun = time.monotonic()
    port = free_port()
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(request.get("processes", 1))]
        pids = [start(request, rank, port, output) for rank, output in enumerate(outputs)]
        if "after" in request:
            time.sleep(request["after"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        codes = ended(pids, request.get("bound"))
        seconds = time.monotonic() - begun
        texts = []
        for output in outputs:
            output.seek(0)
            texts.append(output.read().decode(errors="replace"))
    return {"code": codes[0], "codes": codes, "seconds": seconds, "output": "".join(texts), "outputs": texts}


def main() -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
