"""Image folders made on the spot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train, val and test of two classes, smooth images of unlike sizes and file types."""
    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    sizes = [(40, 53), (64, 48), (33, 33), (97, 41)]
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        for name in ("ash", "elm"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                image = coarse.resize(sizes[index % len(sizes)], Image.Resampling.BICUBIC)
                suffix = "jpg" if index % 2 else "png"
                image.save(root / split / name / f"{index}.{suffix}")
    return root
