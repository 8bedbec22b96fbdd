"""Parts of a blob that come before the whole: what is kept of them, and who reads along."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from twisted.internet.defer import Deferred

from artifactd.kit.deferreds import Stopped
from artifactd.oci.ranges import ByteRange
from artifactd.registry.mirror.range_cache import NoRanges, Parts
from artifactd.store.blobs import OpenBlob
from artifactd.store.fills import FillInfo
from artifactd.upstream.errors import Missing, Throttled
from artifactd.upstream.http.errors import Unreachable
from tests.registry.fixture import (
    CONTENT,
    DIGEST,
    SIZE,
    VALIDATOR,
    Asked,
    Body,
    RemoteTestCase,
    content_of,
)
from tests.store.fixture import SlowThreads

FIRST, LAST = 1000, 1999
SPAN = ByteRange(FIRST, LAST)
LARGE = 4 << 20
INFO = FillInfo(SIZE, VALIDATOR)
CUT = Unreachable("cdn.docker.io broke off")

_T = TypeVar("_T")


class PartsTestCase(RemoteTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.parts = Parts(self.stores.fills, 1, self.clock)
        # Before the stores are closed.
        self.addCleanup(lambda: Deferred.fromCoroutine(self.parts.stop()))

    def asking(self, span: ByteRange = SPAN) -> Deferred[OpenBlob]:
        return Deferred.fromCoroutine(self.parts.fetch(self.source(), INFO, span))

    async def begun(self, body: Body | None = None) -> tuple[OpenBlob, Body]:
        """A part that is coming."""
        reading = self.asking()
        asked = await self.upstream.gets.get()
        self.assertEqual(((FIRST, LAST), VALIDATOR), (asked.span, asked.validator))
        sent = asked.body(body)
        reader = await reading
        self.addCleanup(reader.close)
        return reader, sent

    async def asked_again(self) -> Asked:
        """What is asked of the upstream after the pause that follows a failure."""
        self.clock.advance(await self.clock.scheduled.get())
        return await self.upstream.gets.get()

    def had(self, reader: OpenBlob) -> bytes:
        return content_of(reader)[FIRST:]

    async def assert_kept(self, span: ByteRange = SPAN) -> None:
        found = await self.parts.stored(DIGEST, SIZE, span)
        assert found is not None
        self.assertEqual(CONTENT[span.first : span.last + 1], content_of(found)[span.first :])
        found.close()

    async def assert_not_kept(self) -> None:
        self.assertIsNone(await self.parts.stored(DIGEST, SIZE, SPAN))
        self.assertIsNone(self.parts.under_way(DIGEST, SIZE, SPAN))

    def now(self, work: Awaitable[_T]) -> _T:
        async def working() -> _T:
            return await work

        return self.successResultOf(Deferred.fromCoroutine(working()))


class PartsTests(PartsTestCase):
    async def test_its_bytes_are_had_as_they_come_and_kept(self) -> None:
        with self.assert_no_descriptor_stays():
            reader, body = await self.begun()
            body.send(CONTENT[FIRST:1500])
            self.assertEqual(CONTENT[FIRST:1500], self.had(reader))
            await self.assert_nothing_stored()
            body.send(CONTENT[1500 : LAST + 1]).end()
            self.assertEqual(CONTENT[FIRST : LAST + 1], self.had(reader))
            await self.assert_kept()
            await self.assert_kept(ByteRange(1200, 1300))
            reader.close()

    async def assert_nothing_stored(self) -> None:
        self.assertIsNone(await self.parts.stored(DIGEST, SIZE, SPAN))

    async def test_another_reader_reads_along(self) -> None:
        with self.assert_no_descriptor_stays():
            reader, body = await self.begun()
            other = self.parts.under_way(DIGEST, SIZE, ByteRange(1200, 1300))
            assert other is not None
            waiting = other.wait(FIRST)
            body.send(CONTENT[FIRST : LAST + 1])
            self.successResultOf(waiting)
            reader.close()
            self.assertEqual(CONTENT[FIRST : LAST + 1], self.had(other))
            other.close()
            body.end()
        self.assertEqual([], self.upstream.gets.pending)

    async def test_what_the_fill_of_another_process_has_passed_is_here(self) -> None:
        with self.assert_no_descriptor_stays():
            other = await self.other_process(CONTENT[:LAST])
            await self.assert_not_kept()
            other.write(CONTENT[LAST : LAST + 1])
            await other.flush()
            await self.assert_kept()
            reader = await self.parts.stored(DIGEST, SIZE, SPAN)
            assert reader is not None
            await other.discard()
            self.assertEqual(CONTENT[FIRST : LAST + 1], self.had(reader), "it may be read on")
            reader.close()
            await self.assert_not_kept()
            await other.close()

    async def test_what_was_left_is_not_for_nobody_is_going_to_verify_it(self) -> None:
        with self.assert_no_descriptor_stays():
            await (await self.other_process(CONTENT[: LAST + 1])).close()
            await self.assert_not_kept()
            await self.assert_free(LAST + 1)

    async def test_those_who_ask_at_the_same_time_get_one_answer(self) -> None:
        with self.assert_no_descriptor_stays():
            reading = [self.asking() for _ in range(3)]
            (await self.upstream.gets.get()).all()
            for one in reading:
                reader = await one
                self.assertEqual(CONTENT[FIRST : LAST + 1], self.had(reader))
                reader.close()
            self.assertEqual([], self.upstream.gets.pending)
            await self.assert_kept()

    async def test_those_who_ask_at_the_same_time_get_one_error(self) -> None:
        reading = [self.asking() for _ in range(3)]
        (await self.upstream.gets.get()).fail(CUT)
        for one in reading:
            self.assertIs(CUT, await self.assert_raises(Unreachable, one))
        self.assertEqual([], self.upstream.gets.pending)

    async def test_what_is_no_part_of_it_is_not_under_way(self) -> None:
        await self.begun()
        for span in (ByteRange(FIRST - 1, LAST), ByteRange(FIRST, LAST + 1)):
            self.assertIsNone(self.parts.under_way(DIGEST, SIZE, span))

    async def test_a_part_that_breaks_off_goes_on_behind_its_last_byte(self) -> None:
        reader, body = await self.begun()
        body.send(CONTENT[FIRST:1500]).break_off(CUT)
        asked = await self.asked_again()
        self.assertEqual(((1500, LAST), VALIDATOR), (asked.span, asked.validator))
        asked.all()
        self.assertEqual(CONTENT[FIRST : LAST + 1], self.had(reader))
        await self.assert_kept()

    async def test_after_so_many_failures_without_a_byte_it_ends(self) -> None:
        with self.assert_no_descriptor_stays():
            reader, body = await self.begun()
            body.break_off(CUT)
            (await self.asked_again()).body().break_off(CUT)
            error = await self.assert_raises(OSError, reader.wait(FIRST))
            self.assertIn("broke off", str(error))
            await self.assert_not_kept()
            reader.close()

    async def test_a_body_that_ends_early_counts_as_broken_off(self) -> None:
        reader, body = await self.begun()
        body.end()
        (await self.asked_again()).body().end()
        await self.assert_raises(OSError, reader.wait(FIRST))

    async def test_more_than_was_asked_for_is_broken_off(self) -> None:
        reader, body = await self.begun()
        body.send(CONTENT[FIRST:3000])
        self.assertEqual(["delivered", "stopped"], body.told)
        self.assertEqual(CONTENT[FIRST : LAST + 1], self.had(reader)[: SPAN.length])
        await self.assert_kept()

    async def test_an_upstream_that_answers_with_all_of_it_serves_no_ranges(self) -> None:
        for body in (Body(0), Body(FIRST, SIZE + 1)):
            reading = self.asking()
            (await self.upstream.gets.get()).body(body)
            await self.assert_raises(NoRanges, reading)
            self.assertEqual(["aborted"], body.told)

    async def test_one_that_does_so_in_the_middle_ends_it(self) -> None:
        with self.assert_no_descriptor_stays():
            reader, body = await self.begun()
            body.send(CONTENT[FIRST:1500]).break_off(CUT)
            again = (await self.asked_again()).body(Body(0))
            self.assertEqual(["aborted"], again.told)
            await self.assert_raises(OSError, reader.wait(1500))
            reader.close()

    async def test_what_the_upstream_refuses_is_told_to_who_asks(self) -> None:
        for error in (Missing("not here"), Throttled("429", 1.0), CUT):
            reading = self.asking()
            (await self.upstream.gets.get()).fail(error)
            self.assertIs(error, await self.assert_raises(type(error), reading))
        self.assertEqual([], self.below("fills"))

    async def test_what_nobody_has_thought_of_is_logged(self) -> None:
        reader, body = await self.begun()
        body.break_off(CUT)
        (await self.asked_again()).fail(ZeroDivisionError())
        await self.assert_raises(OSError, reader.wait(FIRST))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    async def test_if_the_extents_go_in_that_moment_a_fill_has_to_bring_it(self) -> None:
        add = self.stores.fills.add_extent

        async def added_and_gone(*args: object) -> object:
            session = await add(*args)  # type: ignore[arg-type]
            await self.stores.fills.discard(DIGEST)
            return session

        self.patch(self.parts.store, "add_extent", added_and_gone)
        with self.assert_no_descriptor_stays():
            reading = self.asking()
            body = (await self.upstream.gets.get()).body()
            await self.assert_raises(NoRanges, reading)
        self.assertEqual(["aborted"], body.told)


class StopTests(PartsTestCase):
    async def test_while_bytes_come(self) -> None:
        with self.assert_no_descriptor_stays():
            reader, body = await self.begun()
            body.send(CONTENT[FIRST:1500])
            self.now(self.parts.stop())
            self.assertEqual(["delivered", "cancelled"], body.told)
            await self.assert_raises(OSError, reader.wait(1500))
            await self.assert_not_kept()
            reader.close()

    async def test_before_the_upstream_has_answered(self) -> None:
        with self.assert_no_descriptor_stays():
            reading = self.asking()
            asked = await self.upstream.gets.get()
            self.now(self.parts.stop())
            self.assertEqual(["aborted"], asked.body().told)
            await self.assert_raises(Stopped, reading)
        self.assertEqual([], self.below("fills"))

    async def test_a_large_one_that_nobody_waits_for_when_the_upstream_answers(self) -> None:
        with self.assert_no_descriptor_stays():
            fetching = self.parts.fetch(self.source(), FillInfo(LARGE), ByteRange(1, LARGE - 1))
            reading = Deferred.fromCoroutine(fetching)
            asked = await self.upstream.gets.get()
            reading.cancel()
            self.failureResultOf(reading)
            self.assertEqual(["delivered", "cancelled"], asked.body(Body(1, LARGE)).told)
            self.assertIsNone(self.parts.under_way(DIGEST, LARGE, SPAN))

    async def test_while_the_rest_is_asked_for(self) -> None:
        with self.assert_no_descriptor_stays():
            reader, body = await self.begun()
            body.break_off(CUT)
            asked = await self.asked_again()
            self.now(self.parts.stop())
            reader.close()
        self.assertEqual(["aborted"], asked.body().told)

    async def test_a_part_that_has_ended_can_not_be_joined_while_its_file_is_closed(self) -> None:
        threads = SlowThreads()
        self.parts.store = self.open_stores(run=threads).fills
        reading = self.asking()
        threads.run_all()  # it is looked whether there is room
        asked = await self.upstream.gets.get()
        body = asked.body()
        threads.run_all()
        reader = await reading
        self.addCleanup(reader.close)
        body.break_off(CUT)
        (await self.asked_again()).fail(Missing("gone"))
        await self.assert_raises(OSError, reader.wait(FIRST))
        self.assertEqual(1, len(threads.waiting), "the thread that closes it")
        self.assertIsNone(self.parts.under_way(DIGEST, SIZE, SPAN))
        threads.run_all()
