"""The manifests are what Kubernetes and KubeRay accept, and say what the rest of the project says.

No cluster is needed: kustomize builds every overlay, Kubernetes' own schemas check all that they know, and a list of KubeRay's
fields (kuberay_fields.json) checks the rest, field by field.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "ray_jobs" / "kuberay"
FIELDS = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())
OVERLAYS = sorted(
    path.parent.relative_to(KUBERAY / "overlays").as_posix() for path in (KUBERAY / "overlays").glob("*/*/kustomization.yaml")
)
BUILT = [name for name in OVERLAYS if not name.endswith("/image")]
KUBERNETES = "1.30.0"  # the oldest whose schema we ask; newer ones accept what it accepts
SCALARS: dict[str, tuple[type, ...]] = {"string": (str,), "boolean": (bool,), "integer": (int,), "number": (int, float)}

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="needs kubectl (any since 1.21 has kustomize): https://kubernetes.io/docs/tasks/tools/"
)


@cache
def build(overlay: str) -> str:
    done = subprocess.run(["kubectl", "kustomize", KUBERAY / "overlays" / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(build(overlay)))


def one(overlay: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in manifests(overlay) if document["kind"] == kind]
    return found


def cluster_specs(overlay: str) -> Iterator[dict[str, Any]]:
    for document in manifests(overlay):
        if document["kind"] == "RayCluster":
            yield document["spec"]
        elif document["kind"] == "RayJob":
            yield document["spec"]["rayClusterSpec"]


def pod_templates(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in manifests(overlay):
        if document["kind"] == "Job":
            yield "prepare", document["spec"]["template"]
        if document["kind"] == "RayJob":
            yield "submitter", document["spec"]["submitterPodTemplate"]
    for spec in cluster_specs(overlay):
        yield "head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


# ------------------------------------------------------------------------------------------------------- who accepts them


@pytest.mark.parametrize("overlay", BUILT)
def test_kubernetes_accepts_every_manifest_and_every_pod_template(overlay: str) -> None:
    for document in manifests(overlay):
        if document["apiVersion"] != "ray.io/v1":
            validate(document)
    for name, template in pod_templates(overlay):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}, "spec": template["spec"]}
        validate(pod)
        assert len(template["spec"]["containers"]) == 1, name


def test_the_check_of_pods_finds_a_misspelt_field() -> None:
    container = {"name": "x", "image": "x", "securityContext": {"readOnlyRootFileSystem": True}}
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}})


@pytest.mark.parametrize("overlay", [name for name in BUILT if not name.endswith("/prepare")])
def test_kuberay_knows_every_field_and_its_type(overlay: str) -> None:
    ours = [document for document in manifests(overlay) if document["apiVersion"] == "ray.io/v1"]
    assert ours
    for document in ours:
        assert list(unknown(document, FIELDS["kinds"][document["kind"]], document["kind"])) == []


def unknown(value: dict[str, Any], fields: dict[str, str], path: str) -> Iterator[str]:
    for key, below in value.items():
        if key not in fields:
            yield f"{path}.{key}: no such field in {FIELDS['version']}"
        else:
            yield from mistyped(below, fields[key], f"{path}.{key}")


def mistyped(value: Any, kind: str, path: str) -> Iterator[str]:
    if kind.endswith("[]"):
        for index, item in enumerate(value):
            yield from mistyped(item, kind.removesuffix("[]"), f"{path}[{index}]")
    elif kind in FIELDS["types"]:
        yield from unknown(value, FIELDS["types"][kind], path)
    elif kind in SCALARS:
        if not isinstance(value, SCALARS[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
            yield f"{path}: {value!r} is not a {kind}"
    elif kind == "strings":
        yield from (f"{path}.{key}: {below!r} is not a string" for key, below in value.items() if not isinstance(below, str))
    elif "|" in kind:
        if value not in kind.split("|"):
            yield f"{path}: {value!r} is none of {kind}"
    elif kind not in ("PodTemplateSpec", "ObjectMeta"):  # those are Kubernetes' own
        yield f"{path}: kuberay_fields.json does not say what {kind} is"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"spec": {"rayVersionn": "2.60.0"}}, "RayCluster.spec.rayVersionn: no such field"),
        ({"spec": {"headGroupSpec": {"rayStartParams": {"num-cpus": 0}}}}, "num-cpus: 0 is not a string"),
        ({"spec": {"workerGroupSpecs": [{"replicas": "4"}]}}, "RayCluster.spec.workerGroupSpecs[0].replicas: '4' is not a integer"),
        ({"spec": {"authOptions": {"mode": "tokn"}}}, "'tokn' is none of disabled|token"),
        ({"spec": {"autoscalerOptions": {}}}, "does not say what other is"),
    ],
)
def test_the_check_of_fields_finds_what_is_wrong(wrong: dict[str, Any], said: str) -> None:
    (found,) = unknown(wrong, FIELDS["kinds"]["RayCluster"], "RayCluster")
    assert said in found


# ---------------------------------------------------------------------------------------------- what else the project says


@pytest.mark.parametrize("overlay", BUILT)
def test_the_ray_version_is_the_locks(overlay: str) -> None:
    lock = (ROOT / "docker" / "requirements.lock").read_text()
    locked = re.findall(r"^ray==(\S+)", lock, re.MULTILINE)
    wanted = re.findall(r'"ray\[[\w,]+\]>=(\d+)\.(\d+),<(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert len(locked) == 1
    assert wanted
    ((least_major, least_minor, below),) = set(wanted)
    assert (int(least_major), int(least_minor)) <= tuple(map(int, locked[0].split(".")[:2])) < (int(below), 0)
    assert {spec["rayVersion"] for spec in cluster_specs(overlay)} <= set(locked)


@pytest.mark.parametrize("overlay", BUILT)
def test_every_pod_runs_as_the_images_user_and_locked_down(overlay: str) -> None:
    (uid,) = set(re.findall(r"^USER (\d+):\1$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE))
    for name, template in pod_templates(overlay):
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (int(uid), True), name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == locked, name
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}, name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", [name for name in BUILT if not name.endswith("/prepare")])
def test_ray_runs_with_a_token_from_the_secret_and_is_not_published(overlay: str) -> None:
    for name, template in pod_templates(overlay):
        env = {variable["name"]: variable for variable in template["spec"]["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token", name
        assert env["RAY_AUTH_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "lowbit-vit-ray-token", "key": "auth_token"}}, name
    for spec in cluster_specs(overlay):
        assert spec["authOptions"] == {"mode": "token", "secretName": "lowbit-vit-ray-token"}
        assert (spec["headGroupSpec"]["serviceType"], spec["headGroupSpec"]["enableIngress"]) == ("ClusterIP", False)
    policy = one(overlay, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    selected = policy["podSelector"]["matchLabels"].items()
    assert all(selected <= template["metadata"]["labels"].items() for _, template in pod_templates(overlay))


@pytest.mark.parametrize("overlay", [name for name in BUILT if not name.endswith("/prepare")])
def test_the_head_runs_no_trials_and_each_worker_has_one_place_for_timing(overlay: str) -> None:
    for spec in cluster_specs(overlay):
        head = spec["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert gibibytes(head["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]) >= 4
        for group in spec["workerGroupSpecs"]:
            assert json.loads(group["rayStartParams"]["resources"].strip("'")) == {"profile_slot": 1}
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            resources = group["template"]["spec"]["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"]
            profile = yaml.safe_load((ROOT / "profiles" / f"{profile_of(overlay)}.yaml").read_text())
            held = int(group["rayStartParams"]["object-store-memory"]) / 2**30
            assert gibibytes(resources["limits"]["memory"]) >= profile["limits"]["memory_gib"] + held + 1


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def profile_of(overlay: str) -> str:
    return "demo" if overlay.startswith("cpu-kind/") else "paper"


@pytest.mark.parametrize("overlay", [name for name in BUILT if name.startswith("gpu-")])
def test_gpu_pods_ask_for_one_gpu_tolerate_its_taint_and_record_the_image(overlay: str) -> None:
    (digest,) = set(re.findall(r"image: \S+@(sha256:\S+)", build(overlay)))
    workers = [template for name, template in pod_templates(overlay) if name not in ("head", "submitter")]
    assert workers
    for template in workers:
        assert template["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in template["spec"]["tolerations"]
    for spec in cluster_specs(overlay):
        for template in [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]:
            env = {variable["name"]: variable.get("value") for variable in template["spec"]["containers"][0]["env"]}
            assert env["LOWBIT_VIT_IMAGE_DIGEST"] == digest


@pytest.mark.parametrize("overlay", [name for name in BUILT if name.endswith("/job")])
def test_a_job_is_the_overlays_cluster_with_an_end(overlay: str) -> None:
    job = one(overlay, "RayJob")["spec"]
    assert not [document for document in manifests(overlay) if document["kind"] == "RayCluster"]
    assert job["rayClusterSpec"] == one(overlay.replace("/job", "/cluster"), "RayCluster")["spec"]
    assert job["entrypoint"] == f"lowbit-vit sweep {profile_of(overlay)} --root /project"
    assert job["shutdownAfterJobFinishes"] is True
    assert job["activeDeadlineSeconds"] > 0
    assert job["ttlSecondsAfterFinished"] > 0


def test_the_head_alone_mounts_the_volume_where_the_verbs_look() -> None:
    for spec in cluster_specs("gpu-a100/cluster"):
        head = spec["headGroupSpec"]["template"]["spec"]
        mounted = {mount["mountPath"] for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "study"}
        assert mounted == {"/project/data", "/project/checkpoints", "/project/reports"}
        assert not [
            volume for group in spec["workerGroupSpecs"] for volume in group["template"]["spec"]["volumes"] if "emptyDir" not in volume
        ]
    assert "WORKDIR /project" in (ROOT / "docker" / "Dockerfile").read_text()


# ------------------------------------------------------------------------------------------------------------- check.py


def check(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, KUBERAY / "check.py"], input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("overlay", [name for name in BUILT if name.startswith("gpu-")])
def test_an_image_that_was_not_set_is_refused_with_what_to_do(overlay: str) -> None:
    refused = check(build(overlay))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "image: 'REPLACE/lowbit-vit@sha256:REPLACE' is not filled in; set newName and digest" in refused.stderr

    tagged = check(build(overlay).replace("REPLACE/lowbit-vit@sha256:REPLACE", "example.org/lowbit-vit:latest"))
    assert tagged.returncode == 2
    assert "'example.org/lowbit-vit:latest' is not pinned by a digest" in tagged.stderr

    filled = build(overlay).replace("REPLACE/lowbit-vit", "example.org/lowbit-vit").replace("sha256:REPLACE", f"sha256:{'0a' * 32}")
    passed = check(filled)
    assert (passed.returncode, passed.stdout, passed.stderr) == (0, filled, "")


@pytest.mark.parametrize("overlay", [name for name in BUILT if name.startswith("cpu-")])
def test_an_image_that_is_never_pulled_needs_no_digest(overlay: str) -> None:
    passed = check(build(overlay))
    assert (passed.returncode, passed.stdout) == (0, build(overlay))
    assert check(build(overlay).replace("imagePullPolicy: Never", "imagePullPolicy: IfNotPresent")).returncode == 2


def test_no_manifests_are_not_a_pass() -> None:
    assert check("").returncode == 2
