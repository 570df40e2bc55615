"""Weights survive the disk bit for bit, damage is noticed, and a file that could run code is never run."""

import hashlib
import io
import json
import pickle
import re
import resource
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from fuzzing import EXAMPLES
from lowbit_vit.errors import DataError
from lowbit_vit.model.checkpoint import (
    fit_positions,
    from_torchvision,
    load_state,
    load_torchvision,
    native_image_size,
    require_finite,
    restore,
    save_state,
    saved_bytes,
)
from lowbit_vit.model.vit import Architecture, VisionTransformer
from lowbit_vit.schema.config import QkvLayout, SmallVit

SMALL = Architecture(name="small", image_size=16, patch_size=4, depth=2, heads=4, width=64, mlp_width=128)
SMALL_VIT = SmallVit(patch_size=4, depth=2, heads=4, width=64, mlp_width=128)
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


def renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def new_head(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.replace("heads.head", name): tensor for key, tensor in state.items()}


# A torchvision ViT as people save it.
WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "model.heads = Linear": lambda state: new_head(state, "heads"),
    "heads = Sequential(Dropout, Linear)": lambda state: new_head(state, "heads.1"),
    "no head": lambda state: {name: tensor for name, tensor in state.items() if "heads" not in name},
    "a head that is not finite": lambda state: {**state, "heads.head.bias": torch.full((2,), torch.nan)},
    "DistributedDataParallel": lambda state: renamed(state, "module."),
    "torch.compile": lambda state: renamed(state, "_orig_mod."),
    "both": lambda state: renamed(state, "_orig_mod.module."),
    "compiled blocks": lambda state: {re.sub(r"(layer_\d+\.)", r"\1_orig_mod.", name): tensor for name, tensor in state.items()},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(9), **renamed(state, "module.")},
    "a dict": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{}]}},
    "torchvision's references": lambda state: {"model": state, "epoch": 3, "args": Namespace(lr=0.1, data_path="/data", amp=None)},
    "Lightning": lambda state: {"state_dict": renamed(state, "model."), "epoch": 3, "loops": {}, "hparams": {"lr": 0.1}},
    "a model of one's own": lambda state: {**renamed(new_head(state, "heads"), "backbone."), "fc.weight": torch.zeros(2, 64)},
    "an EMA alone": lambda state: {"state_dict": None, "ema_state": {"module": state, "decay": 0.99}},
    "fp16": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    "an OrderedDict": OrderedDict,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_torchvision_vit_is_read_as_people_save_it(tmp_path: Path, kind: str) -> None:
    state, _, _ = torchvision_state()
    path = tmp_path / "vit.pth"
    torch.save(WRAPPED[kind](state), path)
    read = load_torchvision(path, digest(path))
    expected = from_torchvision({name: tensor.half() for name, tensor in state.items()} if kind == "fp16" else state)
    encoder = {name for name in expected if not name.startswith("head.")}
    assert encoder == {name for name in read if not name.startswith("head.")}
    assert all(torch.equal(read[name], expected[name]) for name in encoder)
    assert native_image_size(read, SMALL_VIT, source="vit.pth", new_head=True) == 16


class Strange:
    """A class that a restricted unpickler knows nothing of."""


