"""What is deployed: the manifests hold to the rules that docs/security.md names, and to the program.

A rule is a function that says what it finds wrong. Each is also shown manifests that break it.
"""

import asyncio
import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main
from dockerfile import image_user
from manifests import Document, containers, documents, kustomization, pods, workload
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from tapewatch.cli import app
from tapewatch.config import ROLES
from tapewatch.serve.app import create_small_app

ROOT = Path(__file__).parent.parent
COMPONENT = "app.kubernetes.io/component"
WORKING = ("ingest", "bars", "scanner", "alerts", "toplists", "deliveries", "gateway", "api")
EVERY = (*WORKING, "upgrade", "first-admin")

# -- what each may: a workload that is not in these tables fails -------------------------------------------------------

SECRETS = {
    **{role: {"tapewatch-config"} for role in WORKING},
    "ingest": {"tapewatch-config", "tapewatch-provider"},
    "gateway": {"tapewatch-config", "tapewatch-signing"},
    "api": {"tapewatch-config", "tapewatch-signing"},
    "upgrade": {"tapewatch-owner"},
    "first-admin": {"tapewatch-config", "tapewatch-admin"},
}
LINES = {
    **{role: {"deny-all", "dns", "redis", "store", "metrics"} for role in WORKING},
    "ingest": {"deny-all", "dns", "redis", "store", "metrics", "providers"},
    "deliveries": {"deny-all", "dns", "redis", "store", "metrics", "channels"},
    "gateway": {"deny-all", "dns", "redis", "store", "metrics", "public"},
    "api": {"deny-all", "dns", "redis", "store", "metrics", "public"},
    "upgrade": {"deny-all", "dns", "store"},
    "first-admin": {"deny-all", "dns", "store"},
}
"""The policies that select a pod."""
PORTS = {
    "deny-all": set(),
    "dns": {53},
    "redis": {6379},
    "store": {5432},
    "metrics": {9000},
    "public": {8000},
    "providers": {443, 13000},
    "channels": {443, 465, 587},
    "redis-from-tapewatch": {6379, 26379},
}
SETTINGS = {
    "TAPEWATCH_CONFIG",
    "TAPEWATCH_HOST",
    "TAPEWATCH_PORT",
    "TAPEWATCH_PROBE_PORT",
    "TAPEWATCH_SECRET_FILE",
}
"""All that an environment may hold: addresses with passwords and keys are read from files."""
PUBLIC = {
    ("/", "Exact"),
    ("/favicon.svg", "Exact"),
    ("/assets", "Prefix"),
    ("/api", "Prefix"),
    ("/ws", "Exact"),
}
PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "224.0.0.0/4", "240.0.0.0/4", "::1/128", "::ffff:0:0/96", "fc00::/7", "fe80::/10", "ff00::/8",
    )
]  # fmt: skip

Rule = Callable[[list[Document]], Iterator[str]]


def named(found: list[Document], kind: str) -> dict[str, Document]:
    return {document["metadata"]["name"]: document for document in found if document["kind"] == kind}


def every_pod(found: list[Document]) -> Iterator[tuple[str, dict[str, str], Document]]:
    for document in found:
        for labels, pod in pods(document):
            yield document["metadata"]["name"], labels, pod


def every_container(found: list[Document]) -> Iterator[tuple[str, Document, Document]]:
    for name, _, pod in every_pod(found):
        for container in containers(pod):
            yield name, pod, container


# -- rules ------------------------------------------------------------------------------------------------------------


