"""The model card beside a file of weights, and which files of weights a profile has. Pure data: no torch."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.metrics import Accuracy
from lowbit_vit.schema.workspace import Workspace


class ModelCard(BaseModel):
    """What every card says. Those that the backbone stage writes say more: recipe, provenance, class names, teacher."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str = Field(description="backbone, adapter or adapted")
    profile: str
    seed: int
    made: str = Field(description="how the weights were made, in one sentence")
    licence: dict[str, str] = Field(description="of the images, of the weights that these started from, of a teacher")
    data: str = Field(description="what the images are")
    content_sha256: str = Field(description="of the decoded images and labels")
    splits: dict[str, int] = Field(description="images of each split")
    accuracy: dict[str, Accuracy] | None = Field(description="of val and test in fp32 (on a card TF32); null: the head is untrained")
    sha256: str = Field(description="of the file of weights")


def weight_files(profile: Profile, workspace: Workspace) -> list[Path]:
    """Every file of weights that `lowbit-vit backbone` makes for the profile, the backbone first."""
    files = [workspace.backbone]
    for seed in () if profile.lora is None else profile.adapted_seeds:
        files += [workspace.adapter(seed), workspace.adapted(seed)]
    return files
