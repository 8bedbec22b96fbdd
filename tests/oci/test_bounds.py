"""Documents that ask too much of their readers, or that two readers could read differently."""

from __future__ import annotations

import contextlib
import json
import tracemalloc

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactd.oci import foreign
from artifactd.oci.errors import ManifestInvalid
from artifactd.oci.foreign import decode_foreign, each_object, excess, read_loosely, strings_of
from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST, ManifestBounds, parse_manifest
from tests.api.served import image_index, image_manifest


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _values(value: object) -> int:
    inner: list[object] = []
    if isinstance(value, dict):
        inner = list(value.values())
    if isinstance(value, list):
        inner = value
    return 1 + sum(map(_values, inner))


_JSON = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('[]{}"\\a\u00e9')),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.sampled_from('[]{}"\\a'), max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


class NestingTests(SynchronousTestCase):
    """How deep."""

    @given(_JSON, st.integers(0, 6))
    def test_it_is_counted_without_what_stands_in_strings(self, value: object, most: int) -> None:
        content = json.dumps(value, ensure_ascii=False).encode()
        self.assertEqual(excess(content, most, 0) is not None, _depth(value) > most)

    def test_what_is_no_json_is_counted_up_to_the_error(self) -> None:
        for content in (b"[" * 1_000_000, b'{"a":' * 1_000_000, b"[" * 101 + b"]" * 1_000_000):
            self.assertIn("nested deeper than 100", excess(content, 100, 0) or "")
        for content in (b"[]" * 1_000_000, b"]" * 1_000_000, b'"' + b"[" * 1_000_000, b'"' * 999):
            self.assertIsNone(excess(content, 100, 0))


class ValuesTests(SynchronousTestCase):
    """How many values."""

    @given(_JSON, st.integers(1, 20))
    def test_they_are_counted_without_what_stands_in_strings(
        self, value: object, most: int
    ) -> None:
        content = json.dumps(value, ensure_ascii=False).encode()
        refused = excess(content, 100, most) is not None
        # An empty array or object may count as one value more.
        if _values(value) > most:
            self.assertTrue(refused)
        if content.count(b"[]") + content.count(b"{}") + _values(value) <= most:
            self.assertFalse(refused)

    def test_strings_of_any_length_are_one_value(self) -> None:
        # Their ends fall on each place of a piece, and they hold what ends a string or begins none.
        for n in (65_533, 65_534, 65_535):
            for inner in (b"[", b",", b'\\"', b"\\\\", b'\\\\\\"[', b"{,"):
                text = b'"' + inner * n + b'"'
                self.assertIsNone(excess(b"[" + text + b"," + text + b"]", 1, 4), (n, inner))
                self.assertIsNotNone(excess(b"[" + text + b"," + text + b",[]]", 9, 4), (n, inner))

    def test_a_document_of_more_is_not_decoded(self) -> None:
        decoder = msgspec.json.Decoder(list)
        self.assertEqual(len(decode_foreign(decoder, b"[0" + b",0" * 98 + b"]", values=100)), 99)
        error = self.assertRaises(
            ValueError, decode_foreign, decoder, b"[0" + b",0" * 99 + b"]", values=100
        )
        self.assertEqual(str(error), "its JSON has more than 100 values")
        self.assertEqual(len(decode_foreign(decoder, b"[0" + b",0" * 99 + b"]", values=0)), 100)

    def test_what_can_not_be_decoded_is_one_kind_of_error(self) -> None:
        decoder = msgspec.json.Decoder(list[str])
        for content in (b"", b"{}", b"[1]", b"[", b'["\xff"]', b"\xff", b"[" * 1_000_000):
            self.assertRaises(ValueError, decode_foreign, decoder, content)


