"""Where each stage's files lie, relative to one root. The only memory between stages is in these files.

data/prepared/<profile>/          arrays of the decoded images and their manifest           (stage data)
checkpoints/<profile>/            backbone.safetensors + .json, adapter-seed<N>, adapted-seed<N> (stage backbone)
reports/<profile>/records/<study>/<trial_id>.json + .npz                                     (stages of the studies)
reports/<profile>/sensitivity.json                                                           (stage sensitivity)
reports/<profile>/estimates.json                                                             (stage estimate)
reports/<profile>/plans.json                                                                 (stage allocate)
reports/<profile>/tables, figures, report.html, metrics.json                                 (stage report)
"""

from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.schema.config import Study

# In the folder that a scan writes to: ids of the trials that it is at. Who finds it dead reads whom to blame.
NOW = ".now"


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile below `root`.

    Attributes:
        root: the project.
        profile: its name.
        elsewhere: records and report are here instead of reports/<profile>: a committed reference run, say.
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
        """Decoded arrays and manifest."""
        return self.root / "data" / "prepared" / self.profile

    @property
    def checkpoints(self) -> Path:
        """High-precision weights."""
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
        """Everything the profile produced for people."""
        return self.elsewhere or self.root / "reports" / self.profile

    def records(self, study: Study) -> Path:
        """One study's records."""
        return self.reports / "records" / study

    @property
    def sensitivity(self) -> Path:
        """The scores that `mixed` chooses from."""
        return self.reports / "sensitivity.json"

    @property
    def plans(self) -> Path:
        """The plans that `mixed` runs beside its own."""
        return self.reports / "plans.json"

    @property
    def estimates(self) -> Path:
        """Cheap estimates of the same."""
        return self.reports / "estimates.json"
