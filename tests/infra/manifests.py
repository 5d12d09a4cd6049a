"""The manifests of infra/kubernetes as kustomize renders them, and parts of them."""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "infra" / "kubernetes"
OVERLAYS = ("dev", "production", "gpu-spot", "kueue")
CLUSTER_WIDE = {"Namespace", "ClusterQueue", "ResourceFlavor"}
SCHEMAS = json.loads((Path(__file__).parent / "schemas" / "manifests.json").read_text())
UNITS = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30, "": 1}

Document = dict[str, Any]


def build(folder: Path) -> list[Document]:
    """Return the objects that kustomize makes of a folder."""
    tool = next((argv for argv in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(argv[0])), None)
    if tool is None:
        pytest.skip("neither kustomize nor kubectl is installed, which render the manifests")
    done = subprocess.run([*tool, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@cache
def rendered(overlay: str) -> list[Document]:
    return build(FOLDER / "overlays" / overlay)


def schema_errors(document: Document) -> list[str]:
    schema = {**SCHEMAS["kinds"][document["kind"]], "$defs": SCHEMAS["$defs"]}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]


def find(documents: list[Document], kind: str, name: str = "") -> Document:
    (found,) = [d for d in documents if d["kind"] == kind and name in ("", d["metadata"]["name"])]
    return found


def ray(documents: list[Document]) -> Document:
    """Return the RayJob, or else the RayCluster."""
    (found,) = [d for d in documents if d["kind"] in ("RayJob", "RayCluster")]
    return found


def nodes(documents: list[Document]) -> Document:
    """Return the description of Ray's nodes."""
    spec: Document = ray(documents)["spec"]
    of_job: Document | None = spec.get("rayClusterSpec")
    return of_job or spec


def groups(documents: list[Document]) -> dict[str, Document]:
    """Return the groups of Ray's nodes by name, with that of the head."""
    spec = nodes(documents)
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def pods(documents: list[Document]) -> dict[str, Document]:
    """Return all templates of pods."""
    made = {d["metadata"]["name"]: d["spec"]["template"] for d in documents if d["kind"] == "Deployment"}
    return {**made, **{name: group["template"] for name, group in groups(documents).items()}}


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def amount(quantity: str | int) -> float:
    match = re.fullmatch(r"(\d+)(m|Mi|Gi|)", str(quantity))
    assert match, quantity
    return int(match[1]) * UNITS[match[2]]


def environment(documents: list[Document]) -> dict[str, str]:
    values: dict[str, str] = find(documents, "ConfigMap", "environment")["data"]
    return values


def secrets_of(store: str, **variables: str) -> list[Document]:
    """Return what make_secrets.py prints."""
    argv = [sys.executable, str(FOLDER / "make_secrets.py"), "--store", store]
    done = subprocess.run(argv, env={"PATH": "", **variables}, capture_output=True, text=True, timeout=60, check=True)
    items: list[Document] = json.loads(done.stdout)["items"]
    return items
