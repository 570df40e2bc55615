from typing import Any

import pytest
import torch

from lowbit_vit.errors import Unavailable
from lowbit_vit.model.vit import Architecture, Attention, Block, VisionTransformer
from lowbit_vit.schema.config import Augmentation, PatchDropout, Training
from lowbit_vit.trial.forward import TrainingForward, attention_kernel, branch_scales, drop_patches, keep_probabilities

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
    assert not torch.equal(forward(images, whole=True), logits)
    assert list(model.state_dict()) == names
    assert torch.equal(model(images), logits)
    assert torch.equal(model.train()(images), logits)


def test_without_options_the_forward_is_the_models_own() -> None:
    model, images = a_model(), torch.randn(2, 3, 8, 8)
    assert torch.equal(TrainingForward(model, a_training())(images, whole=True), model(images))


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
    torch.testing.assert_close(forward(images, whole=True), model(images))
    assert not torch.allclose(forward(images, whole=False), model(images))


def test_compiling_is_refused_on_the_cpu() -> None:
    with pytest.raises(Unavailable, match=r"training\.compile needs CUDA, the model is on cpu"):
        TrainingForward(a_model(), a_training(compile=True))


def test_the_kernel_is_changed_for_a_while_and_only_to_one_that_runs() -> None:
    model = a_model()

    def kernels() -> set[str]:
        return {module.kernel for module in model.modules() if isinstance(module, Attention)}

    with attention_kernel(model, "math", torch.float32):
        assert kernels() == {"math"}
    assert kernels() == {"flash"}
    with pytest.raises(Unavailable, match="cudnn needs CUDA"), attention_kernel(model, "cudnn", torch.float32):
        pass
    assert kernels() == {"flash"}
