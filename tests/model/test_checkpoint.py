"""Weights survive the disk bit for bit, damage is noticed, and a file that could run code is never run."""

import hashlib
import io
import json
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from lowbit_vit.errors import DataError
from lowbit_vit.model.checkpoint import fit_positions, from_torchvision, load_state, load_torchvision, restore, save_state, saved_bytes
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import QkvLayout

SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=2, heads=4, width=64, mlp_width=128)
CLASSES = 7


def model(*, classes: int = CLASSES, image_size: int = 16, qkv: QkvLayout = "separate") -> VisionTransformer:
    torch.manual_seed(0)
    arch = Architecture(**{**vars(SMALL), "image_size": image_size})
    return VisionTransformer(arch, num_classes=classes, attention="math", qkv=qkv).eval()


def torchvision_state() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A torchvision state with no zeros in it, images, and the logits that it gives for them."""
    theirs: Any = TorchvisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=CLASSES
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        images = torch.randn(3, 3, 16, 16)
        return theirs.state_dict(), images, theirs.eval()(images)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Payload:
    """What a hostile checkpoint holds: unpickling it creates a file."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.flag,))


def hostile_files(flag: Path) -> dict[str, bytes]:
    """The same payload as a bare pickle, as torch.save writes it, and hidden beside real tensors."""
    zipped, beside_tensors = io.BytesIO(), io.BytesIO()
    torch.save(Payload(flag), zipped)
    torch.save({**torchvision_state()[0], "extra": Payload(flag)}, beside_tensors)
    # Protocol 2 is torch's own; of a later one torch.load also warns.
    return {"pickle": pickle.dumps(Payload(flag), protocol=2), "torch.save": zipped.getvalue(), "beside tensors": beside_tensors.getvalue()}


HOSTILE = ["pickle", "torch.save", "beside tensors"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_hostile_files_of_these_tests_really_run_code(tmp_path: Path, kind: str) -> None:
    flag = tmp_path / "flag"
    content = hostile_files(flag)[kind]
    if kind == "pickle":
        pickle.loads(content)
    else:
        torch.load(io.BytesIO(content), weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_with_an_unknown_hash_is_refused_unread(tmp_path: Path, kind: str) -> None:
    path, flag = tmp_path / "vit.pth", tmp_path / "flag"
    path.write_bytes(hostile_files(flag)[kind])
    with pytest.raises(DataError, match=r"vit\.pth: sha256 .* does not start with 852ce7e3; not opened"):
        load_torchvision(path, "852ce7e3")
    assert not flag.exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_is_refused_even_with_the_hash_that_was_given(tmp_path: Path, kind: str) -> None:
    path, flag = tmp_path / "vit.pth", tmp_path / "flag"
    path.write_bytes(hostile_files(flag)[kind])
    with pytest.raises(DataError, match=r"vit\.pth: not a file of plain tensors, refused") as refusal:
        load_torchvision(path, digest(path)[:8])
    assert not flag.exists()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_named_safetensors_is_refused_even_with_a_fitting_card(tmp_path: Path, kind: str) -> None:
    path, flag = tmp_path / "backbone.safetensors", tmp_path / "flag"
    path.write_bytes(hostile_files(flag)[kind])
    path.with_suffix(".json").write_text(json.dumps({"sha256": digest(path)}))
    with pytest.raises(DataError, match=r"backbone\.safetensors: not a safetensors file .*pickles are refused"):
        load_state(path)
    assert not flag.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt", ""])
def test_our_own_weights_are_safetensors_or_nothing(tmp_path: Path, suffix: str) -> None:
    path, flag = tmp_path / f"backbone{suffix}", tmp_path / "flag"
    path.write_bytes(hostile_files(flag)["pickle"])
    for use in (lambda: load_state(path), lambda: save_state(model().state_dict(), path, {})):
        with pytest.raises(DataError, match=r"weights are kept as \.safetensors; other files, pickles above all, are refused"):
            use()
    assert not flag.exists()


@pytest.mark.parametrize("names", ["today's", "released"])
def test_a_torchvision_checkpoint_loads_by_its_hash_and_gives_torchvisions_logits(tmp_path: Path, names: str) -> None:
    state, images, logits = torchvision_state()
    if names == "released":
        # The files on download.pytorch.org were written before torchvision renamed its MLP.
        state = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value for name, value in state.items()}
    path = tmp_path / "vit.pth"
    torch.save(state, path)
    ours = model()
    for prefix in (digest(path)[:8], digest(path)):
        restore(ours, load_torchvision(path, prefix), source=str(path))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "852ce7", "852CE7E3", "not a hash"])
