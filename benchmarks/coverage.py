"""How often intervals hold the truth, and tests reject a true null: python benchmarks/coverage.py [FOLDER] [--sets=…].

Simulates patients whose truth is known, by this project's own intervals and tests (common/evaluation): patients have
one to three studies of five to nine slices, and share what their scores have in common, as their studies do. The number
of positive patients is drawn, as a validation set's is: the cells name its mean. For each cell two tables: of single
models the share of intervals that hold the population's value (0.95 is right, standard error 0.3 % at 5,300 sets), and
their median width beside the 95 % range in which the value itself falls; of pairs of equally good models the share that
a test calls different, and of unequal pairs the share that it finds, beside an oracle that knows the true error.

What was tried instead, and failed:

- percentiles of the draws, and Student's interval with the draws' deviation on the logit scale: of studies at 20
  patients it covers 0.99 and more and is 1.4 to 1.8 times too wide. The draws count three times what pairs of patients
  do together (a positive that one certain negative beats), the patients' parts twice.
- logit, probit or arcsine instead of Wilson's interval: too wide (1.3 to 1.6) or too narrow (coverage 0.91).
- Satterthwaite's degrees of freedom of a single model's AUROC: 0.90 at 5 positive ones. Where they happen to be easy,
  the error looks small too. Degrees from the parts' kurtosis: 1.5 to 2 times too wide. A correction by the parts'
  skewness (Hall 1992): 0.85, as 5 patients do not show it.
- taking off pairs from a single model's error as from a difference's: 0.91.
- the patients' parts alone as the error of an AUROC: 0.90 at 10 positive ones of 200, where leaving each patient out
  covers 0.92.
- Hanley and McNeil's (1982) variance, which depends on the AUROC alone, mixed into that: slices cover 0.99 and are
  1.4 to 1.7 times too wide at 20 patients, and still cover 0.92 at 10 positive ones of 200.
- degrees of freedom that count the drawn number of positive patients as a doubt: log loss and Brier 1.3 to 1.5 times
  too wide at 5 of them. On a logarithmic scale that number moves value and error alike.

What is done goes on where it was stopped, a cell at a time, in FOLDER (none: from the start).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.evaluation import binned
from common.evaluation.calibration import BINS, bin_of, calibration_error_interval
from common.evaluation.delong import delong_test
from common.evaluation.interval_rules import MeanRule, Samples
from common.evaluation.metric_table import METRICS
from common.evaluation.resampling import FEWEST_OF_A_SIDE, FEWEST_PATIENTS, Array, Evidence, PatientBootstrap

CELLS = ((20, 5), (20, 10), (60, 5), (60, 10), (60, 30), (200, 5), (200, 10), (200, 30))  # patients, positive
PAIRS = ((10, 3), (20, 7), (60, 20), (200, 60))
BELOW = ((10, 5), (12, 6), (20, 4), (60, 4), (200, 3))  # the floor: intervals are made all the same
LEVELS = expit(np.linspace(-7.0, 5.0, 49))  # the probabilities that a model knows
IN_BIN = np.eye(BINS)[bin_of(LEVELS)]
SQUARES = np.r_[(1 - LEVELS) ** 2, LEVELS**2]
TRUTH_PATIENTS = 40_000  # of each side
AT_ONCE = 100  # sets
SPREADS = (0.6, 0.4, 0.8)  # of patients, of their studies, of slices
SIGNAL = 2.2  # how far positive slices lie above the others
OVERCONFIDENT = 1.4
WEIGHTS = (2.0, 1.0, 1.0)  # any and two kinds of it


@dataclass(frozen=True)
class Scored:
    """Images of a population: the patient, the label ``any`` and each model's place in LEVELS (models, N).

    ``losses`` (models, N): the weighted log loss of any and its kinds.
    """

    owner: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]
    places: npt.NDArray[np.int64]
    losses: Array


def population(
    random: np.random.Generator, positive: npt.NDArray[np.bool_], share: float, own: tuple[float, ...] = (0.0,)
) -> dict[str, Scored]:
    """Draw slices and studies of patients of whom ``positive`` (P,) are, for models with ``own`` shares of noise.

    ``share``: of positive slices, which the models know. A model with own noise is as good as one without.
    """
    studies = np.minimum(1 + random.poisson(0.4, len(positive)), 3)
    patient = np.repeat(np.arange(len(positive)), studies)
    first = np.r_[True, patient[1:] != patient[:-1]]
    bleeds = positive[patient] & (first | (random.random(len(patient)) < 0.7))
    count = random.integers(5, 9, len(patient), endpoint=True)
    study = np.repeat(np.arange(len(patient)), count)
    begin = np.cumsum(count) - count
    place = np.arange(len(study)) - np.repeat(begin, count)
    length = np.maximum(1, np.round(count * random.uniform(0.2, 0.6, len(patient)))).astype(int)
    start = (random.random(len(patient)) * (count - length + 1)).astype(int)
    truth = bleeds[study] & (place >= start[study]) & (place < (start + length)[study])
    kind = random.random(len(positive))
    kinds = [truth, truth & (kind < 0.6)[patient][study], truth & (kind > 0.4)[patient][study]]

    def noise() -> Array:
        levels = (random.normal(size=len(positive))[patient][study], random.normal(size=len(patient))[study])
        return sum(
            spread * part for spread, part in zip(SPREADS, (*levels, random.normal(size=len(study))), strict=True)
        )

    slope = SIGNAL / sum(spread**2 for spread in SPREADS)
    slices, highest = [], []
    for label, shown in enumerate(kinds):
        common = noise()
        for share_of_noise in own:
            score = (
                common if share_of_noise == 0 else common * (1 - share_of_noise**2) ** 0.5 + share_of_noise * noise()
            )
            odds = slope * (score + SIGNAL * shown - SIGNAL / 2) + np.log(share / (1 - share))
            places = np.clip(np.round((OVERCONFIDENT * odds + 7) * 4), 0, len(LEVELS) - 1).astype(int)
            slices.append((label, shown, places))
            highest.append((label, np.maximum.reduceat(shown, begin), np.maximum.reduceat(places, begin)))
    found = {"slices": (patient[study], slices), "studies": (patient, highest)}
    return {level: _scored(owner, tables, len(own)) for level, (owner, tables) in found.items()}


def _scored(owner: npt.NDArray[np.int64], tables: list[tuple[int, Any, Any]], models: int) -> Scored:
    losses = np.zeros((models, len(owner)))
    for number, (label, shown, places) in enumerate(tables):
        weight = WEIGHTS[label] / sum(WEIGHTS)
        losses[number % models] -= weight * np.log(np.where(shown, LEVELS[places], 1 - LEVELS[places]))
    return Scored(owner, tables[0][1], np.stack([table[2] for table in tables[:models]]), losses)


def by_patient(scored: Scored, model: int, patients: int) -> Array:
    """Return each patient's positives and negatives at each level, images and losses: (patients, 2 levels + 2)."""
    size = len(LEVELS)
    cells = scored.owner * 2 * size + scored.places[model] + np.where(scored.positive, 0, size)
    table = np.bincount(cells, minlength=patients * 2 * size).reshape(patients, 2 * size)
    losses = np.bincount(scored.owner, scored.losses[model], patients)
    return np.column_stack([table, table.sum(axis=1), losses])


