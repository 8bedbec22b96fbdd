"""Manifests and indexes: image-spec, manifest.md, image-index.md; "Pushing Manifests"."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.oci.digest import Algorithm, Digest
from artifactd.oci.errors import DigestInvalid, ManifestInvalid, RegistryError
from artifactd.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    ManifestBounds,
    parse_manifest,
)

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
            image(layers=None),
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

    def test_an_index_without_manifests_is_refused_but_an_empty_one_is_not(self) -> None:
        self.assertRaises(ManifestInvalid, parse, index(manifests=None), OCI_INDEX)
        self.assertEqual((), parse(index(manifests=[]), OCI_INDEX).children)

    def test_a_list_of_no_layers_is_fine(self) -> None:
        self.assertEqual([CONFIG], [blob.digest for blob in parse(image(layers=[])).blobs])

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
        for refused in ("text/html", "application/octet-stream", "image/png"):
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