class NameTests(SynchronousTestCase):
    """Names that stand twice."""

    def doubled_name(self, content: bytes) -> str | None:
        try:
            each_object(content, lambda _: None)
        except ValueError as error:
            self.assertIn("stands twice in one object", str(error))
            return str(error).split("'")[1]
        return None

    def test_in_one_object(self) -> None:
        for content, name in (
            (b'{"a":1,"a":2}', "a"),
            (b'{"a":1,"\\u0061":2}', "a"),
            (b'[{"b":{"a":1,"c":2,"a":1}}]', "a"),
        ):
            self.assertEqual(self.doubled_name(content), name, content)

    def test_of_the_spec_in_another_case_as_go_reads_them(self) -> None:
        for one in ("layers", "lAyers"):
            for other in ("Layers", "LAYERS", "layer\u017f"):
                content = json.dumps({one: [], other: []}).encode()
                self.assertEqual(self.doubled_name(content), "layers", other)

    def test_others_may_differ_in_case_and_stand_in_several_objects(self) -> None:
        for content in (b'{"a":1,"A":2}', b'[{"a":1},{"a":2}]', b'{"a":{"a":1}}', b'{"Layers":1}'):
            self.assertIsNone(self.doubled_name(content), content)

    def test_numbers_cost_nothing(self) -> None:
        self.assertIsNone(self.doubled_name(b'{"a":1e999999999,"b":' + b"9" * 1_000_000 + b"}"))