def metrics(sums: Array) -> tuple[dict[str, Array], Array]:
    """Return the metrics of sums over patients (D, 2 levels + 2), and each bin's share of predictions − targets."""
    size = len(LEVELS)
    positives, negatives, images = sums[:, :size], sums[:, size:-2], sums[:, -2]
    deviations = (LEVELS * (positives + negatives) - positives) @ IN_BIN / images[:, None]
    found = {
        "log_loss": sums[:, -1] / images,
        "auroc": binned.auroc(positives, negatives),
        "average_precision": binned.average_precision(positives, negatives),
        "calibration_error": np.abs(deviations).sum(axis=1),
        "brier": sums[:, :-2] @ SQUARES / images,
    }
    return found, deviations


def samples(table: Array, counts: Array, behind: Evidence, intervals: bool) -> dict[str, Samples]:
    """Return the metrics of a set's patients (P, 2 levels + 2), of whom each draw has so many (D, P).

    ``behind``: who is behind them; ``intervals``: also the calibration error's, which takes its time.
    """
    total, size = table.sum(axis=0), len(LEVELS)
    (values, whole), (drawn, deviations) = metrics(total[None]), metrics(counts @ table)
    images, sides, sign = total[-2], (total[:size], total[size:-2]), IN_BIN @ np.sign(whole[0])
    slopes = {
        "log_loss": np.r_[np.zeros(2 * size), 0, 1] / images,
        "auroc": np.r_[*binned.auroc_slopes(*sides), 0, 0],
        "average_precision": np.r_[*binned.average_precision_slopes(*sides), 0, 0],
        "calibration_error": np.r_[(LEVELS - 1) * sign, LEVELS * sign, 0, 0] / images,
        "brier": np.r_[SQUARES, 0, 0] / images,
    }
    found = {}
    for metric, slope in slopes.items():
        value, parts = float(values[metric][0]), table @ slope
        parts -= table[:, -2] / images * parts.sum()
        rule = METRICS[metric].interval
        mean = isinstance(rule, MeanRule)
        rest = None if mean else drawn[metric] - value - counts @ parts
        found[metric] = Samples(value, behind, parts, rest, rule.scale if mean else "share")
        if not mean and getattr(rule, "jackknife", False):
            apart = metrics(total - table)[0][metric]
            found[metric].left_out = np.nan_to_num(apart - value)
    if intervals:
        error = found["calibration_error"]
        error.own_ends = calibration_error_interval(whole[0], deviations, behind.freedom_of(error.parts))
    return found


