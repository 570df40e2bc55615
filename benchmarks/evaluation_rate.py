"""How fast all test images are evaluated, against what the model alone allows: bf16 in a CUDA graph, the batches of the profile.

    python benchmarks/evaluation_rate.py PROFILE [--root FOLDER]   (after lowbit-vit data; needs a CUDA GPU)

The model is the profile's with random weights. Its side of the ratio is images a second by the median latency of the captured graph at
that batch size; the other is images a second of `trial.evaluate.predict`, from arrays on disk to logits on the host, the capture left out.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from lowbit_vit.data.arrays import load_dataset
from lowbit_vit.errors import Unavailable
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.precision import apply_plan
from lowbit_vit.model.vit import VisionTransformer, architecture
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.evaluate import Forward, predict
from lowbit_vit.trial.measure import call_ms

RECORD = Path(__file__).parent / "records" / "evaluation_rate.json"
ROUNDS, CALLS = 3, 50
ASKED = 0.6


def main() -> None:
    """Measure both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise Unavailable("benchmarks/evaluation_rate.py needs CUDA")
    workspace = Workspace(root=arguments.root.resolve(), profile=arguments.profile)
    profile = load_profile(workspace.profile_file)
    dataset = load_dataset(workspace.data, profile.data.views)
    images = dataset.eval_views["test"]
    batch = profile.evaluation.batch_size
    arch = architecture(profile.backbone.architecture, profile.data.views.image_size)
    torch.manual_seed(0)
    model = VisionTransformer(arch, num_classes=dataset.num_classes, attention="flash", qkv="separate").to("cuda")
    apply_plan(model, Plan(compute_dtype="bf16"))
    example = (
        torch.randn(batch, 3, arch.image_size, arch.image_size, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    )
    replay = prepare(model.eval(), "cuda_graph", example)
    latency = median(call_ms("cuda", replay, example) for _ in range(CALLS))

    def captured(_: Tensor) -> Forward:
        return replay

    evaluated = partial(
        predict, captured, images, profile.data.views, batch_size=batch, device="cuda", dtype=torch.bfloat16, title="evaluate"
    )
    rates = []
    for _ in range(ROUNDS):
        started = perf_counter()
        evaluated()
        rates.append(len(images.labels) / (perf_counter() - started))
    allowed = batch / latency * 1000
    facts = provenance("python benchmarks/evaluation_rate.py")
    record = {
        "machine": {
            "cpu": facts.cpu,
            "cores": facts.cpu_cores,
            "gpu": facts.gpu,
            "driver": facts.driver,
            "git_revision": facts.git_revision,
        },
        "images": len(images.labels),
        "batch_size": batch,
        "graph_ms": round(latency, 3),
        "images_per_s_that_the_graph_allows": round(allowed, 1),
        "images_per_s_evaluated": [round(rate, 1) for rate in rates],
        "share": round(median(rates) / allowed, 3),
        "asked_for_at_least": ASKED,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
