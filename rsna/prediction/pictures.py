"""Pictures of slices for people: grey in the brain window, and heat maps of what a network looked at."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from common.datasets.images import read_image
from common.dicom.pictures import window
from common.errors import UsageError
from common.models.heat import METHOD, heat
from common.preprocessing.crop import find_head
from common.reports.montage import Heat
from rsna.kinds.kind import TrainedNetwork, kind_of
from rsna_dataset import LABELS, RSNADataset

logger = logging.getLogger(__name__)

BRAIN = (40.0, 80.0)  # centre, width in HU
OVERALL = LABELS.index("any")  # the label that frames and heat show
HEAT_FROM = 0.5  # probability of any below which a slice gets no heat, as it gets no frame


def grey_slices(trained: TrainedNetwork, dataset: RSNADataset) -> Iterator[np.ndarray]:
    """Yield each slice as a grey picture (H, W) in the brain window, before the network's normalization.

    A dataset of stored windows shows its first window. If the transform moves pixels, show the network's input.
    """
    for index, image_id in enumerate(dataset.image_ids.tolist()):
        if moves_pixels(trained):
            picture = dataset[index].image  # the slice is in the middle of its neighbours
            shown = picture[trained.config.data_context * len(picture) // (2 * trained.config.data_context + 1)]
            low, high = float(shown.min()), float(shown.max())
            shown = (shown - low) / max(high - low, 1e-6)
        elif dataset.image_form == "hu":
            stored = read_image(dataset.image_folder / f"{image_id}{dataset.suffix}", dataset.image_form)
            shown = window(stored, *BRAIN)
        else:
            shown = dataset.read(image_id)[..., 0]
        yield np.rint(shown * 255).astype(np.uint8)


def moves_pixels(trained: TrainedNetwork) -> bool:
    """Whether a step of the transform moves pixels, so that a heat map doesn't fit the stored picture."""
    from albumentations import DualTransform

    return any(isinstance(step, DualTransform) for step in trained.pipeline.transforms)


def heat_maps(trained: TrainedNetwork, dataset: RSNADataset, places: np.ndarray) -> np.ndarray | None:
    """Return the heat (B, h, w) of ``any`` for some slices; None, with a warning, if the model allows none.

    A network over whole series gives that of its slice network. --net_compute holds here as for predictions.
    """
    network = trained.network
    model = kind_of(trained.config).slice_network(network.model)
    pictures = torch.from_numpy(np.stack([dataset[int(place)].image for place in places])).to(network.device)
    try:
        with network.autocast():
            return heat(model, pictures, OVERALL).cpu().numpy()
    except UsageError as error:
        logger.warning("no heat in the pictures: %s", error)
        return None


def shown_heat(
    trained: TrainedNetwork, dataset: RSNADataset, places: np.ndarray, maps: np.ndarray, probabilities: np.ndarray
) -> list[Heat | None]:
    """Return what of the heat ``maps`` (B, h, w) of some slices is shown: inside the head, None below HEAT_FROM.

    ``probabilities`` (B,): of ``any``. The head is that of :func:`common.preprocessing.crop.find_head`. It is not known
    of stored windows, nor where the transform moves pixels; heat may then lie anywhere.
    """
    found: list[Heat | None] = []
    for place, values, probability in zip(places.tolist(), maps, probabilities, strict=True):
        head = None
        if dataset.image_form == "hu" and not moves_pixels(trained):
            name = f"{dataset.image_ids[place]}{dataset.suffix}"
            stored = read_image(dataset.image_folder / name, dataset.image_form)
            head = find_head(stored, np.nan, np.nan).whole_mask(stored.shape)
        found.append(Heat(values, head) if probability >= HEAT_FROM else None)
    return found


def heat_text(heats: Sequence[Heat | None], own: str = "") -> str:
    """Say what the colours of heat mean."""
    cells = next((" x ".join(map(str, one.values.shape)) for one in heats if one is not None), "")
    if not cells:
        return f"no heat: no slice here has any of {HEAT_FROM:.2f} or more"
    return f"heat: {METHOD} of any ({cells} cells), one scale{own}, where any is {HEAT_FROM:.2f} or more; no outline"
