"""How well heat shows where blood is: python benchmarks/heat.py EXPERIMENT [--cells=0,8,16,32] [--most=400].

EXPERIMENT is the folder of a trained slice network whose dataset has masks of its validation images
(rsna_phantom.py --phantom_masks=1, preprocessing.py --pre_masks). Heat is that of `any` on the slices with blood whose
`any` is at least 0.5, as in pictures: inside the head. Compared are the methods on the deepest map of at least so many
cells (0: the last map, which has the fewest), and gradient × input. A row for each, with 95 % intervals over patients:

- pointing game (Zhang et al. 2018): share of slices whose hottest pixel is blood;
- Dice of the pixels hotter than a share of the slice's highest heat, for the one share that is best for the method on
  the slices of the other patients (patients are halved twice at random);
- seconds of a processor for a slice.

The last row is a map drawn at random inside the head, hotter towards a random point: what chance gives.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.checkpoint import BEST
from common.datasets.image_files import read_mask
from common.datasets.images import read_image
from common.dicom.pictures import resize_mask
from common.models.heat import METHODS, heat
from common.preprocessing.crop import find_head
from rsna.kinds.pictures import seen_pictures
from rsna.prediction.pictures import HEAT_FROM, OVERALL
from rsna.prediction.trained import load_network
from rsna.training.outcome import PREDICTION_FILES
from rsna_dataset import LABELS, RSNADataset, dataset_folder, read_metadata

SHARES = np.linspace(0.05, 0.95, 19)
DRAWS = 2000
Maps = Callable[[torch.Tensor], np.ndarray]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--cells", type=lambda text: [int(part) for part in text.split(",")], default=[0, 8, 16, 32])
    parser.add_argument("--most", type=int, default=400, help="slices, drawn at random where there are more")
    options = parser.parse_args()

    trained = load_network(options.experiment / BEST)
    folder = dataset_folder(trained.config.data_input_folder, trained.config.data_dataset)
    rows = bleeding_rows(options.experiment, folder, options.most)
    dataset = seen_pictures(trained, rows)
    side = dataset[0].image.shape[-1]
    truth, heads = zip(*(truth_and_head(dataset, folder, name, side) for name in rows.index), strict=True)
    model = trained.network.model.eval()
    first, ways = torch.from_numpy(dataset[0].image)[None], dict[str, Maps]()
    for cells in options.cells:
        for method in METHODS:
            way = partial(heat_of, model, method, cells)
            ways[f"{method}, {' x '.join(map(str, way(first).shape))} cells"] = way
    ways["gradient x input"] = partial(heat_of, model, "HiResCAM", side)
    generator = np.random.default_rng(0)
    ways["chance"] = lambda one: (
        -np.hypot(*(np.indices((side, side)) - generator.integers(0, side, (2, 1, 1)))) + 2 * side
    )
    print(
        f"{len(rows)} slices of {rows['patient_id'].nunique()} patients, {side} pixels, {np.mean(truth):.1%} is blood"
    )
    print(pd.DataFrame({name: judged(way, dataset, truth, heads, rows) for name, way in ways.items()}).T.to_string())


def heat_of(model: nn.Module, method: str, cells: int, picture: torch.Tensor) -> np.ndarray:
    """Return the heat (h, w) of a picture (1, C, H, W)."""
    return heat(model, picture, OVERALL, method, cells)[0].numpy()


def bleeding_rows(experiment: Path, folder: Path, most: int) -> pd.DataFrame:
    """Return validation images that have blood in their masks and `any` of at least HEAT_FROM."""
    predicted = pd.read_csv(experiment / PREDICTION_FILES[1], index_col="id")["any"]
    rows = read_metadata(folder).loc[predicted.index[predicted >= HEAT_FROM]]
    rows = rows[(rows["any"] == 1) & np.array([(folder / "masks" / f"{name}.npy").is_file() for name in rows.index])]
    return rows.sample(min(most, len(rows)), random_state=0).sort_index()


def truth_and_head(dataset: RSNADataset, folder: Path, name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where blood and where the head is in a picture of ``side`` pixels, bool (side, side)."""
    stored = read_image(dataset.image_folder / f"{name}{dataset.suffix}", dataset.image_form)
    blood = read_mask(folder / "masks" / f"{name}.npy", stored.shape, len(LABELS) - 1) > 0
    head = find_head(stored, np.nan, np.nan).whole_mask(stored.shape)
    head = np.ones(stored.shape, bool) if head is None else head
    return tuple(resize_mask(one.astype(np.uint8), side) > 0 for one in (blood, head))


def judged(
    way: Maps, dataset: RSNADataset, truth: Sequence[np.ndarray], heads: Sequence[np.ndarray], rows: pd.DataFrame
) -> Mapping[str, str]:
    """Return a row of the table."""
    hits, dices, started = [], [], time.process_time()
    for place, (blood, head) in enumerate(zip(truth, heads, strict=True)):
        values = way(torch.from_numpy(dataset[place].image)[None]).astype(np.float32)
        values = cv2.resize(values, blood.shape[::-1], interpolation=cv2.INTER_LINEAR) * head
        hits.append(bool(values.max() > 0 and blood.ravel()[values.argmax()]))
        hot = values > SHARES[:, None, None] * values.max()
        dices.append(2 * (hot & blood).sum(axis=(1, 2)) / np.maximum(hot.sum(axis=(1, 2)) + blood.sum(), 1))
    seconds = (time.process_time() - started) / len(rows)
    patients, place = np.unique(rows["patient_id"], return_inverse=True)
    table = np.array(dices)
    generator = np.random.default_rng(0)
    own = []
    for _ in range(2):
        half = generator.permutation(len(patients)) < len(patients) / 2
        part = half[place]
        share = np.where(part, table[~part].mean(axis=0).argmax(), table[part].mean(axis=0).argmax())
        own.append(table[np.arange(len(table)), share])
    draws = generator.integers(0, len(patients), (DRAWS, len(patients)))
    weights = np.stack([np.bincount(draw, minlength=len(patients))[place] for draw in draws])

    def text(values: np.ndarray) -> str:
        low, high = np.quantile(weights @ values / weights.sum(axis=1), (0.025, 0.975))
        return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"

    return {
        "pointing game": text(np.array(hits, float)),
        "Dice": text(np.mean(own, axis=0)),
        "seconds": f"{seconds:.3f}",
    }


if __name__ == "__main__":
    main()
