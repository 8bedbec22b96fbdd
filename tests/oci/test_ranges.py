"""Byte ranges of reads and of chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.oci.errors import BlobUploadInvalid, RangeNotSatisfiable
from artifactd.oci.ranges import ByteRange, parse_content_range, parse_range

nearly = st.text(alphabet="0123456789-=,bytes */", max_size=40)


class RangeTests(TestCase):
    """RFC 9110, 14.1.2 and 14.2."""

    def test_the_three_forms(self) -> None:
        self.assertEqual(ByteRange(2, 5), parse_range("bytes=2-5", 10))
        self.assertEqual(ByteRange(2, 9), parse_range("bytes=2-", 10))
        self.assertEqual(ByteRange(7, 9), parse_range("bytes=-3", 10))

    def test_an_end_behind_the_last_byte_is_cut_to_it(self) -> None:
        self.assertEqual(ByteRange(2, 9), parse_range("bytes=2-99", 10))
        self.assertEqual(ByteRange(0, 9), parse_range("bytes=-99", 10))

    def test_the_unit_is_read_in_any_case(self) -> None:
        self.assertEqual(ByteRange(0, 0), parse_range("Bytes=0-0", 10))

    def test_what_may_be_ignored_is_ignored(self) -> None:
        for value in ("", "bytes", "bytes=", "bytes=-", "bytes=0-1,3-4", "lines=1-2",
                      "bytes=a-b", "bytes=1-2-3", "bytes=+1-2"):  # fmt: skip
            with self.subTest(value=value):
                self.assertIsNone(parse_range(value, 10))

    def test_a_range_without_a_byte_is_416_and_says_the_size(self) -> None:
        for value in (
            "bytes=10-",
            "bytes=10-20",
            "bytes=-0",
            "bytes=-000",
            "bytes=5-2",
            "bytes=500-0",
        ):
            with self.subTest(value=value):
                error = self.assertRaises(RangeNotSatisfiable, parse_range, value, 10)
                self.assertEqual(416, error.status)
                self.assertEqual("bytes */10", error.headers["Content-Range"])

    def test_an_empty_blob_has_no_satisfiable_range(self) -> None:
        self.assertRaises(RangeNotSatisfiable, parse_range, "bytes=0-", 0)
        self.assertRaises(RangeNotSatisfiable, parse_range, "bytes=-1", 0)

    @given(nearly | st.text(), st.integers(0, 2**40))
    def test_any_value_gives_bytes_that_exist_or_none_or_416(self, value: str, size: int) -> None:
        try:
            got = parse_range(value, size)
        except RangeNotSatisfiable as error:
            self.assertEqual(416, error.status)
        else:
            self.assertTrue(got is None or 0 <= got.first <= got.last < size, (value, size, got))


class ContentRangeTests(TestCase):
    """distribution-spec, end-5: ``^[0-9]+-[0-9]+$``, inclusive on both ends."""

    def test_a_chunk_has_as_many_bytes_as_its_range_says(self) -> None:
        self.assertEqual(100, parse_content_range("0-99").length)
        self.assertEqual(1, parse_content_range("7-7").length)

    def test_other_forms_are_refused(self) -> None:
        for value in ("", "0", "-5", "5-", "5-4", "bytes 0-99/100", "0-99/100", "a-b", "0 - 9",
                      "0-9\n", "٠-٩", "1" * 30 + "-" + "2" * 30):  # fmt: skip
            with self.subTest(value=value):
                error = self.assertRaises(BlobUploadInvalid, parse_content_range, value)
                self.assertEqual(400, error.status)

    @given(nearly | st.text())
    def test_any_value_is_a_range_or_refused(self, value: str) -> None:
        try:
            got = parse_content_range(value)
        except BlobUploadInvalid as error:
            self.assertEqual("BLOB_UPLOAD_INVALID", error.code)
        else:
            self.assertGreater(got.length, 0)