class ManifestTests(SynchronousTestCase):
    """Manifests that are refused, each with a sentence."""

    def refused(self, content: bytes, media_type: str = OCI_MANIFEST, **bounds: int) -> str:
        error = self.assertRaises(
            ManifestInvalid,
            parse_manifest,
            content,
            media_type,
            other_types=True,
            bounds=ManifestBounds(**bounds),
        )
        return str(error.message)

    def with_field(self, field: bytes) -> bytes:
        return image_manifest(b"config")[:-1] + b"," + field + b"}"

    def test_nesting(self) -> None:
        deep = self.with_field(b'"x":' + b"[" * 100_000 + b"]" * 100_000)
        self.assertIn("nested deeper than 100", self.refused(deep))
        self.assertIn("nested deeper", self.refused(deep, "application/vnd.other+json"))
        seven = self.with_field(b'"x":' + b"[" * 7 + b"]" * 7)
        parse_manifest(seven, OCI_MANIFEST, other_types=False, bounds=ManifestBounds(nesting=8))
        self.assertIn("deeper", self.refused(seven, nesting=7))

    def test_values(self) -> None:
        for value in (b"[]", b"{}", b"0", b'""', b'{"a":""}', b"[" * 90 + b"]" * 90):
            filler = b",".join([value] * 200_000)
            for media_type in (OCI_MANIFEST, "application/vnd.other+json"):
                refused = self.refused(self.with_field(b'"x":[' + filler + b"]"), media_type)
                self.assertIn("more than 200000 values", refused)

    def test_arrays_and_objects(self) -> None:
        for value in (b"[]", b"{}", b'{"a":""}'):
            filler = b",".join([value] * 50_000)
            refused = self.refused(self.with_field(b'"x":[' + filler + b"]"))
            self.assertIn("more than 50000 arrays and objects", refused)
        parse_manifest(
            self.with_field(b'"x":[' + b",".join([b"[]"] * 49_000) + b"]"),
            OCI_MANIFEST,
            other_types=False,
        )

    def test_values_of_as_many_entries_as_are_accepted(self) -> None:
        entry = json.loads(image_index(b"child"))["manifests"][0]
        entry["platform"] = {"architecture": "arm64", "os": "linux", "variant": "v8"}
        entry["annotations"] = {f"org.example.{n}": "a [text], with {all} of it" for n in range(8)}
        index = json.dumps({"schemaVersion": 2, "manifests": [entry] * 10_000}).encode()
        self.assertIsNone(excess(index, 100, ManifestBounds().values))
        index = json.dumps({"schemaVersion": 2, "manifests": [entry] * 300}).encode()
        values = ManifestBounds(entries=300_000).values // 1000
        self.assertIsNone(excess(index, 100, values))

    def test_media_types_and_artifact_types(self) -> None:
        image, index = json.loads(image_manifest(b"config", b"layer")), image_index(b"child")
        for length in (255, 256):
            long = "a/" + "b" * (length - 2)
            subject = {**image["config"], "mediaType": long}
            documents = [
                (OCI_MANIFEST, {**image, "artifactType": long}),
                (OCI_MANIFEST, {**image, "config": {**image["config"], "mediaType": long}}),
                (OCI_MANIFEST, {**image, "layers": [{**image["layers"][0], "mediaType": long}]}),
                (OCI_MANIFEST, {**image, "subject": subject}),
                (OCI_INDEX, {**json.loads(index), "artifactType": long}),
                (OCI_INDEX, {**json.loads(index), "manifests": [subject]}),
                ("application/vnd.other+json", {"artifactType": long}),
                ("application/vnd.other+json", {"subject": subject}),
            ]
            for media_type, document in documents:
                content = json.dumps(document).encode()
                if length == 255:
                    parse_manifest(content, media_type, other_types=True)
                else:
                    self.assertIn("of length <= 255 - at `$.", self.refused(content, media_type))

    def test_numbers(self) -> None:
        for number in (b"1e999999", b"9" * 5000, b"9223372036854775808", b"-1", b"1.5", b"NaN"):
            content = image_manifest(b"config").replace(b'"size": 6', b'"size": ' + number)
            self.assertIn("not a manifest", self.refused(content), number)

    def test_numbers_of_fields_that_nobody_reads_cost_nothing(self) -> None:
        for number in (b"1e999999999999", b"9" * 1_000_000, b"0." + b"9" * 1_000_000):
            parse_manifest(self.with_field(b'"x":' + number), OCI_MANIFEST, other_types=False)

    def test_names_that_stand_twice(self) -> None:
        self.assertIn("'layers' stands twice", self.refused(self.with_field(b'"layers":[]')))
        self.assertIn("'layers' stands twice", self.refused(self.with_field(b'"Layers":[]')))

    def test_texts_that_are_none(self) -> None:
        for text in (b"\\ud800", b"\\udc00\\ud800", b"\x00", b"\xed\xa0\x80", b"\xff", b"\\x"):
            for field in (b'"annotations":{"a":"%b"}', b'"x":"%b"', b'"%b":1'):
                content = self.with_field(field % text)
                if b"\\ud" in text and not field.startswith(b'"ann'):
                    continue  # of a field that nobody reads
                self.assertIn("not a manifest", self.refused(content), content)

    def test_entries(self) -> None:
        layers = [b"%d" % n for n in range(5)]
        self.assertIn("6 entries", self.refused(image_manifest(b"config", *layers), entries=5))
        parse_manifest(
            image_manifest(b"config", *layers),
            OCI_MANIFEST,
            other_types=False,
            bounds=ManifestBounds(entries=6),
        )
        index = image_index(*layers)
        self.assertIn("5 entries", self.refused(index, OCI_INDEX, entries=4))

    def test_annotations_of_the_document_and_of_each_descriptor(self) -> None:
        three = {str(n): "" for n in range(3)}
        of_layer = json.loads(image_manifest(b"config", b"layer"))
        of_layer["layers"][0]["annotations"] = three
        of_subject = json.loads(image_manifest(b"config", b"layer"))
        of_subject["subject"] = {**of_subject["config"], "annotations": three}
        for content in (
            image_manifest(b"config", annotations=three),
            json.dumps(of_layer).encode(),
            json.dumps(of_subject).encode(),
        ):
            self.assertIn("3 annotations", self.refused(content, annotations=2))
            parse_manifest(
                content, OCI_MANIFEST, other_types=False, bounds=ManifestBounds(annotations=3)
            )

    def test_0_is_no_limit(self) -> None:
        parse_manifest(
            image_manifest(b"config", *(b"%d" % n for n in range(11_000))),
            OCI_MANIFEST,
            other_types=False,
            bounds=ManifestBounds(entries=0, annotations=0),
        )

    @given(st.binary(max_size=60), st.integers(0, 300))
    def test_any_bytes_in_it_are_refused_or_read(self, junk: bytes, at: int) -> None:
        content = image_manifest(b"config", b"layer")
        with contextlib.suppress(ManifestInvalid):
            parse_manifest(content[:at] + junk + content[at:], OCI_MANIFEST, other_types=True)


