"""How fast images reach the model: arrays decoded once, against `DataLoader(ImageFolder)` with torchvision's transforms.

    python benchmarks/input_pipeline.py FOLDER     (FOLDER holds flowers-102/, as 256-px copies or originals)
    python benchmarks/input_pipeline.py FOLDER --device cuda --workers 16 --batch 128

Both sides read the same files, give the same views (224 px; evaluation: resize 242, centre crop; training: random resized crop
and flip), end in normalized fp32 batches on the device, and have the same cores. The arms alternate, so that a busy spell of the
machine meets both; the ratio of each round is taken, and the median reported with the least and the greatest.

Ratios that are asked for, with 2 workers on 2 cores: evaluation >= 5, training >= 1.3, decoding <= 1.3 times a plain pass that only
decodes and resizes; on a GPU against 16 workers: >= 20.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lowbit_vit.data.arrays import Dataset
from lowbit_vit.data.batches import eval_batches, place, train_batches
from lowbit_vit.data.decode import View, decode_file, make_view
from lowbit_vit.data.flowers import list_images
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.schema.config import Augmentation, FlowersData, Views

VIEWS = Views(image_size=224, eval_resize=242, train_resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
AUGMENTATION = Augmentation(crop_scale=(0.3, 1.0), flip=True)
RECORDS = Path(__file__).parent / "records"

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Place:
    """Where batches end, in which size, and with how many processes or threads on the way."""

    device: str
    batch: int
    workers: int


def main() -> None:
    """Run all three comparisons and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds flowers-102/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    where = Place(arguments.device, arguments.batch, arguments.workers)
    torch.set_num_threads(where.workers)
    with tempfile.TemporaryDirectory() as scratch:
        config = flowers_config(arguments.folder)
        decode, data = measure_decode(config, Path(scratch), arguments.rounds, where.workers)
        train, test = link_image_folders(config, Path(scratch))
        results = {
            "decode seconds / plain pass seconds": decode,
            "evaluation images/s / DataLoader images/s": measure_evaluation(data, test, arguments.rounds, where),
            "training images/s / DataLoader images/s": measure_training(data, train, arguments.rounds, where),
        }
    record = {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if where.device == "cuda" else "cpu",
        "batch": where.batch,
        "workers": where.workers,
        "images": config.images,
        "views": VIEWS.model_dump(),
        "results": results,
    }
    RECORDS.mkdir(exist_ok=True)
    name = "input_pipeline" if where.device == "cpu" else "input_pipeline-cuda"
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, result in results.items():
        print(f"{name}: {result['median_ratio']:.2f} ({result['least_ratio']:.2f} to {result['greatest_ratio']:.2f})")


def measure_decode(config: FlowersData, scratch: Path, rounds: int, workers: int) -> tuple[dict[str, float], Dataset]:
    """Seconds of the data stage, hashing and writing included, over those of the same processes only decoding and resizing."""
    ours, plain = [], []
    for _ in range(rounds):
        shutil.rmtree(scratch / "prepared", ignore_errors=True)
        plain.append(seconds(lambda: plain_pass(config, workers)))
        ours.append(seconds(lambda: prepare_dataset(config, folder=scratch / "prepared" / "flowers", root=Path(), workers=workers)))
    data = prepare_dataset(config, folder=scratch / "prepared" / "flowers", root=Path(), workers=workers)
    return summary("seconds", ours, plain), data


def plain_pass(config: FlowersData, workers: int) -> None:
    """Decode every image once, make its views, and drop them."""
    evaluation, training = View(VIEWS.eval_resize, VIEWS.image_size), View(VIEWS.train_resize, VIEWS.train_resize)
    calls = []
    for split, items in list_images(config, Path()).splits.items():
        paths = [item.pixels for item in items if isinstance(item.pixels, Path)]
        views = [evaluation] if split == "test" else [evaluation, training]
        calls += [(paths[first : first + 32], views) for first in range(0, len(paths), 32)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(decode_and_drop, *zip(*calls, strict=True)))


def decode_and_drop(paths: list[Path], views: list[View]) -> None:
    """One chunk of the plain pass."""
    for path in paths:
        image = decode_file(path.read_bytes())
        for view in views:
            make_view(image, view)