NORM, QKV = "encoder.ln.weight", "encoder.layers.encoder_layer_0.self_attention.in_proj_bias"
REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "NaN": (lambda state: {**state, NORM: state[NORM] * torch.nan}, "'encoder.ln.weight' has 64 NaN or infinite values of 64"),
    "infinity": (lambda state: {**state, NORM: state[NORM] / 0}, "'encoder.ln.weight' has 64 NaN or infinite values of 64"),
    "too large": (lambda state: {**state, NORM: state[NORM].double() * 1e300}, "'encoder.ln.weight' has"),
    "int32": (lambda state: {**state, NORM: state[NORM].int()}, "'encoder.ln.weight' is strided int32; weights are strided float32"),
    "complex": (lambda state: {**state, NORM: state[NORM].to(torch.complex64)}, "'encoder.ln.weight' is strided complex64"),
    "float8": (lambda state: {**state, NORM: state[NORM].to(torch.float8_e4m3fn)}, "'encoder.ln.weight' is strided float8_e4m3fn"),
    "sparse": (lambda state: {**state, NORM: state[NORM].to_sparse()}, "'encoder.ln.weight' is sparse_coo float32"),
    "meta": (lambda state: {**state, NORM: state[NORM].to("meta")}, "'encoder.ln.weight' is strided float32"),
    "no rows": (lambda state: {**state, QKV: torch.tensor(1.0)}, f"{QKV} of shape () is not q, k and v in one"),
    "cut rows": (lambda state: {**state, QKV: state[QKV][:-1]}, f"{QKV} of shape (191,) is not q, k and v in one"),
    "timm": (lambda state: {"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}, "'cls_token' is a name of timm"),
    "timm, wrapped": (lambda state: {"state_dict_ema": {"module.patch_embed.proj.weight": torch.zeros(1)}}, "weight' is a name of timm"),
    "transformers": (lambda state: {"vit.embeddings.cls_token": torch.zeros(1)}, "'vit.embeddings.cls_token' is a name of transformers"),
    "open_clip": (lambda state: {"visual.class_embedding": torch.zeros(1)}, "'visual.class_embedding' is a name of open_clip"),
    "two models": (lambda state: {"model": state, "model_ema": state}, "more than one model, below 'model.' and 'model_ema.'; save the"),
    "teacher and student": (lambda state: renamed(state, "student.") | renamed(state, "teacher."), "below 'student.' and 'teacher.'"),
    "a register": (lambda state: {**state, "encoder.registers": torch.zeros(1)}, "entry 'encoder.registers' is not one of"),
    "an escape code": (lambda state: {"\x1b[1mhello": torch.zeros(1)}, r"entry '\x1b[1mhello' is not one of"),
    "a whole model": (
        lambda state: torch.nn.Linear(1, 1),
        "(it has torch.nn.modules.linear.Linear); save the model's state_dict() by itself",
    ),
    "a class": (lambda state: {**state, "extra": Strange()}, "Strange); save the model's state_dict() by itself"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_vit_of_finite_floats_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    path = tmp_path / "vit.pth"
    torch.save(make(torchvision_state()[0]), path)
    with pytest.raises(DataError) as raised:
        load_torchvision(path, digest(path))
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position_embedding": torch.zeros(1, 14, 64)}, r"positions of shape (1, 14, 64) are not those of a square of patches"),
        ({"position_embedding": torch.zeros(1, 1, 64)}, r"positions of shape (1, 1, 64) are not those of a square of patches"),
        ({"position_embedding": torch.zeros(17, 64)}, "positions of shape (17, 64) are not those"),
        ({"norm.weight": torch.zeros(65)}, "norm.weight has shape (65,), small at 16 px needs (64,)"),
        ({"norm.weight": None}, "1 tensors missing (as norm.weight)"),
        ({"head.weight": torch.tensor(1.0)}, "head.weight has shape (), small at 16 px needs (1, 64)"),
        ({"head.weight": None}, "1 tensors missing (as head.weight)"),
    ],
)
def test_a_state_of_another_model_is_named_before_there_are_images(change: dict[str, Tensor | None], said: str) -> None:
    state = {name: tensor for name, tensor in {**model().state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(DataError, match=f"^w: .*{re.escape(said)}"):
        native_image_size(state, SMALL_VIT, source="w", new_head=False)


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    arch = Architecture(**{**vars(SMALL), "depth": 1})
    state = VisionTransformer(arch, num_classes=2, attention="math", qkv="separate").state_dict()
    save_state(
        {name: tensor[:1] for name, tensor in state.items()}, folder / "w.safetensors", {"views": {"mean": [0.5]}, "names": ["a", "b"]}
    )
    theirs = {name: tensor[:3] for name, tensor in torchvision_state()[0].items() if not re.search("layer_1|ln_|mlp", name)}
    torch.save({"model": theirs, "epoch": 3, "args": Namespace(lr=0.1)}, folder / "w.pth", pickle_protocol=2)
    torch.save(theirs, folder / "old.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mutated(content: bytes, random: Random) -> bytes:
    """A few bytes changed, most of them where a header or a pickle is; or cut, doubled or filled up."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        place = random.randrange(len(changed)) if random.random() < 0.4 else random.randrange(min(len(changed), 2_000))
        changed[place] = random.choice((random.randrange(256), changed[place] ^ 1 << random.randrange(8), 0, 255))
    start, end = sorted(random.randrange(len(changed)) for _ in range(2))
    if (how := random.random()) < 0.1:
        del changed[start:end]
    elif how < 0.2:
        changed[start:start] = changed[start:end]
    return bytes(changed)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["w.pth", "old.pth", "w.safetensors", "w.json", "names"])
def test_a_mutated_file_is_read_or_is_one_line(tmp_path: Path, sound_files: dict[str, bytes], kind: str) -> None:
    random, refusals, state_of_few = Random(kind), [], torch.load(io.BytesIO(sound_files["old.pth"]))
    for _ in range(EXAMPLES // 5):
        for name, content in sound_files.items():
            (tmp_path / name).write_bytes(content)
        path = tmp_path / kind if kind.endswith(".pth") else tmp_path / "w.safetensors"
        if kind == "names":
            torch.save(mixed_up(state_of_few, random), path := tmp_path / "w.pth")
        else:
            (tmp_path / kind).write_bytes(mutated(sound_files[kind], random))
        if kind == "w.safetensors":
            path.with_suffix(".json").write_text(json.dumps({"sha256": digest(path)}))
        try:
            state = load_torchvision(path, digest(path)) if path.suffix == ".pth" else load_state(path)[0]
            require_finite(state, path)
            native_image_size(state, SMALL_VIT, source=str(path), new_head=random.random() < 0.5)
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert [message for message in refusals if not (message.startswith(str(tmp_path)) and message.isprintable())] == []


def mixed_up(state: dict[str, Tensor], random: Random) -> Any:
    """Entries that are missing, of another name, shape, dtype or kind, and dicts around them."""
    others: tuple[Any, ...] = (
        None,
        3,
        [1],
        "text",
        torch.tensor(1),
        torch.zeros(0),
        torch.zeros(2, 2).to_sparse(),
        torch.ones(3, 64).int(),
        {},
        Namespace(a=1),
    )
    changed: dict[Any, Any] = dict(state)
    for name in random.sample(sorted(state), random.randrange(4)):
        changed[random.choice((name, f"module.{name}", name.upper(), 7, name[1:], f"{name}.\udcff"))] = changed.pop(name)
        changed[name if random.random() < 0.5 else "x"] = random.choice(others)
    for key in random.choices(("model", "state_dict", "class_token", 0, "\x1b[1m"), k=random.randrange(6)):
        changed = {key: changed, "epoch": random.choice(others)}
    if random.random() < 0.1:
        changed["itself"] = changed
    return changed if random.random() < 0.95 else random.choice(others)


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
