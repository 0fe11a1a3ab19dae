#!/usr/bin/env bash
# From nothing to trained, evaluated models and submissions:
#
#   bash train.sh                                        the experiments at the end of this file: one, with the defaults
#   bash train.sh --net_model=resnet34 --seed=1          flags are passed on to train.py
#   bash train.sh --dry-run [flags]                      say what would run, and run nothing
#   bash train.sh sweep experiments/demo.yaml [flags]    every combination of a grid (python sweep.py --help: its form)
#   bash train.sh plan --hours=0.5 [flags of plan.py]    plan experiments for the time that there is, and run them
#   bash train.sh dashboard [output/results]             live curves of runs with --trackers=trackio (Ctrl-C ends it)
#   bash train.sh notebook                               Jupyter with the notebooks of notebooks/
#   bash train.sh --help                                 this text and every flag
#
# The first start makes .venv, later ones keep it up to date. Competition data under input/ is preprocessed to
# input/datasets/rsna; where there is none, synthetic head CT (a phantom) is made in input/phantom and preprocessed to
# input/datasets/phantom. Both happen once.
#
# Experiments are lines under "Experiments" at the end of this file, yours to edit. All are checked, then each is
# trained, evaluated and predicted, one after another or one on each GPU; one that fails stops no other, and a table
# ends it. A line with --experiment_id=NAME is skipped once it is finished and goes on where it was cut, also in its
# evaluation; one without is a new, numbered experiment each time. What a grid makes has names. Searches: python sweep.py --space=FILE --trials=30.
#
# Results: output/results/<experiment>/ (report.html, best.pt, submission.csv, ...) and output/results/leaderboard.html.
#
# Exit codes: 0 all finished; 1 something failed, as a message above says; 2 a mistake in the flags, before anything is
# written; 75 interrupted (Ctrl-C, SIGTERM, SIGUSR1, SIGHUP), states saved: the same command goes on with what has a name.
#
# Environment variables: PYTHON, the Python that makes .venv (python3); CUDA_VISIBLE_DEVICES, the GPUs to use;
# NEPTUNE_API_TOKEN, NEPTUNE_PROJECT, MLFLOW_TRACKING_URI and TRACKIO_SERVER_URL, the servers of --trackers=neptune, mlflow
# and trackio; TRACKIO_DIR, where the dashboard looks (output/results/.trackio); GRADIO_SERVER_PORT, the port that it opens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh

grid="" dry="" planning="" flags=()
case ${1:-} in
plan)
  planning=1
  shift
  ;;
sweep)
  grid=${2:-}
  [ -n "$grid" ] || mistake "bash train.sh sweep FILE.yaml: the file is missing"
  shift 2
  ;;