def evidence(table: Array) -> Evidence:
    """Return who is behind a set's metrics."""
    return Evidence.of_sides(table[:, : len(LEVELS)].sum(axis=1), table[:, len(LEVELS) : -2].sum(axis=1))


def drawn_counts(patients: int, draws: int) -> Array:
    """Return how often each patient is in each draw (draws, patients), as PatientBootstrap draws them."""
    return PatientBootstrap(np.arange(patients), draws).totals(np.eye(patients))


def truths(patients: int, positive: int, share: float) -> dict[str, dict[str, float]]:
    """Return the population's metrics, by level."""
    bleeding = np.arange(2 * TRUTH_PATIENTS) < TRUTH_PATIENTS
    weights = np.where(bleeding, positive / patients, 1 - positive / patients)
    people = population(np.random.default_rng(1), bleeding, share)
    return {
        level: {
            name: float(value[0])
            for name, value in metrics((weights @ by_patient(scored, 0, len(bleeding)))[None])[0].items()
        }
        for level, scored in people.items()
    }


def coverage(patients: int, positive: int, sets: int, draws: int, floor: tuple[int, int]) -> dict[str, Any]:
    """Return by level and metric coverage, misses on both sides and width of a cell's intervals, and how many sets."""
    share, counts = 0.3 * positive / patients, drawn_counts(patients, draws)
    truth, random = truths(patients, positive, share), np.random.default_rng([patients, positive])
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    done = 0
    while done < sets:
        number = min(AT_ONCE, sets - done)
        done += number
        people = population(random, random.random(number * patients) < positive / patients, share)
        for level, scored in people.items():
            tables = by_patient(scored, 0, number * patients).reshape(number, patients, -1)
            for table in tables:
                behind = evidence(table)
                fewest = min(behind.positive or 0, behind.negative or 0)
                if patients >= floor[0] and fewest >= floor[1]:
                    behind = replace(behind, patients=FEWEST_PATIENTS, positive=None, negative=None)
                    found = samples(table, counts, behind, True)
                    triples = {name: (item.value, *item.ends) for name, item in found.items()}
                else:
                    values = metrics(table.sum(axis=0)[None])[0]
                    triples = {name: (float(value[0]), np.nan, np.nan) for name, value in values.items()}
                for metric, triple in triples.items():
                    rows.setdefault((level, metric), []).append(triple)
    result: dict[str, Any] = {}
    for (level, metric), triples in rows.items():
        values, low, high = np.array(triples).T
        known = ~np.isnan(low)
        value = truth[level][metric]
        usual = np.nanquantile(values, 0.975) - np.nanquantile(values, 0.025)
        if known.any() and ((values < low - 1e-12) | (values > high + 1e-12))[known].any():
            raise AssertionError(f"{level}, {metric}: an interval leaves its own value out")
        result[f"{level} {metric}"] = {
            "intervals": int(known.sum()),
            "coverage": float(np.mean(((low <= value) & (value <= high))[known])) if known.any() else None,
            "above": float(np.mean((low > value)[known])) if known.any() else None,
            "width": float(np.median((high - low)[known]) / usual) if known.any() else None,
        }
    return result


