"""What a forward asks of any implementation, counted from the architecture: floating-point operations, bytes, memory.

With the device's ceilings this gives the roofline beside each latency; before a trial it says what memory it needs at least.
"""

from lowbit_vit.model.vit import CHANNELS, Architecture
from lowbit_vit.schema.record import Work


def forward_flop(arch: Architecture, *, num_classes: int, batch_size: int) -> int:
    """Floating-point operations of one forward's GEMMs and its attention; a multiply-add counts two.

    Per image, with N tokens, width W, MLP width M, patches of P x P px, L blocks and K classes:
    patch embedding 2 (N - 1) W 3 P^2; each block 8 N W^2 (q, k, v and out), 4 N^2 W (q k^T, and its product with v) and 4 N W M
    (MLP); head 2 W K. Left out: norms, softmax, GELU, biases, sums (under 1 % in ViT-L/16) and adapters, which can be merged.

    Source: the products in Dosovitskiy et al., https://arxiv.org/abs/2010.11929, eq. 1 to 6, 2 m n k each; the same as
    torch.utils.flop_counter counts.
    """
    tokens, width = arch.tokens, arch.width
    patches = 2 * (tokens - 1) * width * CHANNELS * arch.patch_size**2
    block = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * arch.mlp_width
    return batch_size * (patches + arch.depth * block + 2 * width * num_classes)


def least_work(arch: Architecture, *, num_classes: int, batch_size: int, weight_bytes: int, itemsize: int) -> Work:
    """Operations of a batch, and the bytes that cannot but move: weights as stored, images in, logits out, each once.

    Args:
        arch: sizes.
        num_classes: K.
        batch_size: images.
        weight_bytes: of the model as it is held (`model.precision.weight_bytes`).
        itemsize: bytes of a value in the compute dtype.
    """
    inputs = batch_size * CHANNELS * arch.image_size**2 * itemsize
    outputs = batch_size * num_classes * itemsize
    flop = forward_flop(arch, num_classes=num_classes, batch_size=batch_size)
    return Work(batch_size=batch_size, flop=flop, least_bytes=weight_bytes + inputs + outputs)


def parameter_count(arch: Architecture, *, num_classes: int) -> int:
    """Parameters of the model before quantization and adapters."""
    width, mlp = arch.width, arch.mlp_width
    embedding = CHANNELS * arch.patch_size**2 * width + width + width + arch.tokens * width
    block = 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width
    return embedding + arch.depth * block + 2 * width + width * num_classes + num_classes


def needed_bytes(arch: Architecture, *, evaluated: int, trained: int) -> int:
    """Device memory that a trial needs at least: a lower bound, so that it refuses nothing that could run.

    The fp32 weights that it starts from, and the greater of two kinds of activations, in 16 bits: of an evaluated batch, the
    residual stream and the MLP's two tensors; of a training batch on frozen weights, what the backward pass of each block cannot
    do without: q, k, v, the attention's result and GELU's input.

    Args:
        arch: sizes; the head, some KB, is left out.
        evaluated: images of the largest batch without gradients.
        trained: images of a training batch; 0: nothing is trained.
    """
    weights = 4 * parameter_count(arch, num_classes=0)
    evaluation = evaluated * arch.tokens * 2 * (arch.width + 2 * arch.mlp_width)
    training = trained * arch.tokens * 2 * (4 * arch.width + arch.mlp_width) * arch.depth
    return weights + max(evaluation, training)
