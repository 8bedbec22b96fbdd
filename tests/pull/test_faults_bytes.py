"""An upstream that sends other bytes than it should, or another number of them."""

from __future__ import annotations

import gzip

from attrs import field, frozen
from twisted.internet.defer import Deferred, gatherResults

from artifactd.oci.names import Digest
from artifactd.upstream import coded
from artifactd.upstream.http import coding
from tests.pull.case import ALPINE, HELD, Later, PullCase, noise
from tests.pull.download import Download
from tests.upstreams.backing import Bytes
from tests.upstreams.faulty import (
    CDN,
    Coded,
    Corrupt,
    Fault,
    NoLength,
    NoRanges,
    OtherETag,
    Truncate,
    WrongLength,
)
from tests.upstreams.reply import Reply

SIZE = 1_000_000
BREAK = 600_000
CONTENT = noise(SIZE)
SMALL = noise(1000)
LARGE = 200_000


@frozen
class Other:
    """Other content, by the entity tag of what it should be."""

    content: bytes = field(repr=False)

    def change(self, reply: Reply) -> None:
        reply.content = Bytes(self.content)


class WrongBytesCase(PullCase):
    async def assert_refused(self, digest: Digest, content: bytes) -> None:
        """Nothing of it is kept, the log and a counter say who sent it, and the next is right."""
        self.assert_nothing_kept(digest)
        told = self.logged("the fill of", f"docker.io/library/alpine@{digest}", "failed")
        self.assertEqual(len(told), 1, self.logged())
        self.assertIn(self.hub.cdn_host, told[0])
        self.assertEqual(await self.counted("corrupt"), 1)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), content)
        self.assert_kept(digest, content)
        self.assertEqual(await self.counted("corrupt"), 1)

    async def pull_many(self, digest: Digest) -> list[Download]:
        """Several clients, which have all begun before the second half comes."""
        held = self.hub.withhold(CDN, SIZE // 2)
        clients = [await self.ask(digest) for _ in range(5)]
        await gatherResults([Deferred.fromCoroutine(client.has(1)) for client in clients])
        held.release()
        await gatherResults([Deferred.fromCoroutine(client.end()) for client in clients])
        await self.settled(digest)
        return clients


class CorruptTests(WrongBytesCase):
    async def test_a_wrong_byte_cuts_all_clients_off_before_the_end(self) -> None:
        for number, at in enumerate((0, BREAK, SIZE - HELD - 1)):
            with self.subTest(at=at):
                content = noise(SIZE, number)
                digest = self.blob(content)
                self.hub.faults.add(Corrupt(at), on=CDN)
                for client in await self.pull_many(digest):
                    self.assert_cut(client)
                    self.assertLessEqual(client.count, SIZE - HELD)
                self.assert_none_kept(digest)
                self.assertEqual(await self.counted("corrupt"), number + 1)
                self.hub.faults.clear()
                self.assert_whole(await self.pull(digest), content)

    def assert_none_kept(self, digest: Digest) -> None:
        """Nothing of this one, whatever there is of others."""
        mine = [name for name in self.files() if digest.encoded in name]
        self.assertEqual((mine, self.holders(digest)), ([], []))

    async def test_a_wrong_byte_in_the_held_piece_reaches_nobody(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Corrupt(SIZE - 1), on=CDN)
        for client in await self.pull_many(digest):
            self.assert_cut(client, CONTENT)
        await self.assert_refused(digest, CONTENT)

    async def test_a_small_blob_with_a_wrong_byte_is_an_error(self) -> None:
        for number, at in enumerate((0, 999)):
            content = noise(1000, number)
            digest = self.blob(content)
            self.hub.faults.add(Corrupt(at), on=CDN)
            status, code, detail = (await self.pull(digest)).error
            self.assertEqual((status, code), (502, "UNKNOWN"))
            self.assertIn(self.hub.cdn_host, detail["reason"])
            self.assert_none_kept(digest)
            self.assert_whole(await self.pull(digest), content)

    async def test_the_log_says_which_upstream_sent_it(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Corrupt(10), on=CDN)
        self.assert_cut(await self.pull(digest))
        await self.assert_refused(digest, CONTENT)

    async def test_a_beginning_that_is_asked_for_alone_is_verified_too(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Corrupt(10), on=CDN)
        download = await self.pull(digest, "0-99")
        self.assertEqual(download.error[:2], (502, "UNKNOWN"))
        await self.assert_refused(digest, CONTENT)


class OtherBytesTests(WrongBytesCase):
    """What comes again after a break is not what came before."""

    async def test_where_no_ranges_are_served_all_are_cut_off_at_the_first_difference(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoRanges(), on=CDN, times=None)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Corrupt(BREAK - 1)), on=CDN, times=2)
        for client in await self.pull_many(digest):
            self.assert_cut(client, CONTENT)
        await self.assert_refused(digest, CONTENT)

    async def test_where_the_entity_tag_is_another_one_they_are_too(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(OtherETag(), on=CDN, times=None)
        self.hub.faults.add(Later(Corrupt(0)), on=CDN, times=2)
        for client in await self.pull_many(digest):
            self.assert_cut(client, CONTENT)
        await self.assert_refused(digest, CONTENT)

    async def test_another_entity_tag_for_the_same_bytes_is_not_noticed(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(OtherETag(), on=CDN, times=None)
        for client in await self.pull_many(digest):
            self.assert_whole(client, CONTENT)
        self.assertEqual(self.blob_bytes, BREAK + SIZE)
        await self.assert_kept_for_the_next(digest, CONTENT)

    async def test_a_wrong_byte_behind_the_break_is_one_like_any_other(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Corrupt(BREAK)), on=CDN, times=2)
        for client in await self.pull_many(digest):
            self.assert_cut(client)
            self.assertLessEqual(client.count, SIZE - HELD)
        await self.assert_refused(digest, CONTENT)


class WrongLengthTests(WrongBytesCase):
    async def assert_contradicted(self, fault: Fault) -> None:
        """Neither a large blob nor a small one of that length comes to an end."""
        self.hub.faults.add(fault, on=CDN)
        digest = self.blob(SMALL)
        self.assertEqual((await self.pull(digest)).error[:2], (502, "UNKNOWN"))
        self.assert_nothing_kept(digest)
        digest = self.blob(CONTENT)
        self.hub.faults.add(fault, on=CDN)
        download = await self.pull(digest)
        self.assert_cut(download)
        self.assertTrue(CONTENT.startswith(download.body))
        self.assert_nothing_kept(digest)
        self.hub.faults.clear()
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assert_kept(digest, CONTENT)
        self.assertEqual(await self.counted("corrupt"), 2)

    async def test_a_blob_that_is_shorter_than_it_is_said_to_be_is_not_kept(self) -> None:
        await self.assert_contradicted(WrongLength(100))

    async def test_a_blob_that_is_longer_than_it_is_said_to_be_is_not_kept(self) -> None:
        await self.assert_contradicted(WrongLength(-100))

    async def test_a_blob_that_has_another_length_after_a_break_is_not_kept(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Other(CONTENT + SMALL)), on=CDN, times=2)
        self.assert_cut(await self.pull(digest), CONTENT)
        self.assertTrue(self.logged(f"it has {SIZE + 1000} bytes now, and had {SIZE} before"))
        await self.assert_refused(digest, CONTENT)