def rejections(
    patients: int, positive: int, sets: int, draws: int, own: tuple[float, float], signal: float
) -> dict[str, Any]:
    """Return by level and metric how often two models are called different, and the differences' mean and deviation.

    ``own``: shares of noise that each model has to itself; ``signal``: what the second one's scores are multiplied by.
    """
    share, counts = 0.3 * positive / patients, drawn_counts(patients, draws)
    random = np.random.default_rng([patients, positive, int(1000 * signal)])
    said: dict[str, list[tuple[float, bool, bool]]] = {}
    done = 0
    while done < sets:
        number = min(AT_ONCE, sets - done)
        done += number
        people = population(random, random.random(number * patients) < positive / patients, share, own)
        for level, scored in people.items():
            if signal != 1:
                scored = worsened(scored, random, signal)
            pair = [by_patient(scored, model, number * patients).reshape(number, patients, -1) for model in (0, 1)]
            rank = np.searchsorted(scored.owner, np.arange(number + 1) * patients)
            for place, (one, other) in enumerate(zip(*pair, strict=True)):
                behind = evidence(one)
                shown = not behind.reason
                pair_of = [samples(table, counts, behind, False) for table in (one, other)] if shown else []
                for metric in METRICS:
                    change, low, high = np.nan, np.nan, np.nan
                    if shown:
                        first, second = (found[metric] for found in pair_of)
                        change = first.value - second.value
                        low, high = first.change_ends(second)
                    said.setdefault(f"{level} {metric}", []).append((change, shown, bool(low > 0 or high < 0)))
                change, found = np.nan, False
                if shown:
                    inside = slice(rank[place], rank[place + 1])
                    places, truth, owner = scored.places[:, inside], scored.positive[inside], scored.owner[inside]
                    test = delong_test(places[0], places[1], truth, owner)
                    change, found = test.first - test.second, test.p_value < 0.05
                said.setdefault(f"{level} DeLong", []).append((change, shown, found))
    result: dict[str, Any] = {}
    for name, triples in said.items():
        change, shown, rejected = np.array(triples, dtype=float).T
        result[name] = {
            "tests": int(shown.sum()),
            "rejected": float(rejected[shown == 1].mean()) if shown.any() else None,
            "mean": None if np.isnan(change).all() else float(np.nanmean(change)),
            "deviation": None if np.isnan(change).all() else float(np.nanstd(change)),
            "beyond": [float(value) for value in change[~np.isnan(change)]] if signal != 1 else [],
        }
    return result


def worsened(scored: Scored, random: np.random.Generator, signal: float) -> Scored:
    """Return the same with the second model's scores drawn towards the lowest at random, for power."""
    places, losses = scored.places.copy(), scored.losses.copy()
    hit = scored.positive & (random.random(len(scored.owner)) < 1 - signal)
    before = LEVELS[places[1]]
    places[1] = np.where(hit, np.maximum(places[1] - 8, 0), places[1])
    weight = WEIGHTS[0] / sum(WEIGHTS)
    losses[1] += weight * np.where(hit, np.log(before) - np.log(LEVELS[places[1]]), 0.0)
    return Scored(scored.owner, scored.positive, places, losses)