class LooseTests(SynchronousTestCase):
    def test_halves_of_surrogate_pairs_do_not_keep_a_text_from_being_encoded(self) -> None:
        for escapes, text in (
            (r"\ud800", "\ufffd"),
            (r"\uDFFFa\ud800", "\ufffda\ufffd"),
            (r"\ud83d\ude00", "\U0001f600"),
            (r"\ud800\uD83D\uDE00\udc00", "\ufffd\U0001f600\ufffd"),
            (r"\\ud800\\\ud800", "\\ud800\\\ufffd"),
            (r"\ud7ff\ue000", "\ud7ff\ue000"),
        ):
            document = json.dumps({"a": "TEXT", "TEXT": 1}).replace("TEXT", escapes).encode()
            read = read_loosely(document, lambda _: None)
            self.assertEqual({"a": text, text: 1}, read, escapes)
            msgspec.json.encode(read)
        with self.assertRaises(ValueError):
            read_loosely(b'["\\ud800\0"]', lambda _: None)


class StringsTests(SynchronousTestCase):
    """Long arrays of strings are decoded in pieces."""

    def setUp(self) -> None:
        self.patch(foreign, "_PIECE", 0)

    @given(st.lists(st.text(st.sampled_from('[]{}"\\,: \u00e9')), max_size=20), st.booleans())
    def test_they_are_what_another_reader_finds(self, strings: list[str], spaced: bool) -> None:
        separators = (" ,\n", ":") if spaced else None
        for ascii_only in (True, False):
            array = json.dumps(strings, separators=separators, ensure_ascii=ascii_only).encode()
            found = [each for piece in strings_of(b" " + array + b" ") for each in piece]
            self.assertEqual(found, strings)

    def test_no_piece_has_more_than_some_thousands(self) -> None:
        strings = [f"v{number}" for number in range(12_000)]
        pieces = list(strings_of(json.dumps(strings).encode()))
        self.assertEqual(max(map(len, pieces)), 5000)
        self.assertEqual([each for piece in pieces for each in piece], strings)

    def test_long_strings_and_spaces_take_little_memory_and_linear_time(self) -> None:
        size = 1 << 20  # quadratic time would be hours
        for part in (b"a", b"\\\\", b'\\"', b"\\na"):
            flood = part * (size // len(part))
            for array in (b'["%b"]' % flood, b'["a","%b",""]' % flood, b'["a","%b' % flood):
                self.assert_read_with_little_memory(array)
        for array in (b'["a"%b,"b"]', b'["a",%b"b"]', b'["a"%b', b'["a",%b', b'["a"%b"b"]'):
            self.assert_read_with_little_memory(array % (b" " * size))

    def assert_read_with_little_memory(self, array: bytes) -> None:
        try:
            expected = json.loads(array)
        except ValueError:
            expected = None
        found = None
        tracemalloc.start()
        try:
            with contextlib.suppress(ValueError):
                found = [each for piece in strings_of(array) for each in piece]
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertTrue(found == expected, array[:20])
        self.assertLess(most, 8 * len(array), array[:20])

    def test_everything_else_is_refused(self) -> None:
        for wrong in (
            *(b"", b"[", b"]", b'"a"', b'{"a": ["b"]}', b"null", b"1", b"[1]", b"[null]"),
            *(b'["a", 1]', b'["a", ["b"]]', b'["a" "b"]', b'["a"] "b"]', b'["a', b'["\xff",""]'),
            *(b'["\\x"]', b'["a",["b","c"],"d"]'),
        ):
            for head in (b"", b'["a",' if wrong.startswith(b"[") else b""):
                with self.assertRaises(ValueError, msg=wrong):
                    list(strings_of(head + wrong))
