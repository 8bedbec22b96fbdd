"""distribution-spec, "Listing Referrers": end-12a, end-12b."""

from __future__ import annotations

import json
from typing import Any

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Algorithm, Digest
from tests.api.case import ApiTestCase
from tests.api.served import CONFIG_TYPE, descriptor, image_index, image_manifest
from tests.api.test_listings import next_page

SUBJECT = Digest.of(b"subject")
PATH = f"/v2/hello/referrers/{SUBJECT}"
SBOM = "application/vnd.example.sbom.v1+json"


class ReferrersTestCase(ApiTestCase):
    async def refer(self, content: bytes, media_type: str = OCI_MANIFEST) -> dict[str, Any]:
        """Push a referrer; what the list has to say of it at least."""
        await self.registry.push_blob("hello", b"{}")
        await self.registry.push_manifest("hello", str(Digest.of(content)), content, media_type)
        return descriptor(content, media_type)

    async def image(self, **more: object) -> dict[str, Any]:
        """Push an image that refers to the subject."""
        return await self.refer(
            image_manifest(b"{}", subject=descriptor(b"subject", OCI_MANIFEST), **more)
        )

    async def listed(self, path: str = PATH) -> list[dict[str, Any]]:
        """The descriptors in the index at ``path``."""
        answer = await self.accepted(200, "GET", path)
        self.assertEqual(answer.header("Content-Type"), OCI_INDEX)
        index = json.loads(answer.body)
        manifests: list[dict[str, Any]] = index.pop("manifests")
        self.assertEqual(index, {"schemaVersion": 2, "mediaType": OCI_INDEX})
        return manifests


class ReferrersTests(ReferrersTestCase):
    """end-12a."""

    async def test_an_image_is_listed_by_the_type_of_its_artifact(self) -> None:
        described = await self.image(artifactType=SBOM, annotations={"b": "2", "a": ""})
        described |= {"artifactType": SBOM, "annotations": {"a": "", "b": "2"}}
        self.assertEqual(await self.listed(), [described])

    async def test_an_image_without_one_is_listed_by_the_type_of_its_config(self) -> None:
        for more in ({}, {"artifactType": ""}):
            described = await self.image(**more)
            described["artifactType"] = CONFIG_TYPE
            self.assertIn(described, await self.listed())

    async def test_a_filter_that_is_longer_than_a_type_is_refused(self) -> None:
        longest = "a/" + "b" * 253
        described = await self.image(artifactType=longest)
        self.assertEqual(
            [each["digest"] for each in await self.listed(f"{PATH}?artifactType={longest}")],
            [described["digest"]],
        )
        await self.refused(400, "UNSUPPORTED", "GET", f"{PATH}?artifactType={longest}b")

    async def test_a_plus_in_the_type_asked_for_need_not_be_encoded(self) -> None:
        described = await self.image(artifactType="application/vnd.example.sbom+json")
        for plus in ("+", "%2B", "%2b"):
            path = f"{PATH}?artifactType=application/vnd.example.sbom{plus}json"
            listed = await self.listed(path)
            self.assertEqual([each["digest"] for each in listed], [described["digest"]])

    async def test_an_index_is_listed_by_its_type_or_none(self) -> None:
        subject = descriptor(b"subject", OCI_MANIFEST)
        plain = await self.refer(image_index(subject=subject), OCI_INDEX)
        typed = await self.refer(image_index(subject=subject, artifactType=SBOM), OCI_INDEX)
        empty = await self.refer(image_index(subject=subject, artifactType=""), OCI_INDEX)
        expected = [plain, {**typed, "artifactType": SBOM}, empty]
        self.assertCountEqual(await self.listed(), expected)

    async def test_a_subject_may_come_after_its_referrers(self) -> None:
        image = image_manifest(b"{}")
        subject = descriptor(image, OCI_MANIFEST)
        described = await self.refer(image_manifest(b"{}", subject=subject, layers=[]))
        await self.registry.push_manifest("hello", "v1", image)
        (found,) = await self.listed(f"/v2/hello/referrers/{Digest.of(image)}")
        self.assertEqual(found["digest"], described["digest"])

    async def test_a_subject_may_have_a_sha512_digest(self) -> None:
        digest = Digest.of(b"subject", Algorithm.SHA512)
        subject = descriptor(b"subject", OCI_MANIFEST, digest=digest)
        described = await self.refer(image_manifest(b"{}", subject=subject))
        (found,) = await self.listed(f"/v2/hello/referrers/{digest}")
        self.assertEqual(found["digest"], described["digest"])

    async def test_nothing_refers_to_what_is_unknown(self) -> None:
        self.assertEqual(await self.listed(), [])
        await self.registry.push_image("hello", "v1")
        self.assertEqual(await self.listed(), [])

    async def test_referrers_of_another_image_are_not_listed(self) -> None:
        await self.image()
        self.assertEqual(await self.listed(PATH.replace("hello", "other")), [])

    async def test_a_deleted_referrer_is_not_listed(self) -> None:
        described = await self.image()
        await self.accepted(202, "DELETE", f"/v2/hello/manifests/{described['digest']}")
        self.assertEqual(await self.listed(), [])

    async def test_what_is_no_digest_is_refused(self) -> None:
        for text in ("v1", "sha256:abc", f"md5:{'a' * 32}"):
            await self.refused(400, "DIGEST_INVALID", "GET", f"/v2/hello/referrers/{text}")


