"""Manifests and indexes: image-spec, manifest.md, image-index.md; "Pushing Manifests"."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.oci.errors import DigestInvalid, ManifestInvalid, RegistryError
from artifactd.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    ForeignLayer,
    Manifest,
    ManifestBounds,
    foreign_layer,
    parse_manifest,
    read_manifest,
)
from artifactd.oci.names import Algorithm, Digest

CONFIG = Digest.of(b"config")
LAYER = Digest.of(b"layer")
CHILD = Digest.of(b"child")


def descriptor(digest: Digest, media_type: str = "application/x", **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": 5, **more}


def image(**changes: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(LAYER)],
    }
    document.update(changes)
    return {key: value for key, value in document.items() if value is not None}


def index(**changes: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(CHILD, OCI_MANIFEST)],
    }
    document.update(changes)
    return {key: value for key, value in document.items() if value is not None}


def parse(
    document: object, content_type: str | None = OCI_MANIFEST, *, other_types: bool = False
) -> Manifest:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_manifest(content, content_type, other_types=other_types)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schemaVersion",
                    "mediaType",
                    "config",
                    "layers",
                    "manifests",
                    "digest",
                    "size",
                    "subject",
                    "annotations",
                    "artifactType",
                    "urls",
                ]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


class ManifestTests(TestCase):
    """What is read from a manifest, and what is refused."""

    def test_the_bytes_are_kept_as_they_came(self) -> None:
        content = json.dumps(image(), indent=7).encode() + b"\n\n"
        manifest = parse(content)
        self.assertEqual(content, manifest.content)
        self.assertEqual(Digest.of(content), manifest.digest)

    def test_an_image_manifest_holds_its_config_and_layers(self) -> None:
        manifest = parse(image())
        self.assertEqual([CONFIG, LAYER], [blob.digest for blob in manifest.blobs])
        self.assertEqual((), manifest.children)

    def test_an_index_holds_its_manifests(self) -> None:
        manifest = parse(index(), OCI_INDEX)
        self.assertEqual([CHILD], [child.digest for child in manifest.children])
        self.assertEqual((), manifest.blobs)

    def test_what_an_index_lists_under_another_media_type_is_a_blob(self) -> None:
        # As build caches of BuildKit do.
        listed = [descriptor(LAYER, "application/vnd.oci.image.layer.v1.tar+gzip")]
        manifest = parse(index(manifests=listed), OCI_INDEX)
        self.assertEqual([LAYER], [blob.digest for blob in manifest.blobs])

    def test_docker_s_two_types_are_read_likewise(self) -> None:
        self.assertEqual(2, len(parse(image(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST).blobs))
        self.assertEqual(1, len(parse(index(mediaType=DOCKER_LIST), DOCKER_LIST).children))

    def test_parameters_of_the_content_type_are_ignored(self) -> None:
        self.assertEqual(OCI_MANIFEST, parse(image(), OCI_MANIFEST + "; charset=utf-8").media_type)

    def test_without_a_content_type_the_document_s_own_counts(self) -> None:
        self.assertEqual(OCI_INDEX, parse(index(), None).media_type)
        self.assertRaises(ManifestInvalid, parse, image(mediaType=None), None)

    def test_without_a_media_type_in_it_the_content_type_counts(self) -> None:
        self.assertEqual(OCI_MANIFEST, parse(image(mediaType=None)).media_type)

    def test_a_contradicting_media_type_is_refused(self) -> None:
        self.assertRaises(ManifestInvalid, parse, image(mediaType=DOCKER_MANIFEST), OCI_MANIFEST)

    def test_a_manifest_that_could_be_read_as_an_index_is_refused(self) -> None:
        both = image(manifests=[descriptor(CHILD)])
        self.assertRaises(ManifestInvalid, parse, both, OCI_MANIFEST)
        self.assertRaises(ManifestInvalid, parse, {**both, "mediaType": OCI_INDEX}, OCI_INDEX)

    def test_what_is_missing_or_malformed_is_refused(self) -> None:
        for document in (
            b"",
            b"\xff\xfe",
            b"[]",
            b"{",
            b"[" * 100_000,
            b"nonsense",
            b"{}",
            b"{}{}",
            b'{"a": "\\ud800"}',
            image(layers=[{}]),
            image(subject={"digest": str(CHILD)}),
            image(schemaVersion=1),
            image(schemaVersion=None),
            image(config=None),
            image(layers={}),
            image(config=descriptor(CONFIG, "")),
            image(config={"mediaType": "application/x", "digest": str(CONFIG)}),
            image(config={**descriptor(CONFIG), "size": -1}),
            image(config={**descriptor(CONFIG), "size": 2**63}),
            image(config={**descriptor(CONFIG), "size": 1.5}),
            image(config={**descriptor(CONFIG), "digest": "sha256:short"}),
            image(subject={**descriptor(CHILD), "digest": "nonsense"}),
            image(annotations={"a": 1}),
        ):
            with self.subTest(document=str(document)[:60]):
                error = self.assertRaises(ManifestInvalid, parse, document)
                self.assertEqual(400, error.status)

    def test_an_index_may_list_nothing(self) -> None:
        null = index() | {"manifests": None}
        for document in (index(manifests=[]), index(manifests=None), null, index(layers=[])):
            with self.subTest(document=str(document)):
                listed = [str(child.digest) for child in parse(document, OCI_INDEX).children]
                expected = [child["digest"] for child in document.get("manifests") or ()]
                self.assertEqual(expected, listed)

    def test_an_image_may_have_no_layers(self) -> None:
        null = image() | {"layers": None}
        both = image(layers=[], manifests=[])
        for document in (image(layers=[]), image(layers=None), null, both):
            with self.subTest(document=str(document)):
                self.assertEqual([CONFIG], [blob.digest for blob in parse(document).blobs])

    def test_a_field_that_is_spelt_in_another_case_is_refused(self) -> None:
        documents: list[dict[str, Any]] = [
            image(layers=None, Layers=[descriptor(LAYER)]),
            image(MediaType=OCI_MANIFEST, mediaType=None),
            *(image(**{name: descriptor(CHILD)}) for name in ("Subject", "SUBJECT")),
            image(ArtifactType="a/b"),
            image(Annotations={"a": "b"}),
            index(manifests=None, Manifests=[]),
        ]
        for document in documents:
            media_type = document.get("mediaType", OCI_MANIFEST)
            error = self.assertRaises(ManifestInvalid, parse, document, media_type)
            self.assertIn("spelt in another case", error.message)
        other = "application/vnd.example.thing+json"
        for document in ({"Subject": descriptor(CHILD)}, {"MediaType": other}):
            self.assertRaises(ManifestInvalid, parse, document, other, other_types=True)

    def test_media_types_of_the_specs_may_have_capitals(self) -> None:
        foreign = "Application/vnd.OCI.image.layer.nondistributable.v1.tar+gzip"
        blobs = parse(image(layers=[descriptor(LAYER, foreign)])).blobs
        self.assertEqual([False, True], [blob.optional for blob in blobs])
        (child,) = parse(
            index(manifests=[descriptor(CHILD, OCI_MANIFEST.title())]), OCI_INDEX
        ).children
        self.assertEqual(OCI_MANIFEST, child.media_type)
        other = "Application/vnd.Example.Thing+JSON"
        self.assertEqual(other, parse({}, other, other_types=True).media_type)

    def test_numbers_and_marks_that_go_does_not_read_are_refused(self) -> None:
        usual = json.dumps(image()).encode()
        for content in (
            image(schemaVersion=2.0),
            image(config={**descriptor(CONFIG), "size": 5.0}),
            image(config={**descriptor(CONFIG), "size": "5"}),
            b"\xef\xbb\xbf" + usual,
            usual + b"x",
        ):
            self.assertRaises(ManifestInvalid, parse, content)

    def test_null_stands_for_a_field_that_is_absent(self) -> None:
        usual = parse(image())
        fields = ("subject", "annotations", "artifactType", "layers", "manifests", "anything")
        nulls = json.dumps(image() | dict.fromkeys(fields) | {"layers": [descriptor(LAYER)]})
        found = parse(nulls.encode())
        self.assertEqual((usual.blobs, None, {}), (found.blobs, found.subject, found.annotations))
        self.assertRaises(ManifestInvalid, parse, image() | {"config": None})

    def test_layers_that_may_be_absent_are_marked(self) -> None:
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        closed = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        layers = [
            descriptor(LAYER, foreign),
            descriptor(LAYER, closed),
            descriptor(LAYER, urls=["https://example.com/layer"]),
            descriptor(LAYER, urls=[]),
        ]
        optional = [blob.optional for blob in parse(image(layers=layers)).blobs]
        self.assertEqual([False, True, True, True, False], optional)

    def test_the_artifact_type_falls_back_to_the_config_s_media_type(self) -> None:
        self.assertEqual("application/vnd.oci.image.config.v1+json", parse(image()).artifact_type)
        self.assertEqual("a/b", parse(image(artifactType="a/b")).artifact_type)
        self.assertIsNone(parse(index(), OCI_INDEX).artifact_type)
        self.assertIsNone(parse(index(artifactType=""), OCI_INDEX).artifact_type)

    def test_subject_and_annotations_are_read(self) -> None:
        manifest = parse(image(subject=descriptor(CHILD), annotations={"a": "b"}))
        self.assertEqual((CHILD, {"a": "b"}), (manifest.subject, manifest.annotations))

    def test_a_push_by_digest_has_to_have_that_digest(self) -> None:
        content = json.dumps(image()).encode()
        by_sha512 = Digest.of(content, Algorithm.SHA512)
        self.assertEqual(
            by_sha512, parse_manifest(content, OCI_MANIFEST, by_sha512, other_types=False).digest
        )
        with self.assertRaises(DigestInvalid):
            parse_manifest(content, OCI_MANIFEST, CHILD, other_types=False)

    def test_other_types_are_kept_only_where_allowed(self) -> None:
        other = "application/vnd.example.thing.v1+json"
        document = {"anything": [1, 2], "subject": descriptor(CHILD)}
        self.assertRaises(ManifestInvalid, parse, document, other)
        kept = parse(document, other, other_types=True)
        self.assertEqual((other, CHILD, ()), (kept.media_type, kept.subject, kept.blobs))
        unknown = ("text/html", "application/octet-stream", "image/png", "application/\u212a+json")
        for refused in unknown:
            self.assertRaises(ManifestInvalid, parse, document, refused, other_types=True)

    def test_all_that_any_document_describes_is_among_the_others(self) -> None:
        digest = [Digest.of(b"%d" % number) for number in range(9)]
        described = {
            "blobs": [descriptor(digest[0]), descriptor(digest[0])],
            "config": {"digest": str(digest[1]), "size": 5},
            "unknown": {"deeper": [[{"of": descriptor(digest[2])}], descriptor(digest[3])]},
            "Layers": [{"Digest": str(digest[4]), "MEDIATYPE": "text/x"}],
            "annotations": {"digest": str(digest[5])},
            "nobody's": [{"digest": str(digest[6])}, str(digest[7]), {"digest": 8, "size": 8}],
            "malformed": {"digest": "sha256:beef", "size": 3},
            "subject": descriptor(digest[8]),
        }
        other = parse(described, "application/vnd.example.thing.v1+json", other_types=True)
        self.assertEqual(tuple(digest[:5]), tuple(sorted(other.others, key=digest.index)))
        self.assertEqual((other.subject, other.blobs, other.children), (digest[8], (), ()))
        more = {"data": {"x": descriptor(digest[0])}, "subject": descriptor(digest[1])}
        for known in (image(**more), index(**more)):
            manifest = parse(known, known["mediaType"])
            self.assertEqual((manifest.others, manifest.subject), ((digest[0],), digest[1]))
        again = image(also=descriptor(LAYER), subject=descriptor(CHILD), more=[descriptor(CHILD)])
        self.assertEqual(parse(again).others, (CHILD,))

    def test_descriptors_in_any_field_count_as_entries(self) -> None:
        bounds = ManifestBounds(entries=3)
        other = "application/vnd.example.thing.v1+json"
        for count, fits in ((3, True), (4, False)):
            described = {"blobs": [descriptor(CHILD)] * count, "subject": descriptor(CHILD)}
            documents = (
                (described, other),
                (image(layers=[], x=[descriptor(CHILD)] * (count - 1)), None),
            )
            for document, media_type in documents:
                content = json.dumps(document).encode()
                if fits:
                    parse_manifest(content, media_type, other_types=True, bounds=bounds)
                else:
                    with self.assertRaises(ManifestInvalid):
                        parse_manifest(content, media_type, other_types=True, bounds=bounds)

    @given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
    def test_any_bytes_are_a_manifest_or_a_client_s_error(self, content: bytes) -> None:
        for media_type in (OCI_MANIFEST, OCI_INDEX, None, "application/vnd.x+json"):
            try:
                manifest = parse_manifest(content, media_type, other_types=True)
            except RegistryError as error:
                self.assertEqual("MANIFEST_INVALID", error.code)
            else:
                self.assertEqual(content, manifest.content)


def read(document: object, media_type: str | None = OCI_MANIFEST) -> Manifest:
    """What is read of an upstream's document."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_manifest(content, media_type)


