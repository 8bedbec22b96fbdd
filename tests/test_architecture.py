"""What a machine can hold of docs/architecture.md: who imports whom, and how long a module is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import TestCase

ROOT = Path(__file__).parents[1]

# What the modules of a room may import of artifactd, besides their own room.
ROOMS = {
    "oci": (),
    "storage": ("oci", "startup", "fileoperations"),
    "catalog": ("oci", "startup", "fileoperations"),
    "upstream": ("oci", "startup"),
    "auth": ("oci", "startup", "flights", "presented", "storage.threads"),
    # Endpoints know nothing of what is served through them: whatever Twisted listens for could.
    "tls": ("oci", "startup"),
    "registry": ("oci", "startup", "flights", "presented", "storage", "catalog", "upstream"),
    # Of the stores only what passes through the registry: open blobs, records, preconditions.
    "web": (
        "oci",
        "registry",
        "auth",
        "storage.interfaces",
        "storage.budget",
        "catalog.interfaces",
    ),
    "backup": ("oci", "startup", "fileoperations", "storage", "catalog"),
    "config": (
        "oci",
        "startup",
        "quantity",
        "config_auth",
        "config_limits",
        "config_remote",
        "config_tables",
        "config_tokens",
        "config_types",
    ),
    "config_auth": (
        "oci",
        "startup",
        "quantity",
        "config_tables",
        "config_types",
        "auth.access",
        "auth.subjects",
    ),
    "config_limits": ("startup", "quantity", "config_tables", "config_types"),
    "config_remote": ("oci", "startup", "quantity", "config_tables", "config_types"),
    "config_tables": ("startup", "quantity", "config_types"),
    "config_tokens": (
        "startup",
        "quantity",
        "auth.origins",
        "config_auth",
        "config_tables",
        "config_types",
    ),
    "config_types": ("oci", "quantity"),
    "flights": (),
    "mirror_config": ("config", "config_remote", "startup"),
    "options": ("config",),
    "presented": (),
    "quantity": (),
    "startup": (),
    "fileoperations": (),
    "__init__": (),
    "__main__": (),
}
# They wire the rooms together, so they may import every one.
WIRING = (
    "tap",
    "wiring",
    "wiring_accounts",
    "wiring_gate",
    "wiring_limits",
    "wiring_listen",
    "wiring_remote",
    "wiring_tokens",
    "command",
    "maintenance",
    "fsck",
    "garbage",
    "new_robot",
    "rotate_keys",
)

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

    def test_a_room_imports_only_the_rooms_below_it(self) -> None:
        wrong = []
        for module in modules("artifactd"):
            room = module.name.split(".")[1]
            if room in WIRING:
                continue
            allowed = [f"artifactd.{name}" for name in (room, *ROOMS[room], "__version__")]
            wrong += [
                f"{module.name} imports {name}"
                for name in module.imports()
                if within(name, "artifactd") and not within(name, *allowed)
            ]
        self.assertEqual(wrong, [])

    def test_the_values_of_the_spec_know_no_twisted_and_no_files(self) -> None:
        known = {
            name.split(".")[0] for module in modules("artifactd/oci") for name in module.imports()
        }
        self.assertEqual(
            known & {"twisted", "treq", "klein", "os", "io", "pathlib", "socket"}, set()
        )

    def test_the_global_reactor_is_imported_in_tap_alone(self) -> None:
        self.assert_only("artifactd", ("artifactd.daemon.tap",), "twisted.internet.reactor")

    def test_the_http_server_is_known_to_web_alone(self) -> None:
        self.assert_only(
            "artifactd",
            ("artifactd.web", "artifactd.daemon.tap"),
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

    def test_a_module_can_be_read_at_one_sitting(self) -> None:
        long = {
            m.name: m.text.count("\n") for m in modules("artifactd") if m.text.count("\n") > 300
        }
        self.assertEqual(long, {})

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
