"""``artifactd backup``: copying a data folder into another while it is in use."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from errno import EACCES, EIO, ENOENT
from pathlib import Path
from typing import BinaryIO

from attrs import define, field

from artifactd.catalog.migrations import (
    check_current,
    copy_catalog,
    listed_blobs,
    listed_bytes,
    replace_catalog,
    settle,
)
from artifactd.commands.options import SettingsOptions
from artifactd.commands.table import progress
from artifactd.kit.start import StartError
from artifactd.oci.errors import DigestInvalid
from artifactd.oci.names import Algorithm, Digest
from artifactd.store.files import PUBLISHED, Directory, FileOperations, write_all
from artifactd.store.folder import MARKER, DataFolder, collection_held

_PARTIAL = "backup.blob"
_PIECE = 1 << 20  # bytes read at a time


@define
class Backup:
    """
    Copies the catalog and the blobs of ``source`` into ``target``; a daemon can start from that.

    The catalog is copied first and put in place last, when all blobs that it lists are there: a
    backup that is cut short leaves the previous one as it was.  Blobs that ``target`` has already
    are not copied again.  Unfinished uploads and fills are left out.  Garbage collection in
    ``source`` waits meanwhile.  The copied catalog lists damaged blobs as lost, unless ``target``
    has them from an earlier backup.

    :param target: locked exclusively by the caller.
    :param progress: called after each blob with its bytes, whether it was copied or there already.
    :ivar files: the number of blobs copied so far.
    :ivar size: the bytes of those blobs.
    :ivar damaged: pushed blobs left out because they are lost or their bytes do not have their
        digest.
    """

    source: DataFolder
    target: DataFolder
    progress: Callable[[int], object]
    operations: FileOperations = field(factory=FileOperations)
    files: int = 0
    size: int = 0
    damaged: list[Digest] = field(factory=list)

    def run(self) -> None:
        """
        Make the backup.  Blocks.

        :raises StartError: if the catalog of ``source`` can't be read, or is of another release.
        :raises OSError: if a file can't be read or written.
        """
        with collection_held(self.source.path, self.operations):
            self._run()

    def _run(self) -> None:
        catalog = Path(self.target.staging.path, "backup.catalog")
        copy_catalog(self.source.catalog, catalog, self.operations)
        check_current(catalog, self.source.catalog)  # before hours of copying
        root = Path(self.target.blobs.path)
        for digest, blob in _blobs(Path(self.source.blobs.path)):
            self.progress(self._copy(digest, blob, _place(root, digest)))
        # All of them: the files in some may come from a backup that broke off before this.
        for path in root.glob("**/"):
            with Directory.open(path) as folder:
                self.operations.sync(folder.fd)
        self._settle(catalog, root)
        replace_catalog(catalog, self.target.catalog, self.operations)

    def _settle(self, catalog: Path, root: Path) -> None:
        """
        Correct the copied ``catalog`` by the files in ``target``.

        Blobs that turned out damaged or were quarantined meanwhile become lost; lost blobs that an
        earlier backup has kept are restored.
        """
        right: dict[Digest, int] = {}
        absent: list[Digest] = []
        for row in listed_blobs(catalog):
            place = _place(root, row.digest)
            if row.lost_at is None and _size(place) == row.size:
                continue
            # The row may be wrong; the digest is not.
            size = self._right_size(place, row.digest)
            if size is None:
                absent.append(row.digest)
            else:
                right[row.digest] = size
        if right or absent:
            self.damaged = settle(catalog, right, absent, self.operations)

    def _right_size(self, place: Path, digest: Digest) -> int | None:
        """The size of the file at ``place``, made durable; ``None`` if its digest is another."""
        try:
            with place.open("rb") as file:
                if hashlib.file_digest(file, digest.algorithm).hexdigest() != digest.encoded:
                    return None
                self.operations.sync(file.fileno())
                return os.fstat(file.fileno()).st_size
        except OSError as error:
            # Gone, being quarantined, or on a bad sector.
            if error.errno in (ENOENT, EACCES, EIO):
                return None
            raise

    def _copy(self, digest: Digest, blob: Path, copy: Path) -> int:
        """Copy and verify ``blob`` unless ``copy`` is there.  Returns the size of ``blob``."""
        staging, files = self.target.staging.fd, self.operations
        files.unlink(staging, _PARTIAL)
        try:
            source = blob.open("rb")
        except (FileNotFoundError, PermissionError):
            return 0  # removed or quarantined meanwhile: _settle() sees whether it is needed
        with source:
            size = os.fstat(source.fileno()).st_size
            if copy.exists() and copy.stat().st_size == size:
                return size
            partial = files.create(staging, _PARTIAL)
            try:
                copied = self._copy_bytes(source, partial, digest.algorithm)
                files.set_mode(partial, PUBLISHED)
                files.sync(partial)
            finally:
                os.close(partial)
        if copied != digest:
            files.unlink(staging, _PARTIAL)
            return size  # damaged: _settle() sees whether it is needed
        with (
            self._folder(self.target.blobs, digest.algorithm) as algorithm,
            self._folder(algorithm, digest.encoded[:2]) as folder,
        ):
            files.rename(staging, _PARTIAL, folder.fd, digest.encoded)
        self.files += 1
        self.size += size
        return size

    def _copy_bytes(self, source: BinaryIO, target: int, algorithm: Algorithm) -> Digest:
        """Returns the digest of what could be read."""
        hashed, offset = hashlib.new(algorithm), 0
        while piece := _read(source):
            hashed.update(piece)
            write_all(self.operations, target, [piece], offset)
            offset += len(piece)
        return Digest(algorithm, hashed.hexdigest())

    def _folder(self, parent: Directory, name: str) -> Directory:
        with suppress(FileExistsError):
            self.operations.make_directory(parent.fd, name)
        return parent.subdirectory(name)


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read(_PIECE)
    except OSError as error:
        if error.errno != EIO:
            raise
        return b""  # a bad sector: the blob is damaged, and the others are copied


def _place(root: Path, digest: Digest) -> Path:
    return root / digest.algorithm / digest.encoded[:2] / digest.encoded


def _size(place: Path) -> int | None:
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return None


def _blobs(root: Path) -> Iterator[tuple[Digest, Path]]:
    """The blobs below ``root``, which lie at ``<algorithm>/<two digits>/<encoded>``."""
    for path in root.glob("*/*/*"):
        try:
            digest = Digest.parse(f"{path.parent.parent.name}:{path.name}")
        except DigestInvalid:
            continue
        if path.parent.name == digest.encoded[:2] and path.is_file() and not path.is_symlink():
            yield digest, path


class BackUp(SettingsOptions):
    """``artifactd backup``: copy the data folder, while the daemon runs or not."""

    longdesc = (
        "Copy the catalog and all blobs into the folder DESTINATION, which a daemon can be started"
        " from.  Blobs that are there from an earlier backup are not copied again."
    )

    synopsis = "[options] DESTINATION"

    # Options declares this without arguments, and calls it with those left over.
    def parseArgs(self, destination: str) -> None:  # type: ignore[override]
        self.destination = Path(destination)

    def run(self) -> int:
        data = self.load().data
        if not (data / MARKER).exists():
            raise StartError(f"{data}: there is no data folder to back up")
        if self.destination.resolve().is_relative_to(data.resolve()):
            raise StartError(f"{self.destination}: expected a folder outside {data}")
        with closing(DataFolder.open(data)) as source:
            source.settle()
            with closing(DataFolder.open(self.destination)) as target, target.exclusive():
                size = listed_bytes(source.catalog)
                with progress("blobs", size) as passed:
                    backup = Backup(source, target, passed)
                    try:
                        backup.run()
                    except OSError as error:
                        raise StartError(
                            f"the backup in {self.destination} is cut short: {error}"
                        ) from error
        for digest in backup.damaged:
            print(f"artifactd: {digest} is damaged and not in the backup", file=sys.stderr)
        print(f"done: blobs copied: {backup.files}, their bytes: {backup.size}")
        return 1 if backup.damaged else 0
