"""Gives the pretended GPUs to every Python process that has this folder on its path, except those that load data."""

import os
import sys
from pathlib import Path

if "PRETENDED_CUDA" in os.environ and not any("multiprocessing" in word for word in sys.orig_argv):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from tests import pretended_cuda

    pretended_cuda.begin(pretended_cuda.settings_of(os.environ[pretended_cuda.VARIABLE]))