def pods_are_confined(found: list[Document]) -> Iterator[str]:
    user = image_user()
    for name, labels, pod in every_pod(found):
        security = pod.get("securityContext", {})
        for what, given, wanted in (
            ("labels", (labels.get("app.kubernetes.io/name"), labels.get(COMPONENT)), ("tapewatch", name)),
            ("automountServiceAccountToken", pod.get("automountServiceAccountToken"), False),
            ("serviceAccountName", pod.get("serviceAccountName"), "tapewatch"),
            ("enableServiceLinks", pod.get("enableServiceLinks"), False),
            ("runAsNonRoot", security.get("runAsNonRoot"), True),
            ("runAsUser", security.get("runAsUser"), user),
            ("runAsGroup", security.get("runAsGroup"), user),
            ("fsGroup", security.get("fsGroup"), user),
            ("supplementalGroups", security.get("supplementalGroups"), None),
            ("seccompProfile", security.get("seccompProfile"), {"type": "RuntimeDefault"}),
            *((host, pod.get(host), None) for host in ("hostNetwork", "hostPID", "hostIPC", "hostUsers")),
        ):
            if given != wanted or type(given) is not type(wanted):
                yield f"{name}: {what} is {given}, not {wanted}"
        for volume in pod.get("volumes", []):
            kinds = set(volume) - {"name"}
            if kinds != {"secret"}:
                yield f"{name}: volume {volume['name']} is of kind {kinds}"
            elif volume["secret"].get("defaultMode") != 0o400:
                yield f"{name}: the files of {volume['name']} have not mode 0400"


def containers_are_confined(found: list[Document]) -> Iterator[str]:
    for name, _, container in every_container(found):
        security = container.get("securityContext", {})
        if security != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield f"{name}: securityContext is {security}"
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if set(resources.get(kind, {})) != {"cpu", "memory"}:
                yield f"{name}: resources have no {kind} of cpu and memory"
        if not re.search(r":[0-9][^:/]*$|@sha256:", container["image"]):
            yield f"{name}: the image {container['image']} has no version"
        for mount in container.get("volumeMounts", []):
            if mount["name"] != "data" and mount.get("readOnly") is not True:
                yield f"{name}: {mount['mountPath']} can be written to"


def secrets_are_files(found: list[Document]) -> Iterator[str]:
    for name, pod, container in every_container(found):
        if container.get("envFrom"):
            yield f"{name}: envFrom"
        for variable in container.get("env", []):
            if variable["name"] not in SETTINGS or set(variable) != {"name", "value"}:
                yield f"{name}: {variable['name']} in the environment"
        words = [*container.get("args", []), *(v.get("value", "") for v in container.get("env", []))]
        mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        for word in words:
            if "://" in word:
                yield f"{name}: an address on the command line or in the environment: {word}"
            if word.startswith("/") and not any(word.startswith(f"{mount}/") for mount in mounts):
                yield f"{name}: {word} is not mounted"
        mounted = {volume["secret"]["secretName"] for volume in pod.get("volumes", []) if "secret" in volume}
        if mounted != SECRETS.get(name):
            yield f"{name}: has the secrets {sorted(mounted)}"
    for document in found:
        if document["kind"] in {"Secret", "ConfigMap"}:
            yield f"{document['metadata']['name']}: a {document['kind']} stands in the tree"


def command_lines_are_the_program_s(found: list[Document]) -> Iterator[str]:
    roles: list[str] = []
    for name, _, container in every_container(found):
        if "command" in container:
            yield f"{name}: another program than the image's"
        words = [*container.get("args", [])]
        command: Any = typer.main.get_command(app)
        while isinstance(command, TyperGroup) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if not isinstance(command, TyperCommand):
            yield f"{name}: {container.get('args')} is no command"
            continue
        known = {"TAPEWATCH_CONFIG"}.union(
            *([v] if isinstance(v, str) else v or () for v in (getattr(p, "envvar", None) for p in command.params))
        )
        for variable in container.get("env", []):
            if variable["name"] not in known:
                yield f"{name}: {command.name} knows no variable {variable['name']}"
        try:
            given = command.make_context(str(command.name), words).params
        except Exception as error:  # noqa: BLE001  typer keeps the error of usage to itself
            yield f"{name}: {container.get('args')}: {error}"
            continue
        roles += given.get("roles", ())
    if sorted(roles) != sorted(ROLES):
        yield f"the roles that run are {sorted(roles)}, not each of {sorted(ROLES)} once"


