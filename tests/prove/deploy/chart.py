"""The charts: Helm lints and renders them, with values of several installations; then see :mod:`.objects`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.prove import deploy
from tests.prove.deploy import objects
from tests.prove.deploy.planted import Fault, judged
from undoubt.coordinator.errors import LedgerError

RELEASE, NAMESPACE = "ledger", "shop"
SOME_ID = f"{'0' * 10}-{'0' * 8}"
"""In the form of a cluster's id."""
PARTICIPANTS = '[participants.orders]\ndsn = "postgresql://recovery@orders-db/orders"\n'
OWN: dict[str, Any] = {"tls": {"secretName": "node-certificates"}, "config": PARTICIPANTS}
CERT_MANAGER: dict[str, Any] = {
    "tls": {
        "certManager": {
            "enabled": True,
            "issuerRef": {"name": "ledger-ca", "kind": "Issuer", "group": "cert-manager.io"},
            "clients": [{"name": "shop", "role": "transact"}],
        }
    }
}
INSTALLATIONS: tuple[dict[str, Any], ...] = (
    OWN,
    CERT_MANAGER,
    OWN | {"nodes": {"count": 5, "antiAffinity": "soft", "zoneKey": ""}, "networkPolicy": {"enabled": False}},
    OWN
    | {
        "image": {"digest": f"sha256:{'0' * 64}"},
        "tls": {"secretName": "node-certificates", "revocation": True},
        "secretName": "passwords",
        "imagePullSecrets": [{"name": "registry"}],
        "nodes": {
            "storage": {"className": "ssd"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "ledger", "operator": "Exists"}],
            "priorityClassName": "system-cluster-critical",
        },
        "networkPolicy": {"clientNamespaces": {"kubernetes.io/metadata.name": "apps"}},
    },
)
NODES = "helm/undoubt/templates/nodes.yaml"
HELPERS = "helm/undoubt/templates/_helpers.tpl"
CERTIFICATES, POLICY = "helm/undoubt/templates/certificates.yaml", "helm/undoubt/templates/networkpolicy.yaml"
SERVICE = "helm/service/templates/deployment.yaml"
FAULTS = (
    Fault(NODES, "  podManagementPolicy: Parallel", "  podManagementPolice: Parallel", "was unexpected"),
    Fault(NODES, "maxUnavailable: 1", "maxUnavailable: 2", "can take the majority"),
    Fault(NODES, "ordinals: {start: 1}", "ordinals: {start: 0}", "do not start together"),
    Fault(NODES, '"0.0.0.0:7482"', '"0.0.0.0:7483"', "not at its ports"),
    Fault(NODES, "path: node-{{ $number }}.key", "path: node.key", "does not find its certificate"),
    Fault(
        NODES, "        - name: config\n", "        - name: configs\n", "mounts config, which there is not"
    ),
    Fault(NODES, "{whenDeleted: Retain,", "{whenDeleted: Delete,", "disks are deleted"),
    Fault(
        NODES, '{{- if eq .Values.nodes.antiAffinity "hard" }}', "{{- if false }}", "may be on one machine"
    ),
    Fault(NODES, "accessModes: [ReadWriteOncePod]", "accessModes: [ReadWriteMany]", "share a disk"),
    Fault(
        NODES, "exec undoubt cluster init --id", "exec undoubt cluster init --ids", "a node cannot be made"
    ),
    Fault(HELPERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "may more than it needs"),
    Fault(HELPERS, "restartPolicy: Always\n", "", "no native sidecar"),
    Fault(HELPERS, "UNDOUBT_SIDECAR__SOCKET", "UNDOUBT_SIDECAR__SOCKETS", "the sidecar: "),
    Fault(CERTIFICATES, "/node/{{ $number }}]", "/nodes/{{ $number }}]", "is not valid for node 1"),
    Fault(
        POLICY,
        "      ports: [{protocol: TCP, port: ledger}]\n    - from:",
        "    - from:",
        "any port of the nodes",
    ),
    Fault(POLICY, "{{- end }}\n{{- end }}", "{{- end }}", "helm lint"),
    Fault(SERVICE, 'undoubt.io/client: "true"', 'undoubt.io/clients: "true"', "does not reach the nodes"),
)


def why_not() -> str | None:
    return None if shutil.which("helm") else "helm is not installed: sh .ci/helm /usr/local/bin"


async def main() -> list[str]:
    return await judged(find, FAULTS)


async def find(place: Path) -> list[str]:
    """What is wrong with the charts."""
    with tempfile.TemporaryDirectory(prefix="undoubt-helm-") as name:
        folder = Path(name)
        # Helm puts what a chart depends on into its folder.
        charts = folder / "helm"
        shutil.copytree(place / "helm", charts)
        try:
            for values in INSTALLATIONS:
                # What one finds the others would find once more.
                if found := await _installed(charts, folder, values):
                    return found
            return await _service(charts, folder) or await _initialized(charts, folder)
        except HelmFailed as error:
            return [str(error)]


class HelmFailed(Exception):
    """Helm refused a chart; with what it said."""


async def _installed(charts: Path, folder: Path, values: dict[str, Any]) -> list[str]:
    values = values | {"cluster": {"id": SOME_ID}}
    await _helm("lint", "--strict", str(charts / "undoubt"), "--values", str(_file(folder, values)))
    rendered = await _rendered(charts / "undoubt", folder, values)
    return objects.wrong(rendered) or objects.wrong_nodes(
        rendered, apart=values.get("nodes", {}).get("antiAffinity") != "soft"
    )


async def _service(charts: Path, folder: Path) -> list[str]:
    values = {"undoubt": OWN | {"cluster": {"id": SOME_ID}}}
    await _helm("dependency", "build", "--skip-refresh", str(charts / "service"))
    await _helm("lint", "--strict", str(charts / "service"), "--values", str(_file(folder, values)))
    rendered = await _rendered(charts / "service", folder, values)
    return objects.wrong(rendered) or objects.wrong_sidecar(rendered)


async def _initialized(charts: Path, folder: Path) -> list[str]:
    """Make the nodes of a cluster of three and of five, each as its pod does, as the README says."""
    found = []
    for count in (3, 5):
        values = OWN | {"nodes": {"count": count}}
        data = folder / str(count)
        data.mkdir()
        rendered = await _rendered(charts / "undoubt", folder, values | {"cluster": {"id": SOME_ID}})
        try:
            ticket = objects.initialized(rendered, data / "drawn", 1, "").ticket
            rendered = await _rendered(charts / "undoubt", folder, values | {"cluster": {"id": ticket}})
            for number in range(1, count + 1):
                begun = objects.initialized(rendered, data / str(number), number, ticket)
                if (begun.node, begun.ticket) != (number, ticket):
                    found.append(f"pod {number} makes node {begun.node} of {begun.ticket}")
        except LedgerError as error:
            found.append(f"a node cannot be made: {error}")
    return found


async def _rendered(chart: Path, folder: Path, values: dict[str, Any]) -> list[objects.Object]:
    told = await _helm(
        "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(_file(folder, values)),
        # The lowest that the charts take; Helm would take the newest that it knows.
        "--kube-version", objects.VERSIONS[0],
    )  # fmt: skip
    try:
        return [each for each in yaml.safe_load_all(told) if each]
    except yaml.YAMLError as error:
        raise HelmFailed(f"{chart.name} renders to what is no YAML: {error}") from error


async def _helm(*words: str) -> str:
    status, told = await deploy.run("helm", *words)
    if status:
        raise HelmFailed(f"helm {words[0]}: {told.strip()}")
    return told


def _file(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
