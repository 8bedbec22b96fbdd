"""An upload in the reactor's world."""

from __future__ import annotations

from functools import partial

from attrs import define, field

from artifactd.oci.digest import Algorithm, Digest
from artifactd.storage.appended import hashed
from artifactd.storage.blobs import FilesystemStagedBlob
from artifactd.storage.flow import FileConsumer
from artifactd.storage.hashing import RunningDigest, RunningDigests
from artifactd.storage.staging import Staging
from artifactd.storage.uploads import UploadFile


@define(eq=False)
class FilesystemUploadSession(FileConsumer[UploadFile]):
    """
    A claimed upload (:class:`artifactd.storage.interfaces.UploadSession`).

    One batch at a time is hashed and written in a thread while the next one gathers.
    """

    _staging: Staging
    _digests: RunningDigests
    id: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.id = self._file.name

    async def rollback(self, offset: int) -> None:
        """Cut the staged bytes back to ``offset``, which is not before the offset at the claim."""
        await self._drained()
        await self._threads.run(partial(self._file.cut, offset))
        self.offset = self.written = self._position = offset

    async def digest(self, algorithm: Algorithm) -> Digest:
        """The digest of all that is staged, read back only where it wasn't hashed as it came."""
        await self.flush()
        running = self._file.running
        if running.algorithm != algorithm:
            running = RunningDigest(algorithm)
        return await hashed(self._file, running, self._threads)

    async def stage(self, digest: Digest) -> FilesystemStagedBlob:
        """Sync the bytes and turn them into a staged blob."""
        await self.flush()
        return await self._threads.run(
            partial(self._file.stage, self._staging, digest), FilesystemStagedBlob.abandon
        )

    async def still_there(self) -> bool:
        """Whether the upload has not been discarded since it was claimed."""
        return await self._threads.run(self._file.is_there)

    async def discard(self) -> None:
        """Remove the staged bytes."""
        await self._threads.run(self._file.discard)

    async def _let_go(self) -> None:
        if not self._file.ended:
            self._digests.keep(self.id, self._file.running)
        await super()._let_go()
