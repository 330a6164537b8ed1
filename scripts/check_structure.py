"""Check the structure of the code: import cycles, class names, and sizes.

`python scripts/check_structure.py` prints what it finds and exits 1, or exits 0. A check is a
function that takes the modules and yields one line for each finding; `CHECKS` lists them. Imports
inside functions and under `TYPE_CHECKING` count like the others.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mario", "flows", "serving")
MIGRATIONS = "mario.store.migrations.versions."
MODULE_LINES = 500
FUNCTION_LINES = 80
#: A name of a type at the top of a module: capitalised words.
ALIAS = re.compile(r"_?(?:[A-Z][A-Z0-9]*[a-z][a-z0-9]*)+")


@dataclass(frozen=True)
class Module:
    """One parsed source file.

    Attributes:
        name: its dotted name; a package's `__init__.py` has the package's name.
        path: the file.
        tree: its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module


def read_modules(root: Path = ROOT) -> dict[str, Module]:
    """Parse every module of `PACKAGES` under a folder, by dotted name."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            modules[name] = Module(name, path, tree)
    return modules


def imported_modules(module: Module, modules: Mapping[str, Module]) -> frozenset[str]:
    """Name the modules among `modules` that a module imports, at any place in its code."""
    found: set[str] = set()
    package = module.name.split(".")
    if module.path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in modules else base)
    return frozenset(found & modules.keys()) - {module.name}


def import_cycles(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield one line for each group of modules that import one another."""
    imports = {name: imported_modules(module, modules) for name, module in modules.items()}

    @cache
    def reachable(start: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return frozenset(seen)

    told: set[str] = set()
    for name in sorted(modules):
        if name in told or name not in reachable(name):
            continue
        group = {other for other in reachable(name) if name in reachable(other)}
        told |= group
        yield f"import cycle: {' <-> '.join(sorted(group))}"


def class_names(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield one line for each name of a class or type alias that two modules define."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, module in sorted(modules.items()):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
        for node in module.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name) and ALIAS.fullmatch(target.id):
                    places[target.id].append(name)
    for name, found in sorted(places.items()):
        if len(found) > 1:
            yield f"class {name} is defined {len(found)} times: {', '.join(found)}"


def sizes(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield one line for each module and function that is too long to read at once.

    A migration is frozen once it has run somewhere, so its functions have no limit.
    """
    for name, module in sorted(modules.items()):
        lines = module.path.read_text(encoding="utf-8").count("\n")
        if lines > MODULE_LINES:
            yield f"{name}: got {lines} lines, expected at most {MODULE_LINES}"
        if name.startswith(MIGRATIONS):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    yield (
                        f"{name}.{node.name}: got {length} lines, expected at most {FUNCTION_LINES}"
                    )


CHECKS: tuple[Callable[[Mapping[str, Module]], Iterator[str]], ...] = (
    import_cycles,
    class_names,
    sizes,
)


def main() -> int:
    """Run every check over this repository; return the exit code."""
    modules = read_modules()
    findings = [line for check in CHECKS for line in check(modules)]
    for line in findings:
        print(line)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
