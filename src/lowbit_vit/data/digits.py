"""scikit-learn's 1,797 scanned digits: the demo's data, real scans that ship inside a package.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998, https://doi.org/10.24432/C50P49.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lowbit_vit.data.source import Item, Source, Split, check_source
from lowbit_vit.schema.config import DigitsData

TEST_SHARE = 1 / 3
VAL_SHARE = 0.1  # of what the test split leaves
GREY_LEVELS = 16


def list_images(config: DigitsData) -> Source:
    """List the digits in a stratified split: one third test, of the rest one tenth val.

    Args:
        config: the split's seed.

    Returns:
        8 x 8 images, grey = round(level * 255 / 16), repeated to three channels.
    """
    digits = load_digits()
    grey = np.rint(digits.images * (255 / GREY_LEVELS)).astype(np.uint8)
    labels = digits.target
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=config.split_seed)
    train, val = train_test_split(rest, test_size=VAL_SHARE, stratify=labels[rest], random_state=config.split_seed)
    members: dict[Split, list[int]] = {"train": sorted(train), "val": sorted(val), "test": sorted(test)}
    splits = {
        split: tuple(Item(f"digit_{index:04d}", np.repeat(grey[index, :, :, None], 3, axis=2), int(labels[index])) for index in indices)
        for split, indices in members.items()
    }
    description = f"scikit-learn digits, 8 x 8 scans, one third held out for test (split seed {config.split_seed})"
    return check_source(Source("scikit-learn digits", tuple(str(name) for name in digits.target_names), splits, description))
