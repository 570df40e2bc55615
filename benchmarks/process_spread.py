"""How far latencies are apart within a process and between processes: ViT-L/16, eager and as CUDA graphs, by the study's own trials.

    python benchmarks/process_spread.py IMAGES [--root FOLDER] [--seconds 400]
    python benchmarks/process_spread.py IMAGES --root FOLDER --seconds 0      the table alone, of the records that are there

IMAGES is a folder of images by class; 200 are enough. The backbone is trained on them for one epoch, since times need no better weights.
Six variants of `profiles/scratch.yaml` are measured in six processes each, in drawn rounds. What was not measured after `--seconds` is
left out: a row says how many processes it has.

Writes records/process_spread.json.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from lowbit_vit.schema.record import Latency, Record, read_records

HERE = Path(__file__).parent
RECORD = HERE / "records" / "process_spread.json"
SCRATCH = HERE.parent / "profiles" / "scratch.yaml"
NAME = "spread"
ARMS = ("fp16, flash", "NF4", "int8, threshold 6", "fp16, CUDA graph", "NF4, CUDA graph", "fp8")


def write_profile(images: Path, root: Path) -> None:
    """The scratch profile's trials on other images, with a backbone of one epoch and neither traces nor plans."""
    profile = yaml.safe_load(SCRATCH.read_text())
    profile |= {"name": NAME, "description": "latencies by process: the weights of one epoch, so no accuracy"}
    del profile["paper"]
    views = profile["data"]["views"]
    profile["data"] = {"source": "image_folder", "root": str(images.resolve()), "layout": "classes", "split_seed": 0}
    profile["data"] |= {"val_share": 0.1, "test_share": 0.4, "views": views}
    short = {"epochs": 1, "batch_size": 32}
    backbone = profile["backbone"]
    del backbone["teacher"]
    for recipe in ("drop_path", "small_images", "ema_decay", "compile", "cuda_graph"):
        backbone["training"].pop(recipe)
    backbone["training"] |= short | {"warmup_epochs": 0.5, "optimizer": "adamw", "augmentation": {"crop_scale": [0.5, 1.0], "flip": True}}
    profile["lora"]["training"] |= short
    profile["measurement"] |= {"trace": False, "invariance_images": 32, "energy_seconds": 1, "seconds": 20, "samples": 300}
    arms = {arm["label"]: arm for arm in profile["variants"]["arms"]}
    profile["variants"]["arms"] = [{key: value for key, value in arms[label].items() if key != "samples"} for label in ARMS]
    (root / "profiles").mkdir(parents=True, exist_ok=True)
    (root / "profiles" / f"{NAME}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))


def summary(records: list[Record]) -> list[dict[str, Any]]:
    """A row for each variant and batch size: medians by process, and what the host was like in each."""
    by: defaultdict[tuple[str, int], dict[int, Latency]] = defaultdict(dict)
    for record in records:
        for latency in record.measurement.latency if record.measurement is not None else ():
            by[record.trial.label, latency.batch_size][record.trial.process] = latency
    rows = []
    for (label, batch), processes in sorted(by.items(), key=lambda item: (ARMS.index(item[0][0]), item[0][1])):
        timed = [latency for _, latency in sorted(processes.items())]
        medians = [median(latency.samples_ms) for latency in timed]
        within = [float(np.percentile(latency.samples_ms, 95) / np.percentile(latency.samples_ms, 5)) for latency in timed]
        hosts = [latency.host for latency in timed if latency.host is not None]
        rows.append(
            {
                "variant": label,
                "batch_size": batch,
                "processes": len(timed),
                "p50_ms": [round(value, 3) for value in medians],
                "p95_over_p5_within": round(median(within), 3),
                "most_over_least_p50_between": round(max(medians) / min(medians), 3),
                "python_loop_ns": [host.python_loop_ns for host in hosts],
                "launch_us": [host.launch_us for host in hosts],
            }
        )
    return rows


def main() -> None:
    """Run the study, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--root", type=Path, default=Path("process-spread"))
    parser.add_argument("--seconds", type=float, default=400, help="of timing; 0: read what is there")
    asked = parser.parse_args()
    if asked.seconds:
        write_profile(asked.images, asked.root)
        command = [sys.executable, "-m", "lowbit_vit"]
        for verb in ("data", "backbone"):
            subprocess.run([*command, verb, NAME, "--root", asked.root], check=True)
        try:
            subprocess.run([*command, "variants", NAME, "--root", asked.root], check=True, timeout=asked.seconds)
        except subprocess.TimeoutExpired:
            print("the time is up; finished timings count", file=sys.stderr)
    records = read_records(asked.root / "reports" / NAME / "records" / "variants")
    facts = records[0].provenance.model_dump(include={"gpu", "driver", "cpu", "cpu_cores", "git_revision"}) if records[0].provenance else {}
    record = {"machine": facts, "rows": summary(records)}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