@cache
def answered() -> frozenset[str]:
    """The paths that a process says something at for probes."""

    async def ask(path: str) -> int:
        transport = httpx.ASGITransport(create_small_app(lambda: (True, "")))
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            return (await client.get(path)).status_code

    return frozenset(path for path in ("/health", "/ready", "/metrics") if asyncio.run(ask(path)) == HTTPStatus.OK)


def probes_are_answered(found: list[Document]) -> Iterator[str]:
    for name, _, container in every_container(found):
        settings = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        ports = {port["name"]: str(port["containerPort"]) for port in container.get("ports", [])}
        if container.get("args", [])[:1] != ["run"]:
            continue
        for kind, path in (("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")):
            asked = container.get(kind, {}).get("httpGet", {})
            if asked.get("path") != path or path not in answered():
                yield f"{name}: {kind} asks {asked.get('path')}"
            if asked.get("port") != "probes":
                yield f"{name}: {kind} asks at {asked.get('port')}"
        for port, variable in (("probes", "TAPEWATCH_PROBE_PORT"), ("public", "TAPEWATCH_PORT")):
            if ports.get(port) != settings.get(variable):
                yield f"{name}: {variable} is {settings.get(variable)}, the port {port} is {ports.get(port)}"


def policies_let_through_what_is_needed(found: list[Document]) -> Iterator[str]:
    policies = named(found, "NetworkPolicy")
    elsewhere = policies.pop("redis-from-tapewatch", None)
    deny = policies.get("deny-all", {}).get("spec")
    if deny != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield f"deny-all is {deny}"
    for name, labels, _ in every_pod(found):
        selected = {policy for policy, document in policies.items() if selects(document["spec"]["podSelector"], labels)}
        if selected != LINES.get(name):
            yield f"{name}: is selected by {sorted(selected)}"
    for name, document in (policies | ({"redis-from-tapewatch": elsewhere} if elsewhere else {})).items():
        spec, ports = document["spec"], set()
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            if (direction in spec) != (direction.title() in spec["policyTypes"]) and name != "deny-all":
                yield f"{name}: policyTypes do not say {direction}"
            for each in spec.get(direction, []):
                if not each.get(peers) or not all(each[peers]):
                    yield f"{name}: {direction} from or to everybody"
                if any(peer.get("namespaceSelector") == {} for peer in each.get(peers) or ()):
                    yield f"{name}: {direction} from or to every namespace"
                if not each.get("ports") and name != "redis-from-tapewatch":
                    yield f"{name}: {direction} at every port"
                ports |= {port.get("port") for port in each.get("ports", [])}
                yield from (f"{name}: leads to {n}" for peer in each.get(peers) or () for n in private(peer))
        if ports != PORTS.get(name):
            yield f"{name}: opens {ports}"


def selects(selector: Document, labels: dict[str, str]) -> bool:
    if set(selector) - {"matchLabels", "matchExpressions"}:
        raise ValueError(selector)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def private(peer: Document) -> list[str]:
    """The networks that are nobody's business and that a block of addresses lets through."""
    if "ipBlock" not in peer:
        return []
    block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
    spared = [ipaddress.ip_network(network) for network in peer["ipBlock"].get("except", [])]
    return [
        str(network)
        for network in PRIVATE
        if network.version == block.version
        and network.overlaps(block)
        and not any(network.subnet_of(each) for each in spared)  # type: ignore[arg-type]  # of one version
    ]


