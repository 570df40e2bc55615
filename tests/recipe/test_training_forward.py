from typing import Any

import pytest
import torch

from lowbit_vit.errors import ConfigError, Unavailable
from lowbit_vit.model.vit import Architecture, Block, VisionTransformer
from lowbit_vit.recipe.training_forward import (
    TrainingForward,
    average_squares,
    branch_scales,
    drop_patches,
    embed_small,
    keep_probabilities,
)
from lowbit_vit.schema.config import Augmentation, PatchDropout, SmallImages, Training

ARCH = Architecture(name="small", image_size=8, patch_size=2, depth=3, heads=2, width=64, mlp_width=64)


def a_model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ARCH, num_classes=2, attention="flash", qkv="separate")


def a_training(**keys: Any) -> Training:
    return Training(
        epochs=2,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=0.1,
        warmup_epochs=0.5,
        label_smoothing=0.1,
        autocast="none",
        augmentation=Augmentation(crop_scale=(0.7, 1.0), flip=False),
        splits=("train",),
        **keys,
    )


def test_branches_are_dropped_more_often_the_deeper_they_lie_and_keep_their_mean() -> None:
    torch.manual_seed(0)
    keep = keep_probabilities(4, 0.3)
    torch.testing.assert_close(keep, torch.tensor([1.0, 0.9, 0.8, 0.7]))
    for probability, scale in zip(keep.tolist(), branch_scales(keep, 20_000), strict=True):
        assert scale.shape == (20_000, 2)
        assert (scale != 0).float().mean().item() == pytest.approx(probability, abs=0.01)
        assert scale.mean().item() == pytest.approx(1, abs=0.01)
        assert set(scale.flatten().tolist()) <= {0.0, scale.max().item()}


def test_a_branch_that_is_dropped_leaves_the_image_as_it_was() -> None:
    block = Block(ARCH, kernel="flash", qkv="separate")
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(block(x, torch.ones(3, 2)), block(x))
    out = block(x, torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], (x + block.attention(block.norm1(x)))[1])
    torch.testing.assert_close(out[2], block(x)[2])


def test_the_model_itself_drops_nothing_and_has_no_new_state() -> None:
    model, images = a_model(), torch.randn(2, 3, 8, 8)
    names, logits = list(model.state_dict()), model(images)
    forward = TrainingForward(model, a_training(drop_path=0.5, patch_dropout=PatchDropout(share=0.5, whole_epochs=0)))
    assert not torch.equal(forward(images, epoch=0)[0], logits)
    assert list(model.state_dict()) == names
    assert torch.equal(model(images), logits)
    assert torch.equal(model.train()(images), logits)


def test_without_options_the_forward_is_the_models_own() -> None:
    model, images = a_model(), torch.randn(2, 3, 8, 8)
    assert torch.equal(TrainingForward(model, a_training())(images, epoch=0)[0], model(images))


def test_patches_are_dropped_image_by_image_and_the_class_token_stays() -> None:
    tokens = torch.arange(17.0)[None, :, None].expand(50, -1, 4).contiguous()
    kept = drop_patches(tokens, 0.5)[:, :, 0]
    assert kept.shape == (50, 9)
    assert (kept[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 9 for row in kept)
    assert len({tuple(sorted(row.tolist())) for row in kept}) > 40
    assert set(kept.flatten().tolist()) == set(range(17))


def test_all_patches_are_seen_where_asked() -> None:
    model, images = a_model(), torch.randn(2, 3, 8, 8)
    forward = TrainingForward(model, a_training(patch_dropout=PatchDropout(share=0.5, whole_epochs=1)))
    torch.testing.assert_close(forward(images, epoch=1)[0], model(images))
    assert not torch.allclose(forward(images, epoch=0)[0], model(images))


def test_small_images_are_seen_first_and_whole_ones_afterwards() -> None:
    model, images = a_model(), torch.randn(2, 3, 8, 8)
    forward = TrainingForward(model, a_training(small_images=SmallImages(factor=2, epochs=1)), taps=(1, 2))
    small, whole = forward(images, epoch=0), forward(images, epoch=1)
    torch.testing.assert_close(whole[0], model(images))
    assert [patches.shape[1] for patches in small[1]] == [4, 4]
    assert [patches.shape[1] for patches in whole[1]] == [16, 16]


def test_small_images_of_one_colour_a_square_look_like_the_whole_ones_patch_by_patch() -> None:
    model = a_model()
    with torch.no_grad():
        model.position_embedding.copy_(model.position_embedding[:, :1].expand_as(model.position_embedding))
    flat = torch.randn(2, 3, 1, 1).expand(-1, -1, 8, 8)
    small, whole = embed_small(model, flat, 2), model.embed(flat)
    assert small.shape == (2, 5, 64)
    torch.testing.assert_close(small, whole[:, :5])


def test_squares_are_averaged_as_by_pooling() -> None:
    patches = torch.randn(3, 36, 5)
    pooled = torch.nn.functional.avg_pool2d(patches.transpose(1, 2).reshape(3, 5, 6, 6), 3)
    torch.testing.assert_close(average_squares(patches, 3), pooled.flatten(2).transpose(1, 2))


def test_patches_after_a_block_are_those_of_the_model() -> None:
    model, images = a_model(), torch.randn(2, 3, 8, 8)
    _, (first, last) = TrainingForward(model, a_training(), taps=(1, 2))(images, epoch=0)
    features = model.features(images)
    torch.testing.assert_close(first, features[0][:, 1:])
    torch.testing.assert_close(last, features[1][:, 1:])


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"small_images\.factor 3 does not divide the grid of 4 x 4"):
        TrainingForward(a_model(), a_training(small_images=SmallImages(factor=3, epochs=1)))
    with pytest.raises(ConfigError, match=r"guidance\.blocks \[1, 4\]: small has 3 blocks"):
        TrainingForward(a_model(), a_training(), taps=(1, 4))


def test_compiling_is_refused_on_the_cpu() -> None:
    with pytest.raises(Unavailable, match=r"training\.compile needs CUDA, the model is on cpu"):
        TrainingForward(a_model(), a_training(compile=True))
