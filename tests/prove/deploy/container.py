"""Runs a command as a container's runtime would: on a root of its own, as a user without rights.

The root has the programs and libraries of this machine, as the base of an image would, and nothing else of
it. It needs root, and util-linux."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = ("bin", "lib", "lib32", "lib64", "sbin", "usr")


@dataclass
class Container:
    """``mounts``: folders and files of this machine by their place in the container; those of ``writable``
    can be changed there. ``temporary``: places of empty folders in memory. ``hosts``: names, with addresses.
    ``writes_root``: as while an image is built."""

    mounts: Mapping[str, Path] = field(default_factory=dict)
    writable: frozenset[str] = frozenset()
    temporary: Sequence[str] = ("/tmp",)  # noqa: S108
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    user: int = 0
    folder: str = "/"
    writes_root: bool = False

    def command(self, *words: str) -> list[str]:
        """What runs ``words`` in it."""
        return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", self._script(words)]

    def _script(self, words: Sequence[str]) -> str:
        root = "/mnt"
        lines = [f"mount -t tmpfs -o mode=0755 root {root}", f"mkdir {root}/proc {root}/dev {root}/etc"]
        lines += [f"mount --rbind /{name} {root}/{name}" for name in ("proc", "dev")]
        for name in SYSTEM:
            if os.path.islink(f"/{name}"):
                lines.append(f"ln -s {shlex.quote(os.readlink(f'/{name}'))} {root}/{name}")
            elif os.path.isdir(f"/{name}"):
                lines += [f"mkdir {root}/{name}", f"mount --bind -o ro /{name} {root}/{name}"]
        for name in ("ssl", "passwd", "group", "nsswitch.conf", "resolv.conf", "alternatives", "ld.so.cache"):
            lines.append(f"if [ -e /etc/{name} ]; then cp -rL /etc/{name} {root}/etc/{name}; fi")
        own = "".join(f"{address} {name}\n" for name, address in self.hosts.items())
        table = Path("/etc/hosts").read_text() + own
        lines.append(f"printf %s {shlex.quote(table)} > {root}/etc/hosts")
        for place in self.temporary:
            lines += [f"mkdir -p {root}{place}", f"mount -t tmpfs -o mode=1777 tmp {root}{place}"]
        for place, source in self.mounts.items():
            at, what = shlex.quote(f"{root}{place}"), shlex.quote(str(source))
            made = f"mkdir -p {at}" if source.is_dir() else f"mkdir -p $(dirname {at}) && touch {at}"
            options = "" if place in self.writable else "-o ro "
            lines += [made, f"mount --bind {options}{what} {at}"]
        if not self.writes_root:
            lines.append(f"mount -o remount,ro {root}")
        given = [f"{name}={value}" for name, value in self.environment.items()]
        rights = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        rights += [f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        inner = [*(rights if self.user else ()), *words]
        entered = [
            "chroot",
            root,
            "env",
            "-i",
            *given,
            "sh",
            "-c",
            f'cd {self.folder} && exec "$@"',
            "sh",
            *inner,
        ]
        lines.append("exec " + shlex.join(entered))
        return "\n".join(lines)


def python() -> str:
    """An interpreter that the container has as well: of the system, not of a user's folder."""
    base = os.path.realpath(sys.executable)
    return base if base.startswith("/usr/") else "/usr/bin/python3"
