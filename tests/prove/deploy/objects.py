"""What objects of a chart must be: by the schemas of Kubernetes, to each other, and to undoubt."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec

from tests.undoubt.cli.harness import environment
from undoubt.config import Settings, load
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.wire import HandshakeRefused, PeerIdentity, PeerRole
from undoubt.coordinator.wire.tls import check_names
from undoubt.participants.errors import UndoubtError
from undoubt.serve.bootstrap import Begun
from undoubt.serve.sidecar.server import check as check_sidecar

Object = dict[str, Any]

VERSIONS = ("1.29.0", kubernetes_validate.latest_version())
"""Of Kubernetes: the lowest that the charts take, and the newest whose schemas are here."""
TEMPLATED = {"StatefulSet", "Deployment"}


def of_kind(rendered: list[Object], kind: str) -> list[Object]:
    return [each for each in rendered if each["kind"] == kind]


def replicas(rendered: list[Object]) -> int:
    """Of the nodes."""
    [nodes] = of_kind(rendered, "StatefulSet")
    return int(nodes["spec"]["replicas"])


def wrong(rendered: list[Object]) -> list[str]:
    """What is wrong with any of the objects."""
    found = []
    for each in rendered:
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["apiVersion"].startswith("cert-manager.io/"):
            continue  # its schema is no part of Kubernetes; wrong_nodes reads it
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except (
                kubernetes_validate.ValidationError,
                kubernetes_validate.SchemaNotFoundError,
            ) as error:
                found.append(f"{name}: {error.message}")
        if each["kind"] in TEMPLATED:
            found += [f"{name}: {fault}" for fault in _wrong_pods(rendered, each["spec"])]
    return found


def _containers(spec: Object) -> Iterator[Object]:
    yield from spec.get("initContainers", ())
    yield from spec["containers"]


def _wrong_pods(rendered: list[Object], workload: Object) -> Iterator[str]:
    spec, labels = workload["template"]["spec"], workload["template"]["metadata"]["labels"]
    if not _selects(workload["selector"]["matchLabels"], labels):
        yield "its selector does not select its pods"
    if not spec["securityContext"].get("runAsNonRoot") or not spec["securityContext"].get("runAsUser"):
        yield "its pods may run as root"
    if spec.get("automountServiceAccountToken") is not False:
        yield "its pods get a token for the API of Kubernetes"
    volumes = {each["name"] for each in spec.get("volumes", ())}
    volumes |= {each["metadata"]["name"] for each in workload.get("volumeClaimTemplates", ())}
    here = {each["metadata"]["name"] for each in of_kind(rendered, "ConfigMap")}
    for each in spec.get("volumes", ()):
        if "configMap" in each and each["configMap"]["name"] not in here:
            yield f"there is no ConfigMap {each['configMap']['name']}"
    for each in _containers(spec):
        security = each.get("securityContext", {})
        if (
            security.get("allowPrivilegeEscalation") is not False
            or security.get("readOnlyRootFilesystem") is not True
            or security.get("capabilities", {}).get("drop") != ["ALL"]
        ):
            yield f"container {each['name']} may more than it needs"
        if "limits" not in each.get("resources", {}):
            yield f"container {each['name']} may use all memory of its machine"
        for mount in each.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"container {each['name']} mounts {mount['name']}, which there is not"


def _selects(selector: Object, labels: Object) -> bool:
    return selector.items() <= labels.items()


def wrong_nodes(rendered: list[Object], *, apart: bool) -> list[str]:
    """What is wrong with the nodes. ``apart``: each has to be on a machine of its own."""
    [nodes], [budget], [service] = (
        of_kind(rendered, kind) for kind in ("StatefulSet", "PodDisruptionBudget", "Service")
    )
    spec, pod = nodes["spec"], nodes["spec"]["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    [node] = pod["containers"]
    found = []
    if spec["podManagementPolicy"] != "Parallel" or spec["ordinals"]["start"] != 1:
        found.append("the nodes do not start together, with numbers from 1")
    if budget["spec"]["maxUnavailable"] != 1 or not _selects(
        budget["spec"]["selector"]["matchLabels"], labels
    ):
        found.append("a drain of machines can take the majority")
    if not _selects(service["spec"]["selector"], labels) or not service["spec"]["publishNotReadyAddresses"]:
        found.append("the nodes do not find each other before they are ready")
    for policy in of_kind(rendered, "NetworkPolicy"):
        found += _wrong_policy(policy["spec"], labels)
    [(strength, [term])] = pod["affinity"]["podAntiAffinity"].items()
    term = term.get("podAffinityTerm", term)
    if (
        not _selects(term["labelSelector"]["matchLabels"], labels)
        or term["topologyKey"] != "kubernetes.io/hostname"
        or (apart and not strength.startswith("required"))
    ):
        found.append("nodes may be on one machine")
    if [each["spec"]["accessModes"] for each in spec["volumeClaimTemplates"]] != [["ReadWriteOncePod"]]:
        found.append("nodes may share a disk")
    if spec["persistentVolumeClaimRetentionPolicy"] != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        found.append("disks are deleted with the release")
    ports = {port["name"]: port["containerPort"] for port in node["ports"]}
    for number in range(1, spec["replicas"] + 1):
        found += _wrong_node(rendered, number, ports)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if node[probe]["httpGet"]["port"] not in ports:
            found.append(f"{probe} asks at no port")
    return found


def _wrong_policy(policy: Object, labels: Object) -> Iterator[str]:
    if not _selects(policy["podSelector"]["matchLabels"], labels):
        yield "the network policy is not about the nodes"
    if set(policy["policyTypes"]) != {"Ingress", "Egress"}:
        yield "the network policy is about one direction only"
    for rule in policy["ingress"]:
        if not rule.get("from") or len(rule.get("ports", ())) != 1:
            yield "the network policy lets in anybody, or to any port of the nodes"
    if not all(rule.get("ports") for rule in policy["egress"]):
        yield "the network policy lets the nodes out to any port"


def _wrong_node(rendered: list[Object], number: int, ports: dict[str, int]) -> Iterator[str]:
    """What undoubt says about the configuration, and Kubernetes' view of the certificate."""
    [nodes] = of_kind(rendered, "StatefulSet")
    pod = nodes["spec"]["template"]["spec"]
    settings = _settings(rendered, nodes, pod["containers"][0], number)
    listens = {settings.node.listen, settings.node.health}
    if listens != {f"0.0.0.0:{ports['ledger']}", f"0.0.0.0:{ports['health']}"}:
        yield f"node {number} listens at {listens}, not at its ports"
    if settings.node.number != number:
        yield f"pod {number} is node {settings.node.number}"
    [projected] = [each["projected"] for each in pod["volumes"] if each["name"] == "tls"]
    files = [item["path"] for each in projected["sources"] for item in each["secret"].get("items", ())]
    tls = settings.ledger.wire.tls
    assert tls is not None
    if files and not {Path(tls.ca).name, Path(tls.cert).name, Path(tls.key).name} <= set(files):
        yield f"node {number} does not find its certificate: {files}"
    if tls.crl and Path(tls.crl).parent != Path(tls.ca).parent:
        yield f"node {number} does not find the list of revoked certificates"
    for each in of_kind(rendered, "Certificate"):
        if each["metadata"]["name"].endswith(f"-node-{number}"):
            cluster = each["spec"]["uris"][0].split("/")[2]
            try:
                check_names(each["spec"]["uris"], PeerIdentity(PeerRole.NODE, cluster, number), cluster)
            except HandshakeRefused as error:
                yield error.reason
            if not {"server auth", "client auth"} <= set(each["spec"]["usages"]):
                yield f"the certificate of node {number} is not for both sides of a connection"


