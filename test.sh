#!/usr/bin/env bash
# Lint and tests.   bash test.sh          everything that is quick (under 10 minutes on 2 cores)
#                   bash test.sh --all    the slow ones too (kills, fresh clones)
# Other arguments go to pytest: bash test.sh tests/common/evaluation/test_metrics.py -k clip
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
set_up requirements.txt requirements-dev.txt
"$python" -m ruff check .
"$python" -m ruff format --check .
# One thread for each of the processes; -rs names what was skipped and why in the last lines. Files run in their order:
# by their number of tests, pytest-xdist's own order, those with few and long tests would come last, one process idle.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "$python" -m pytest -n 2 --dist=loadfile --no-loadscope-reorder -rs "${selection[@]}" "$@"
