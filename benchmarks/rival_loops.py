"""What one would write without this project: rival_loops.py plain|timm|winner FOLDER --rate=… --output=….

Each trains on a preprocessed dataset of Hounsfield units, in three windows as 8-bit pictures, as the competition's
public notebooks did, and minimizes the competition's metric. The last weights predict. On the GPU where there is one,
like what they are compared with. `rivals.py` tunes and judges them, `ladder.py` runs what was tuned.

plain   twenty lines of torch: AdamW under OneCycle, both as torch has them.
timm    the documented recipe A3 for training ResNets from scratch (Wightman, Touvron and Jégou 2021, "ResNet strikes
        back"), from timm's functions: LAMB with weight decay 0.02, cosine with warm-up over a twentieth. Its rate of
        0.008 for batches of 2,048 is 0.001 for batches of 32, by the root of the size. Mixup and CutMix are left out:
        timm's take one class for each image, and here are six labels.
winner  in the manner of the competition's first place (SeuTao 2019, 2DNet/src/train.py): Adam with betas 0.9 and 0.999
        and weight decay 2e-5, the rate falling by a cosine to 1e-5. There the rate was 5e-4, and restarted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WINDOWS = ((40, 80), (80, 200), (40, 380))  # centre, width in HU
AUGMENTATIONS = {  # by name, what each does
    "none": "nothing",
    "affine": "flip, and an affine of at most 15 degrees, 6 % shift and 8 % scale",
    "timm_0.7": "timm's random resized crop of 0.7 to 1 of the picture, flip, RandAugment m6",
    "timm": "the same with timm's own crop, of 0.08 to 1",
}
Recipe = tuple["torch.optim.Optimizer", Callable[[int], Any]]  # the latter is called with the number of updates so far
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as timm's default


def pictures(folder: Path, ids: list[str], size: int) -> np.ndarray:
    """Return windowed pictures (N, size, size, 3), 0..255."""
    import cv2
    import numpy as np

    from rsna_dataset import image_path

    found = np.empty((len(ids), size, size, 3), np.uint8)
    for row, name in enumerate(ids):
        hu = np.load(image_path(folder, name), allow_pickle=False).astype(np.float32)
        if hu.shape != (size, size):
            hu = cv2.resize(hu, (size, size), interpolation=cv2.INTER_AREA)
        for channel, (center, width) in enumerate(WINDOWS):
            found[row, ..., channel] = np.clip((hu - center) / width + 0.5, 0, 1) * 255
    return found


class Images:
    """A torch dataset of pictures (N, H, W, 3) and targets (N, 6) with a transform from a PIL picture."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, transform: Callable[[Any], torch.Tensor]) -> None:
        """``transform`` gives a tensor (3, H, W)."""
        self.images, self.targets, self.transform = images, targets, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def to_tensor(picture: Any) -> torch.Tensor:
    """Return a PIL picture as a normalized tensor."""
    from torchvision.transforms import functional

    return functional.normalize(functional.to_tensor(picture), MEAN, STD)


def plain(model: torch.nn.Module, rate: float, iterations: int) -> Recipe:
    """AdamW under OneCycle."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=iterations + 1)
    return optimizer, lambda update: schedule.step()


def timm_recipe(model: torch.nn.Module, rate: float, iterations: int) -> Recipe:
    """LAMB, cosine with warm-up."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    optimizer = create_optimizer_v2(model, opt="lamb", lr=rate, weight_decay=0.02)
    warmup = {"warmup_epochs": iterations // 20, "warmup_lr": 1e-6}
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=iterations, min_lr=1e-6, **warmup)
    scheduler.step(0)
    return optimizer, scheduler.step