class NoLengthTests(WrongBytesCase):
    async def assert_right(self, content: bytes, encoding: str | None) -> None:
        """At first it comes so, and when it is here it has a length."""
        digest = self.blob(content)
        self.hub.faults.add(NoLength(), on=CDN)
        download = await self.pull(digest)
        self.assert_whole(download, content)
        self.assertEqual(download.headers.get("transfer-encoding"), encoding)
        warm = await self.pull(digest)
        self.assert_whole(warm, content)
        self.assertEqual(warm.headers["content-length"], str(len(content)))

    async def test_a_blob_of_no_length_comes_in_chunks(self) -> None:
        for size in (HELD + 1, SIZE):
            await self.assert_right(noise(size, size), "chunked")

    async def test_a_small_one_waits_until_it_is_verified_and_has_one_then(self) -> None:
        for size in (0, 1000, HELD):
            await self.assert_right(noise(size, size), None)

    async def test_a_small_one_that_is_corrupt_is_an_error(self) -> None:
        digest = self.blob(SMALL)
        self.hub.faults.add(NoLength(), on=CDN)
        self.hub.faults.add(Corrupt(999), on=CDN)
        self.assertEqual((await self.pull(digest)).error[:2], (502, "UNKNOWN"))
        await self.assert_refused(digest, SMALL)

    async def test_its_end_is_held_back_like_any_other(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN)
        held = self.hub.withhold(CDN, SIZE - 1)
        download = await (await self.ask(digest)).has(SIZE - 1 - HELD)
        await self.filled(digest, SIZE - 1)
        self.assertEqual(download.count, SIZE - 1 - HELD)
        held.release()
        self.assert_whole(await download.end(), CONTENT)

    async def test_one_that_breaks_off_is_gone_on_with(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN, times=None)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, SIZE)

    async def test_one_that_breaks_off_and_serves_no_ranges_comes_again(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN, times=None)
        self.hub.faults.add(NoRanges(), on=CDN, times=None)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.assert_whole(await self.pull(digest), CONTENT)
        self.assertEqual(self.blob_bytes, BREAK + SIZE)

    async def test_one_that_is_corrupt_never_gets_its_last_chunk(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN)
        self.hub.faults.add(Corrupt(SIZE - 1), on=CDN)
        self.assert_cut(await self.pull(digest), CONTENT)
        await self.assert_refused(digest, CONTENT)

    async def test_a_part_of_it_waits_until_its_length_is_known(self) -> None:
        for wanted, first, last in (("-10", SIZE - 10, SIZE - 1), ("5-", 5, SIZE - 1)):
            content = noise(SIZE, first)
            digest = self.blob(content)
            self.hub.faults.add(NoLength(), on=CDN, times=None, method="*")
            self.assert_part(await self.pull(digest, wanted), content, first, last)

    async def test_a_client_of_http_1_0_waits_until_all_is_verified(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN)
        held = self.hub.withhold(CDN, SIZE - 1)
        patient = await self.ask(digest, version="1.0")
        await held.reached
        other = await (await self.ask(digest)).has(SIZE - 1 - HELD)
        await self.filled(digest, SIZE - 1)
        self.assertEqual(patient.status, 0)
        held.release()
        self.assert_whole(await patient.end(), CONTENT)
        self.assertEqual(patient.headers["content-length"], str(SIZE))
        self.assertNotIn("transfer-encoding", patient.headers)
        self.assert_whole(await other.end(), CONTENT)

    async def test_a_client_of_http_1_0_gets_an_error_instead_of_wrong_bytes(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(NoLength(), on=CDN)
        self.hub.faults.add(Corrupt(0), on=CDN)
        download = await self.pull(digest, version="1.0")
        self.assertEqual(download.error[:2], (502, "UNKNOWN"))
        await self.assert_refused(digest, CONTENT)


class CodedTests(PullCase):
    """A blob with a ``Content-Encoding`` that nobody asked for: the digest tells what it is."""

    LAYER = gzip.compress(noise(LARGE))

    async def assert_pulled(self, content: bytes, fault: Coded, *others: Fault) -> None:
        """All of ``content`` comes, and is kept."""
        digest = self.blob(content)
        self.hub.faults.clear()
        for each in (fault, *others):
            self.hub.faults.add(each, on=CDN, method="*", times=None)
        self.assert_whole(await self.pull(digest), content)
        self.assertEqual(self.holders(digest), [f"docker.io/{ALPINE}"])

    async def test_what_nobody_wanted_coded_is_undone(self) -> None:
        for number, name in enumerate(("gzip", "x-gzip", "deflate", "Deflate")):
            for size in (0, 1, 1000, LARGE):
                await self.assert_pulled(noise(size, number), Coded(name))
        # A layer is compressed already, and a document is not.
        await self.assert_pulled(self.LAYER, Coded())
        await self.assert_pulled(b'{"architecture":"amd64"}' * 10_000, Coded())
        asked = {asked.headers["accept-encoding"] for asked in self.hub.requests}
        self.assertEqual(asked, {"identity"})

    async def test_what_is_only_labelled_is_taken_as_it_is(self) -> None:
        for number, label in enumerate(("gzip", "deflate", "br", "zstd", "utf-8", "aws-chunked")):
            for size in (1, LARGE):
                for content in (noise(size, number), gzip.compress(noise(size, number + 10))):
                    await self.assert_pulled(content, Coded(label, applied=False))

    async def test_it_is_fetched_twice_until_the_digest_has_told_what_the_label_means(self) -> None:
        counts = []
        for number in range(3):
            self.hub.forget_requests()
            await self.assert_pulled(noise(LARGE, number), Coded())
            counts.append(self.hub.count("GET", CDN))
        self.assertEqual(counts, [2, 1, 1])

    async def test_what_a_label_meant_for_others_is_not_believed_against_the_digest(self) -> None:
        await self.assert_pulled(CONTENT, Coded())
        labelled = gzip.compress(noise(SIZE, 1))
        digest = self.blob(labelled)
        self.hub.faults.clear()
        self.hub.faults.add(Coded(applied=False), on=CDN, method="*", times=None)
        self.assert_cut(await self.pull(digest))
        self.assert_whole(await self.pull(digest), labelled)
        self.assert_whole(await self.pull(digest), labelled)

    async def test_one_that_is_too_large_to_be_read_twice_is_guessed(self) -> None:
        self.patch(coded, "MOST_READ", LARGE // 2)
        archive = bytes(257) + b"ustar" + noise(LARGE)
        for chunked in (False, True):
            labelled = gzip.compress(archive + bytes([chunked]))
            for content, applied in ((labelled, False), (noise(LARGE, 2 + chunked), True)):
                others = [NoLength()] if chunked else []
                await self.assert_pulled(content, Coded(applied=applied), *others)
        wrong = gzip.compress(noise(LARGE, 5))
        digest = self.blob(wrong)
        self.hub.faults.clear()
        self.hub.faults.add(Coded(applied=False), on=CDN, method="*", times=None)
        self.assert_cut(await self.pull(digest))
        self.assert_whole(await self.pull(digest), wrong)

    async def test_a_head_of_one_that_is_guessed_changes_no_guess(self) -> None:
        self.patch(coded, "MOST_READ", LARGE // 2)
        for number, applied in enumerate((True, False)):
            content = gzip.compress(bytes(257) + b"ustar" + noise(LARGE, 10 + number))
            if applied:
                content = noise(LARGE, 10 + number)
            digest = self.blob(content)
            self.hub.faults.clear()
            self.hub.faults.add(Coded(applied=applied), on=CDN, method="*", times=None)
            path = f"/v2/docker.io/{ALPINE}/blobs/{digest}"
            for _ in range(3 - number):
                answer = await self.registry.request("HEAD", path)
                self.assertEqual(answer.status, 200)
            self.assert_whole(await self.pull(digest), content)

    async def test_one_that_becomes_too_much_is_guessed_too(self) -> None:
        self.patch(coded, "MOST_UNDONE", LARGE // 2)
        await self.assert_pulled(bytes(LARGE), Coded())
        archive = gzip.compress(bytes(257) + b"ustar" + bytes(LARGE))
        await self.assert_pulled(archive, Coded(applied=False))

    async def test_a_labelled_archive_that_would_grow_too_much_is_guessed_too(self) -> None:
        self.patch(coding, "FREE", coding.PIECE)
        self.patch(coding, "MOST_TIMES", 0)
        archive = gzip.compress(bytes(257) + b"ustar" + noise(LARGE))
        await self.assert_pulled(archive, Coded(applied=False))

    async def test_a_coding_that_cannot_be_undone_is_502_of_that_blob_alone(self) -> None:
        self.hub.faults.add(Coded("br"), on=CDN, method="*", times=6)
        for number in range(6):
            content = noise((1000, LARGE)[number % 2], number)
            digest = self.blob(content)
            status, code, detail = (await self.pull(digest)).error
            self.assertEqual((status, code), (502, "UNKNOWN"))
            self.assertIn("Content-Encoding (br)", detail["reason"])
            self.assert_nothing_kept(digest)
        self.assert_whole(await self.pull(digest), content)

    async def test_wrong_bytes_stay_wrong_however_they_are_coded(self) -> None:
        for wrong in (noise(SIZE, 1), noise(1000, 1)):
            digest = self.blob(CONTENT)
            self.hub.faults.clear()
            self.hub.faults.add(Other(wrong), on=CDN, times=None)
            self.hub.faults.add(Coded(), on=CDN, times=None)
            status, _, detail = (await self.pull(digest)).error
            self.assertEqual(status, 502)
            self.assertIn("wrong bytes", detail["reason"])
            self.assert_nothing_kept(digest)

    async def test_damaged_coding_is_502(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Coded(), on=CDN)
        self.hub.faults.add(Corrupt(5000), on=CDN)
        self.assertEqual((await self.pull(digest)).error[0], 502)
        self.assert_nothing_kept(digest)
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_what_breaks_off_goes_on_from_the_beginning(self) -> None:
        await self.assert_pulled(noise(LARGE, 1), Coded())
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_the_rest_of_a_blob_may_be_coded(self) -> None:
        digest = self.blob(CONTENT)
        self.hub.faults.add(Truncate(after=BREAK), on=CDN)
        self.hub.faults.add(Later(Coded()), on=CDN, times=None)
        self.assert_whole(await self.pull(digest), CONTENT)

    async def test_no_range_is_answered_from_coded_bytes(self) -> None:
        for number, fault in enumerate((Coded(), Coded(applied=False))):
            for wanted, first, last in (("5-99", 5, 99), ("-10", SIZE - 10, SIZE - 1)):
                content = noise(SIZE, number * 2 + (first > 5))
                digest = self.blob(content)
                self.hub.faults.clear()
                self.hub.faults.add(fault, on=CDN, method="*", times=None)
                self.assert_part(await self.pull(digest, wanted), content, first, last)
                self.assert_whole(await self.pull(digest), content)

    async def test_head_tells_the_size_of_the_blob(self) -> None:
        self.hub.faults.add(Coded(), on=CDN, method="*", times=None)
        for size in (LARGE, 1000):
            path = f"/v2/docker.io/{ALPINE}/blobs/{self.blob(noise(size))}"
            answer = await self.registry.request("HEAD", path)
            self.assertEqual((answer.status, answer.header("Content-Length")), (200, str(size)))
