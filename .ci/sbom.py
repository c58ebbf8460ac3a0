"""The bill of materials of this installation, as CycloneDX: the Python packages that tapewatch runs with, as they are
installed beside this program, and what the page is built from, as npm tells it from the page's lock file.

The tools for tests and checks are no part of it. What the packages must contain stands in the lock files.
"""

import json
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5  # the version that npm writes
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def bill_of_materials() -> dict[str, Any]:
    packages, page = _packages(), _page()
    web = page["metadata"]["component"]
    packages["components"] += [web, *page["components"]]
    packages["dependencies"] += page["dependencies"]
    for needs in packages["dependencies"]:
        if needs["ref"] == packages["metadata"]["component"]["bom-ref"]:
            needs["dependsOn"].append(web["bom-ref"])
    return packages


def _packages() -> dict[str, Any]:
    bom = Bom()
    components: dict[str, Component] = {}
    done: set[tuple[str, str]] = set()

    def add(name: str, extra: str = "") -> Component:
        """A package, with one of its extras or none, and all that it needs."""
        component = components.setdefault(name, _component(distribution(name)))
        if (name, extra) not in done:
            done.add((name, extra))
            for part in map(Requirement, distribution(name).requires or []):
                if part.marker is None or part.marker.evaluate({"extra": extra}):
                    needed = [add(canonicalize_name(part.name), asked) for asked in ("", *part.extras)]
                    bom.register_dependency(component, needed)
        return component

    tapewatch = bom.metadata.component = add("tapewatch")
    tapewatch.type = ComponentType.APPLICATION
    bom.components.update(component for component in components.values() if component is not tapewatch)
    told: dict[str, Any] = json.loads(JsonV1Dot5(bom).output_as_string())
    return told


def _component(installed: Distribution) -> Component:
    name, about = canonicalize_name(installed.name), installed.metadata
    licences = [about[field] for field in ("License-Expression", "License") if field in about]
    return Component(
        name=name,
        version=installed.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={installed.version}",
        purl=PackageURL("pypi", name=name, version=installed.version),
        # Some packages put the whole text there.
        licenses=[LicenseFactory().make_from_string(licence) for licence in licences[:1] if "\n" not in licence],
    )


def _page() -> dict[str, Any]:
    command = ["npm", "sbom", "--sbom-format", "cyclonedx", "--package-lock-only"]
    said = subprocess.run(command, cwd=ROOT / "web", check=True, stdout=subprocess.PIPE)
    told: dict[str, Any] = json.loads(said.stdout)
    return told


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bill_of_materials(), indent=2) + "\n", encoding="utf-8")
