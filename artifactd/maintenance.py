"""Commands that work on the data folder, beside a running daemon or without one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react

from artifactd.daemon.assemble import Assembly, assemble
from artifactd.kit.start import StartError
from artifactd.oci.digest import Digest
from artifactd.oci.errors import NameUnknown, RegistryError
from artifactd.oci.names import ImageName, RepositoryName
from artifactd.options import SettingsOptions
from artifactd.registry.mirror.eviction import forget
from artifactd.registry.mirror.repository import RemoteRepository
from artifactd.registry.warming import ImageReference, Warming
from artifactd.settings.settings import Settings
from artifactd.store.folder import MARKER

_Work = Callable[[Assembly], Coroutine[Deferred[Any], Any, int]]


def with_parts(settings: Settings, work: _Work) -> int:
    """
    Call ``work`` with everything but the web, in a reactor that ends with it; its exit status.

    :raises StartError: if the data folder can't be used.
    """
    status = 1
    problem: StartError | None = None
    ended: Deferred[None] = Deferred()

    async def main(reactor: Any) -> None:
        nonlocal status, problem
        try:
            with ExitStack() as opened:
                parts = assemble(settings, reactor, opened)
                opened.pop_all()
        except StartError as error:
            problem = error
            return
        parts.pool.start()
        try:
            status = await _interruptible(reactor, work(parts), ended)
        except RegistryError as error:
            print(f"artifactd: {_explained(error)}", file=sys.stderr)
        except CancelledError:
            print("artifactd: interrupted", file=sys.stderr)
        finally:
            try:
                await parts.close()
            finally:
                ended.callback(None)

    try:
        react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
    except SystemExit as end:
        status = status or int(bool(end.code))
    if problem is not None:
        raise problem
    return status


async def _interruptible(
    reactor: Any, work: Coroutine[Deferred[Any], Any, int], ended: Deferred[None]
) -> int:
    """
    What ``work`` returns.  A signal that stops the reactor cancels it instead, and the reactor
    waits until all is closed: ``ended``.
    """
    working = Deferred.fromCoroutine(work)

    def stop() -> Deferred[None]:
        working.cancel()
        return ended

    reactor.addSystemEventTrigger("before", "shutdown", stop)
    return await working


def _explained(error: RegistryError) -> str:
    reason = error.detail.get("reason") if isinstance(error.detail, dict) else None
    return f"{error.message}: {reason}" if reason else error.message


def used(settings: Settings) -> Settings:
    """
    ``settings`` whose data folder a daemon has used: a new one would be made for nothing.

    :raises StartError: if there is none.
    """
    if not (settings.data / MARKER).exists():
        raise StartError(f"{settings.data}: there is no data folder: see data in the settings")
    return settings


class Purge(SettingsOptions):
    """``artifactd purge``: forget what was cached."""

    longdesc = (
        "Drop IMAGE (name, name:tag or name@digest, such as docker.io/library/alpine:3) from the"
        " cache, so that the upstream is asked for it anew."
    )
    synopsis = "[options] IMAGE"

    # Options calls this with the arguments left over.
    def parseArgs(self, image: str) -> None:  # type: ignore[override]
        self.image = image

    def run(self) -> int:
        return with_parts(used(self.load()), self._purge)

    async def _purge(self, parts: Assembly) -> int:
        reference = None
        name = self.image
        if "@" in name or ":" in name:
            asked = ImageReference.parse(name)
            name, reference = asked.name, asked.reference
        image = await _remote_image(parts, name)
        gone = await parts.remote.purge(image, reference)
        if isinstance(reference, Digest):
            await parts.fills.store.discard(reference)
        if gone is None:
            print(f"artifactd: {self.image}: not in the cache", file=sys.stderr)
            return 1
        await forget(gone, parts.catalog, parts.blobs)
        print(f"purged {self.image}: {len(gone)} blobs and manifests that nothing else needs")
        return 0


async def _remote_image(parts: Assembly, name: str) -> ImageName:
    """:raises NameUnknown: if ``name`` is not that of an upstream's image."""
    parsed = RepositoryName.parse(name)
    image = parts.registry.names.prefixed(parsed)
    if image is None:
        origin = await parts.remote.origin(name)
        if origin is not None:
            image = parts.registry.names.within(origin, name)
    if image is None or not isinstance(
        parts.registry.repositories[image.repository], RemoteRepository
    ):
        raise NameUnknown(f"{name}: not an image of an upstream: begin with its repository's name")
    return image


class Release(SettingsOptions):
    """``artifactd release``: let an emptied local name go."""

    longdesc = (
        "Release the local image IMAGE, whose manifests are all deleted: from then on its name may"
        " be answered by an upstream again."
    )
    synopsis = "[options] IMAGE"

    # Options calls this with the arguments left over.
    def parseArgs(self, image: str) -> None:  # type: ignore[override]
        self.image = image

    def run(self) -> int:
        return with_parts(used(self.load()), self._release)

    async def _release(self, parts: Assembly) -> int:
        await parts.remote.release_image(
            parts.registry.names.resolve(RepositoryName.parse(self.image))
        )
        print(f"released {self.image}")
        return 0


class Warm(SettingsOptions):
    """``artifactd warm``: fill the cache before anybody pulls."""

    longdesc = (
        "Copy images, with all that belongs to them, into the cache.  What is there already is not"
        " fetched again; broken off, it goes on where it was."
    )
    synopsis = "[options] [IMAGE...]"
    optParameters: ClassVar = [
        ["file", "f", None, 'A file that lists images, one a line; "-" is standard input.'],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.platforms: list[str] = []
        self.images: list[str] = []

    def opt_platform(self, platform: str) -> None:
        """Only this platform, such as linux/amd64; may be given more than once."""
        self.platforms.append(platform)

    opt_p = opt_platform

    # Options calls this with the arguments left over.
    def parseArgs(self, *images: str) -> None:
        self.images = list(images)

    def run(self) -> int:
        settings = self.load()
        self.images += self._listed()
        if not self.images:
            raise StartError("warm: say which images, or --file with a list of them")
        return with_parts(settings, self._warm)

    def _listed(self) -> list[str]:
        if self["file"] is None:
            return []
        try:
            with (
                sys.stdin if self["file"] == "-" else open(self["file"], encoding="utf-8") as lines
            ):
                texts = [line.partition("#")[0].strip() for line in lines]
        except UnicodeError:
            raise StartError(f"--file: {self['file']}: not UTF-8") from None
        return [text for text in texts if text]

    async def _warm(self, parts: Assembly) -> int:
        from tqdm import tqdm  # noqa: PLC0415 - the daemon has no use for it

        def bar(digest: Digest, size: int | None) -> Any:
            return tqdm(
                total=size, desc=digest.encoded[:12], unit="B", unit_scale=True, unit_divisor=1024
            )

        warming = Warming(parts.registry.for_operator(), parts.fills, self.platforms, bar)
        failed = 0
        for image in self.images:
            try:
                blobs = await warming.warm(ImageReference.parse(image))
                print(f"{image}: {blobs} blobs are here")
            except (RegistryError, OSError) as error:
                told = _explained(error) if isinstance(error, RegistryError) else error
                print(f"artifactd: {image}: {told}", file=sys.stderr)
                failed += 1
        return 1 if failed else 0