def services_lead_to_pods(found: list[Document]) -> Iterator[str]:
    running = {name: (labels, pod) for name, labels, pod in every_pod(found)}
    services = named(found, "Service")
    for name, service in services.items():
        to = [n for n, (labels, _) in running.items() if selects({"matchLabels": service["spec"]["selector"]}, labels)]
        if to != [name]:
            yield f"the service {name} leads to {to}"
            continue
        ports = {port["name"] for container in running[name][1]["containers"] for port in container["ports"]}
        if not {port["targetPort"] for port in service["spec"]["ports"]} <= ports:
            yield f"the service {name} leads to a port that is not there"
    for name, ingress in named(found, "Ingress").items():
        hosts = {host for each in ingress["spec"].get("tls", []) for host in each["hosts"]}
        for rule in ingress["spec"]["rules"]:
            if rule["host"] not in hosts:
                yield f"{name}: {rule['host']} without TLS"
            for path in rule["http"]["paths"]:
                to = path["backend"]["service"]
                ports = {port["name"] for port in services[to["name"]]["spec"]["ports"]}
                if to["port"]["name"] != "public" or "public" not in ports:
                    yield f"{name}: {path['path']} leads to {to}"
                if (path["path"], path["pathType"]) not in PUBLIC:
                    yield f"{name}: {path['path']} is public"


def two_of_each_are_never_both_sent_away(found: list[Document]) -> Iterator[str]:
    budgets = named(found, "PodDisruptionBudget").values()
    for document in found:
        for labels, _ in pods(document):
            of = [b for b in budgets if selects(b["spec"]["selector"], labels)]
            if (document["spec"].get("replicas", 1) > 1) != (len(of) == 1):
                yield f"{document['metadata']['name']}: {len(of)} budgets"
    for budget in budgets:
        if budget["spec"].get("maxUnavailable") != 1:
            yield f"{budget['metadata']['name']}: the budget is {budget['spec']}"


def the_namespace_is_restricted(found: list[Document]) -> Iterator[str]:
    for name, namespace in named(found, "Namespace").items():
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name}: not restricted"
    for name, account in named(found, "ServiceAccount").items():
        if account.get("automountServiceAccountToken") is not False:
            yield f"{name}: a token is mounted"
    kinds = {document["kind"] for document in found}
    for kind in sorted(kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}):
        yield f"a {kind}: nothing here speaks to Kubernetes"


RULES: list[Rule] = [
    pods_are_confined,
    containers_are_confined,
    secrets_are_files,
    command_lines_are_the_program_s,
    probes_are_answered,
    policies_let_through_what_is_needed,
    services_lead_to_pods,
    two_of_each_are_never_both_sent_away,
    the_namespace_is_restricted,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_manifests_hold_to(rule: Rule) -> None:
    assert list(rule(documents())) == []


# -- rules can fail ---------------------------------------------------------------------------------------------------


def at(*path: str | int, to: Any) -> Callable[[list[Document]], None]:
    """Change something in the workload, policy or other document that is named first, as kind/name; to None: remove."""

    def change(found: list[Document]) -> None:
        kind, _, name = str(path[0]).partition("/")
        place: Any = named(found, kind)[name]
        for step in path[1:-1]:
            place = place[step]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return change


def new_workload(found: list[Document]) -> None:
    spec = {"containers": [{"name": "x", "image": "x:1", "args": ["run", "api"]}]}
    found.append({"kind": "DaemonSet", "metadata": {"name": "x"}, "spec": {"template": {"spec": spec}}})


def new_cron_job(found: list[Document]) -> None:
    pod = {"template": {"metadata": {"labels": {}}, "spec": {"containers": [{"name": "x", "image": "x"}]}}}
    spec = {"jobTemplate": {"spec": pod}}
    found.append({"kind": "CronJob", "metadata": {"name": "x"}, "spec": spec})


def new_init_container(found: list[Document]) -> None:
    pod = named(found, "Deployment")["api"]["spec"]["template"]["spec"]
    pod["initContainers"] = [{"name": "x", "image": "busybox:1"}]


def new_policy(found: list[Document]) -> None:
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}
    found.append({"kind": "NetworkPolicy", "metadata": {"name": "x"}, "spec": spec})


