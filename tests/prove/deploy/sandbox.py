"""Runs a command under the system calls that a unit leaves to its service: ``sandbox.py UNIT COMMAND…``.

systemd makes the same filters of a unit, by the same library. No systemd runs in a container, so the mounts
and users of a unit are not made here. A system call that a service needs and its unit forbids is found."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
EQ, GT, MASKED_EQ = 4, 6, 7
"""How an argument is compared (seccomp_rule_add(3))."""
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
PR_SET_NO_NEW_PRIVS = 38


class Compared(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


Rule = tuple[str, Sequence[tuple[int, int, int, int]]]
"""A system call, and what its arguments are compared with."""
WRITABLE_CODE: tuple[Rule, ...] = (
    ("mmap", [(2, MASKED_EQ, PROT_EXEC | PROT_WRITE, PROT_EXEC | PROT_WRITE)]),
    ("mprotect", [(2, MASKED_EQ, PROT_EXEC, PROT_EXEC)]),
    ("pkey_mprotect", [(2, MASKED_EQ, PROT_EXEC, PROT_EXEC)]),
    ("shmat", [(2, MASKED_EQ, SHM_EXEC, SHM_EXEC)]),
)

_seccomp = ctypes.CDLL("libseccomp.so.2")
_seccomp.seccomp_init.restype = ctypes.c_void_p
_seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
_seccomp.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compared),
]  # fmt: skip


def main(unit: Path, command: Sequence[str]) -> None:
    lines = [line for line in unit.read_text().splitlines() if "=" in line and line[0] != "#"]
    pairs = [(line.split("=", 1)[0], line.split("=", 1)[1]) for line in lines]
    settings = dict(pairs)
    os.umask(int(settings["UMask"], 8))
    if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("no_new_privs cannot be set")
    _filter(ALLOW, REFUSE | errno.EAFNOSUPPORT, _other_families(settings["RestrictAddressFamilies"].split()))
    if settings["MemoryDenyWriteExecute"] == "yes":
        _filter(ALLOW, REFUSE | errno.EPERM, WRITABLE_CODE)
    allowed = _allowed(value for name, value in pairs if name == "SystemCallFilter")
    number = getattr(errno, settings["SystemCallErrorNumber"])
    _filter(REFUSE | number, ALLOW, [(name, ()) for name in sorted(allowed)])
    os.execvp(command[0], list(command))  # noqa: S606


def _filter(otherwise: int, action: int, rules: Iterable[Rule]) -> None:
    """From now on ``rules`` get ``action``, and all other calls ``otherwise``."""
    made = _seccomp.seccomp_init(otherwise)
    for name, compared in rules:
        # Below 0: a call of another architecture.
        if (call := _seccomp.seccomp_syscall_resolve_name(name.encode())) >= 0:
            array = (Compared * len(compared))(*(Compared(*each) for each in compared))
            if failed := _seccomp.seccomp_rule_add_array(made, action, call, len(compared), array):
                raise OSError(-failed, name)
    if failed := _seccomp.seccomp_load(made):
        raise OSError(-failed, "seccomp_load")


def _other_families(names: Iterable[str]) -> Iterator[Rule]:
    """Sockets of all families but those."""
    numbers = sorted(FAMILIES[name] for name in names)
    others = set(range(numbers[-1])) - set(numbers)
    yield from (("socket", [(0, EQ, number, 0)]) for number in sorted(others))
    yield "socket", [(0, GT, numbers[-1], 0)]


def _allowed(values: Iterable[str]) -> set[str]:
    """What several ``SystemCallFilter=`` leave, of which the first allows."""
    allowed: set[str] = set()
    for value in values:
        named = {call for name in value.removeprefix("~").split() for call in _calls(name)}
        allowed = allowed - named if value.startswith("~") else allowed | named
    # systemd always allows these.
    return allowed | _calls("@default")


def _calls(name: str) -> set[str]:
    """A system call, or those of a set of systemd's."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return {call for line in lines if line and line[0] != "#" for call in _calls(line)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
