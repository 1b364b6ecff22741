"""Real etcd members on this machine (Debian: ``etcd-server``, ``etcd-client``): started, killed, stopped,
compacted, restored from a snapshot.

The folder of a member stays when it is killed, so that it starts again with what it had stored."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.ports import free_ports
from undoubt.serve.local.parent import die_with_parent

NAMES = ("one", "two", "three")
READY_S = 120.0


class EtcdMissing(RuntimeError):
    """etcd is not installed: ``apt-get install etcd-server etcd-client``."""


class EtcdCluster:
    """Members ``one``, ``two``, …, which store beneath ``folder``. Their heartbeats are slow, so that a busy
    machine makes no election; ``heartbeat_ms`` sets them otherwise. ``certs``: a folder with ``ca.crt``,
    ``node-1.*`` and ``client-app.*``; then clients need TLS and a certificate."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        heartbeat_ms: int = 500,
        token: str = "undoubt-test",
        certs: Path | None = None,
    ) -> None:
        if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
            raise EtcdMissing(EtcdMissing.__doc__)
        self.folder = folder
        self.names = NAMES[:count]
        ports = free_ports(2 * count)
        self.clients = dict(zip(self.names, ports[:count], strict=True))
        self._peers = dict(zip(self.names, ports[count:], strict=True))
        self._heartbeat_ms = heartbeat_ms
        self.token = token
        self._certs = certs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return "etcd://" + ",".join(f"127.0.0.1:{port}" for port in self.clients.values())

    @property
    def initial(self) -> str:
        return ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self._peers.items())

    def start(self, *names: str) -> None:
        """Start members, all by default, and wait until one leads."""
        for name in names or self.names:
            client, peer = self._base(name), f"http://127.0.0.1:{self._peers[name]}"
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [
                        "etcd", "--name", name, "--data-dir", str(self.folder / name),
                        "--listen-client-urls", client, "--advertise-client-urls", client,
                        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                        "--initial-cluster", self.initial, "--initial-cluster-token", self.token,
                        "--heartbeat-interval", str(self._heartbeat_ms),
                        "--election-timeout", str(10 * self._heartbeat_ms),
                        "--logger", "zap", "--log-level", "error", *self._tls(),
                    ],
                    stdout=log, stderr=log, start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - calls the kernel, and takes no lock
                )  # fmt: skip
        self.wait(*names)

    def wait(self, *names: str) -> None:
        """Until the members, all by default, know a leader and answer a linearizable read."""
        end = time.monotonic() + READY_S
        for name in names or self.names:
            while not self._answers(name):
                if time.monotonic() > end:
                    raise TimeoutError(f"etcd {name} is not ready; see {self.folder / name}.log")
                time.sleep(0.05)

    def _answers(self, name: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.ask(name, "kv/range", key="YQ==").status_code == httpx.codes.OK
        return False

    def ask(self, member: str, path: str, /, **request: object) -> httpx.Response:
        verify: ssl.SSLContext | bool = True
        if self._certs is not None:
            verify = ssl.create_default_context(cafile=self._certs / "ca.crt")
            verify.load_cert_chain(self._certs / "client-app.crt", self._certs / "client-app.key")
        url = f"{self._base(member)}/v3/{path}"
        return httpx.post(url, json=request, timeout=10, trust_env=False, verify=verify)

    def _base(self, member: str) -> str:
        return f"{'http' if self._certs is None else 'https'}://127.0.0.1:{self.clients[member]}"

    def _tls(self) -> list[str]:
        if self._certs is None:
            return []
        files = {"--cert-file": "node-1.crt", "--key-file": "node-1.key", "--trusted-ca-file": "ca.crt"}
        named = [part for flag, file in files.items() for part in (flag, str(self._certs / file))]
        return ["--client-cert-auth", *named]

    def leader(self) -> str:
        """The name of the member that leads."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            for name in self.running:
                with contextlib.suppress(httpx.HTTPError):
                    status = self.ask(name, "maintenance/status").json()
                    if status.get("leader") == status["header"]["member_id"]:
                        return name
            time.sleep(0.05)
        raise TimeoutError("no member of etcd leads")

    @property
    def running(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.poll() is None]

    def kill(self, *names: str) -> None:
        for name in names:
            process = self._processes.pop(name)
            process.kill()
            process.wait()

    def pause(self, name: str) -> None:
        os.kill(self._processes[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        os.kill(self._processes[name].pid, signal.SIGCONT)

    def compact(self) -> None:
        """Forget all revisions but the newest."""
        name = self.running[0]
        revision = self.ask(name, "kv/range", key="YQ==").json()["header"]["revision"]
        answer = self.ask(name, "kv/compaction", revision=revision, physical=True)
        if "has been compacted" not in answer.text:  # before: nothing was written since
            answer.raise_for_status()

    def save(self, file: Path) -> None:
        """Write a snapshot of one member, as an operator does."""
        self._etcdctl(
            "snapshot", "save", str(file), "--endpoints", f"127.0.0.1:{self.clients[self.names[0]]}"
        )

    def restore(self, file: Path) -> None:
        """Make the folders of all members, which do not run, from a snapshot: a new cluster."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.token += "-restored"
        for name in self.names:
            self._etcdctl(
                "snapshot", "restore", str(file), "--name", name, "--data-dir", str(self.folder / name),
                "--initial-cluster", self.initial, "--initial-cluster-token", self.token,
                "--initial-advertise-peer-urls", f"http://127.0.0.1:{self._peers[name]}",
            )  # fmt: skip

    def _etcdctl(self, *arguments: str) -> None:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        subprocess.run(["etcdctl", *arguments], env=environment, check=True, capture_output=True)

    def close(self) -> None:
        self.kill(*list(self._processes))


class Majority:
    """The leader, which is killed, and another member, which is stopped, after all have been compacted:
    nothing can be decided until they run again."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster = cluster
        self._killed = self._paused = ""

    async def kill(self) -> int:
        """Returns the signal of which the leader died."""
        await asyncio.to_thread(self._kill)
        return signal.SIGKILL

    def _kill(self) -> None:
        self._cluster.compact()
        self._killed = self._cluster.leader()
        self._paused = next(name for name in self._cluster.names if name != self._killed)
        self._cluster.pause(self._paused)
        self._cluster.kill(self._killed)

    async def start(self) -> None:
        self._cluster.resume(self._paused)
        await asyncio.to_thread(self._cluster.start, self._killed)


class Disturbance:
    """While it is entered: one member after another is killed, or stopped, for a moment, and all are
    compacted. Two of three run at any time, so the others go on."""

    LASTS_S = 0.7

    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="undoubt-test-etcd-disturbance")
        self.failure: BaseException | None = None
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Disturbance:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            for number in itertools.count():
                name = self._cluster.names[number % len(self._cluster.names)]
                for how in (self._killed, self._paused, self._compacted):
                    how(name)
                    self.done[how.__name__] += 1
                    if self._over.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 - raised where the disturbance ends
            self.failure = error

    def _killed(self, name: str) -> None:
        self._cluster.kill(name)
        self._over.wait(self.LASTS_S)
        self._cluster.start(name)

    def _paused(self, name: str) -> None:
        self._cluster.pause(name)
        self._over.wait(self.LASTS_S)
        self._cluster.resume(name)
        self._cluster.wait()

    def _compacted(self, _: str) -> None:
        self._cluster.compact()
        self._over.wait(self.LASTS_S)
