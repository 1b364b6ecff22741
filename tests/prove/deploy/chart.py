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

RELEASE, NAMESPACE = "ledger", "shop"
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
FAULTS = (
    Fault(NODES, "  podManagementPolicy: Parallel", "  podManagementPolice: Parallel"),
    Fault(NODES, "maxUnavailable: 1", "maxUnavailable: 2"),
    Fault(NODES, "ordinals: {start: 1}", "ordinals: {start: 0}"),
    Fault(NODES, '"0.0.0.0:7482"', '"0.0.0.0:7483"'),
    Fault(NODES, "path: node-{{ $number }}.key", "path: node.key"),
    Fault(NODES, "        - name: config\n", "        - name: configs\n"),
    Fault(HELPERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    Fault(HELPERS, "restartPolicy: Always\n", ""),
    Fault(HELPERS, "UNDOUBT_SIDECAR__SOCKET", "UNDOUBT_SIDECAR__SOCKETS"),
    Fault("helm/undoubt/templates/certificates.yaml", "/node/{{ $number }}]", "/nodes/{{ $number }}]"),
    Fault("helm/undoubt/templates/networkpolicy.yaml", "{{- end }}\n{{- end }}", "{{- end }}"),
)


async def main() -> list[str]:
    if shutil.which("helm") is None:
        return ["helm is not installed: go install helm.sh/helm/v3/cmd/helm@v3.18.6"]
    return await judged(find, FAULTS)


async def find(place: Path) -> list[str]:
    """What is wrong with the charts."""
    with tempfile.TemporaryDirectory(prefix="undoubt-helm-") as name:
        folder = Path(name)
        # Helm puts what a chart depends on into its folder.
        charts = folder / "helm"
        shutil.copytree(place / "helm", charts)
        try:
            ticket = await _ticket(charts, folder)
            found = []
            for values in INSTALLATIONS:
                found += await _installed(charts, folder, values, ticket)
            return found + await _service(charts, folder, ticket)
        except HelmFailed as error:
            return [str(error)]


class HelmFailed(Exception):
    """Helm refused a chart; with what it said."""


async def _ticket(charts: Path, folder: Path) -> str:
    """What `undoubt cluster init` prints for the nodes of the chart, as its README says."""
    placeholder = f"{'0' * 10}-{'0' * 8}"
    rendered = await _rendered(charts / "undoubt", folder, OWN | {"cluster": {"id": placeholder}})
    return objects.initialized(rendered, folder / "first", 1, "").ticket


async def _installed(charts: Path, folder: Path, values: dict[str, Any], ticket: str) -> list[str]:
    if values.get("nodes", {}).get("count", 3) != 3:
        rendered = await _rendered(charts / "undoubt", folder, values | {"cluster": {"id": ticket}})
        ticket = objects.initialized(rendered, Path(tempfile.mkdtemp(dir=folder)), 1, "").ticket
    values = values | {"cluster": {"id": ticket}}
    await _helm("lint", "--strict", str(charts / "undoubt"), "--values", str(_file(folder, values)))
    rendered = await _rendered(charts / "undoubt", folder, values)
    found = objects.wrong(rendered) + objects.wrong_nodes(rendered)
    for number in range(1, objects.replicas(rendered) + 1):
        with tempfile.TemporaryDirectory(dir=folder) as data:
            try:
                begun = objects.initialized(rendered, Path(data), number, ticket)
            except Exception as error:  # noqa: BLE001 - whatever the node would end with
                found.append(f"node {number} cannot be made: {error}")
            else:
                if (begun.node, begun.ticket) != (number, ticket):
                    found.append(f"pod {number} makes node {begun.node} of {begun.ticket}")
    return found


async def _service(charts: Path, folder: Path, ticket: str) -> list[str]:
    values = {"undoubt": OWN | {"cluster": {"id": ticket}}}
    await _helm("dependency", "build", "--skip-refresh", str(charts / "service"))
    await _helm("lint", "--strict", str(charts / "service"), "--values", str(_file(folder, values)))
    rendered = await _rendered(charts / "service", folder, values)
    return objects.wrong(rendered) + objects.wrong_sidecar(rendered)


async def _rendered(chart: Path, folder: Path, values: dict[str, Any]) -> list[objects.Object]:
    told = await _helm(
        "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(_file(folder, values)),
        # Helm, as Go's own tool builds it, takes a cluster that it is not told of for an old one.
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
