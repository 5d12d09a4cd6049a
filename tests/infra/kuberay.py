"""Rules of KubeRay 1.7 that only its operator checks, and rules of the CRDs that are not in a JSON Schema."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_V2 = "RAY_enable_autoscaler_v2"


def operator_errors(document: Document) -> list[str]:
    """Return what the operator would refuse, or silently do otherwise than written, in a RayCluster or RayJob."""
    kind, spec = document["kind"], document["spec"]
    annotations = document["metadata"].get("annotations", {})
    longest = {"RayCluster": 53, "RayJob": 47}[kind]
    name = document["metadata"]["name"]
    errors = [] if len(name) <= longest else [f"name is longer than {longest} characters"]
    if not _NAME.fullmatch(name):
        errors.append("name is no DNS-1035 label")
    kept = "gcsFaultToleranceOptions" in (spec if kind == "RayCluster" else spec.get("rayClusterSpec", {}))
    if kept and {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(annotations):
        errors.append("annotations of GCS fault tolerance exclude gcsFaultToleranceOptions")
    if kind == "RayCluster":
        return errors + list(_cluster_errors(spec))
    if spec.get("managedBy", "ray.io/kuberay-operator") not in _MANAGERS:
        errors.append("managedBy is unknown")
    errors += _job_errors(spec)
    if "rayClusterSpec" in spec:
        errors += _cluster_errors(spec["rayClusterSpec"])
        if spec["rayClusterSpec"].get("authOptions", {}).get("enableK8sTokenAuth"):
            errors.append("enableK8sTokenAuth is refused for a RayJob")
        auth = spec["rayClusterSpec"].get("authOptions")
        if auth and not auth.get("secretName"):
            errors.append("a RayJob's token is in a Secret of a random name, expected authOptions.secretName")
    return errors


def _job_errors(spec: Document) -> Iterator[str]:
    selector, cluster = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"):
        yield "submissionMode is unknown"
    if not selector and not cluster:
        yield "neither rayClusterSpec nor clusterSelector"
    if selector:
        if mode == "SidecarMode":
            yield "clusterSelector excludes SidecarMode"
        if spec.get("suspend"):
            yield "clusterSelector excludes suspend"
        if spec.get("backoffLimit"):
            yield "clusterSelector excludes backoffLimit"
        if not selector.get("ray.io/cluster"):
            yield "clusterSelector names no cluster"
    if mode == "SidecarMode":
        if "submitterPodTemplate" in spec or "submitterConfig" in spec:
            yield "SidecarMode excludes submitterPodTemplate and submitterConfig"
        head = (cluster or {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
        if head.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode needs a head with restartPolicy Never"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode excludes backoffLimit"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds is not positive"
    stops = spec.get("shutdownAfterJobFinishes")
    if spec.get("suspend") and not stops:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("ttlSecondsAfterFinished") and not stops:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "deletionStrategy" in spec:
        yield from _deletion_errors(spec["deletionStrategy"], spec)


def _deletion_errors(strategy: Document, spec: Document) -> Iterator[str]:
    rules = strategy.get("deletionRules", [])
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if rules and ("onSuccess" in strategy or "onFailure" in strategy):
        yield "deletionRules exclude onSuccess and onFailure"
    if not rules and not ("onSuccess" in strategy and "onFailure" in strategy):
        yield "deletionStrategy needs deletionRules, or both of onSuccess and onFailure"
    scales = spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling")
    times: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield "a deletion rule needs one of jobStatus and jobDeploymentStatus"
        if rule["policy"] == "DeleteWorkers" and scales:
            yield "DeleteWorkers excludes autoscaling"
        state = condition.get("jobStatus", condition.get("jobDeploymentStatus"))
        if rule["policy"] in times.setdefault(state, {}):
            yield "two deletion rules for the same state"
        times[state][rule["policy"]] = condition.get("ttlSeconds", 0)
    for by_policy in times.values():
        order = [by_policy[p] for p in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if p in by_policy]
        if order != sorted(order):
            yield "workers are deleted before the cluster, and the cluster before the job"


def _cluster_errors(spec: Document) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    for group in (head, *workers):
        yield from _group_errors(group, group.get("groupName", "head"))
    names = [group["groupName"] for group in workers]
    if len(set(names)) < len(names):
        yield "two groups have the same name"
    yield from _autoscaling_errors(spec)
    yield from _auth_errors(spec)
    # These need a feature gate of the operator that is off by default.
    for field in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if field in spec:
            yield f"{field} needs a feature gate"
    variables = {variable["name"] for c in head["template"]["spec"]["containers"] for variable in c.get("env", [])}
    if spec.get("managedBy", "ray.io/kuberay-operator") not in _MANAGERS:
        yield "managedBy is unknown"
    kept = spec.get("gcsFaultToleranceOptions")
    if kept and kept.get("backend") == "rocksdb":
        yield "gcsFaultToleranceOptions.backend rocksdb needs a feature gate"
    if kept and (variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} or "redis-password" in head["rayStartParams"]):
        yield "gcsFaultToleranceOptions exclude Redis settings elsewhere"
    if not kept and "RAY_REDIS_ADDRESS" in variables:
        yield "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    if "REDIS_USERNAME" in variables or "redis-username" in head["rayStartParams"]:
        yield "the user of Redis belongs into gcsFaultToleranceOptions"


def _group_errors(group: Document, name: str) -> Iterator[str]:
    parameters, pod = group.get("rayStartParams", {}), group["template"]["spec"]
    if not pod.get("containers"):
        yield f"group {name} has no container"
    if "labels" in parameters:
        yield f"rayStartParams.labels of group {name} is refused, expected the field labels"
    if group.get("resources") and any(parameters.get(key) for key in _RESOURCES):
        yield f"group {name} names resources twice"
    if not all(_LABEL.fullmatch(value) for value in group.get("labels", {}).values()):
        yield f"group {name} has a label that Kubernetes refuses"
    low, now, high = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
    if not low <= now <= high:
        yield f"group {name} has replicas outside of minReplicas and maxReplicas"


def _autoscaling_errors(spec: Document) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    scales = spec.get("enableInTreeAutoscaling", False)
    version = spec.get("autoscalerOptions", {}).get("version")
    switch = [v.get("value") for v in head["template"]["spec"]["containers"][0].get("env", []) if v["name"] == _V2]
    if switch and not scales and switch[0] in ("1", "true"):
        yield f"{_V2} needs enableInTreeAutoscaling"
    if switch and version:
        yield f"{_V2} and autoscalerOptions.version are both set"
    for group in workers:
        if scales and group.get("suspend"):
            yield "a group of an autoscaled cluster cannot be suspended"
        if {"idleTimeoutSeconds", "priority"} & set(group) and not (scales and version == "v2"):
            yield "idleTimeoutSeconds and priority of a group need autoscalerOptions.version v2"
    if scales and version == "v2":
        for group in (head, *workers):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield "the autoscaler v2 needs restartPolicy Never"


def _auth_errors(spec: Document) -> Iterator[str]:
    auth = spec.get("authOptions")
    if auth is None:
        return
    if "mode" not in auth:
        yield "authOptions without mode switches nothing on"
    version = tuple(int(part) for part in re.findall(r"\d+", spec.get("rayVersion", ""))[:2])
    if auth.get("mode") == "token" and version < (2, 52):
        yield "tokens need rayVersion 2.52 or newer"
