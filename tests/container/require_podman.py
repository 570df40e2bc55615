"""Stop `tox -e container` in one line where the image cannot be built."""

import shutil
import sys

missing = [tool for tool in ("podman", "runc", "debootstrap") if shutil.which(tool) is None]
if missing:
    sys.exit(
        f"tox -e container: {', '.join(missing)} not found; run as root: "
        "apt-get install --no-install-recommends podman buildah runc debootstrap netavark aardvark-dns uidmap"
    )