class Record:
    """What is done of a simulation, by cell, in a file where there is a folder."""

    def __init__(self, folder: Path | None, options: dict[str, int]) -> None:
        """``options``: what another record must have been made with."""
        self.path = None if folder is None else folder / "coverage.json"
        self.cells: dict[str, Any] = {"options": options}
        if self.path is not None and self.path.is_file():
            self.cells = json.loads(self.path.read_text(encoding="utf-8"))
            if self.cells["options"] != options:
                sys.exit(f"error: {self.path} was made with {self.cells['options']}; name another folder")

    def cell(self, name: str, work: Any) -> Any:
        """Return a cell, made by ``work`` unless it is there."""
        if name not in self.cells:
            start = time.process_time()
            self.cells[name] = work()
            print(f"{name}: {time.process_time() - start:.0f} s of a core", file=sys.stderr, flush=True)
            if self.path is not None:
                from common.files import write_json

                write_json(self.path, self.cells)
        return self.cells[name]


def table(title: str, names: list[str], cells: dict[str, dict[str, Any]], text: Any) -> str:
    """Return a Markdown table, a row for each of ``names`` and a column for each cell."""
    lines = [f"| {title} | {' | '.join(cells)} |", f"| --- |{' --- |' * len(cells)}"]
    for name in names:
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(text(cell[name]) for cell in cells.values())} |")
    return "\n".join(lines)


def covered(row: dict[str, Any]) -> str:
    """Return coverage and width of a cell."""
    return "–" if row["coverage"] is None else f"{row['coverage']:.3f} ({row['width']:.2f})"


def main() -> None:
    """Simulate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where what is done is kept")
    parser.add_argument("--sets", type=int, default=5300, help="simulated sets of a cell")
    parser.add_argument("--pairs", type=int, default=5000, help="simulated pairs of equally good models of a size")
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws of each set")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    record = Record(options.folder, {"sets": options.sets, "pairs": options.pairs, "draws": options.draws})
    floor = (FEWEST_PATIENTS, FEWEST_OF_A_SIDE)
    cells = {
        f"{n} / {k}": record.cell(
            f"coverage {n} {k}", lambda n=n, k=k: coverage(n, k, options.sets, options.draws, floor)
        )
        for n, k in CELLS
    }
    names = [f"{level} {metric}" for level in ("slices", "studies") for metric in METRICS]
    print(
        "Coverage of 95 % intervals (median width in 95 % ranges of the value); patients / positive, "
        f"{options.sets} sets"
    )
    print(table("metric", names, cells, covered))
    print("\nShare of the sets that have patients enough for an interval")
    print(table("", names[::5], cells, lambda row: f"{row['intervals'] / options.sets:.2f}"))
    few = max(1, options.sets // 5)
    below = {
        f"{n} / {k}": record.cell(f"below {n} {k}", lambda n=n, k=k: coverage(n, k, few, options.draws, (0, 2)))
        for n, k in BELOW
    }
    print(f"\nThe same below the floor, were there intervals ({few} sets)")
    print(table("metric", names, below, covered))
    own, worse, sizes = (0.5, 0.5), 0.75, {}
    for n, k in PAIRS:
        sizes[f"{n}"] = record.cell(
            f"null {n} {k}", lambda n=n, k=k: rejections(n, k, options.pairs, options.draws, own, 1.0)
        )
    names = [f"{level} {metric}" for level in ("slices", "studies") for metric in (*METRICS, "DeLong")]
    print(f"\nA true null rejected at 5 % ({options.pairs} pairs; –: too few patients for a test); patients")
    print(table("test", names, sizes, lambda row: "–" if row["rejected"] is None else f"{row['rejected']:.3f}"))
    fewer, powers = max(1, options.pairs // 5), {}
    for n, k in PAIRS:
        powers[f"{n}"] = record.cell(
            f"power {n} {k}", lambda n=n, k=k: rejections(n, k, fewer, options.draws, own, worse)
        )
    for size, cell in powers.items():
        for name, row in cell.items():
            deviation, changes = sizes[size][name]["deviation"], np.array(row["beyond"])
            row["oracle"] = float(np.mean(np.abs(changes) > 1.96 * deviation)) if deviation and len(changes) else None
    print(
        f"\nPower to find the worse of two models, and an oracle's that knows the true error ({fewer} pairs); patients"
    )
    shown = lambda row: "–" if row["rejected"] is None else f"{row['rejected']:.2f} of {row['oracle']:.2f}"  # noqa: E731
    print(table("test", names, powers, shown))


if __name__ == "__main__":
    main()
