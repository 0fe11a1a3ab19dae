"""Python scripts run in forks of a process that has imported what they need: to import torch takes most of a short run.

:func:`run` stands in for ``subprocess.run`` of ``[python, script, …]``, but where a test is about a command's start.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def preload() -> None:
    """Import what the project's commands import."""
    import albumentations  # noqa: F401
    import sklearn.ensemble  # noqa: F401
    import timm  # noqa: F401

    import rsna.judging.ensemble
    import rsna.judging.evaluation
    import rsna.judging.second_level
    import rsna.prediction.predict_folds
    import rsna.prepare.dataset
    import rsna.training.run  # noqa: F401


def run(command: Sequence[str], *, cwd: Path, stdout: IO[str], stderr: IO[str]) -> subprocess.CompletedProcess[str]:
    """Run ``command`` (python, a script, its arguments) in a fork; return its exit code, minus the signal of a kill."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            os.chdir(cwd)
            sys.argv = list(command[1:])
            runpy.run_path(command[1], run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return subprocess.CompletedProcess(list(command), os.waitstatus_to_exitcode(status))
