"""Image files compared: bytes, writing, and cold and warm random reads of .npy and .b2nd, interleaved in one run.

python benchmarks/image_files.py [slices] [folder on the disk to measure]

The slices are the phantom's, 512 x 512, with 0, 5 and 10 HU of white noise on top of its own, a third each. Their size
when deflated says which are like the competition's, whose zip archive has 206 KB for each (180 GB). Before a cold
read the file's pages are dropped from the cache (posix_fadvise DONTNEED); a hypervisor's cache below is out of reach.
Also other settings of Blosc2, to see what the choice was between. Medians and ratios.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

ROUNDS = 3


def noisy_slices(count: int) -> list[np.ndarray]:
    """Return int16 HU slices of 512 x 512 of several studies."""
    from rsna.phantom.plan import plan_studies
    from rsna.phantom.study import PhantomSettings, render_study

    settings = PhantomSettings(seed=0, image_size=512, difficulty="real")
    plans = [plan for plan in plan_studies(40, 0, "real", 30) if plan.size is None]
    images: list[np.ndarray] = []
    generator = np.random.default_rng(0)
    for plan in plans[: -(-count // 10)]:
        for rendered in render_study(plan, settings, set(range(0, 30, 3))):
            hu = rendered.hu + generator.normal(0, (0, 5, 10)[len(images) % 3], rendered.hu.shape)
            images.append(hu.round().clip(-1024, 3071).astype(np.int16))
    return images[:count]


def by_noise(sizes: np.ndarray) -> str:
    """Return the mean bytes of a file for each of the three kinds of slices."""
    means = [sizes[start::3].mean() / 1000 for start in range(3)]
    return ", ".join(f"{mean:.0f} KB (+{noise} HU)" for mean, noise in zip(means, (0, 5, 10), strict=True))


def drop_from_cache(path: Path) -> None:
    """Make the next read of a file come from the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def measure_files(images: list[np.ndarray], folder: Path) -> None:
    """Write all images in both forms; read them at random, cold and warm; print medians."""
    from common.datasets.image_files import SUFFIXES, encode_image, load_image

    paths = {name: [folder / f"{index}{suffix}" for index in range(len(images))] for name, suffix in SUFFIXES.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for index, image in enumerate(images):
        for name in SUFFIXES:
            path = paths[name][index]
            start = time.perf_counter()
            with path.open("wb", buffering=0) as file:
                for part in encode_image(image, path.suffix):
                    file.write(part)
            times.setdefault((name, "write"), []).append(time.perf_counter() - start)
    os.sync()
    generator = np.random.default_rng(1)
    for _ in range(ROUNDS):
        for index in generator.permutation(len(images)):
            for name in SUFFIXES:
                path = paths[name][index]
                drop_from_cache(path)
                for kind in ("cold read", "warm read"):
                    start = time.perf_counter()
                    found = load_image(path)
                    times.setdefault((name, kind), []).append(time.perf_counter() - start)
                    assert np.array_equal(found, images[index])
    for name in SUFFIXES:
        sizes = np.array([path.stat().st_size for path in paths[name]])
        print(f"{name}: {by_noise(sizes)} a slice")
        for kind in ("write", "cold read", "warm read"):
            values = 1000 * np.array(times[name, kind])
            ratio = np.median(times["npy", kind]) / np.median(times[name, kind])
            print(f"  {kind}: {np.median(values):.2f} ms (tenth {np.quantile(values, 0.1):.2f}, last tenth "
                  f"{np.quantile(values, 0.9):.2f}); {ratio:.2f} times npy's speed")  # fmt: skip


def measure_settings(images: list[np.ndarray]) -> None:
    """Print bytes, and processor time of packing and unpacking in memory, for settings of Blosc2."""
    import blosc2

    shuffle, bits, delta = blosc2.Filter.SHUFFLE, blosc2.Filter.BITSHUFFLE, blosc2.Filter.BYTEDELTA
    rows = [
        ("bitshuffle + lz4", blosc2.Codec.LZ4, 5, [bits]),
        ("bitshuffle + zstd 1", blosc2.Codec.ZSTD, 1, [bits]),
        ("shuffle + zstd 1", blosc2.Codec.ZSTD, 1, [shuffle]),
        ("shuffle, bytedelta + zstd 1 (ours)", blosc2.Codec.ZSTD, 1, [shuffle, delta]),
        ("shuffle, bytedelta + zstd 5", blosc2.Codec.ZSTD, 5, [shuffle, delta]),
    ]
    for name, codec, level, filters in rows:
        settings = {"codec": codec, "clevel": level, "filters": filters, "filters_meta": [0, 2][: len(filters)],
                    "typesize": 2, "nthreads": 1}  # fmt: skip
        sizes, packing, unpacking = [], [], []
        for image in images:
            start = time.process_time()
            packed = blosc2.asarray(image, chunks=image.shape, blocks=image.shape, cparams=settings).to_cframe()
            middle = time.process_time()
            stored = blosc2.ndarray_from_cframe(packed)
            stored.schunk.decompress_chunk(0, dst=np.empty_like(image))
            sizes.append(len(packed))
            packing.append(middle - start)
            unpacking.append(time.process_time() - middle)
        print(
            f"{name}: {by_noise(np.array(sizes))}, packed in {1000 * np.median(packing):.2f} ms, unpacked in "
            f"{1000 * np.median(unpacking):.2f} ms"
        )


def main() -> None:
    """Measure both; the first argument is the number of slices."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    images = noisy_slices(count)
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else ".") as name:
        measure_files(images, Path(name))
    measure_settings(images[:60])
    print(
        f"deflated, as in a zip archive: {by_noise(np.array([len(zlib.compress(image, 6)) for image in images[:60]]))}"
    )


if __name__ == "__main__":
    main()
