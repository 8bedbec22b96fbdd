"""The Python client of ORAS against the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oras.oci import Subject  # type: ignore[import-untyped] # oras has no types
from oras.provider import Registry  # type: ignore[import-untyped]
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.described import told
from tests.process import Daemon

SBOM = "application/spdx+json"
SIGNATURE = "application/vnd.example.signature"


class OrasTests(TestCase):
    daemon: Daemon
    client: Any  # not typed

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.daemon = await Daemon.start(self)
        self.client = Registry(self.daemon.address, insecure=True)

    def file(self, content: bytes, name: str) -> Path:
        """A file to push."""
        path = Path(self.mktemp()).absolute() / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path

    async def push(self, tag: str, *files: str, **options: object) -> Subject:
        """Push an artifact, with ``options`` of the client; what describes it as a subject."""
        target = f"{self.daemon.address}/artifact:{tag}"
        answer = await deferToThread(
            lambda: self.client.push(
                target, files=[*files], disable_path_validation=True, quiet=True, **options
            )
        )
        self.assertEqual(answer.status_code, 201, answer.text)
        manifest = answer.request.body
        self.assertEqual(answer.headers["Docker-Content-Digest"], str(Digest.of(manifest)))
        return Subject(OCI_MANIFEST, str(Digest.of(manifest)), len(manifest))

    async def push_about(self, subject: Subject, tag: str, artifact_type: str) -> str:
        """Push an artifact of a type with a subject; its digest."""
        config = self.file(b"{}", "config.json")
        about = await self.push(
            tag,
            str(self.file(artifact_type.encode(), f"{tag}.txt")),
            subject=subject,
            manifest_config=f"{config}:{artifact_type}",
        )
        return str(about.digest)

    async def referrers(self, subject: Subject, query: str = "") -> tuple[Mapping[str, str], Any]:
        """The headers and the index of an answer to the question who refers to ``subject``."""
        url = f"http://{self.daemon.address}/v2/artifact/referrers/{subject.digest}{query}"
        answer = await deferToThread(self.client.do_request, url)
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.headers["Content-Type"], OCI_INDEX)
        return answer.headers, answer.json()

    async def test_an_artifact_comes_back_as_it_was_pushed(self) -> None:
        content = bytes(range(256)) * 1000
        for tag, chunked in (("whole", False), ("chunks", True)):
            path = self.file(content + tag.encode(), "report.bin")
            await self.push(tag, str(path), do_chunked=chunked, chunk_size=100_000)
            (pulled,) = await deferToThread(
                self.client.pull, f"{self.daemon.address}/artifact:{tag}", outdir=self.mktemp()
            )
            self.assertEqual(Path(pulled).read_bytes(), path.read_bytes())
        tags = await deferToThread(self.client.get_tags, f"{self.daemon.address}/artifact")
        self.assertEqual(tags, ["chunks", "whole"])

    async def test_artifacts_with_a_subject_are_its_referrers(self) -> None:
        subject = await self.push("1", str(self.file(b"content", "file.txt")))
        self.assertEqual((await self.referrers(subject))[1]["manifests"], [])
        sbom = await self.push_about(subject, "sbom", SBOM)
        signature = await self.push_about(subject, "signature", SIGNATURE)
        _, index = await self.referrers(subject)
        listed = {entry["digest"]: entry["artifactType"] for entry in index["manifests"]}
        self.assertEqual(listed, {sbom: SBOM, signature: SIGNATURE})

    async def test_referrers_are_filtered_by_artifact_type(self) -> None:
        subject = await self.push("1", str(self.file(b"content", "file.txt")))
        await self.push_about(subject, "sbom", SBOM)
        signature = await self.push_about(subject, "signature", SIGNATURE)
        headers, index = await self.referrers(subject, f"?artifactType={SIGNATURE}")
        self.assertEqual(headers["OCI-Filters-Applied"], "artifactType")
        self.assertEqual([entry["digest"] for entry in index["manifests"]], [signature])

    async def test_the_api_tells_of_artifacts_and_what_refers_to_them(self) -> None:
        subject = await self.push("1", str(self.file(b"content", "file.txt")))
        sbom = await self.push_about(subject, "sbom", SBOM)
        signature = await self.push_about(subject, "signature", SIGNATURE)
        shown = await told(self, self.daemon, "GET", "/images/artifact/manifests/1")
        kinds = {each["digest"]: each["kind"] for each in shown["referrers"]}
        self.assertEqual({sbom: SBOM, signature: SIGNATURE}, kinds)
        (layer,) = [each for each in shown["entries"] if each["role"] == "layer"]
        self.assertEqual(len(b"content"), layer["size"])
        path = f"/images/artifact/referrers/{subject.digest}"
        listed = await told(self, self.daemon, "GET", f"{path}?artifactType={SIGNATURE}")
        self.assertEqual([signature], [each["digest"] for each in listed["referrers"]])
        kept = await told(self, self.daemon, "GET", f"/images/artifact/manifests/{sbom}")
        self.assertEqual(subject.digest, kept["subject"])
