"""Real Flowers-102 images, where this machine has them; image folders made on the spot."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FLOWERS_TARS = Path(__file__).parents[3] / "shared" / "flowers-102"


@pytest.fixture(scope="session")
def flowers_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds flowers-102/ with all images, as 256-px copies."""
    if not FLOWERS_TARS.is_dir():
        pytest.skip("no Flowers-102 images in ../shared/flowers-102")
    root = tmp_path_factory.mktemp("flowers")
    for path in sorted(FLOWERS_TARS.glob("*.tar")):
        with tarfile.open(path) as archive:
            archive.extractall(root, filter="data")
    return root


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