class FilterTests(ReferrersTestCase):
    """end-12b."""

    async def test_only_artifacts_of_the_type_asked_for_are_listed(self) -> None:
        sbom = await self.image(artifactType=SBOM)
        await self.image()
        for wanted, expected in (
            (SBOM.replace("+", "%2B"), [sbom["digest"]]),
            (CONFIG_TYPE.replace("+", "%2B"), 1),
            ("application/none", []),
        ):
            path = f"{PATH}?artifactType={wanted}"
            answer = await self.accepted(200, "GET", path)
            self.assertEqual(answer.header("OCI-Filters-Applied"), "artifactType")
            found = [described["digest"] for described in await self.listed(path)]
            self.assertEqual(found if isinstance(expected, list) else len(found), expected)

    async def test_without_a_filter_none_is_applied(self) -> None:
        await self.image()
        for query in ("", "?artifactType=", "?other=x"):
            answer = await self.accepted(200, "GET", PATH + query)
            self.assertIsNone(answer.header("OCI-Filters-Applied"))
            self.assertEqual(len(json.loads(answer.body)["manifests"]), 1)


class PageTests(ReferrersTestCase):
    async def pages(self, path: str) -> list[list[str]]:
        """The digests listed, page by page."""
        found = []
        following: str | None = path
        while following is not None:
            answer = await self.accepted(200, "GET", following)
            index = json.loads(answer.body)
            found.append([described["digest"] for described in index["manifests"]])
            following = next_page(answer.header("Link"))
        return found

    async def test_referrers_are_listed_page_by_page_to_the_end(self) -> None:
        pushed = [
            await self.image(annotations={"number": str(number)}, artifactType=SBOM)
            for number in range(7)
        ]
        await self.image()
        expected = sorted(described["digest"] for described in pushed)
        path = f"{PATH}?n=3&artifactType={SBOM.replace('+', '%2B')}"
        self.assertEqual(await self.pages(path), [expected[:3], expected[3:6], expected[6:]])
        answer = await self.accepted(200, "GET", next_page(await self.link(path)) or "")
        self.assertEqual(answer.header("OCI-Filters-Applied"), "artifactType")

    async def link(self, path: str) -> str | None:
        answer = await self.accepted(200, "GET", path)
        return answer.header("Link")

    async def test_an_index_that_would_grow_too_large_goes_on_on_another_page(self) -> None:
        pushed = [
            await self.image(annotations={"long": str(number) * 1_500_000}) for number in range(4)
        ]
        pages = await self.pages(PATH)
        self.assertGreater(len(pages), 1)
        found = [digest for page in pages for digest in page]
        self.assertEqual(found, sorted(described["digest"] for described in pushed))


class FallbackTagTests(ReferrersTestCase):
    """What a client has pushed that did not know of the referrers API."""

    async def test_manifests_in_an_index_under_the_fallback_tag_are_listed(self) -> None:
        described = await self.image(artifactType=SBOM)
        index = json.loads(image_index())
        index["manifests"] = [{**described, "artifactType": SBOM}]
        tag = f"sha256-{SUBJECT.encoded}"
        content = json.dumps(index).encode()
        await self.registry.push_manifest("hello", tag, content, OCI_INDEX)
        self.assertEqual(await self.listed(), [{**described, "artifactType": SBOM}])
        answer = await self.accepted(200, "GET", f"/v2/hello/manifests/{tag}")
        self.assertEqual(answer.body, content)
