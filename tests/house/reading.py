"""Finds circles of imports, classes of one name, reply loops, and modules that no map names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.house.tree import ROOMS, ROOT, dotted, modules

OWN_NAMES = ("undoubt.sync",)
"""Rooms whose classes have the names of the classes that they replace."""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _ours() -> dict[str, Path]:
    return {dotted(path): path for path in modules(*ROOMS)}


# Circles of imports.


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes beneath ``node`` that are executed, without those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if not _for_types_only(child):
            yield child
            yield from _statements(child)


def _imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the product that a file imports. A name that is imported from a package may be a module
    of that package."""
    found = set()
    for node in _statements(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known.keys() or {node.module}
    return found & known.keys() - {dotted(path)}


def circles() -> list[list[str]]:
    """Modules that import each other, directly or indirectly: components of more than one module (Tarjan,
    "Depth-first search and linear graph algorithms", SIAM J. Comput. 1972)."""
    known = _ours()
    edges = {name: sorted(_imports(path, known)) for name, path in known.items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component, stack[at:] = sorted(stack[at:]), []
            if len(component) > 1:
                found.append(component)

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return sorted(found)


# Names.


def same_named_public_classes() -> dict[str, list[str]]:
    """Names that several public classes have, with the modules of these classes. ``undoubt.sync`` and
    subclasses that replace a library's class of the same name do not count."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, path in _ours().items():
        if name.startswith(OWN_NAMES):
            continue
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not _stands_in(node):
                found[node.name].append(name)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def _stands_in(node: ast.ClassDef) -> bool:
    """Whether a class replaces a library's class: a class of the same name is among its bases, or its name is
    the name of its base with a prefix. The application gets it in place of a driver's connection."""
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    return node.name in bases or node.name.removeprefix("Branch") in bases


# Loops.


def reply_loops() -> list[str]:
    """Functions that match the fields of replies to resolve requests: each is a separate reply loop."""
    return sorted(
        f"{dotted(path)}.{node.name}"
        for path in _ours().values()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _takes_replies(node)
    )


def _takes_replies(function: ast.AST) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.MatchClass) and ast.unparse(node.cls).split(".")[-1] == "Reply":
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            kinds = ast.unparse(node.args[1]).split("|")
            if "Reply" in {kind.strip().split(".")[-1] for kind in kinds} and _reads_results(function):
                return True
    return False


def _reads_results(function: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "result" for node in ast.walk(function))


# Maps.


def unmapped_modules() -> list[str]:
    """The modules and rooms that the docstring of their package does not name."""
    found = []
    for name, path in _ours().items():
        folder = path.parent if path.name != "__init__.py" else path.parent.parent
        package = folder / "__init__.py"
        if path.name == "__main__.py" or not package.is_relative_to(ROOT) or not package.exists():
            continue
        own = name.rsplit(".", 1)[-1]
        words = (ast.get_docstring(_tree(package)) or "").replace("`", " ").replace(".py", "").split()
        named = {word.strip(".,;:()").split(".")[-1] for word in words}
        if own not in named:
            found.append(name)
    return sorted(found)