def test_a_hash_that_says_too_little_is_refused(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "vit.pth"
    torch.save(torchvision_state()[0], path)
    with pytest.raises(DataError, match="must be at least 8 lower-case hex digits"):
        load_torchvision(path, prefix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected a dict of tensors"),
        ({"epoch": 3}, "expected a dict of tensors"),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, r"entry 'layer1\.0\.conv1\.weight' is not one of a torchvision Vision"),
        ({"encoder.layers.encoder_layer_0.se.weight": torch.zeros(1)}, "is not one of a torchvision Vision"),
    ],
    ids=["a list", "no tensors", "another model", "another block"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "vit.pth"
    torch.save(content, path)
    with pytest.raises(DataError, match=rf"vit\.pth: .*{message}"):
        load_torchvision(path, digest(path))


def test_a_missing_or_truncated_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    with pytest.raises(DataError, match=r"vit\.pth: cannot be read \(No such file or directory\)"):
        load_torchvision(path, "852ce7e3")
    torch.save(torchvision_state()[0], path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a file of plain tensors"):
        load_torchvision(path, digest(path))


# torch warns of a protocol byte that is not its own before it fails.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_damaged_bytes_are_one_clear_error_whatever_they_are(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"class_token": torch.zeros(1, 1, 4), "conv_proj.bias": torch.ones(4)}, whole)
    path = tmp_path / "vit.pth"
    random = Random(0)
    refusals: list[str] = []
    for _ in range(300):
        content = bytearray(whole.getvalue())
        for _ in range(3):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content)
        try:
            load_torchvision(path, digest(path))  # padding and the tensors' own bytes may be anything
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in message for message in refusals)


def test_converted_tensors_own_their_memory() -> None:
    state, _, _ = torchvision_state()
    converted = from_torchvision(state)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    ours = [tensor.untyped_storage().data_ptr() for tensor in converted.values()]
    assert len(set(ours)) == len(ours)
    assert theirs.isdisjoint(ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_state_comes_back_bit_for_bit_with_its_card(tmp_path: Path, dtype: torch.dtype) -> None:
    state = model().to(dtype).to(memory_format=torch.channels_last).state_dict()
    path = tmp_path / "new" / "backbone.safetensors"
    written = save_state(state, path, {"profile": "demo", "top1": 0.97})
    again, card = load_state(path)
    assert written == digest(path)
    assert card == {"profile": "demo", "top1": 0.97, "sha256": written}
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) and again[name].dtype == dtype for name in state)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_the_same_state_makes_the_same_bytes(tmp_path: Path) -> None:
    assert save_state(model().state_dict(), tmp_path / "a.safetensors", {}) == save_state(
        model().state_dict(), tmp_path / "b.safetensors", {"another": "card"}
    )


def test_saving_views_of_one_tensor_keeps_the_values(tmp_path: Path) -> None:
    rows = torch.arange(6.0).view(3, 2)
    save_state({"q": rows[0], "k": rows[1], "turned": rows.T}, tmp_path / "views.safetensors", {})
    again, _ = load_state(tmp_path / "views.safetensors")
    assert torch.equal(again["k"], rows[1])
    assert torch.equal(again["turned"], rows.T)