def winner(model: torch.nn.Module, rate: float, iterations: int) -> Recipe:
    """Adam, cosine."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), rate, weight_decay=2e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=1e-5)
    return optimizer, lambda update: schedule.step()


LOOPS = {"plain": plain, "timm": timm_recipe, "winner": winner}


def augmentation(name: str, size: int) -> Callable[[Any], torch.Tensor]:
    """Return a row of :data:`AUGMENTATIONS`, from a PIL picture to a normalized tensor."""
    from timm.data import create_transform
    from torchvision import transforms

    def timms(**options: Any) -> Callable[[Any], torch.Tensor]:
        return create_transform(
            size, is_training=True, auto_augment="rand-m6-mstd0.5-inc1", mean=MEAN, std=STD, **options
        )

    if name == "affine":
        affine = transforms.RandomAffine(
            15, (0.06, 0.06), (0.92, 1.08), interpolation=transforms.InterpolationMode.BILINEAR
        )
        return transforms.Compose([transforms.RandomHorizontalFlip(), affine, to_tensor])
    return {"none": lambda: to_tensor, "timm": timms, "timm_0.7": lambda: timms(scale=(0.7, 1.0))}[name]()


def run(model: torch.nn.Module, data: Images, options: argparse.Namespace) -> None:
    """The loop that all have.

    The loss is read where it is printed: a read in each update would have the host wait for a GPU.
    """
    import torch
    from torch.utils.data import DataLoader

    from common.evaluation.metrics import normalized_weights
    from rsna_dataset import LABEL_WEIGHTS

    generator = torch.Generator().manual_seed(options.seed)
    device = next(model.parameters()).device
    gpu = device.type == "cuda"
    loader = DataLoader(data, options.batch, shuffle=True, drop_last=True, generator=generator, pin_memory=gpu)
    weights = normalized_weights(LABEL_WEIGHTS, len(LABEL_WEIGHTS)) * len(LABEL_WEIGHTS)
    filled = [torch.full((1,), weight, device=device) for weight in weights.tolist()]  # there: no copy, no wait
    loss_function = torch.nn.BCEWithLogitsLoss(weight=torch.cat(filled))
    optimizer, after = LOOPS[options.rival](model, options.rate, options.iterations)
    model.train()
    update, total = 0, torch.zeros((), dtype=torch.float64, device=device)
    while update < options.iterations:
        for batch in loader:
            images, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
            optimizer.zero_grad()
            loss = loss_function(model(images), targets)
            loss.backward()
            optimizer.step()
            update += 1
            total += loss.detach()
            after(update)
            if update % 100 == 0 or update == options.iterations:
                print(f"update {update}/{options.iterations}: mean loss {total.item() / update:.4f}", flush=True)
            if update == options.iterations:
                break


def main() -> None:
    """Train a rival and write its predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=tuple(LOOPS))
    parser.add_argument("folder", type=Path, help="the folder that holds datasets/")
    parser.add_argument("--dataset", default="rsna")
    parser.add_argument(
        "--fold", type=int, help="train on its training images, predict its validation images; none: all, test images"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), default="none")
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--n_jobs", type=int, default=0, help="cores to use; 0: all there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="CSV to write: id and a column for each label")
    options = parser.parse_args()

    import random

    import numpy as np
    import pandas as pd
    import timm
    import torch

    from common.files import write_csv
    from rsna_dataset import LABELS, dataset_folder, read_fold, read_metadata

    torch.manual_seed(options.seed)
    random.seed(options.seed)  # timm's RandAugment draws from these
    np.random.seed(options.seed)  # noqa: NPY002
    if options.n_jobs:
        torch.set_num_threads(options.n_jobs)
    folder = dataset_folder(options.folder, options.dataset)
    if options.fold is None:
        rows = read_metadata(folder)
        learnt, asked = rows[rows["split"] == "train"], rows.index[rows["split"] == "test"]
    else:
        rows = read_fold(folder, options.dataset, options.fold)
        learnt, asked = rows[rows["sample_type"] == "train"], rows.index[rows["sample_type"] == "valid"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(options.model, num_classes=len(LABELS)).to(device)
    images = pictures(folder, list(learnt.index), options.size)
    transform = augmentation(options.augmentation, options.size)
    run(model, Images(images, learnt[list(LABELS)].to_numpy(np.float32), transform), options)

    unknown = np.zeros((len(asked), len(LABELS)), np.float32)
    data = Images(pictures(folder, list(asked), options.size), unknown, to_tensor)
    model.eval()
    with torch.inference_mode():
        loader = torch.utils.data.DataLoader(data, 128)
        predicted = torch.cat([model(batch.to(device)).sigmoid() for batch, _ in loader]).double().cpu().numpy()
    write_csv(options.output, pd.DataFrame(predicted, pd.Index(asked, name="id"), list(LABELS)), index=True)


if __name__ == "__main__":
    main()
