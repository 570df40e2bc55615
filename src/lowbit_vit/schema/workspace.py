"""Where each stage's files lie, relative to one root. Stages share no other state."""

from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.schema.config import Study

# In the folder that a scan writes to: ids of the trials that it is at, which are to blame if it dies.
NOW = ".now"


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile below `root`.

    Attributes:
        root: the project.
        profile: its name.
        elsewhere: folder of records and report instead of reports/<profile>, such as a committed reference run.
    """

    root: Path
    profile: str
    elsewhere: Path | None = None

    @property
    def profile_file(self) -> Path:
        """The profile's YAML."""
        return self.root / "profiles" / f"{self.profile}.yaml"

    @property
    def data(self) -> Path:
        """Arrays of the decoded images and their manifest, made by the stage data."""
        return self.root / "data" / "prepared" / self.profile

    @property
    def checkpoints(self) -> Path:
        """High-precision weights with their cards, made by the stage backbone."""
        return self.root / "checkpoints" / self.profile

    @property
    def backbone(self) -> Path:
        """The backbone's safetensors file."""
        return self.checkpoints / "backbone.safetensors"

    def adapter(self, seed: int) -> Path:
        """Adapters and head alone, as trained in high precision on the backbone."""
        return self.checkpoints / f"adapter-seed{seed}.safetensors"

    def adapted(self, seed: int) -> Path:
        """The backbone with adapters trained in high precision and merged: what `ptq` trials quantize."""
        return self.checkpoints / f"adapted-seed{seed}.safetensors"

    @property
    def reports(self) -> Path:
        """Records, scores and plans, and what the stage report makes of them."""
        return self.elsewhere or self.root / "reports" / self.profile

    def records(self, study: Study) -> Path:
        """One study's `<trial_id>.json` and `<trial_id>.npz`."""
        return self.reports / "records" / study

    @property
    def sensitivity(self) -> Path:
        """The scores of blocks that `mixed` chooses from."""
        return self.reports / "sensitivity.json"

    @property
    def plans(self) -> Path:
        """The plans of the stage allocate, which `mixed` runs as well."""
        return self.reports / "plans.json"

    @property
    def estimates(self) -> Path:
        """Estimates of those scores without evaluations."""
        return self.reports / "estimates.json"
