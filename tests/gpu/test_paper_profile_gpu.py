"""The paper profile as it is, from the download of its weights to a cell of each study; only the weights' values are random.

The checkpoint has torchvision's exact layout and comes from a server on the loopback. Adapters are trained for one epoch, and few
latencies are taken; all else is the profile's. Images: Flowers-102 as 256-px copies, where this machine has them.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models import vit_l_16

import synthetic
from loopback import serving
from lowbit_vit.data.download import fetch
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.data.remote_files import WEIGHTS, RemoteFile
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.config import Profile, Study, load_profile
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.predictions import read_predictions
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.trial.run import record_trial

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"), pytest.mark.timeout(600)]

PAPER = load_profile(Path(__file__).parents[2] / "profiles" / "paper.yaml")
CHOSEN: dict[Study, str] = {"variants": "4-bit + SDPA", "sensitivity": "nf4, only block 23", "mixed": "first+last, k=2"}


@pytest.fixture(scope="module")
def served() -> Iterator[RemoteFile]:
    """What the server has: torchvision's file with other numbers, drawn here, for its own drawing takes a CPU long."""
    with torch.device("meta"):
        layout = vit_l_16(weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in layout.items()}
    state |= {name: torch.ones(tensor.shape) for name, tensor in layout.items() if tensor.ndim == 1 and name.endswith("weight")}
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    with serving(content.getvalue()) as server:
        url = f"{server.address}/vit_l_16-{digest[:8]}.pth"
        yield RemoteFile(
            name=Path(url).name, urls=(url,), licence=WEIGHTS["vit_l_16"].licence, size=len(content.getbuffer()), sha256=digest[:8]
        )


@pytest.fixture(scope="module")
def prepared(served: RemoteFile, flowers_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Workspace]:
    workspace = Workspace(root=tmp_path_factory.mktemp("paper"), profile=PAPER.name)
    checkpoint = fetch(served, workspace.root / "data" / "raw")
    assert PAPER.lora is not None
    short = PAPER.lora.training.model_copy(update={"epochs": 1, "warmup_epochs": 0.5, "batch_size": 120})
    changes = {
        "data": PAPER.data.model_copy(update={"root": str(flowers_root), "images": "256-px copies"}),
        "backbone": PAPER.backbone.model_copy(
            update={"checkpoint": str(checkpoint.relative_to(workspace.root)), "checkpoint_sha256": served.sha256}
        ),
        "lora": PAPER.lora.model_copy(update={"training": short}),
        "measurement": PAPER.measurement.model_copy(
            update={"samples": 20, "invariance_images": 32, "exclusive": "waived", "energy_seconds": None}
        ),
    }
    profile = PAPER.model_copy(update=changes)
    prepare_dataset(profile.data, folder=workspace.data, root=workspace.root, workers=8)
    make_backbone(profile, workspace)
    return profile, workspace


@pytest.mark.parametrize("study", CHOSEN)
def test_a_cell_of_each_study_runs_from_the_downloaded_checkpoint(study: Study, prepared: tuple[Profile, Workspace]) -> None:
    profile, workspace = prepared
    blocks = tuple(synthetic.block_score(index, (1.0,)) for index in range(profile.backbone.depth))
    scores = SensitivityScores(
        profile=profile.name, backbone_sha256="0" * 64, weights=profile.mixed.weights, direction="only", images=1, blocks=blocks
    )
    trial = next(trial for trial in cells(profile, study, scores=[scores]) if trial.label.startswith(CHOSEN[study]))
    record = record_trial(trial, workspace, workspace.records(study))
    assert (record.status, record.reason) == ("success", None)
    assert record.model is not None
    assert record.evaluation is not None
    assert record.model.layers.linears == 144
    assert len(read_predictions(workspace.records(study) / f"{trial.trial_id}.npz", record).right) == 6149
    low_bit = {"variants": 144, "sensitivity": 6, "mixed": 22 * 6}[study]
    assert record.model.layers.by_format == {"nf4": low_bit} | ({"high": 144 - low_bit} if low_bit < 144 else {})
    assert (record.measurement is not None) == (trial.measurement is not None)
