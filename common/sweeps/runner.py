"""Run experiments in their own processes, one after another or one on each GPU; a failure stops no other."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.cli.console import tell
from common.cli.interruption import heard_signals, leave_lost_terminal
from common.machine import CORES_VARIABLE, usable_cores
from common.reports.record import RUNNING
from common.sweeps.plan import FINISHED, TRAIN, Planned
from common.waiting import RUN_LIMIT_S, Stalled, StartFailed, run_to_end, start_process

INTERRUPTED = 130
PR_SET_PDEATHSIG = 1  # of Linux's prctl
GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


def end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when the runner is killed, so that it saves its state; else do nothing."""
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def slots(parallel: int, experiments: int) -> list[dict[str, str]]:
    """Return the environment variables of each place to run in: a GPU and a share of the cores.

    ``parallel``: how many ``experiments`` run at once; 0: one on each GPU, or one without GPUs.
    """
    if experiments == 1:
        return [{}]
    listing = "import torch; print(torch.cuda.device_count())"  # its own process: CUDA's state is not inherited
    found = start_process(
        [sys.executable, "-c", listing],
        "a process that counts GPUs",
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output = run_to_end(found, "the sweep waits for the driver of the GPUs")
    gpus = gpu_names(os.environ.get(GPUS_VARIABLE), int(output or 0))
    count = min(parallel or len(gpus) or 1, experiments)
    places = [{GPUS_VARIABLE: gpus[number % len(gpus)]} if len(gpus) > 1 else {} for number in range(count)]
    share = {CORES_VARIABLE: str(max(1, usable_cores() // count))} if count > 1 else {}
    return [place | share for place in places]


def gpu_names(listed: str | None, count: int) -> list[str]:
    """Return the name in CUDA_VISIBLE_DEVICES of each of the ``count`` GPUs that torch sees.

    ``listed``: the variable's present value, set by a user or by Slurm; None: it is not set, and GPUs are numbered. A
    name is a number, or begins with GPU- or MIG-. CUDA ends the list at the first name that it doesn't know. Of parts
    of GPUs (MIG) a process sees only the first one, so all parts in the list count.
    """
    if listed is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in listed.split(",")]
    if count and names[0].startswith("MIG-"):
        return [name for name in names if name.startswith("MIG-")]
    return names[:count]


@dataclass
class Outcome:
    """How an experiment of a sweep ended.

    ``folder``: that of an experiment which was trained to its end. ``code``: the exit code. ``outputs``: the last line
    that each successful step printed, by script. ``said``: a remark for the summary.
    """

    planned: Planned
    folder: Path | None = None
    code: int = 0
    seconds: float = 0.0
    outputs: dict[str, str] = field(default_factory=dict)
    said: str = ""


@dataclass
class Runner:
    """Runs planned experiments on ``slots``, the environment variables of each; see :func:`slots`.

    ``root`` holds the scripts. ``steps``: returns the commands that follow a finished training, given its folder; the
    first that fails gives the experiment's exit code. ``stop_on_failure``: after a failure no other experiment starts.
    ``limit_s``: how long a script may do nothing.
    """

    root: Path
    slots: Sequence[Mapping[str, str]]
    steps: Callable[[Path], list[list[str]]]
    stop_on_failure: bool = False
    limit_s: float = RUN_LIMIT_S
    stopping: threading.Event = field(default_factory=threading.Event)
    processes: set[subprocess.Popen[str]] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)  # a second signal may come while the first holds it

    def run(self, experiments: Sequence[Planned]) -> list[Outcome]:
        """Run them all; return how each ended, in the same order. Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP end them."""
        todo: queue.SimpleQueue[tuple[int, Planned]] = queue.SimpleQueue()
        for item in enumerate(experiments):
            todo.put(item)
        outcomes: dict[int, Outcome] = {}
        threads = [
            threading.Thread(target=self._work, args=(slot, todo, outcomes, len(experiments))) for slot in self.slots
        ]
        before = {number: signal.signal(number, self._stop) for number in heard_signals()}
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # short waits, so that signals are handled
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return [outcomes[place] for place in sorted(outcomes)]

    def _stop(self, number: int, frame: object) -> None:
        leave_lost_terminal()
        self.stopping.set()
        with self.lock:
            for process in self.processes:
                process.send_signal(signal.SIGTERM)  # it saves its state and says how to go on

    def _work(
        self,
        slot: Mapping[str, str],
        todo: queue.SimpleQueue[tuple[int, Planned]],
        outcomes: dict[int, Outcome],
        number: int,
    ) -> None:
        while not self.stopping.is_set():
            try:
                place, planned = todo.get_nowait()
            except queue.Empty:
                return
            if number > 1:
                tell(f"[{place + 1} of {number}] {planned.name or 'a new experiment'}: {planned.state}")
            outcomes[place] = self._run(planned, slot)
            if outcomes[place].code and self.stop_on_failure:
                self.stopping.set()

    def _run(self, planned: Planned, slot: Mapping[str, str]) -> Outcome:
        if planned.state == RUNNING:
            return Outcome(planned, said="is in progress elsewhere")
        began = time.monotonic()
        if planned.state == FINISHED:
            outcome = Outcome(planned, planned.folder)
        else:
            code, lines = self._call([planned.script, *planned.command], slot)
            trained = planned.script == TRAIN and code == 0 and bool(lines)
            outcome = Outcome(planned, Path(lines[-1]) if trained else None, code)
            if planned.script != TRAIN:
                print("\n".join(lines), flush=True)
        steps = self.steps(outcome.folder) if outcome.folder is not None else []
        if planned.state == FINISHED and not steps:
            outcome.said = "was finished before"
        for step in steps:
            outcome.code, lines = self._call(step, slot)
            if outcome.code:
                outcome.said = f"trained, but {step[0]} failed"
                break
            outcome.outputs[step[0]] = lines[-1] if lines else ""
            print("\n".join(lines), flush=True)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _call(self, command: Sequence[str], slot: Mapping[str, str]) -> tuple[int, list[str]]:
        """Run one of the project's scripts; return its exit code and lines of stdout; messages stay on stderr."""
        with self.lock:
            if self.stopping.is_set():
                return INTERRUPTED, []
            try:
                process = start_process(
                    [sys.executable, str(self.root / command[0]), *command[1:]],
                    command[0],
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **slot},
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
            except StartFailed as error:
                tell(f"error: {error}")
                return error.exit_code, []
            self.processes.add(process)
        try:
            output = run_to_end(process, f"the sweep waits for {command[0]}", self.limit_s)
        except Stalled as error:
            tell(f"error: {error}")
            return error.exit_code, []
        finally:
            with self.lock:
                self.processes.discard(process)
        return process.returncode, output.splitlines()
