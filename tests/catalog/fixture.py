"""A catalog of SQLite for a test."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import SynchronousTestCase

from artifactd.catalog.catalog import Catalog
from artifactd.catalog.database import Database
from artifactd.catalog.garbage import GarbageCatalog
from artifactd.catalog.migrations import configure_repositories, migrate
from artifactd.catalog.remote import RemoteCatalog
from tests.contracts.catalog import CatalogTestCase
from tests.contracts.catalog_garbage import GarbageCatalogTestCase
from tests.contracts.catalog_remote import RemoteCatalogTestCase

REACTOR = cast(IReactorFromThreads, reactor)


def new_catalog(case: SynchronousTestCase) -> Path:
    """The path of an empty catalog, closed by all."""
    path = Path(case.mktemp()) / "catalog.sqlite"
    path.parent.mkdir()
    migrate(path, nullcontext)
    return path


def schema_folder(case: SynchronousTestCase, *scripts: str) -> Path:
    """A folder of migrations, the first one to version 1."""
    folder = Path(case.mktemp())
    folder.mkdir()
    for number, script in enumerate(scripts, 1):
        (folder / f"{number:04}.sql").write_text(script, "utf-8")
    return folder


class SQLiteCatalogTestCase(CatalogTestCase):
    """:ivar path: of the test's catalog."""

    def setUp(self) -> None:
        self.path = new_catalog(self)
        super().setUp()

    def open_catalog(self, busy_timeout: float = 60.0) -> Catalog:
        database = Database(self.path, REACTOR, busy_timeout=busy_timeout, now=lambda: self.time)
        self.addCleanup(database.close)
        return Catalog(database)

    def configure_repositories(self, names: Sequence[str], default: str | None) -> None:
        configure_repositories(self.path, names, default)


class SQLiteRemoteTestCase(SQLiteCatalogTestCase, RemoteCatalogTestCase):
    def open_remote(self, catalog: Catalog) -> RemoteCatalog:
        return RemoteCatalog(catalog.database)


class SQLiteGarbageTestCase(SQLiteRemoteTestCase, GarbageCatalogTestCase):
    def open_garbage(self, catalog: Catalog) -> GarbageCatalog:
        return GarbageCatalog(catalog.database)