dashboard)
  set_up requirements.txt requirements-trackers.txt
  results=${2:-output/results}
  [ -d "$results" ] || mistake "$results: no such folder; train with --trackers=trackio first"
  export TRACKIO_DIR=${TRACKIO_DIR:-$(cd "$results" && pwd)/.trackio}
  export TRACKIO_PLOT_ORDER=${TRACKIO_PLOT_ORDER:-valid/weighted_log_loss,valid/*,train/loss}
  exec "$python" -m trackio.cli show --project "$(basename "$(cd "$results" && pwd)")" "${@:3}"
  ;;
notebook)
  set_up requirements.txt requirements-notebook.txt
  exec "$python" -m jupyter lab "${@:2}" notebooks
  ;;
esac
for argument in "$@"; do
  case $argument in
  -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' train.sh
    echo
    set_up requirements.txt
    exec "$python" train.py --help
    ;;
  --dry-run) dry=1 ;;
  *) flags+=("$argument") ;;
  esac
done

set_up requirements.txt

# Which dataset to train on, and whether it must be made first; a mistake in the flags ends here.
places=$("$python" - "$planning" ${flags[@]+"${flags[@]}"} <<'PYTHON'
import sys

from common.cli.arguments import parse_args
from common.cli.command import command
from config import TrainConfig
from rsna.training.options import PlanConfig


@command
def main() -> None:
    config = parse_args(PlanConfig if sys.argv[1] else TrainConfig, sys.argv[2:])
    default = TrainConfig.data_dataset
    folder, dataset, source = config.data_input_folder, config.data_dataset, "none"
    if dataset == default and not (folder / "datasets" / default / "dataset.json").exists():
        from rsna.prepare.competition import find_competition

        source = "competition" if find_competition(folder) else "phantom"
        dataset = default if source == "competition" else "phantom"
    print(folder, dataset, source, config.output_dir, sep="\n")


main()
PYTHON
)
{ read -r input_folder; read -r dataset; read -r source; read -r results; } <<<"$places"

if [ "$source" = phantom ]; then
  echo "No competition data (stage_2_train/ and stage_2_train.csv, or stage 1's) in $input_folder or its folder" \
    "rsna-intracranial-hemorrhage-detection: synthetic head CT, a phantom, stands in for it" >&2
fi

# Run a command that ends when a signal ends this script, be it sent to the script alone.
watched() {
  local child code=0
  "$@" &
  child=$!
  trap 'kill -TERM "$child"; wait "$child" || true; echo "interrupted; the same command goes on" >&2; exit 75' INT TERM HUP USR1
  wait "$child" || code=$?
  trap - INT TERM HUP USR1
  return "$code"
}

make_dataset() {
  case $source in
  competition) watched "$python" preprocessing.py --data_input_folder="$input_folder" >/dev/null ;;
  phantom)
    watched "$python" rsna_phantom.py --phantom_folder="$input_folder/phantom" --phantom_difficulty=demo --phantom_only_if_missing=1 >/dev/null
    if [ ! -e "$input_folder/datasets/phantom/dataset.json" ]; then
      watched "$python" preprocessing.py --data_input_folder="$input_folder" --data_dataset=phantom --pre_source="$input_folder/phantom" >/dev/null
    fi
    ;;
  esac
}

# An experiment is a line of flags for train.py. All lines are checked, then each is trained, evaluated and predicted, one
# after another or one on each GPU; one that fails stops no other. With --experiment_id=NAME it is skipped once it is
# finished, and goes on where it was cut; without, it is a new experiment each time.
quoted() { "$python" -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' "$@"; }
lines=""
experiment() { lines+=$(quoted --output_dir="$results" "$@")$'\n'; }

# Experiments, one on each line. Add your own, for instance:
#   experiment --experiment_id=resnet34 --net_model=resnet34 --optim_lr=5e-4 "$@"
experiments() {
  experiment "$@"
}

if [ -n "$planning" ]; then
  [ -n "$dry" ] || make_dataset
  source=none # it is there now
  said=$(mktemp)
  watched "$python" plan.py ${flags[@]+"${flags[@]}"} --data_dataset="$dataset" >"$said" || { code=$? && rm "$said" && exit "$code"; }
  cat "$said"
  sweep=(--lines="$(tail -n 1 "$said")")
  rm "$said"
elif [ -n "$grid" ]; then
  sweep=(--grid="$grid")
  [ ${#flags[@]} = 0 ] || sweep+=(--flags="$(quoted "${flags[@]}")")
else
  experiments ${flags[@]+"${flags[@]}"}
  sweep=(--lines=/dev/fd/3)
fi
sweep=("$python" sweep.py --output_dir="$results" --data_dataset="$dataset" "${sweep[@]}")
if [ -n "$dry" ]; then
  "${sweep[@]}" --dry_run=1 3<<<"$lines"
  exit
fi
"${sweep[@]}" --dry_run=1 3<<<"$lines" >/dev/null # a mistake in any line ends here, before there is any data
make_dataset
exec "${sweep[@]}" 3<<<"$lines" # in this process's place: a signal to it reaches the runs, which save their states
