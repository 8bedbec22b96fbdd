"""What a machine can hold of docs/architecture.md: which package imports which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import TestCase

ROOT = Path(__file__).parents[1]

# The packages, and what the modules of each may import of artifactd besides their own package.
# Dependencies run downwards, from the last to the first; only registry and registry.mirror, which
# are one room in two packages, know each other.
PACKAGES: dict[str, tuple[str, ...]] = {
    "oci": (),
    "kit": (),
    "settings": ("oci", "kit"),
    "store": ("oci", "kit"),
    "catalog": ("oci", "kit", "settings", "store"),
    "upstream.http": ("kit",),
    "upstream": ("oci", "kit", "settings", "upstream.http"),
    # Endpoints know nothing of what is served through them: whatever Twisted listens for could.
    "tls": ("oci", "kit"),
    "registry.mirror": (
        "oci",
        "kit",
        "settings",
        "store",
        "catalog",
        "upstream",
        "upstream.http",
        "registry",
    ),
    "registry.upkeep": (
        "oci",
        "kit",
        "settings",
        "store",
        "catalog",
        "registry",
        "registry.mirror",
    ),
    "registry": (
        "oci",
        "kit",
        "settings",
        "store",
        "catalog",
        "upstream",
        "upstream.http",
        "registry.mirror",
    ),
    "webhooks": (
        "oci",
        "kit",
        "settings",
        "store",
        "catalog",
        "upstream",
        "upstream.http",
        "registry",
    ),
    "auth": (
        "oci",
        "kit",
        "settings",
        "store",
        "catalog",
        "upstream",
        "upstream.http",
        "registry.mirror",
    ),
    # HTTP: it knows what a blob is that can be sent, and who may be asking; no routes, no OCI.
    "web.server": ("oci", "kit", "settings", "store", "auth"),
    "web.page": (
        "oci",
        "kit",
        "settings",
        "catalog",
        "registry",
        "registry.upkeep",
        "auth",
        "web",
        "web.server",
    ),
    "web": (
        "oci",
        "kit",
        "settings",
        "store",
        "catalog",
        "upstream",
        "registry",
        "registry.mirror",
        "auth",
        "web.server",
    ),
    "daemon": ("",),  # it puts all of them together
    "commands": ("",),
}

SQL = re.compile(r"\b(SELECT\s.+\sFROM|INSERT INTO|UPDATE\s.+\sSET|DELETE FROM|PRAGMA)\b", re.S)


@frozen
class Module:
    """A Python file: its dotted name below the checkout, its text and its syntax tree."""

    name: str
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """The dotted names of what it imports, wherever in it, e.g. ``klein.Klein``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{self.name} has a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder: str) -> Iterator[Module]:
    """Every module below ``folder`` of the checkout."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text("utf-8")
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield Module(name, text, ast.parse(text))


def within(name: str, *parents: str) -> bool:
    """Whether ``name`` is one of ``parents`` or below one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def package_of(name: str) -> str:
    """The package of :data:`PACKAGES` that the module, or what is imported of it, is in."""
    parts = name.split(".")[1:]
    for depth in (2, 1):
        if (package := ".".join(parts[:depth])) in PACKAGES:
            return package
    return "artifactd"


class ArchitectureTests(TestCase):
    def assert_only(self, folder: str, allowed: tuple[str, ...], *imported: str) -> None:
        """None but the modules ``allowed`` below ``folder`` import any of ``imported``."""
        offenders = {
            f"{module.name} imports {name}"
            for module in modules(folder)
            if not within(module.name, *allowed)
            for name in module.imports()
            if within(name, *imported)
        }
        self.assertEqual(offenders, set())

    def test_a_package_imports_only_those_below_it(self) -> None:
        wrong = []
        for module in modules("artifactd"):
            package = package_of(module.name)
            if package == "artifactd":
                continue
            allowed = {package, "artifactd", *PACKAGES[package]}
            wrong += [
                f"{module.name} imports {name}"
                for name in module.imports()
                if within(name, "artifactd") and "" not in allowed
                if package_of(name) not in allowed
            ]
        self.assertEqual(wrong, [])

    def test_what_is_loose_at_the_top_is_the_start_alone(self) -> None:
        loose = {path.name for path in (ROOT / "artifactd").glob("*.py")}
        self.assertEqual(loose, {"__init__.py", "__main__.py"})

    def test_the_values_of_the_spec_know_no_twisted_and_no_files(self) -> None:
        known = {
            name.split(".")[0] for module in modules("artifactd/oci") for name in module.imports()
        }
        self.assertEqual(
            known & {"twisted", "treq", "klein", "os", "io", "pathlib", "socket"}, set()
        )

    def test_the_global_reactor_is_imported_where_a_process_begins(self) -> None:
        begin = ("artifactd.daemon.tap", "artifactd.daemon.worker")
        self.assert_only("artifactd", begin, "twisted.internet.reactor")

    def test_the_http_server_is_known_to_web_alone(self) -> None:
        self.assert_only(
            "artifactd",
            ("artifactd.web",),
            "klein",
            "werkzeug",
            "twisted.web.http",
        )

    def test_databases_are_known_to_the_catalog_alone(self) -> None:
        self.assert_only("artifactd", ("artifactd.catalog",), "sqlite3", "twisted.enterprise")

    def test_sql_is_written_in_the_catalog_alone(self) -> None:
        written = [
            f"{module.name}: {node.value}"
            for module in modules("artifactd")
            if not within(module.name, "artifactd.catalog")
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if SQL.search(node.value)
        ]
        self.assertEqual(written, [])

    def test_no_test_sleeps(self) -> None:
        self.assert_only("tests", (), "time.sleep")
        sleeping = [
            module.name
            for module in modules("tests")
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and node.attr == "sleep"
        ]
        self.assertEqual(sleeping, [])

    def test_every_folder_of_modules_is_a_package(self) -> None:
        # setuptools leaves out what has no __init__.py, trial too.
        folders = {
            path.parent for top in ("artifactd", "tests") for path in ROOT.glob(f"{top}/**/*.py")
        }
        self.assertEqual([f for f in folders if not (f / "__init__.py").exists()], [])

    def test_twisteds_own_package_is_added_to_and_not_replaced(self) -> None:
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])
        self.assertTrue((ROOT / "twisted" / "plugins" / "artifactd_plugin.py").exists())