class UpstreamTests(TestCase):
    """What an upstream sends is read as far as it makes sense."""

    def test_what_a_push_may_be_is_read_the_same(self) -> None:
        for document, media_type in (
            (image(), OCI_MANIFEST),
            (image(mediaType=None), None),
            (image(subject=descriptor(CHILD), annotations={"a": "b", "A": "c"}), OCI_MANIFEST),
            (image(artifactType="application/vnd.example", layers=[]), OCI_MANIFEST),
            (image(extra=[descriptor(CHILD)]), OCI_MANIFEST),
            (index(), OCI_INDEX),
            (index(annotations={"a": "b"}), None),
        ):
            with self.subTest(document=str(document)):
                if media_type is None and "mediaType" not in document:
                    continue
                self.assertEqual(parse(document, media_type), read(document, media_type))

    @given(
        st.sampled_from([image(), index(), {}]),
        st.dictionaries(
            st.sampled_from(
                ["Subject", "ArtifactType", "Annotations", "subject", "annotations", "layers", "x"]
            ),
            json_values
            | st.fixed_dictionaries({"a": json_values, "A": json_values})
            | st.fixed_dictionaries({"mediaType": st.just("a/b"), "digest": st.just(str(LAYER))}),
        ),
    )
    def test_any_document_of_a_push_is_read_the_same(
        self, usual: dict[str, Any], more: dict[str, Any]
    ) -> None:
        media_type = usual.get("mediaType", "application/vnd.x+json")
        with contextlib.suppress(ManifestInvalid):
            pushed = parse(usual | more, media_type, other_types=True)
            self.assertEqual(pushed, read(usual | more, media_type))

    def test_lists_may_be_absent_or_null(self) -> None:
        for layers in (None, "null"):
            document = image(layers=None) | ({"layers": None} if layers else {})
            self.assertEqual([CONFIG], [blob.digest for blob in read(document).blobs])
        self.assertEqual((), read(index() | {"manifests": None}, OCI_INDEX).children)

    def test_the_documents_own_type_counts_more_than_the_one_it_is_sent_as(self) -> None:
        for sent in (None, "", "application/json", "text/plain; charset=utf-8", DOCKER_MANIFEST):
            with self.subTest(sent=sent):
                self.assertEqual(OCI_MANIFEST, read(image(), sent).media_type)

    def test_without_a_type_its_fields_tell_it(self) -> None:
        self.assertEqual(OCI_MANIFEST, read(image(mediaType=None), "application/json").media_type)
        self.assertEqual(OCI_INDEX, read(index(mediaType=None), "text/plain").media_type)

    def test_what_it_describes_is_held_however_it_is_written(self) -> None:
        for layer in (
            {**descriptor(LAYER), "size": 5.0},
            {"digest": str(LAYER), "size": 5},
            {**descriptor(LAYER), "mediaType": ""},
            {**descriptor(LAYER), "annotations": {"a": None, "b": 1}, "urls": None},
            {"Digest": str(LAYER), "Size": 5, "MediaType": "application/x"},
        ):
            with self.subTest(layer=layer):
                found = read(image(layers=[layer], annotations={"a": 1, "b": "c"}))
                self.assertEqual([CONFIG, LAYER], [blob.digest for blob in found.blobs])
                self.assertEqual({"b": "c"}, found.annotations)

    def test_a_layer_without_a_size_is_held_unchecked(self) -> None:
        found = read(image(layers=[{**descriptor(LAYER), "size": None}]))
        self.assertEqual((LAYER,), found.others)

    def test_a_mark_at_its_start_is_no_fault(self) -> None:
        content = b"\xef\xbb\xbf" + json.dumps(image()).encode() + b"\n"
        self.assertEqual(Digest.of(content), read(content).digest)

    def test_schema_1_is_passed_on_and_holds_its_layers(self) -> None:
        media_type = "application/vnd.docker.distribution.manifest.v1+json"
        document = {"schemaVersion": 1, "fsLayers": [{"blobSum": str(LAYER)}]}
        found = read(document, media_type)
        self.assertEqual((media_type, (LAYER,)), (found.media_type, found.others))

    def test_where_a_layer_is_that_the_registry_need_not_have(self) -> None:
        urls = ["ftp://a/", 5, None, "https://a/" + "x" * 4096, "HTTPS://a/b?c", "http://d"]
        foreign = {**descriptor(LAYER), "urls": urls}
        twice = [{**descriptor(LAYER), "urls": []}, {**foreign, "size": None}, foreign]
        expected = ForeignLayer(5, ("HTTPS://a/b?c", "http://d"))
        for document in (image(layers=[foreign]), image(layers=twice), {"x": {"y": foreign}}):
            content = json.dumps(document).encode()
            self.assertEqual(expected, foreign_layer(content, LAYER))
            self.assertIsNone(foreign_layer(content, CONFIG))
        for none in ({**foreign, "urls": "https://a/"}, {**foreign, "urls": ["file:///x"]}):
            self.assertIsNone(foreign_layer(json.dumps(image(layers=[none])).encode(), LAYER))
        for content in (b"", b"[", b"[]", b"[" * 100_000):
            self.assertIsNone(foreign_layer(content, LAYER))

    def test_what_is_no_manifest_is_refused(self) -> None:
        for content in (
            b"",
            b"<html>log in</html>",
            b"[]",
            b'{"error": "denied"}',
            b"[" * 100_000,
            b'{"schemaVersion": 2, "layers": [], "layers": []}',
            b'{"schemaVersion": 2, "layers": [], "Layers": []}',
        ):
            with self.subTest(content=content[:40]):
                self.assertRaises(ManifestInvalid, read, content)

    def test_bytes_of_another_digest_are_refused(self) -> None:
        content = json.dumps(image()).encode()
        self.assertRaises(DigestInvalid, read_manifest, content, OCI_MANIFEST, LAYER)