def wrong_sidecar(rendered: list[Object]) -> list[str]:
    """What is wrong with the sidecar in the pods of a service."""
    [service] = of_kind(rendered, "Deployment")
    pod = service["spec"]["template"]["spec"]
    sidecars = [each for each in pod.get("initContainers", ()) if each["name"] == "undoubt-sidecar"]
    if [each.get("restartPolicy") for each in sidecars] != ["Always"]:
        return ["the service has no native sidecar"]
    found = [
        f"the sidecar has no {probe}"
        for probe in ("startupProbe", "livenessProbe")
        if probe not in sidecars[0]
    ]
    try:
        settings = _settings(rendered, service, sidecars[0], 0)
        check_sidecar(settings.sidecar)
    except UndoubtError as error:
        return [*found, f"the sidecar: {error}"]
    if not settings.ledger.url.startswith("raft://") or set(settings.participants) != {"orders", "payments"}:
        found.append("the sidecar does not know the ledger, or the databases")
    labels = service["spec"]["template"]["metadata"]["labels"]
    for policy in of_kind(rendered, "NetworkPolicy"):
        clients = [
            source["podSelector"]["matchLabels"]
            for rule in policy["spec"]["ingress"]
            for source in rule["from"]
            if "podSelector" in source
        ]
        if not any(_selects(each, labels) for each in clients):
            found.append("the service does not reach the nodes")
    return found


def initialized(rendered: list[Object], data: Path, number: int, ticket: str) -> Begun:
    """Run what the init container of that pod runs, on ``data``; without a ``ticket``: as for the first node
    of a cluster that has no id yet."""
    [nodes] = of_kind(rendered, "StatefulSet")
    [container] = nodes["spec"]["template"]["spec"]["initContainers"]
    shell, option, script = container["command"]
    script = script.replace("/var/lib/undoubt/node", str(data / "node"))
    if not ticket:
        script = re.sub(r"--id \S+", "--yes", script)
    script = script.replace("undoubt cluster init", f"{sys.executable} -m undoubt cluster init -o json")
    config = data.parent / f"{data.name}.toml"
    # The databases of the values are nowhere: only the first node of a cluster without an id asks them.
    config.write_text(_text(rendered, nodes).partition("[participants")[0])
    own = _environment(container, number) | {"UNDOUBT_NODE__DATA": str(data / "node")}
    ran = subprocess.run(
        [shell, option, script],
        env=environment(own | {"UNDOUBT_CONFIG": str(config)}),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise LedgerError(ran.stderr.strip())
    return msgspec.json.decode(ran.stdout, type=Begun)


def _environment(container: Object, number: int) -> dict[str, str]:
    """As the kubelet would make it for the pod of that ordinal."""
    made: dict[str, str] = {}
    for each in container.get("env", ()):
        value = each.get("value")
        if value is None:
            field = each["valueFrom"]["fieldRef"]["fieldPath"]
            assert field == "metadata.labels['apps.kubernetes.io/pod-index']", field
            value = str(number)
        made[each["name"]] = re.sub(r"\$\(([A-Z_0-9]+)\)", lambda found: made[found[1]], value)
    return made


def _text(rendered: list[Object], workload: Object) -> str:
    pod = workload["spec"]["template"]["spec"]
    [name] = [each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each]
    [config] = [each for each in of_kind(rendered, "ConfigMap") if each["metadata"]["name"] == name]
    return str(config["data"]["undoubt.toml"])


def _settings(rendered: list[Object], workload: Object, container: Object, number: int) -> Settings:
    """Those of ``container`` in the pod of that ordinal. Raises ``ConfigurationError``."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(_text(rendered, workload))
        config.flush()
        return load(config.name, env=_environment(container, number))
