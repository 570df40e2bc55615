"""Crops are drawn as torchvision draws them, and stay inside the image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from lowbit_vit.data.batches import draw_epoch
from lowbit_vit.schema.config import Augmentation

shares = st.floats(0.01, 1.0)
ratios = st.floats(0.2, 5.0)


@given(side=st.integers(4, 300), scale=st.tuples(shares, shares), ratio=st.tuples(ratios, ratios), seed=st.integers(0, 1000))
def test_every_crop_lies_inside_its_image(side: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int) -> None:
    augmentation = Augmentation(crop_scale=(min(scale), max(scale)), crop_ratio=(min(ratio), max(ratio)), flip=True)
    epoch = draw_epoch(50, side, augmentation, seed=seed, epoch=0)
    top, left, height, width = epoch.boxes.T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert max((top + height).max(), (left + width).max()) <= side
    assert sorted(epoch.order.tolist()) == list(range(50))


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.6, 1.0), (0.3, 0.5)])
def test_crops_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    count, side, ratio = 4000, 256, (3 / 4, 4 / 3)
    ours = draw_epoch(count, side, Augmentation(crop_scale=scale, crop_ratio=ratio, flip=True), seed=0, epoch=0)
    torch.manual_seed(0)
    image = torch.empty(3, side, side)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    for column in range(4):
        assert ks_2samp(ours.boxes[:, column], theirs[:, column]).pvalue > 0.001
    assert ks_2samp(ours.boxes[:, 2] * ours.boxes[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.001
    assert abs(ours.flips.mean() - 0.5) < 0.04


def test_a_ratio_that_never_fits_gives_the_central_box() -> None:
    epoch = draw_epoch(5, 100, Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(2.0, 2.0), flip=False), seed=0, epoch=0)
    assert epoch.boxes.tolist() == [[25, 0, 50, 100]] * 5
    assert not epoch.flips.any()


def test_each_epoch_and_seed_draws_its_own() -> None:
    augmentation = Augmentation(crop_scale=(0.2, 1.0), flip=True)
    drawn = [draw_epoch(100, 64, augmentation, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({one.boxes.tobytes() for one in drawn}) == len({one.order.tobytes() for one in drawn}) == 3
