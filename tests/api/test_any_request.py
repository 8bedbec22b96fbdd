"""
Whatever is asked, over real sockets: every error is the spec's JSON, and none is a 500; a manifest
that is not here may be a 502, since the upstream of these tests can't be reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import quote, quote_from_bytes

from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.threads import deferToThread

from artifactd.oci.manifest import MANIFEST_TYPES, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.served import image_manifest
from tests.programs import PATIENCE

CODES = {
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "DENIED",
    "UNSUPPORTED",
}
BLOB = b"content"


@frozen(eq=False)
class Asked:
    """A request: its target quoted, its header values as bytes."""

    method: str
    path: str
    headers: Mapping[str, bytes] = field(factory=dict)
    body: bytes = b""

    @property
    def may_go_upstream(self) -> bool:
        """Whether it asks for a manifest, which nothing but the upstream may know; it is down."""
        return self.method in ("GET", "HEAD") and "/manifests/" in self.path


def quoted(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """``words`` percent-encoded, or not quite, or bytes that are no text at all."""
    return st.one_of(
        words.map(lambda word: quote(word, safe="")),
        words.map(lambda word: quote(word, safe="/:@!$&'()*+,;=")),
        st.binary(max_size=8).map(quote_from_bytes),
    )


def sent(text: str) -> bytes:
    """``text`` as the value of a header field, which must not end the line."""
    return text.translate({0: None, 10: None, 13: None}).encode("utf-8", "replace")


words = st.one_of(
    st.sampled_from(["hello", "local", "v1", "..", ".", "", "blobs", "uploads", "manifests", "-"]),
    st.text(max_size=12),
    st.from_regex(r"\A[a-z0-9]+([._-][a-z0-9]+)*\Z"),
)
names = st.lists(words, min_size=1, max_size=4).map("/".join)
digests = st.one_of(
    st.just(str(Digest.of(BLOB))),
    st.binary(max_size=8).map(lambda content: str(Digest.of(content))),
    st.from_regex(r"\A(sha256|sha512|md5|SHA256)[:+][a-fA-F0-9]{0,65}\Z"),
    words,
)
numbers = st.one_of(st.integers(0, 20).map(str), st.integers().map(str), words)
ranges = st.one_of(
    st.builds("{}-{}".format, numbers, numbers),
    st.builds("bytes={}-{}".format, numbers, numbers),
    st.builds("bytes={}-{},{}-".format, numbers, numbers, numbers),
    st.text(max_size=12),
)
etags = st.one_of(
    st.just("*"), digests.map('"{}"'.format), digests.map('W/"{}"'.format), st.text(max_size=8)
)
queries = st.lists(
    st.tuples(
        st.sampled_from(
            ["n", "last", "digest", "mount", "from", "tag", "artifactType", "digest-algorithm"]
        ),
        quoted(st.one_of(numbers, digests, names)),
    ),
    max_size=3,
).map(lambda pairs: "&".join(f"{key}={value}" for key, value in pairs))
endpoints = st.one_of(
    st.just("tags/list"),
    st.just("blobs/uploads/"),
    quoted(digests).map("blobs/{}".format),
    quoted(digests).map("manifests/{}".format),
    quoted(digests).map("referrers/{}".format),
    quoted(words).map("blobs/uploads/{}".format),
    quoted(names),
)
paths = st.one_of(
    st.builds("/v2/{}/{}?{}".format, st.just("hello"), endpoints, queries),
    st.builds("/v2/{}/{}?{}".format, quoted(names), endpoints, queries),
    st.builds("/v2/_catalog?{}".format, queries),
    st.builds("/{}?{}".format, quoted(names), queries),
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "Range": ranges,
        "If-Range": etags,
        "If-Match": etags,
        "If-None-Match": etags,
        "Content-Range": ranges,
        "Content-Type": st.one_of(st.sampled_from(sorted(MANIFEST_TYPES)), st.text(max_size=12)),
        "Accept": st.text(max_size=12),
    },
).map(lambda values: {name: sent(value) for name, value in values.items()})
methods = st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"])
requests = st.builds(Asked, methods, paths, fields, st.binary(max_size=32))

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), digests),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
manifest_fields = st.dictionaries(
    st.sampled_from(
        [
            "schemaVersion",
            "mediaType",
            "artifactType",
            "config",
            "layers",
            "manifests",
            "subject",
            "annotations",
        ]
    ),
    json_values,
    max_size=3,
)
manifests = st.one_of(
    st.binary(max_size=64),
    json_values.map(json.dumps).map(str.encode),
    manifest_fields.map(lambda wrong: {**json.loads(image_manifest(b"{}", BLOB)), **wrong})
    .map(json.dumps)
    .map(str.encode),
)


class AnyRequestTests(ApiTestCase):
    # Hypothesis takes long for the first example where the machine is busy.
    toml = 'idle_timeout = "1h"'

    async def assert_answered(
        self, strategy: st.SearchStrategy[Asked], count: int, certain: dict[Asked, int]
    ) -> None:
        """
        ``count`` requests of ``strategy`` are answered as they should be, and those of ``certain``
        with their statuses.
        """

        def examples() -> None:
            with closing(
                HTTPConnection("127.0.0.1", self.registry.port, timeout=PATIENCE)
            ) as connection:
                for asked, status in certain.items():
                    self.assertEqual(self.check(connection, asked), status, asked)

                @settings(max_examples=count, database=None)
                @given(strategy)
                def holds(asked: Asked) -> None:
                    self.check(connection, asked)

                holds()

        await deferToThread(examples)

    def check(self, connection: HTTPConnection, asked: Asked) -> int:
        """The status of the answer to ``asked``."""
        connection.putrequest(asked.method, asked.path, skip_accept_encoding=True)
        for name, value in asked.headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(asked.body)))
        connection.endheaders(asked.body)
        response = connection.getresponse()
        body = response.read()
        if not (response.status == 502 and asked.may_go_upstream):
            self.assertLess(response.status, 500, (asked, body))
        version = response.getheader("Docker-Distribution-Api-Version")
        self.assertEqual(version, "registry/2.0", asked)
        if asked.method == "HEAD":
            self.assertEqual(body, b"", asked)
        elif response.status >= 400:
            (error,) = json.loads(body)["errors"]
            self.assertIn(error["code"], CODES if response.status < 500 else {"UNKNOWN"}, asked)
            self.assertTrue(error["message"], asked)
        return response.status

    async def test_any_request_is_answered(self) -> None:
        await self.registry.push_blob("hello", BLOB)
        await self.registry.push_image("hello", "v1", BLOB)
        certain = {
            Asked("GET", "/v2/hello/manifests/v1"): 200,
            Asked("GET", "/v2/hello/manifests/-"): 400,
            Asked("GET", "/v2/hello/manifests/absent"): 404,
            Asked("PATCH", "/v2/hello/manifests/v1"): 405,
        }
        await self.assert_answered(requests, 150, certain)

    async def test_any_chunk_is_answered(self) -> None:
        location = await self.start_upload()
        chunks = st.builds(
            lambda where, more, body: Asked(
                "PATCH", location, {**more, "Content-Range": sent(where)}, body
            ),
            ranges,
            fields,
            st.binary(max_size=32),
        )
        certain = {
            Asked("PATCH", location, {"Content-Range": b"9-9"}, b"9"): 416,
            Asked("PATCH", location, {"Content-Range": b"0-9"}, b"0"): 400,
            Asked("PATCH", location, {"Content-Range": b"0-0"}, b"0"): 202,
        }
        await self.assert_answered(chunks, 75, certain)

    async def test_any_range_of_a_blob_is_answered(self) -> None:
        path = f"/v2/hello/blobs/{await self.registry.push_blob('hello', BLOB)}"
        reads = st.builds(
            lambda method, wanted, more: Asked(method, path, {**more, "Range": sent(wanted)}),
            st.sampled_from(["GET", "HEAD"]),
            ranges,
            fields,
        )
        certain = {
            Asked("GET", path, {"Range": b"bytes=1-2"}): 206,
            Asked("GET", path, {"Range": b"bytes=9-"}): 416,
            Asked("GET", path, {"Range": b"\xff"}): 200,
        }
        await self.assert_answered(reads, 75, certain)

    async def test_any_manifest_is_answered(self) -> None:
        for blob in (b"{}", BLOB):
            await self.registry.push_blob("hello", blob)
        path, headers = "/v2/hello/manifests/v1", {"Content-Type": OCI_MANIFEST.encode()}
        certain = {
            Asked("PUT", path, headers, image_manifest(b"{}", BLOB)): 201,
            Asked("PUT", path, headers, b"{}"): 400,
        }
        pushes = st.builds(lambda body: Asked("PUT", path, headers, body), manifests)
        await self.assert_answered(pushes, 250, certain)
