"""Train one experiment: python train.py --help lists every option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import parse_args, to_dict
from common.errors import command
from common.listing import listing
from config import TrainConfig


@command
def main(argv: Sequence[str] | None = None) -> Path | None:
    """Train as the options say; print the experiment's folder as the last line on stdout and return it.

    With ``--list`` print what there is instead.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = parse_args(TrainConfig, arguments)
    if config.list is not None:
        print("\n".join(listing(config.list)))
        return None

    # Here, so that --help and a wrong flag answer at once.
    from common.experiment import create_experiment, setup_logging
    from common.memory import out_of_memory_advice
    from common.reproducibility import seed_everything
    from rsna_experiment import (
        build_data,
        build_model,
        build_network,
        check_choices,
        checkpoint_bytes,
        open_tracker,
        report_start,
        run_finders,
        select_amp_dtype,
        select_device,
    )

    seed_everything(config.seed)
    device = select_device(config.n_jobs)
    amp_dtype = select_amp_dtype(config, device)
    data = build_data(config, device)
    model = build_model(config, data.channels)
    check_choices(config, model)
    experiment = create_experiment(
        config.output_dir,
        config.experiment_id,
        to_dict(config),
        ["python", "train.py", *arguments],
        free_bytes=checkpoint_bytes(model),
    )
    with setup_logging(experiment.folder, config.dev_enabled), open_tracker(config, experiment) as tracker:
        network = build_network(config, experiment, data, model, device, amp_dtype, tracker)
        report_start(config, data, network)
        with out_of_memory_advice(config.tr_batch_size, device):
            run_finders(config, experiment, network)
            network.fit()
    print(experiment.folder)
    return experiment.folder


if __name__ == "__main__":
    main()