def damage(path: Path, how: str) -> None:
    card = path.with_suffix(".json")
    if how == "one bit":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "other weights":
        safetensors.torch.save_file({"head.weight": torch.zeros(2)}, path)
    elif how == "no file":
        path.unlink()
    elif how == "no card":
        card.unlink()
    elif how == "card cut short":
        card.write_text(card.read_text()[:10])
    else:
        card.write_text("{}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one bit", "its card says"),
        ("cut short", "its card says"),
        ("other weights", "its card says"),
        ("no file", r"backbone\.safetensors: cannot be read"),
        ("no card", r"backbone\.json: cannot be read \(No such file"),
        ("card cut short", r"backbone\.json: the card of the weights is not JSON"),
        ("card without hash", r"backbone\.json: the card of the weights has no sha256"),
    ],
)
def test_damage_is_noticed_before_a_weight_is_used(tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "backbone.safetensors"
    save_state(model().state_dict(), path, {})
    damage(path, how)
    with pytest.raises(DataError, match=message) as error:
        load_state(path)
    assert "\n" not in str(error.value)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The kernel's own limit: a write beyond it fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_clear_error_and_leaves_the_old_pair_whole(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    before = save_state(model().state_dict(), path, {"run": 1})
    with no_file_larger_than(10_000), pytest.raises(DataError, match=r"backbone\.safetensors: could not be written"):
        save_state({name: tensor + 1 for name, tensor in model().state_dict().items()}, path, {"run": 2})
    _, card = load_state(path)
    assert card == {"run": 1, "sha256": before}
    assert len(list(tmp_path.iterdir())) == 2


def test_another_number_of_classes_is_an_error_that_names_both() -> None:
    ours = model(classes=102)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(DataError, match=r"flowers\.safetensors: its head has 7 classes, the data has 102"):
        restore(ours, model().state_dict(), source="flowers.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_new_head_stays_and_all_else_is_restored() -> None:
    state = {name: tensor + 1 for name, tensor in model().state_dict().items()}
    ours = model(classes=102)
    head = ours.head.weight.detach().clone()
    restore(ours, state, source="imagenet", new_head=True)
    assert torch.equal(ours.head.weight, head)
    restored = ours.state_dict()
    assert all(torch.equal(restored[name], tensor) for name, tensor in state.items() if not name.startswith("head."))


def test_positions_of_the_models_own_size_are_left_alone() -> None:
    state = model().state_dict()
    fitted = fit_positions(state, model(), source="a.safetensors")
    assert all(fitted[name] is tensor for name, tensor in state.items())


def test_positions_of_another_size_are_resized_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    larger = model(image_size=32)
    state = model().state_dict()
    # Positions that rise along the rows, from 0 to 3: resized, they still do.
    state["position_embedding"] = torch.cat([torch.full((1, 1, 64), 9.0), torch.arange(4.0).repeat(4)[None, :, None].expand(1, 16, 64)], 1)
    fitted = fit_positions(state, larger, source="a.safetensors")
    restore(larger, fitted, source="a.safetensors")
    assert torch.equal(larger.position_embedding[:, :1], state["position_embedding"][:, :1])
    rows = larger.position_embedding[0, 1:, 0].reshape(8, 8)
    assert torch.allclose(rows, rows[:1].expand(8, 8), atol=1e-6)
    assert (rows[0].diff() > 0).all()
    assert "a.safetensors: positions of 4 x 4 patches resized to 8 x 8, for images of 32 px" in caplog.text


@pytest.mark.parametrize(
    ("positions", "said"),
    [(None, "it has no position embedding"), (torch.zeros(17, 64), "of three dimensions"), (torch.zeros(1, 13, 64), "cannot be resized")],
)
def test_positions_that_are_not_of_a_square_are_named(positions: Tensor | None, said: str) -> None:
    state = {} if positions is None else {"position_embedding": positions}
    with pytest.raises(DataError, match=f"^a.pth: .*{said}"):
        fit_positions(state, model(image_size=32), source="a.pth")


def test_another_image_size_is_an_error_and_positions_are_not_interpolated() -> None:
    with pytest.raises(DataError, match=r"position_embedding has shape \(1, 17, 64\), small at 32 px needs \(1, 65, 64\)"):
        restore(model(image_size=32), model().state_dict(), source="backbone")


@pytest.mark.parametrize("new_head", [False, True])
def test_missing_and_left_over_tensors_are_errors(*, new_head: bool) -> None:
    state = model().state_dict()
    state["blocks.1.mlp.fc9.weight"] = state.pop("blocks.1.mlp.fc2.weight")
    message = r"1 tensors missing \(as blocks\.1\.mlp\.fc2\.weight\), 1 left over \(as blocks\.1\.mlp\.fc9\.weight\)"
    with pytest.raises(DataError, match=message):
        restore(model(), state, source="backbone", new_head=new_head)


def test_a_fused_model_takes_the_same_file_and_gives_the_same_logits() -> None:
    separate, fused = model(), model(qkv="fused")
    restore(fused, separate.state_dict(), source="backbone")
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), separate(images), rtol=0, atol=1e-6)


def test_the_size_of_files_is_told_before_writing_for_any_dtype(tmp_path: Path) -> None:
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.int32, torch.int64)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    state = {str(dtype): torch.zeros(3).to(dtype) for dtype in (*dtypes, *floats)}
    save_state(state, tmp_path / "w.safetensors", {})
    assert saved_bytes(state, {}) == sum(file.stat().st_size for file in tmp_path.iterdir())
