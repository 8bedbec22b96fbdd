"""How a fill gets its bytes from an upstream that breaks off, contradicts itself, or refuses."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from artifactd.oci.names import Digest
from artifactd.registry.mirror.fill import Corrupt, Fill
from artifactd.store.fills import FillInfo
from artifactd.upstream.errors import Missing, RangeRefused, Throttled
from artifactd.upstream.http.errors import Unreachable, UpstreamError
from tests.registry.fixture import ALPINE, CONTENT, DIGEST, SIZE, VALIDATOR, Body, RemoteTestCase

HALF = SIZE // 2
CUT = Unreachable("cdn.docker.io broke off")


class FetchingTestCase(RemoteTestCase):
    async def begun(self, *, resumes: int = 5, body: Body | None = None) -> tuple[Fill, Body]:
        """A fill whose first half has come."""
        fill = self.begin(resumes=resumes)
        first = (await self.upstream.gets.get()).body(body)
        first.send(CONTENT[:HALF])
        return fill, first

    async def outcome(self, fill: Fill) -> Exception | None:
        """What a fill has ended with."""
        await self.fills.ended(fill.source.digest)
        return fill.progress.failure

    async def scheduled(self) -> float:
        """The seconds that are waited for now."""
        return await self.clock.scheduled.get()

    async def again(self) -> float:
        """Wait until the upstream is asked again; the seconds that took."""
        seconds = await self.scheduled()
        self.clock.advance(seconds)
        return seconds


class ResumptionTests(FetchingTestCase):
    async def test_it_goes_on_behind_the_last_byte_with_the_validator(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        self.assertEqual(0.1, await self.again())
        asked = await self.upstream.gets.get()
        self.assertEqual(((HALF, None), VALIDATOR), (asked.span, asked.validator))
        asked.all()
        self.assertIsNone(await self.outcome(fill))
        await self.assert_stored(ALPINE)
        self.assertEqual(1, self.counted("resumed"))

    async def test_each_failure_in_a_row_is_waited_longer_for(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        waits = []
        for _ in range(5):
            waits.append(round(await self.again(), 6))
            (await self.upstream.gets.get()).fail(CUT)
        self.assertEqual([0.1, 0.4, 1.6, 6.4, 25.6], waits)
        self.assertIs(CUT, await self.outcome(fill))
        self.assertEqual(5, self.counted("resumed"))
        await self.assert_free(HALF)

    async def test_no_wait_is_longer_than_half_a_minute(self) -> None:
        fill, body = await self.begun(resumes=6)
        body.break_off(CUT)
        for _ in range(5):
            await self.again()
            (await self.upstream.gets.get()).fail(CUT)
        self.assertEqual(30.0, await self.again())
        (await self.upstream.gets.get()).all()
        self.assertIsNone(await self.outcome(fill))

    async def test_a_byte_more_begins_the_row_anew(self) -> None:
        fill, body = await self.begun(resumes=1)
        for at in range(HALF, HALF + 7):
            body.break_off(CUT)
            self.assertEqual(0.1, await self.again())
            body = (await self.upstream.gets.get()).body()
            body.send(CONTENT[at : at + 1])
        body.send(CONTENT[HALF + 7 :]).end()
        self.assertIsNone(await self.outcome(fill))
        await self.assert_stored(ALPINE)

    async def test_none_at_all_is_allowed_too(self) -> None:
        fill, body = await self.begun(resumes=0)
        body.break_off(CUT)
        self.assertIs(CUT, await self.outcome(fill))
        await self.assert_free(HALF)

    async def test_a_body_that_ends_early_counts_as_broken_off(self) -> None:
        fill, body = await self.begun(resumes=1)
        body.end()  # it has brought something: asked again at once
        (await self.upstream.gets.get()).body().end()
        await self.again()
        (await self.upstream.gets.get()).body().end()
        self.assertIsInstance(await self.outcome(fill), Unreachable)
        await self.assert_free(HALF)

    async def test_a_throttled_one_waits_as_long_as_it_is_told(self) -> None:
        fill, body = await self.begun(resumes=1)
        body.break_off(Throttled("429", 30.0))
        self.assertEqual(30.0, await self.again())
        (await self.upstream.gets.get()).all()
        self.assertIsNone(await self.outcome(fill))

    async def test_one_that_is_told_to_wait_longer_gives_up(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        await self.again()
        throttled = Throttled("429", 30.5)
        (await self.upstream.gets.get()).fail(throttled)
        self.assertIs(throttled, await self.outcome(fill))
        await self.assert_free(HALF)

    async def test_what_is_not_there_any_more_ends_it_and_the_bytes_stay(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        await self.again()
        missing = Missing("gone")
        (await self.upstream.gets.get()).fail(missing)
        self.assertIs(missing, await self.outcome(fill))
        await self.assert_free(HALF)

    async def test_before_the_upstream_has_answered_nothing_is_tried_again(self) -> None:
        for error in (CUT, Throttled("429", 1.0), Missing("not here")):
            fill = self.begin()
            (await self.upstream.gets.get()).fail(error)
            self.assertIs(error, await self.outcome(fill))
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual([], self.below("fills"), "of what was never answered something is left")


class WithoutRangesTests(FetchingTestCase):
    async def resumed_from_the_start(self, **told: int | str | None) -> tuple[Fill, Body]:
        fill, body = await self.begun()
        body.break_off(CUT)
        await self.again()
        body = (await self.upstream.gets.get()).body(Body(0, **told))  # type: ignore[arg-type]
        return fill, body

    async def test_all_comes_again_and_is_compared(self) -> None:
        fill, body = await self.resumed_from_the_start(validator='"v2"')
        body.send(CONTENT).end()
        self.assertIsNone(await self.outcome(fill))
        await self.assert_stored(ALPINE)

    async def test_a_comparison_that_breaks_off_is_begun_again(self) -> None:
        fill, body = await self.resumed_from_the_start()
        body.send(CONTENT[:10]).break_off(CUT)
        self.assertEqual(0.4, await self.again())
        (await self.upstream.gets.get()).body(Body(0)).send(CONTENT).end()
        self.assertIsNone(await self.outcome(fill))

    async def test_at_the_first_difference_all_is_given_up(self) -> None:
        fill, body = await self.resumed_from_the_start()
        body.send(CONTENT[:10] + b"!")
        self.assertEqual(["delivered", "stopped"], body.told)
        self.assertIsInstance(await self.outcome(fill), Corrupt)
        self.assertEqual([], self.below("fills"))
        self.assertEqual(1, self.counted("corrupt"))

    async def test_another_range_than_was_asked_for_is_not_taken(self) -> None:
        fill, body = await self.begun(resumes=1)
        body.break_off(CUT)
        await self.again()
        other = (await self.upstream.gets.get()).body(Body(HALF + 1))
        self.assertEqual(["aborted"], other.told)
        self.assertIsInstance(await self.outcome(fill), Unreachable)
        await self.assert_free(HALF)


class ContradictionTests(FetchingTestCase):
    async def assert_corrupt(self, fill: Fill) -> None:
        self.assertIsInstance(await self.outcome(fill), Corrupt)
        self.assertEqual([], self.below("fills") + self.below("blobs") + self.below("staging"))
        self.assertEqual(1, self.counted("corrupt"))

    async def test_another_size_than_before(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        await self.again()
        other = (await self.upstream.gets.get()).body(Body(HALF, SIZE + 1))
        await self.assert_corrupt(fill)
        self.assertEqual(["aborted"], other.told)

    async def test_a_size_that_has_been_passed(self) -> None:
        fill, body = await self.begun(body=Body(0, None))
        body.break_off(CUT)
        await self.again()
        (await self.upstream.gets.get()).body(Body(0, HALF - 1))
        await self.assert_corrupt(fill)

    async def test_more_than_was_told_is_broken_off_at_once(self) -> None:
        fill, body = await self.begun()
        body.send(CONTENT[HALF:])
        self.assertEqual(["delivered"], body.told)
        body.send(b"!")
        self.assertEqual(["delivered", "stopped"], body.told)
        await self.assert_corrupt(fill)

    async def test_a_range_that_is_refused_in_the_middle(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        await self.again()
        (await self.upstream.gets.get()).fail(RangeRefused("416"))
        await self.assert_corrupt(fill)

    async def test_wrong_bytes_of_the_right_size(self) -> None:
        fill, body = await self.begun()
        with self.logged("error") as logged:
            body.send(CONTENT[HALF:-1] + b"!").end()
            await self.assert_corrupt(fill)
        (line,) = logged()
        self.assertIn("cdn.docker.io sent wrong bytes", line)
        self.assertIn(str(DIGEST), line)


class UnknownSizeTests(FetchingTestCase):
    async def test_the_end_tells_the_size(self) -> None:
        fill, body = await self.begun(body=Body(0, None))
        self.assertIsNone(fill.progress.size)
        body.send(CONTENT[HALF:]).end()
        self.assertIsNone(await self.outcome(fill))
        self.assertEqual(SIZE, fill.progress.size)
        await self.assert_stored(ALPINE)

    async def test_a_refused_range_tells_that_all_was_here(self) -> None:
        """What a process leaves that is killed between the last byte and the end of the body."""
        session = await self.other_process(CONTENT)
        await session.describe(FillInfo(None, VALIDATOR))
        await session.close()
        fill = self.begin()
        asked = await self.upstream.gets.get()
        self.assertEqual((SIZE, None), asked.span)
        asked.fail(RangeRefused("416"))
        self.assertIsNone(await self.outcome(fill))
        await self.assert_stored(ALPINE)

    async def test_if_it_was_not_all_nothing_of_it_is_kept(self) -> None:
        session = await self.other_process(CONTENT[:HALF])
        await session.close()
        fill = self.begin()
        (await self.upstream.gets.get()).fail(RangeRefused("416"))
        self.assertIsInstance(await self.outcome(fill), Corrupt)
        self.assertEqual([], self.below("fills"))


class LeftTests(FetchingTestCase):
    """What another process has left."""

    async def left(self, content: bytes) -> None:
        session = await self.other_process(content)
        await session.describe(FillInfo(SIZE, VALIDATOR))
        await session.close()

    async def test_only_what_is_missing_is_asked_for(self) -> None:
        await self.left(CONTENT[:HALF])
        fill = self.begin()
        asked = await self.upstream.gets.get()
        self.assertEqual(((HALF, None), VALIDATOR), (asked.span, asked.validator))
        asked.all()
        self.assertIsNone(await self.outcome(fill))
        await self.assert_stored(ALPINE)

    async def test_nobody_gets_it_before_the_upstream_has_said_that_we_may_have_it(self) -> None:
        for content, questions in (
            (CONTENT[:HALF], self.upstream.gets),
            (CONTENT, self.upstream.heads),
        ):
            await self.left(content)
            fill = self.begin()
            waiting = self.found(fill)
            asked = await questions.get()
            self.assertNoResult(waiting)
            asked.fail(Missing("not for you"))
            await self.assert_raises(Missing, waiting)
            await self.outcome(fill)
            await self.assert_free(len(content))

    async def test_if_all_is_here_it_is_not_asked_for_again(self) -> None:
        await self.left(CONTENT)
        fill = self.begin()
        (await self.upstream.heads.get()).size()
        self.assertIsNone(await self.outcome(fill))
        self.assertEqual([], self.upstream.gets.pending)
        await self.assert_stored(ALPINE)

    async def test_another_size_than_it_was_left_with_throws_it_away(self) -> None:
        await self.left(CONTENT)
        fill = self.begin()
        (await self.upstream.heads.get()).size(SIZE + 1)
        self.assertIsInstance(await self.outcome(fill), Corrupt)
        self.assertEqual([], self.below("fills"))


class StopTests(FetchingTestCase):
    async def assert_stops(self, fill: Fill, size: int) -> None:
        """It is left at once; what has come stays, and anybody may go on."""
        stopping = Deferred.fromCoroutine(self.fills.stop())
        self.successResultOf(stopping)
        self.assertIsNotNone(fill.progress.failure)
        self.assertEqual([], self.clock.getDelayedCalls())
        await self.assert_free(size)

    async def test_while_the_upstream_has_not_answered(self) -> None:
        with self.assert_no_descriptor_stays():
            fill = self.begin()
            asked = await self.upstream.gets.get()
            await self.assert_stops(fill, 0)
        self.assertEqual(["aborted"], asked.body().told)

    async def test_while_the_upstream_has_not_answered_and_then_fails(self) -> None:
        fill = self.begin()
        asked = await self.upstream.gets.get()
        await self.assert_stops(fill, 0)
        asked.fail(CUT)  # which is nobody's any more, and no error in the log

    async def test_while_bytes_come(self) -> None:
        fill, body = await self.begun()
        await self.assert_stops(fill, HALF)
        self.assertEqual(["delivered", "cancelled"], body.told)

    async def test_while_it_waits_to_go_on(self) -> None:
        fill, body = await self.begun()
        body.break_off(CUT)
        await self.scheduled()
        await self.assert_stops(fill, HALF)

    async def test_while_it_is_asked_for_the_rest(self) -> None:
        with self.assert_no_descriptor_stays():
            fill, body = await self.begun()
            body.break_off(CUT)
            await self.again()
            asked = await self.upstream.gets.get()
            await self.assert_stops(fill, HALF)
        self.assertEqual(["aborted"], asked.body().told)

    async def test_while_it_is_asked_whether_we_may_have_what_is_here(self) -> None:
        session = await self.other_process(CONTENT)
        await session.describe(FillInfo(SIZE))
        await session.close()
        fill = self.begin()
        await self.upstream.heads.get()
        await self.assert_stops(fill, SIZE)

    async def test_in_spite_of_errors_none_is_logged_as_unexpected(self) -> None:
        errors: list[UpstreamError] = [CUT, Missing("not here"), Throttled("429", 99.0)]
        for error in errors:
            fill = self.begin(digest=Digest.of(str(error).encode()))
            (await self.upstream.gets.get()).fail(error)
            await self.outcome(fill)
        self.assertEqual([], self.flushLoggedErrors())
