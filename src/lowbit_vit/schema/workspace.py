"""Where each stage's files lie, relative to one root. Stages share no other state."""

import os
from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import STUDIES, Study

# In the folder that a scan writes to: ids of the trials that it is at, which are to blame if it dies.
NOW = ".now"
# In the folder that a trial writes to, and in the reports' (no output of DVC): what it trained on quantized weights, for its repeats.
TRAINED = "trained"


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

    def require_outputs(self) -> None:
        """Look at the folders that DVC's stages fill before anything is computed: DVC itself does so when a stage has ended.

        Raises:
            DataError: one is a link or a file, or nothing can be written to it; names it.
        """
        for output in (self.data, self.checkpoints, *map(self.records, STUDIES)):
            below = [place for place in (output, *output.parents) if self.root in place.parents]
            for place in reversed(below):
                if place.is_symlink():
                    cure = "make it a folder (to use another disk, move the whole project there, or its cache: dvc cache dir)"
                    raise DataError(f"{place}: is a link, and DVC keeps no outputs outside of the project; {cure}")
                if place.exists() and not place.is_dir():
                    raise DataError(f"{place}: is no folder, and a stage writes below it; move it away")
            there = next(place for place in (*below, self.root) if place.exists())
            if not os.access(there, os.W_OK | os.X_OK):
                raise DataError(f"{there}: cannot be written to, and a stage writes below it; give this user the right to")