API = ("Deployment/api", "spec", "template", "spec")
INSIDE = (*API, "containers", 0)
GIVEN = {"name": "TAPEWATCH_BUS", "value": "redis://:password@redis:6379/0"}
BROKEN: dict[str, tuple[Rule, Callable[[list[Document]], None], str]] = {
    "a new workload": (pods_are_confined, new_workload, "x: runAsNonRoot is None"),
    "a new job of a kind that nests deeper": (pods_are_confined, new_cron_job, "x: automountServiceAccountToken"),
    "a new workload without a policy": (policies_let_through_what_is_needed, new_workload, "x: is selected by"),
    "a role that runs twice": (command_lines_are_the_program_s, new_workload, "'api', 'api'"),
    "no token, by name only": (
        pods_are_confined,
        at(*API, "automountServiceAccountToken", to="false"),
        "api: automount",
    ),
    "root": (pods_are_confined, at(*API, "securityContext", "runAsUser", to=0), "api: runAsUser is 0"),
    "no seccomp": (pods_are_confined, at(*API, "securityContext", "seccompProfile", to=None), "api: seccompProfile"),
    "the node's network": (pods_are_confined, at(*API, "hostNetwork", to=True), "api: hostNetwork"),
    "a folder of the node": (
        pods_are_confined,
        at(*API, "volumes", 0, to={"name": "x", "hostPath": {"path": "/"}}),
        "hostPath",
    ),
    "a secret for all": (
        pods_are_confined,
        at(*API, "volumes", 0, "secret", "defaultMode", to=0o444),
        "config have not mode 0400",
    ),
    "a root that can be written to": (
        containers_are_confined,
        at(*INSIDE, "securityContext", "readOnlyRootFilesystem", to=False),
        "api: securityContext",
    ),
    "a capability": (
        containers_are_confined,
        at(*INSIDE, "securityContext", "capabilities", "add", to=["NET_RAW"]),
        "api: securityContext",
    ),
    "an init container": (containers_are_confined, new_init_container, "api: securityContext is {}"),
    "no bound of memory": (containers_are_confined, at(*INSIDE, "resources", "limits", "memory", to=None), "no limits"),
    "the latest image": (containers_are_confined, at(*INSIDE, "image", to="tapewatch:latest"), "has no version"),
    "an image by name only": (
        containers_are_confined,
        at(*INSIDE, "image", to="host:5000/tapewatch"),
        "has no version",
    ),
    "an address in the environment": (secrets_are_files, at(*INSIDE, "env", 0, to=GIVEN), "TAPEWATCH_BUS"),
    "a secret in the environment": (
        secrets_are_files,
        at(*INSIDE, "env", 0, to={"name": "TAPEWATCH_PORT", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
        "api: TAPEWATCH_PORT in the environment",
    ),
    "a whole secret in the environment": (
        secrets_are_files,
        at(*INSIDE, "envFrom", to=[{"secretRef": {"name": "s"}}]),
        "api: envFrom",
    ),
    "an address as an option": (
        secrets_are_files,
        at(*INSIDE, "args", to=["run", "api", "--bus", GIVEN["value"]]),
        "on the command line",
    ),
    "a file that nobody mounts": (
        secrets_are_files,
        at(*INSIDE, "args", to=["run", "api", "--secrets", "/run/secrets/keys.toml"]),
        "is not mounted",
    ),
    "the provider's keys for the api": (
        secrets_are_files,
        at(*API, "volumes", 1, "secret", "secretName", to="tapewatch-provider"),
        "api: has the secrets",
    ),
    "a role that is none": (command_lines_are_the_program_s, at(*INSIDE, "args", to=["run", "web"]), "'web'"),
    "an option that is none": (
        command_lines_are_the_program_s,
        at(*INSIDE, "args", to=["run", "api", "--debug"]),
        "--debug",
    ),
    "a command that is none": (command_lines_are_the_program_s, at(*INSIDE, "args", to=["db", "drop"]), "no command"),
    "a shell": (command_lines_are_the_program_s, at(*INSIDE, "command", to=["sh", "-c"]), "another program"),
    "a variable that is none": (
        command_lines_are_the_program_s,
        at(*INSIDE, "env", 0, to={"name": "TAPEWATCH_DEBUG", "value": "1"}),
        "TAPEWATCH_DEBUG",
    ),
    "a probe that nobody answers": (
        probes_are_answered,
        at(*INSIDE, "livenessProbe", "httpGet", "path", to="/healthz"),
        "/healthz",
    ),
    "who stands by is restarted": (
        probes_are_answered,
        at(*INSIDE, "livenessProbe", "httpGet", "path", to="/ready"),
        "livenessProbe asks /ready",
    ),
    "another port": (probes_are_answered, at(*INSIDE, "ports", 1, "containerPort", to=9090), "TAPEWATCH_PROBE_PORT"),
    "nothing denied": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/deny-all", "spec", "policyTypes", to=["Ingress"]),
        "deny-all is",
    ),
    "all let in": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/deny-all", "spec", "ingress", to=[{}]),
        "deny-all is",
    ),
    "another policy": (policies_let_through_what_is_needed, new_policy, "x: egress from or to everybody"),
    "Redis for the store's upgrade": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/redis", "spec", "podSelector", to={}),
        "upgrade: is selected by",
    ),
    "metrics for all": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/metrics", "spec", "ingress", 0, "from", to=[{"namespaceSelector": {}}]),
        "every namespace",
    ),
    "channels into the network": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/channels", "spec", "egress", 0, "to", 0, "ipBlock", "except", 1, to="10.0.0.0/9"),
        "channels: leads to 10.0.0.0/8",
    ),
    "channels to one's own IPv6": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/channels", "spec", "egress", 0, "to", 1, "ipBlock", "cidr", to="::/0"),
        "channels: leads to fc00::/7",
    ),
    "another port to Redis": (
        policies_let_through_what_is_needed,
        at("NetworkPolicy/redis", "spec", "egress", 0, "ports", 0, "port", to=6380),
        "redis: opens {6380}",
    ),
    "a service of nobody": (
        services_lead_to_pods,
        at("Service/api", "spec", "selector", COMPONENT, to="web"),
        "api leads to []",
    ),
    "metrics in public": (
        services_lead_to_pods,
        at("Ingress/tapewatch", "spec", "rules", 0, "http", "paths", 0, "path", to="/metrics"),
        "/metrics is public",
    ),
    "no TLS": (services_lead_to_pods, at("Ingress/tapewatch", "spec", "tls", to=None), "without TLS"),
    "no budget": (
        two_of_each_are_never_both_sent_away,
        at("PodDisruptionBudget/api", "spec", "selector", "matchLabels", COMPONENT, to="web"),
        "api: 0 budgets",
    ),
    "any pod": (
        the_namespace_is_restricted,
        at("Namespace/tapewatch", "metadata", "labels", to=None),
        "not restricted",
    ),
    "the account's token": (
        the_namespace_is_restricted,
        at("ServiceAccount/tapewatch", "automountServiceAccountToken", to=True),
        "a token is mounted",
    ),
}


@pytest.mark.parametrize(("rule", "change", "says"), BROKEN.values(), ids=BROKEN)
def test_manifests_that_break_a_rule_are_found(rule: Rule, change: Callable[[Any], None], says: str) -> None:
    found = documents()
    change(found)
    complaints = list(rule(found))
    assert any(says in complaint for complaint in complaints), complaints


def test_every_workload_is_in_the_tables() -> None:
    assert sorted(name for name, _, _ in every_pod(documents())) == sorted(EVERY)


def test_roles_are_those_that_the_help_names() -> None:
    said = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "250"}).output
    assert ", ".join(ROLES) in said


def test_manifests_name_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    (image,) = kustomization()["images"]
    assert image["newTag"] == version
    assert workload("first-admin")["image"] == f"{image['newName']}:{version}"


def test_kustomization_holds_all_files_but_those_that_are_applied_by_hand() -> None:
    folder = ROOT / "deploy" / "k8s"
    by_hand = {"kustomization.yaml", "first-admin.yaml", "redis-network-policy.yaml"}
    assert {path.name for path in folder.iterdir()} - by_hand == set(kustomization()["resources"])