def measure_evaluation(data: Dataset, folder: Path, rounds: int, where: Place) -> dict[str, float]:
    """Images a second over the test split."""
    normalize = transforms.Normalize(VIEWS.mean, VIEWS.std)
    steps = [transforms.Resize(VIEWS.eval_resize), transforms.CenterCrop(VIEWS.image_size), transforms.ToTensor(), normalize]
    loader = a_loader(folder, steps, where, shuffle=False)
    images = data.eval_views["test"]
    return compare(lambda: eval_batches(images, VIEWS, batch_size=where.batch, device=where.device), loader, rounds, where)


def measure_training(data: Dataset, folder: Path, rounds: int, where: Place) -> dict[str, float]:
    """Images a second over train and val."""
    normalize = transforms.Normalize(VIEWS.mean, VIEWS.std)
    crop = transforms.RandomResizedCrop(VIEWS.image_size, AUGMENTATION.crop_scale, AUGMENTATION.crop_ratio)
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
    loader = a_loader(folder, steps, where, shuffle=True)
    placed = place(list(data.train_views.values()), where.device)

    def epoch() -> Batches:
        number = random.randrange(100)
        return train_batches(placed, VIEWS, AUGMENTATION, batch_size=where.batch, seed=0, epoch=number, device=where.device)

    return compare(epoch, loader, rounds, where)


def a_loader(folder: Path, steps: list[Any], where: Place, *, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    """The usual way; batches for a GPU are pinned."""
    images = ImageFolder(folder, transforms.Compose(steps))
    return DataLoader(images, batch_size=where.batch, num_workers=where.workers, pin_memory=where.device == "cuda", shuffle=shuffle)


def compare(ours: Callable[[], Batches], loader: DataLoader[tuple[Tensor, Tensor]], rounds: int, where: Place) -> dict[str, float]:
    """Images a second of both arms, in turn. All files are in the page cache: the data stage has just read and written them."""

    def theirs() -> Batches:
        return ((images.to(where.device, non_blocking=True), labels.to(where.device)) for images, labels in loader)

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    if where.device == "cuda":
        sum(len(labels) for _, labels in ours())  # the first batches load kernels
    for _ in range(rounds):
        for name, batches in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            count = sum(len(labels) for _, labels in batches())
            if where.device == "cuda":
                torch.cuda.synchronize()
            rates[name].append(count / (time.perf_counter() - start))
    return summary("images_per_s", rates["ours"], rates["theirs"])


def link_image_folders(config: FlowersData, scratch: Path) -> tuple[Path, Path]:
    """The same files as torchvision's ImageFolder wants them: train (with val) and test, one folder a class."""
    source = list_images(config, Path())
    for split, items in source.splits.items():
        for item in items:
            assert isinstance(item.pixels, Path)
            link = scratch / ("test" if split == "test" else "train") / f"{item.label:03d}" / item.id
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(item.pixels)
    return scratch / "train", scratch / "test"


def flowers_config(folder: Path) -> FlowersData:
    """The folder's configuration; what the images are is read off the first one."""
    with Image.open(folder / "flowers-102" / "jpg" / "image_00001.jpg") as image:
        copies = min(image.size) == 256
    return FlowersData(source="flowers102", views=VIEWS, root=str(folder.resolve()), images="256-px copies" if copies else "original")


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summary(unit: str, ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Medians of both arms, and of the ratios of each round."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        f"ours_{unit}": round(statistics.median(ours), 2),
        f"theirs_{unit}": round(statistics.median(theirs), 2),
        "median_ratio": round(statistics.median(ratios), 3),
        "least_ratio": round(min(ratios), 3),
        "greatest_ratio": round(max(ratios), 3),
        "rounds": len(ratios),
    }


def machine() -> dict[str, str | float | None]:
    """What the numbers hold for; a load average above the number of cores says that the machine was shared."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy")}
    cpu = models[0] if models else platform.processor()
    facts = {"cpu": cpu, "cores": os.cpu_count(), "load_average": round(os.getloadavg()[2], 1), "python": platform.python_version()}
    return {**facts, **packages}


if __name__ == "__main__":
    main()
