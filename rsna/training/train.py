"""What ``train.py`` does: one run from its options to its end, or a cross-validation of several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from common.cli.interruption import interruptible
from common.experiments.logfile import setup_logging
from common.training import distributed
from common.training.hardware import select_device
from common.training.memory import out_of_memory_advice
from common.training.reproducibility import seed_everything, seed_process
from common.training.ways import AUTO
from config import TrainConfig
from rsna.kinds.kind import kind_of
from rsna.training.callbacks import build_callbacks
from rsna.training.folds import asks_for_folds, cross_validate
from rsna.training.length import settle_fold_length, settle_length
from rsna.training.outcome import Conclude
from rsna.training.run import (
    build_network,
    build_training_data,
    check_choices,
    check_interrupted,
    choose_precision,
    claim_experiment,
    conclude_again,
    find_run,
    observed,
    report_start,
    run_finders,
    settle_computing,
    training_memory_advice,
)


def train(config: TrainConfig, arguments: Sequence[str], conclude: Conclude, started: float) -> Path:
    """Train as the options say; print the experiment's folder as the last line on stdout and return it.

    ``arguments`` is the command line, which the experiment records. ``conclude`` is called when a run ends. ``started``
    is when the command started, by ``time.perf_counter``: --tr_hours counts from there.
    """
    if asks_for_folds(config):
        return cross_validate(config, arguments, conclude, partial(settle_fold_length, started=started))
    with ExitStack() as stack:
        stack.enter_context(distributed.process_group())
        run = stack.enter_context(find_run(config, arguments))
        config = run.config
        if run.is_finished(config.tr_iteration_num):
            conclude_again(run, conclude)
            print(f"the experiment is finished: there is nothing to go on with\n{run.folder}")
            return run.folder
        seed_everything(config.seed)
        stack.enter_context(out_of_memory_advice(training_memory_advice(config)))
        device = select_device(config.n_jobs, tf32=config.tr_tf32, deterministic=config.tr_deterministic)
        config, amp_dtype = choose_precision(run, device)
        data, lineage = build_training_data(config, device, run.checkpoint)
        if config.tr_compute == AUTO:
            run = settle_computing(run, data, device)
            config, amp_dtype = choose_precision(run, device)
        kind = kind_of(config)
        model = kind.build_model(config, data.channels, data.prevalences if run.checkpoint is None else None)
        check_choices(config, model, device)
        kind.check_training(config, data, model)
        if config.tr_hours is not None:
            config = settle_length(config, data, device, amp_dtype, started)
        experiment = stack.enter_context(claim_experiment(run, config, data, model, arguments))
        if distributed.is_main():
            stack.enter_context(setup_logging(experiment.folder, config.dev_enabled))
        tracker = stack.enter_context(observed(config, experiment, conclude))
        callbacks = build_callbacks(config, experiment.folder, data, tracker, lineage)
        network = build_network(config, data, model, device, amp_dtype, callbacks)
        seed_process(config.seed, distributed.rank())
        if distributed.is_main():
            report_start(config, data, network)
        with interruptible(network.interrupt):
            if run.checkpoint is None:
                run_finders(config, experiment, network)
            run.restore(network)
            network.fit()
        check_interrupted(network, experiment, config)
        is_main = distributed.is_main()
    if is_main:
        print(experiment.folder)
    return experiment.folder
