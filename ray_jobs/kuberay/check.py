"""The last look at manifests before they go to a cluster: passes them on when nothing is left to fill in.

    kubectl kustomize OVERLAY | python ray_jobs/kuberay/check.py | kubectl apply -f -

Refused, with nothing on stdout and exit code 2: a value with REPLACE in it; an image that is not named by digest, unless it is
never pulled (then it is the one that was put on the nodes). Needs PyYAML alone.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

PINNED = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")
ADVICE = "set newName and digest in the overlay's image/kustomization.yaml"


def main() -> int:
    """Read manifests on stdin, write them to stdout unchanged."""
    text = sys.stdin.read()
    faults = [fault for document in yaml.safe_load_all(text) if document for fault in find_faults(document)]
    if not text.strip():
        faults = ["no manifests on stdin; did kubectl kustomize fail?"]
    for fault in faults:
        sys.stderr.write(f"check.py: {fault}\n")
    if not faults:
        sys.stdout.write(text)
    return 2 if faults else 0


def find_faults(document: dict[str, Any]) -> Iterator[str]:
    """Say what is wrong with one manifest, one line each: its kind, the key, the value, what to do."""
    for path, value in walk(document, document["kind"]):
        if isinstance(value, str) and "REPLACE" in value:
            yield f"{path}: {value!r} is not filled in; {ADVICE}"
        elif isinstance(value, dict) and isinstance(image := value.get("image"), str):
            never_pulled = value.get("imagePullPolicy") == "Never"
            if "REPLACE" not in image and not never_pulled and not PINNED.fullmatch(image):
                yield f"{path}.image: {image!r} is not pinned by a digest (NAME@sha256: and 64 hex digits); {ADVICE}"


def walk(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Each value with its path, such as RayJob.spec.entrypoint."""
    yield path, value
    if isinstance(value, dict):
        for key, below in value.items():
            yield from walk(below, f"{path}.{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from walk(below, f"{path}[{index}]")


if __name__ == "__main__":
    sys.exit(main())
