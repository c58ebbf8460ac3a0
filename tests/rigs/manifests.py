"""What deploy/k8s says, as data: its documents, and the pods that they would start."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "k8s"
Document = dict[str, Any]


def documents() -> list[Document]:
    """Of all files; lists are opened, and nothing is shared between two of them."""
    files = [path for path in sorted(FOLDER.glob("**/*.yaml")) if path.name != "kustomization.yaml"]
    found = [document for path in files for document in yaml.safe_load_all(path.read_text("utf-8"))]
    opened = [item for document in found for item in (document["items"] if document["kind"] == "List" else [document])]
    copied: list[Document] = json.loads(json.dumps(opened))
    return copied


def kustomization() -> Document:
    found: Document = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
    return found


def pods(document: Document) -> Iterator[tuple[dict[str, str], Document]]:
    """Labels and specification of each pod, wherever in the document: whatever has containers is one."""
    spec = document.get("spec")
    if isinstance(spec, dict) and "containers" in spec:
        yield document.get("metadata", {}).get("labels", {}), spec
    for value in document.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from pods(inner)


def containers(pod: Document) -> list[Document]:
    return [each for kind in ("containers", "initContainers", "ephemeralContainers") for each in pod.get(kind, [])]


def workload(name: str) -> Document:
    """The one container of a workload, of whatever kind."""
    (found,) = containers(_pod(name))
    return found


def mounted_secrets(name: str) -> dict[str, str]:
    """By folder in the container of a workload, the secret whose files are there."""
    volumes = {volume["name"]: volume["secret"]["secretName"] for volume in _pod(name)["volumes"] if "secret" in volume}
    return {
        mount["mountPath"]: volumes[mount["name"]]
        for mount in workload(name)["volumeMounts"]
        if mount["name"] in volumes
    }


def _pod(name: str) -> Document:
    (found,) = [pod for document in documents() if document["metadata"]["name"] == name for _, pod in pods(document)]
    return found
