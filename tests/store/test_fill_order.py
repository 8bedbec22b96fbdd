"""In which order the files of a fill are told what, and how that looks to others."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import define

from artifactd.store.files import Directory
from artifactd.store.fills import FillState, FillView
from tests.store.filling import DIGEST, INFO, NAME, FillFilesTestCase
from tests.store.fixture import RecordedFiles, WatchedFiles


class OrderTests(FillFilesTestCase):
    async def test_a_fill_is_synced_while_it_can_be_found_and_whole_before_it_is_a_blob(
        self,
    ) -> None:
        await self.kept()
        recorded = RecordedFiles()
        self.stores = self.open_stores(recorded)
        session = await self.claimed()
        session.write(b"world")
        await session.flush()
        await (await session.stage()).publish()
        fan_out = f"blobs/sha256/{DIGEST.encoded[:2]}"
        self.assertEqual(
            [
                "write fills/docker.io@sha256-…",
                "sync data fills/docker.io@sha256-…",
                "unlink fills/docker.io@sha256-….map",
                "unlink fills/docker.io@sha256-….info",
                "rename fills/docker.io@sha256-… staging/sha256-….…",
                "chmod 444 staging/sha256-….…",
                "sync staging/sha256-….…",
                "unlink fills/docker.io@sha256-….….extents",
                f"mkdir {fan_out}",
                "sync blobs/sha256",
                f"link staging/sha256-….… {fan_out}/…",
                f"sync {fan_out}",
            ],
            recorded.calls[recorded.calls.index("write fills/docker.io@sha256-…") :],
        )
        self.assertEqual([], self.below("fills"))

    async def test_what_is_known_is_whole_before_it_has_its_name(self) -> None:
        recorded = RecordedFiles()
        self.stores = self.open_stores(recorded)
        session = await self.claimed()
        recorded.calls.clear()
        await session.describe(INFO)
        self.assertEqual(
            [
                "create fills/docker.io@sha256-….….new",
                "write fills/docker.io@sha256-….….new",
                "rename fills/docker.io@sha256-….….new fills/docker.io@sha256-….info",
            ],
            recorded.calls,
        )

    async def test_bytes_of_an_extent_are_on_disk_before_they_are_recorded(self) -> None:
        recorded = RecordedFiles()
        self.stores = self.open_stores(recorded)
        session = await self.extent(6, b"wor")
        await session.flush()
        recorded.calls.clear()
        await session.record()
        self.assertEqual(
            ["sync data fills/docker.io@sha256-….….extents", "append fills/docker.io@sha256-….map"],
            recorded.calls,
        )
        recorded.calls.clear()
        await session.record()
        self.assertEqual([], recorded.calls)

    async def test_one_that_is_removed_is_out_of_reach_before_the_long_work_begins(self) -> None:
        await self.kept()
        recorded = RecordedFiles()
        self.stores = self.open_stores(recorded)
        recorded.calls.clear()
        await self.stores.fills.discard(DIGEST)
        self.assertEqual(
            [
                "unlink fills/docker.io@sha256-….map",
                "unlink fills/docker.io@sha256-….info",
                "unlink fills/docker.io@sha256-…",
                "unlink fills/docker.io@sha256-….….extents",
            ],
            recorded.calls,
        )

    async def test_nobody_else_may_look_into_it(self) -> None:
        await self.kept()
        files = list(self.fills.iterdir())
        self.assertEqual((4, {0o100600}), (len(files), {f.stat().st_mode for f in files}))


@define
class TornName:
    """A directory in which something happens just before a name is looked up."""

    directory: Directory
    happens: Callable[[], None]

    def holds(self, name: str, file: os.stat_result) -> bool:
        """As :meth:`Directory.holds`."""
        self.happens()
        return self.directory.holds(name, file)


class LookTests(FillFilesTestCase):
    async def begun(self) -> None:
        """A whole fill with all that may be kept beside it, looked at after each step."""
        await self.kept()
        view = await self.viewed()
        self.seen: list[FillState] = []
        files = WatchedFiles()
        self.stores = self.open_stores(files)
        files.look = lambda: self.seen.append(view.look()[0])
        self.session = await self.claimed()
        self.session.write(b"world")
        await self.session.flush()

    def assert_turned(self, before: FillState, after: FillState) -> None:
        """It looked like ``before``, and from a certain step on like ``after``."""
        turned = self.seen.index(after)
        self.assertGreater(turned, 0)
        expected = [before] * turned + [after] * (len(self.seen) - turned)
        self.assertEqual(expected, self.seen)

    async def test_no_step_of_a_publication_looks_like_a_failure(self) -> None:
        await self.begun()
        staged = await self.session.stage()
        await staged.publish()
        staged.confirm()
        staged.release()
        self.assert_turned(FillState.GROWING, FillState.VERIFIED)

    async def test_no_step_of_a_removal_looks_like_a_success(self) -> None:
        await self.begun()
        await self.session.discard()
        self.assert_turned(FillState.GROWING, FillState.FAILED)

    async def test_no_step_of_a_withdrawal_does(self) -> None:
        await self.begun()
        staged = await self.session.stage()
        self.seen.clear()
        await staged.publish()
        await staged.withdraw(self.rows.forget)
        self.assert_turned(FillState.VERIFIED, FillState.FAILED)

    async def test_what_is_removed_between_two_looks_at_it_has_failed(self) -> None:
        await self.left(b"hello")
        with Directory.open(self.fills) as directory:
            fd, status = directory.open_file(NAME)
            torn = TornName(directory, (self.fills / NAME).unlink)
            view = FillView(fd, torn, NAME, status)  # type: ignore[arg-type]
            self.addCleanup(view.close)
            self.assert_looks(view, FillState.FAILED, 5)

    async def test_what_is_staged_between_two_looks_at_it_is_verified(self) -> None:
        await self.left(b"hello")
        with Directory.open(self.fills) as directory:
            fd, status = directory.open_file(NAME)
            staged = self.path / "staging" / "x"
            torn = TornName(directory, lambda: os.rename(self.fills / NAME, staged))
            view = FillView(fd, torn, NAME, status)  # type: ignore[arg-type]
            self.addCleanup(view.close)
            self.assert_looks(view, FillState.VERIFIED, 5)
