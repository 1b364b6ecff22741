"""The image and the compose file: what Docker would run is run, each container on its read-only root.

The stages of the Dockerfile are built from the files that its .dockerignore lets through, and the base is
this machine. Then the containers of the compose file run: the one that sets up, three nodes, and the
sidecar. The health check of the image has to tell a node that works from one that stands still."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.coordinator.node.processes import why_no_mounts
from tests.house.tree import LINKS, ROOT, files
from tests.prove import deploy
from tests.prove.deploy import dockerfile
from tests.prove.deploy.container import Container, python
from tests.prove.deploy.planted import DEPLOY, Fault, judged

DOCKERFILE, IGNORED = "image/Dockerfile", "image/Dockerfile.dockerignore"
COMPOSE, SETUP = "compose/compose.yaml", "compose/setup.sh"
FAULTS = (
    Fault(DOCKERFILE, "USER 65532:65532\n", "", "runs as root"),
    Fault(DOCKERFILE, 'ENTRYPOINT ["undoubt"]', "ENTRYPOINT undoubt", "ENTRYPOINT runs through a shell"),
    Fault(DOCKERFILE, "HEALTHCHECK ", "# HEALTHCHECK ", "HEALTHCHECK runs through a shell, or is missing"),
    Fault(IGNORED, "!requirements\n", "", "requirements does not reach the build"),
    Fault(IGNORED, "!LICENSE\n", "!LICENSE\n!tests\n", "tests reaches the build"),
    Fault(COMPOSE, "  read_only: true\n", "", "may change its root"),
    Fault(COMPOSE, "cap_drop: [ALL]", "cap_drop: ALL", "cap_drop: 'ALL' is not of type 'array'"),
    Fault(COMPOSE, "service_completed_successfully", "service_finished", "depends_on"),
)
RUNNING_FAULTS = (
    Fault(SETUP, "--node 2 --node 3", "--node 2", "node-3 ended"),
    Fault(DOCKERFILE, '["undoubt", "health", "node"]', '["undoubt", "--version"]', "stands still is healthy"),
)
PATIENCE_S = 120.0
LOOK_S = 0.2


why_not = why_no_mounts


async def main() -> list[str]:
    return await judged(find, FAULTS) or await _run()


async def find(place: Path) -> list[str]:
    """What is wrong with the files, without running anything."""
    found = []
    image = dockerfile.read(place / DOCKERFILE)[-1]
    user = image.last("USER").partition(":")[0]
    if not user.isdigit() or user == "0":
        found.append(
            "the image runs as root, or as a name that the read-only check of Kubernetes cannot judge"
        )
    for word, form in (("ENTRYPOINT", image.last("ENTRYPOINT")), ("HEALTHCHECK", _health(image))):
        try:
            dockerfile.words(form)
        except ValueError:
            found.append(f"{word} runs through a shell, or is missing")
    if image.all("RUN"):
        found.append("the image itself runs something: what it needs is made in the stage before it")
    let_through = {path.relative_to(ROOT).parts[0] for path in context(place)}
    needed = {"pyproject.toml", "README.md", "LICENSE", "requirements", "deploy", "undoubt", "recovery"}
    found += [f"{name} does not reach the build" for name in sorted(needed - let_through)]
    found += [f"{name} reaches the build" for name in sorted(let_through & {"tests", ".git", "docs"})]
    compose = yaml.safe_load((place / COMPOSE).read_text())
    schema = json.loads(
        resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    )
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(compose):
        found.append(f"compose: {'.'.join(map(str, error.absolute_path))}: {error.message}")
    for name, service in compose["services"].items():
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
            found.append(f"compose: {name} may change its root, or has rights of root")
    return found


def _health(image: dockerfile.Stage) -> str:
    return image.last("HEALTHCHECK").partition("CMD ")[2]


def context(place: Path) -> list[Path]:
    """The files that Docker would send to the build, by the .dockerignore beside the Dockerfile."""
    patterns = [
        line for line in (place / IGNORED).read_text().splitlines() if line and not line.startswith("#")
    ]

    def let_through(name: str) -> bool:
        kept = True
        for pattern in patterns:
            bare = pattern.removeprefix("!")
            parts = name.split("/")
            if any(fnmatch.fnmatch("/".join(parts[: count + 1]), bare) for count in range(len(parts))):
                kept = pattern.startswith("!")
        return kept

    return [path for path in files() if let_through(str(path.relative_to(ROOT)))]


async def _run() -> list[str]:
    """Build the image once, and run the containers on it, also with faults in what does not change it."""
    with tempfile.TemporaryDirectory(prefix="undoubt-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            await _built(DEPLOY, dockerfile.read(DEPLOY / DOCKERFILE)[0], folder)
        except BuildFailed as error:
            return [str(error)]

        async def run(place: Path) -> list[str]:
            with tempfile.TemporaryDirectory(dir=folder) as volumes:
                Path(volumes).chmod(0o755)
                image = dockerfile.read(place / DOCKERFILE)[-1]
                try:
                    return await _composed(place, image, folder / "opt", Path(volumes))
                except BuildFailed as error:
                    return [str(error)]

        return await judged(run, RUNNING_FAULTS)


class BuildFailed(Exception):
    """A step of the image, or a container, ended with another status than 0."""


async def _built(place: Path, stage: dockerfile.Stage, folder: Path) -> None:
    """Run the steps of the stage that makes the environment, which are then in ``folder``/opt."""
    source, opt = folder / "src", folder / "opt"
    opt.mkdir()
    for path in context(place):
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for link, to in LINKS.items():
        if link.startswith("undoubt/"):
            (source / link).symlink_to(to)
    builder = Container(
        mounts={"/src": source, "/opt": opt},
        writable=frozenset({"/src", "/opt"}),
        environment={
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",  # noqa: S108
            "PYTHON": python(),
            **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
            **{name: value for name, value in os.environ.items() if name in {"PIP_INDEX_URL", "PIP_CERT"}},
        },
        folder=stage.last("WORKDIR"),
        writes_root=True,
    )
    for step in stage.all("RUN"):
        status, told = await deploy.run(*builder.command(*dockerfile.words(step)))
        if status:
            raise BuildFailed(f"RUN {step}: {told[-2000:]}")


async def _composed(place: Path, image: dockerfile.Stage, opt: Path, folder: Path) -> list[str]:
    """Run the containers on what was built into ``opt``, with volumes in ``folder``."""
    compose = yaml.safe_load((place / COMPOSE).read_text())
    user = int(image.last("USER").partition(":")[0])
    for volume in compose["volumes"]:
        (folder / volume).mkdir(mode=0o700)
        os.chown(folder / volume, user, user)

    def container(service: dict[str, Any]) -> Container:
        mounts, writable = {"/opt/undoubt": opt / "undoubt"}, set()
        for volume in service["volumes"]:
            source, at, *read_only = volume.split(":")
            inside = source.startswith("./")
            mounts[at] = place / "compose" / source if inside else folder / source
            if not read_only:
                writable.add(at)
        return Container(
            # A folder of volumes has to exist before they are mounted in it: the image has it.
            mounts=mounts,
            writable=frozenset(writable),
            environment=image.environment | service.get("environment", {}),
            hosts={f"node-{number}": f"127.0.1.{number}" for number in (1, 2, 3)},
            user=user,
            folder=image.last("WORKDIR"),
        )

    services = compose["services"]
    setup = services["setup"]
    status, told = await deploy.run(*container(setup).command(*setup["entrypoint"]))
    if status:
        raise BuildFailed(f"setup: {told[-2000:]}")
    entry = dockerfile.words(image.last("ENTRYPOINT"))
    async with contextlib.AsyncExitStack() as stack:
        running = {}
        for name, service in services.items():
            if name == "setup":
                continue
            # All containers are on one machine here, so each has its own address for what is local to it.
            own = container(service)
            address = own.hosts.get(name, "127.0.0.1")
            health = {"UNDOUBT_NODE__HEALTH": f"{address}:7482"}
            own.environment = {**own.environment, **health}
            running[name] = (
                own,
                await stack.enter_async_context(
                    _started(own.command(*entry, *service["command"]), folder / f"{name}.log")
                ),
            )
        return await _judged_by_health(image, services, running, folder)


async def _judged_by_health(
    image: dockerfile.Stage,
    services: dict[str, Any],
    running: dict[str, tuple[Container, asyncio.subprocess.Process]],
    folder: Path,
) -> list[str]:
    """Wait until each container is ready, and ask its health check; then one whose process stands still."""
    own_tests = {
        name: services[name]
        .get("healthcheck", {})
        .get("test", ["CMD", *dockerfile.words(_health(image))])[1:]
        for name in running
    }
    found = []
    for name, (own, _) in running.items():
        ready = own.command("undoubt", "health", "sidecar" if name == "sidecar" else "node", "--ready")
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (await deploy.run(*ready))[0]:
                    for other, (_, process) in running.items():
                        if process.returncode is not None:
                            raise BuildFailed(f"{other} ended: {_end_of(folder, other)}")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            return [f"{name} does not become ready: {_end_of(folder, name)}"]
        if (await deploy.run(*own.command(*own_tests[name])))[0]:
            found.append(f"{name} works and is not healthy")
    own, process = running["node-1"]
    test = own.command(*own_tests["node-1"])
    process.send_signal(signal.SIGSTOP)
    if (await deploy.run(*test))[0] == 0:
        found.append("a node that stands still is healthy")
    process.send_signal(signal.SIGCONT)
    written = await deploy.run(*own.command("touch", "/opt/undoubt/bin/x"))
    return found + (["the root of a container can be written"] if written[0] == 0 else [])


def _end_of(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text()[-500:]


@contextlib.asynccontextmanager
async def _started(command: list[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
