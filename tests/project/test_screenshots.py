"""docs/screenshots.py: its palette PNGs show what they were given."""

from __future__ import annotations

import cv2
import numpy as np

from docs.screenshots import palette_png


def decoded(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def test_few_colours_are_kept_to_the_bit() -> None:
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (60, 3), dtype=np.uint8)
    picture = colours[random.integers(0, 60, (37, 53))]
    np.testing.assert_array_equal(decoded(palette_png(picture, 64)), picture)


def test_many_colours_become_near_ones_in_fewer_bytes() -> None:
    rows, columns = np.mgrid[0:120, 0:160]
    picture = np.dstack([rows * 2, columns, (rows + columns) // 2]).astype(np.uint8)
    content = palette_png(picture, 192)
    error = np.abs(decoded(content).astype(int) - picture)
    assert error.mean() < 8
    assert len(content) < picture.size
    assert len(np.unique(decoded(content).reshape(-1, 3), axis=0)) <= 192
