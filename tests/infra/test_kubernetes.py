"""The manifests in infra/kubernetes: schemas, rules of the operators, and our own rules."""

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings.command_line import parse
from tests.conftest import ROOT
from tests.infra.kuberay import operator_errors
from tests.infra.manifests import (
    CLUSTER_WIDE,
    FOLDER,
    OVERLAYS,
    Document,
    amount,
    build,
    containers,
    environment,
    find,
    groups,
    nodes,
    pods,
    ray,
    rendered,
    schema_errors,
    secrets_of,
)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_objects_that_kubernetes_and_the_operator_accept(overlay: str) -> None:
    documents = rendered(overlay)
    for document in documents:
        assert not schema_errors(document), document["metadata"]["name"]
        assert ("namespace" in document["metadata"]) == (document["kind"] not in CLUSTER_WIDE)
    assert operator_errors(ray(documents)) == []
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)


def test_the_base_of_production_can_be_a_cluster_that_stays(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlays" / "production"
    text = (overlay / "kustomization.yaml").read_text()
    (overlay / "kustomization.yaml").write_text(text.replace("- ../../job", "- ../../base"))
    documents = build(overlay)
    assert ray(documents)["kind"] == "RayCluster"
    assert nodes(documents) == nodes(rendered("production"))
    assert not any(schema_errors(document) for document in documents)
    assert operator_errors(ray(documents)) == []


BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("a name that is too long", {"metadata": {"name": "x" * 48}}),
    ("a name with a capital letter", {"metadata": {"name": "Train"}}),
    ("an unknown mode", {"spec": {"submissionMode": "Sidecar"}}),
    ("a submitter's template", {"spec": {"submitterPodTemplate": {}}}),
    ("a deadline of nothing", {"spec": {"activeDeadlineSeconds": 0}}),
    ("a time to live without an end", {"spec": {"shutdownAfterJobFinishes": False}}),
    ("another cluster", {"spec": {"clusterSelector": {"ray.io/cluster": "sr"}}}),
    ("rules of deletion beside an end", {"spec": {"deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf",
     "condition": {"jobStatus": "FAILED"}}]}}}),
    ("a head that restarts", {"spec": {"rayClusterSpec": {"headGroupSpec": {"template": {"spec":
     {"restartPolicy": "Always"}}}}}}),
    ("tokens without a mode", {"spec": {"rayClusterSpec": {"authOptions": {"mode": None}}}}),
    ("tokens of a random name", {"spec": {"rayClusterSpec": {"authOptions": {"secretName": None}}}}),
    ("tokens of Kubernetes", {"spec": {"rayClusterSpec": {"authOptions": {"enableK8sTokenAuth": True}}}}),
    ("an old Ray", {"spec": {"rayClusterSpec": {"rayVersion": "2.51.0"}}}),
    ("no version of the autoscaler", {"spec": {"rayClusterSpec": {"autoscalerOptions": {"version": None}}}}),
    ("no autoscaler", {"spec": {"rayClusterSpec": {"enableInTreeAutoscaling": False}}}),
    ("a closed gate", {"spec": {"rayClusterSpec": {"networkPolicy": {}}}}),
    ("another closed gate", {"spec": {"rayClusterSpec": {"gcsFaultToleranceOptions": {"backend": "rocksdb"}}}}),
    ("labels among the parameters", {"spec": {"rayClusterSpec": {"headGroupSpec": {"rayStartParams":
     {"labels": "a=b"}}}}}),
    ("a strange manager", {"spec": {"managedBy": "me"}}),
    ("two ways to keep state", {"metadata": {"annotations": {"ray.io/ft-enabled": "true"}}, "spec": {"rayClusterSpec":
     {"gcsFaultToleranceOptions": {"redisAddress": "redis:6379"}}}}),
    ("state in Redis without options", {"spec": {"rayClusterSpec": {"headGroupSpec": {"template": {"spec":
     {"containers": [{"name": "ray-head", "env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]}]}}}}}}),
    ("resources named twice", {"spec": {"rayClusterSpec": {"headGroupSpec": {"resources": {"CPU": "1"}}}}}),
]  # fmt: skip
"""Changes of a RayJob, None to remove a field, that the operator refuses or that have no effect."""


def merge(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    merged = {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    return {key: value for key, value in merged.items() if value is not None}


@pytest.mark.parametrize(("_", "change"), BROKEN, ids=[name for name, _ in BROKEN])
def test_a_mistake_that_only_the_operator_would_see_is_found(_: str, change: dict[str, Any]) -> None:
    job = ray(rendered("production"))
    assert operator_errors(merge(deepcopy(job), change))


def test_a_mistake_in_a_field_is_found() -> None:
    job = ray(rendered("production"))
    for change in ({"backofLimit": 3}, {"suspend": "no"}, {"backoffLimit": "3"}):
        assert schema_errors(merge(deepcopy(job), {"spec": change}))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references_lead_to_objects_of_the_overlay(overlay: str) -> None:
    documents = rendered(overlay)
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    made = {secret["metadata"]["name"]: secret["stringData"] for secret in secrets_of("random")}
    used = {nodes(documents)["authOptions"]["secretName"]}
    for pod in pods(documents).values():
        account = pod["spec"].get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in names
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in names
                else:
                    used.add(source["secretRef"]["name"])
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in made[reference["name"]]
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
            if "secret" in volume:
                assert volume["secret"]["items"][0]["key"] in made[volume["secret"]["secretName"]]
    assert used <= set(made)
    labels = [pod["metadata"]["labels"].items() for pod in pods(documents).values()]
    for service in (d for d in documents if d["kind"] == "Service"):
        assert any(service["spec"]["selector"].items() <= of_pod for of_pod in labels)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_in_a_manifest(overlay: str) -> None:
    assert not [d for d in rendered(overlay) if d["kind"] == "Secret"]
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
    for pod in pods(rendered(overlay)).values():
        for container in containers(pod):
            assert not [v for v in container.get("env", []) if secret.search(v["name"]) and "value" in v]
    for document in rendered(overlay):
        assert not secret.search("".join(document.get("data", {})))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_run_without_privileges_on_a_read_only_root(overlay: str) -> None:
    for name, pod in pods(rendered(overlay)).items():
        security = pod["spec"]["securityContext"]
        assert pod["spec"]["enableServiceLinks"] is False, name  # MLflow would read them as its own variables
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 1000
        assert security["seccompProfile"]["type"] == "RuntimeDefault"
        scratch = {v["name"] for v in pod["spec"]["volumes"] if "emptyDir" in v}
        for container in containers(pod):
            of_container = container["securityContext"]
            assert of_container["readOnlyRootFilesystem"]
            assert not of_container["allowPrivilegeEscalation"]
            assert of_container["capabilities"] == {"drop": ["ALL"]}
            mounted = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in scratch}
            assert mounted >= {"/tmp", "/home/sr"}  # the writable folders of infra/Dockerfile
            assert "/dev/shm" not in {m["mountPath"] for m in container["volumeMounts"]}  # KubeRay mounts it
            # Images are those of infra/Dockerfile with a tag, not the names that overlays replace.
            assert re.fullmatch(r"(registry\.example\.com/)?sr-(pipeline|mlflow|s3):[\w.-]+", container["image"])
            assert container["resources"]["limits"]["memory"]
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    assert "USER 1000:1000" in dockerfile
    assert "/home/sr" in dockerfile


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_nodes_end_after_they_have_drained(overlay: str) -> None:
    documents = rendered(overlay)
    variables = environment(documents)
    drain = int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    for group in groups(documents).values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + 10
        assert {"configMapRef": {"name": "environment"}} in group["template"]["spec"]["containers"][0]["envFrom"]
    assert variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "1"
    assert int(variables["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) >= 900
    if overlay == "gpu-spot":  # AWS reclaims a machine 120 s after the announcement
        assert max(g["template"]["spec"]["terminationGracePeriodSeconds"] for g in groups(documents).values()) <= 115


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_nodes_are_what_ray_takes_them_for(overlay: str) -> None:
    documents = rendered(overlay)
    tested = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tested
    assert nodes(documents)["rayVersion"] == tested[1]
    assert nodes(documents)["authOptions"]["mode"] == "token"
    assert groups(documents)["head"]["rayStartParams"]["num-cpus"] == "0"
    for name, group in groups(documents).items():
        (container,) = group["template"]["spec"]["containers"]
        assert "command" not in container
        assert "args" not in container
        size = container["resources"]
        assert size["requests"]["memory"] == size["limits"]["memory"], name
        gpu = "nvidia.com/gpu" in size["limits"]
        assert gpu == (name == "gpu")
        hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container.get("env", [])
        assert hidden != gpu
        assert ("cuda" in container["image"]) == gpu
        assert group["template"]["metadata"]["labels"] == {"app.kubernetes.io/component": "ray"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    budget = find(documents, "PodDisruptionBudget")["spec"]
    assert set(budget) == {"minAvailable", "selector"}  # Kubernetes accepts no maxUnavailable for an operator's pods


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "dev"])
def test_the_job_asks_for_what_its_nodes_have(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = rendered(overlay)
    job = find(documents, "RayJob")["spec"]
    assert job["submissionMode"] == "SidecarMode"
    assert job["backoffLimit"] == 3
    assert job["shutdownAfterJobFinishes"]
    assert re.fullmatch(r"[\w ./-]+", job["entrypoint"])  # nothing in it means anything to a shell
    assert "COPY configs /opt/sr/configs" in (ROOT / "infra" / "Dockerfile").read_text()
    program, *options = job["entrypoint"].replace("/opt/sr/", f"{ROOT}/").partition("python -m pipeline.run")[2:]
    variables = environment(documents)
    for name in ("SR_HOME", "SR_CACHE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, variables[name])
    config = parse([word for text in (program, *options) for word in text.split()], "run", "")
    assert config.home
    assert config.home.startswith("s3://")
    assert config.cache
    assert config.cache.startswith("s3://")
    assert config.tracking.uri == "http://mlflow:5000"
    # Only with these the command waits for machines with GPUs instead of training on cores.
    assert config.cluster.gpu
    assert config.cluster.workers
    assert config.cluster.wait_s >= 900
    group = groups(documents)["gpu"]
    size = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["maxReplicas"] * int(size["nvidia.com/gpu"]) == config.cluster.workers
    if overlay == "gpu-spot":
        assert config.cluster.min_workers == 1
        assert 0 < config.train.checkpoint_s <= 60


def test_groups_start_at_zero_and_grow() -> None:
    for overlay in ("dev", "production", "gpu-spot"):
        spec = nodes(rendered(overlay))
        assert spec["enableInTreeAutoscaling"]
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert all(g["minReplicas"] == g["replicas"] == 0 < g["maxReplicas"] for g in spec["workerGroupSpecs"])
        assert all(g.get("numOfHosts", 1) == 1 for g in spec["workerGroupSpecs"])
        head = groups(rendered(overlay))["head"]["template"]["spec"]
        account = find(rendered(overlay), "ServiceAccount", head["serviceAccountName"])
        assert account["automountServiceAccountToken"]
        assert "automountServiceAccountToken" not in head
    with_autoscaler = nodes(rendered("production"))["autoscalerOptions"]["volumeMounts"]
    assert {mount["mountPath"] for mount in with_autoscaler} == {"/tmp", "/home/sr"}


def test_only_the_head_stays_off_machines_that_may_be_reclaimed() -> None:
    of_group = groups(rendered("gpu-spot"))

    def terms(name: str) -> list[Document]:
        affinity = of_group[name]["template"]["spec"]["affinity"]["nodeAffinity"]
        found: list[Document] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        return found

    (head,) = terms("head")  # all of its expressions hold
    spot = [term["matchExpressions"][0] for term in terms("gpu")]  # one of the terms holds
    assert {e["operator"] for e in head["matchExpressions"]} == {"NotIn"}
    assert {e["operator"] for e in spot} == {"In"}
    assert [(e["key"], e["values"]) for e in head["matchExpressions"]] == [(e["key"], e["values"]) for e in spot]
    annotations = of_group["head"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_only_what_they_need(overlay: str) -> None:
    documents = rendered(overlay)
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in (rule for policy in policies.values() for rule in policy.get("egress", [])):
        for block in (to["ipBlock"] for to in rule["to"] if "ipBlock" in to):  # names, or not a machine's metadata
            assert {port["port"] for port in rule["ports"]} == {53} or "169.254.0.0/16" in block["except"]
    for policy in policies.values():
        for rule in policy.get("ingress", []):
            assert all("ipBlock" not in source for source in rule["from"])  # nothing enters from outside
            inside = [source for source in rule["from"] if "namespaceSelector" not in source]
            assert inside or rule["ports"]
    port = find(documents, "Service", "mlflow")["spec"]["ports"][0]["port"]
    assert policies["mlflow"]["ingress"][0]["ports"] == [{"port": port, "protocol": "TCP"}]
    exposed = [d["spec"].get("type", "ClusterIP") for d in documents if d["kind"] == "Service"]
    assert set(exposed) == {"ClusterIP"}


def test_a_queue_has_room_for_the_job() -> None:
    documents = rendered("kueue")
    job = find(documents, "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == find(documents, "LocalQueue")["metadata"]["name"]
    assert not spec["enableInTreeAutoscaling"]
    assert "autoscalerOptions" not in spec
    assert "clusterSelector" not in spec
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert len(spec["workerGroupSpecs"]) <= 7
    assert all(g["minReplicas"] == g["replicas"] == g["maxReplicas"] > 0 for g in spec["workerGroupSpecs"])
    queue = find(documents, "ClusterQueue")
    assert find(documents, "LocalQueue")["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == find(documents, "ResourceFlavor")["metadata"]["name"]
    needed = {"cpu": 0.5, "memory": 200 * 2.0**20}  # the submitter that KubeRay adds to the head
    for pod in groups(documents).values():
        for resource, quantity in pod["template"]["spec"]["containers"][0]["resources"]["requests"].items():
            needed[resource] = needed.get(resource, 0) + amount(quantity) * pod.get("replicas", 1)
    quota = {resource["name"]: amount(resource["nominalQuota"]) for resource in flavor["resources"]}
    assert set(quota) == set(group["coveredResources"]) == set(needed)
    assert all(needed[resource] <= quota[resource] < 2 * needed[resource] for resource in needed)
