"""RFC 9110, 13, on a push of a manifest: ``If-Match`` and ``If-None-Match``."""

from __future__ import annotations

from artifactd.oci.manifest import OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.case import ApiTestCase
from tests.api.served import image_manifest

TAG = "/v2/hello/manifests/v1"
NEW = image_manifest(b"{}", annotations={"new": "yes"})
DIGEST = Digest.of(NEW)
OTHER = f'"{Digest.of(b"other")}"'


class PreconditionTests(ApiTestCase):
    async def old(self) -> str:
        """The entity tag of what the tag points at."""
        await self.registry.push_blob("hello", b"{}")
        return f'"{await self.registry.push_image("hello", "v1")}"'

    async def push(self, path: str, status: int, **conditions: str) -> None:
        """Push ``NEW`` under conditions, named as their headers with ``_`` for ``-``."""
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        headers["Content-Type"] = OCI_MANIFEST
        if status == 201:
            await self.accepted(201, "PUT", path, NEW, headers)
        else:
            await self.refused(412, "DENIED", "PUT", path, NEW, headers)

    async def test_if_match_holds_for_what_the_tag_points_at(self) -> None:
        old = await self.old()
        await self.push(TAG, 201, If_Match=old)
        await self.push(TAG, 412, If_Match=old)
        await self.push(TAG, 201, If_Match=f'{OTHER}, "{DIGEST}"')
        await self.push(TAG, 201, If_Match="*")

    async def test_if_match_compares_strongly(self) -> None:
        old = await self.old()
        for value in (f"W/{old}", old.strip('"'), OTHER, '""', "nonsense", ""):
            await self.push(TAG, 412, If_Match=value)

    async def test_if_match_never_holds_for_an_absent_tag(self) -> None:
        old = await self.old()
        for path in ("/v2/hello/manifests/absent", "/v2/nobody/manifests/v1"):
            if "nobody" in path:
                await self.registry.push_blob("nobody", b"{}")
            for value in ("*", old, f'"{DIGEST}"'):
                await self.push(path, 412, If_Match=value)

    async def test_if_none_match_any_holds_for_an_absent_tag_alone(self) -> None:
        await self.old()
        await self.push(TAG, 412, If_None_Match="*")
        await self.push("/v2/hello/manifests/v2", 201, If_None_Match="*")
        await self.push("/v2/hello/manifests/v2", 412, If_None_Match="*")

    async def test_if_none_match_compares_weakly(self) -> None:
        old = await self.old()
        for value in (old, f"W/{old}", f"{OTHER}, {old}"):
            await self.push(TAG, 412, If_None_Match=value)
        await self.push(TAG, 201, If_None_Match=OTHER)

    async def test_both_have_to_hold(self) -> None:
        old = await self.old()
        await self.push(TAG, 412, If_Match=old, If_None_Match="*")
        await self.push(TAG, 412, If_Match=OTHER, If_None_Match=OTHER)
        await self.push(TAG, 201, If_Match=old, If_None_Match=OTHER)

    async def test_it_has_to_hold_for_each_of_several_tags(self) -> None:
        old = await self.old()
        path = f"/v2/hello/manifests/{DIGEST}?tag=v1&tag=v2"
        await self.push(path, 412, If_Match=old)
        await self.push(path, 412, If_None_Match="*")
        await self.registry.push_image("hello", "v2")
        await self.push(f"/v2/hello/manifests/{DIGEST}?tag=v3&tag=v4", 201, If_None_Match="*")
        await self.push(f"/v2/hello/manifests/{DIGEST}?tag=v3&tag=v4", 201, If_Match=f'"{DIGEST}"')

    async def test_without_tags_it_is_about_the_manifest_itself(self) -> None:
        await self.old()
        path = f"/v2/hello/manifests/{DIGEST}"
        await self.push(path, 412, If_Match=f'"{DIGEST}"')
        await self.push(path, 201, If_None_Match="*")
        await self.push(path, 412, If_None_Match="*")
        await self.push(path, 201, If_Match=f'"{DIGEST}"')

    async def test_a_refused_manifest_stays_refused_as_invalid(self) -> None:
        """RFC 9110, 13.2.1: what would fail anyway is not judged by its precondition."""
        await self.old()
        headers = {"Content-Type": OCI_MANIFEST, "If-None-Match": "*"}
        body = image_manifest(b"absent")
        await self.refused(400, "MANIFEST_BLOB_UNKNOWN", "PUT", TAG, body, headers)
