import pytest
import torch

from lowbit_vit.data.arrays import load_dataset
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.plan import NF4, Int8, Plan, Rule, only, uniform
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.run import load_backbone
from lowbit_vit.trial.scan_model import ScanModel

NF4_PLAIN = NF4(format="nf4", double_quantization=False)
INT8 = Int8(format="int8", threshold=6.0)


def test_a_block_is_converted_once_dropped_with_its_last_path_and_its_source_never_touched(cell: Trial, workspace: Workspace) -> None:
    source, _ = load_backbone(cell, workspace, load_dataset(workspace.data, cell.data.views))
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model = ScanModel(source, cell.plan)
    images = torch.zeros(2, 3, 8, 8)
    plans = [only([0], NF4_PLAIN, "fp32"), uniform(INT8, "fp32"), uniform(NF4_PLAIN, "fp32")]
    alone, int8, everywhere = (model.path(plan) for plan in plans)
    model.expect([alone, int8, everywhere])
    with torch.inference_mode():
        logits = model.model(alone, plans[0])(images)
        block = model.blocks(alone, 0, 1)[0]
        model.model(int8, plans[1])(images)
        assert model.blocks(everywhere, 0, 1)[0] is block
        model.release(everywhere)
        assert model.blocks(alone, 0, 1)[0] is block
        assert torch.equal(model.model(alone, plans[0])(images), logits)
        model.release(alone)
        assert model.blocks(alone, 0, 1)[0] is not block
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_a_path_names_every_linear_of_a_block(cell: Trial, workspace: Workspace) -> None:
    source, _ = load_backbone(cell, workspace, load_dataset(workspace.data, cell.data.views))
    plan = Plan(compute_dtype="fp32", rules=(Rule(pattern="blocks.1.mlp.fc2", weights=INT8),))
    assert ScanModel(source, plan).path(plan) == ("high high high high high high", "high high high high high int8-6")
    with pytest.raises(ConfigError, match=r"blocks\.7"):
        ScanModel(source, plan).path(only([7], INT8, "fp32"))
