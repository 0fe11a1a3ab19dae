#!/usr/bin/env bash
# From nothing to a trained, evaluated model and a submission:
#
#   bash train.sh                                        one experiment with the defaults
#   bash train.sh --net_model=resnet34 --seed=1          flags are passed on to train.py
#   bash train.sh --help                                 this text and every flag
#
# The first start makes .venv. Competition data under input/ is preprocessed to input/datasets/rsna; where there is
# none, synthetic head CT (a phantom) is made in input/phantom and preprocessed to input/datasets/phantom. Both happen
# once. For a sweep, add lines to "Experiments" at the end of this file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh

for argument in "$@"; do
  case $argument in
  -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' train.sh
    set_up requirements.txt
    exec "$python" train.py --help
    ;;
  esac
done

set_up requirements.txt

# Which dataset to train on, and whether it must be made first; a mistake in the flags ends here.
plan=$("$python" - "$@" <<'PYTHON'
import sys

from common.arguments import parse_args
from common.errors import command
from config import TrainConfig


@command
def main() -> None:
    config = parse_args(TrainConfig, sys.argv[1:])
    default = TrainConfig.data_dataset
    folder, dataset, source = config.data_input_folder, config.data_dataset, "none"
    if dataset == default and not (folder / "datasets" / default / "dataset.json").exists():
        from rsna_dataset import find_competition

        source = "competition" if find_competition(folder) else "phantom"
        dataset = default if source == "competition" else "phantom"
    print(folder, dataset, source, sep="\n")


main()
PYTHON
)
{ read -r input_folder; read -r dataset; read -r source; } <<<"$plan"

case $source in
competition) "$python" preprocessing.py --data_input_folder="$input_folder" >/dev/null ;;
phantom)
  "$python" rsna_phantom.py --phantom_folder="$input_folder/phantom" --phantom_difficulty=demo --phantom_only_if_missing=1 >/dev/null
  if [ ! -e "$input_folder/datasets/phantom/dataset.json" ]; then
    "$python" preprocessing.py --data_input_folder="$input_folder" --data_dataset=phantom --pre_source="$input_folder/phantom" >/dev/null
  fi
  ;;
esac

# Train, evaluate and predict one experiment; the flags are those of train.py.
experiment() {
  local folder submission metric
  folder=$("$python" train.py --data_dataset="$dataset" "$@" | tail -n 1)
  "$python" evaluate.py --experiment_id="${folder##*/}" --output_dir="${folder%/*}"
  submission=$("$python" predict.py --net_weight_file="$folder/best.pt" --split=test | tail -n 1)
  metric=$(awk -F, '
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i }
    $1 == "weighted" { printf "%.4f, constant predictor %.4f", $column["log_loss"], $column["constant_log_loss"] }
  ' "$folder/evaluation.csv")
  printf '\nexperiment                %s\nvalid weighted log loss   %s\nsubmission                %s\n' "$folder" "$metric" "$submission"
}

# Experiments, one on each line; they run in turn. Add your own, for instance:
#   experiment --net_model=resnet34 --optim_lr=5e-4 "$@"
experiment "$@"
