"""The keys that tokens are signed with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from attrs import define
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from jwt.algorithms import ECAlgorithm
from twisted.trial.unittest import TestCase

from artifactd.auth.keys import Keys, thumbprint
from artifactd.kit.start import StartError
from artifactd.store.folder import PrivateFile, Version
from tests.auth.accounts import Now
from tests.store.fixture import at_once

DAY = 86400.0


@define(eq=False)
class MemoryFile(PrivateFile):
    """A private file in memory: all processes on a data folder share it."""

    folder: Path = Path()
    name: str = ""
    content: bytes | None = None
    writes: int = 0
    error: OSError | None = None

    def version(self) -> Version | None:
        return None if self.content is None else Version(self.writes, hash(self.content), 0)

    def read(self) -> tuple[bytes, Version] | None:
        version = self.version()
        return None if self.content is None or version is None else (self.content, version)

    def update(self, change: Callable[[bytes | None], bytes | None]) -> tuple[bytes, Version]:
        changed = change(self.content)
        if changed is not None:
            if self.error is not None:
                raise self.error
            self.content = changed
            self.writes += 1
        found = self.read()
        assert found is not None
        return found


class KeysTests(TestCase):
    def setUp(self) -> None:
        self.now = Now()
        self.file = MemoryFile()

    def process(self, rotation: float = 30 * DAY, lifetime: float = 90 * DAY) -> Keys:
        """Another process on the same data folder, started."""
        keys = Keys(self.file, at_once, self.now, rotation, lifetime)
        keys.start()
        return keys

    async def test_a_key_is_made_once_and_used_by_all(self) -> None:
        first, second = await self.process().signing(), await self.process().signing()
        self.assertEqual(first.kid, second.kid)
        self.assertEqual(first.private.private_numbers(), second.private.private_numbers())
        self.assertIsInstance(first.private.curve, SECP256R1)
        self.assertEqual(self.file.writes, 1)

    async def test_its_id_is_its_thumbprint(self) -> None:
        # RFC 7638, 3.1 has an RSA key alone; this one is of RFC 9449 (DPoP), 4.1 and 6.1.
        self.assertEqual(
            thumbprint(
                "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
                "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
            ),
            "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        )

    async def test_what_it_signs_the_public_key_of_its_id_verifies(self) -> None:
        keys = self.process()
        signing = await keys.signing()
        public = await keys.verifying(signing.kid)
        algorithm = ECAlgorithm(ECAlgorithm.SHA256)
        assert public is not None
        self.assertTrue(algorithm.verify(b"x", public, algorithm.sign(b"x", signing.private)))

    async def test_an_id_nobody_has_is_nobodys(self) -> None:
        self.assertIsNone(await self.process().verifying("other"))

    async def test_a_new_one_signs_after_the_interval(self) -> None:
        keys = self.process()
        first = await keys.signing()
        self.now.seconds += 30 * DAY - 1
        self.assertEqual((await keys.signing()).kid, first.kid)
        self.now.seconds += 1
        second = await keys.signing()
        self.assertNotEqual(second.kid, first.kid)
        self.assertEqual((await keys.signing()).kid, second.kid)

    async def test_the_interval_zero_is_never(self) -> None:
        keys = self.process(rotation=0)
        first = await keys.signing()
        self.now.seconds += 10_000 * DAY
        self.assertEqual((await keys.signing()).kid, first.kid)

    async def test_an_old_one_verifies_until_the_last_of_its_tokens_has_expired(self) -> None:
        keys = self.process(lifetime=300)
        first = await keys.signing()
        keys.rotate()
        self.now.seconds += 300
        self.assertIsNotNone(await keys.verifying(first.kid))
        self.now.seconds += 60
        self.assertIsNone(await keys.verifying(first.kid))

    async def test_an_old_one_can_sign_no_more_and_goes_from_the_file(self) -> None:
        keys = self.process(lifetime=300)
        await keys.signing()
        keys.rotate()
        stored = json.loads(self.file.content or b"")["keys"]
        self.assertEqual(["d" in each for each in stored], [True, False])
        self.now.seconds += 3600
        keys.rotate()
        self.assertEqual(len(json.loads(self.file.content or b"")["keys"]), 2)

    async def test_other_processes_notice_that_it_was_replaced(self) -> None:
        one, other = self.process(), self.process()
        await one.verifying((await one.signing()).kid)
        kid = other.rotate()
        self.assertIsNotNone(await one.verifying(kid))
        self.assertEqual((await one.signing()).kid, kid)

    async def test_of_several_processes_one_replaces_it(self) -> None:
        one, other = self.process(), self.process()
        self.now.seconds += 30 * DAY
        kids = {(await one.signing()).kid, (await other.signing()).kid}
        self.assertEqual(len(kids), 1)
        self.assertEqual(self.file.writes, 2)

    async def test_tokens_that_are_to_be_forgotten_are_within_a_second_everywhere(self) -> None:
        one, other = self.process(), self.process()
        old = (await one.signing()).kid
        other.rotate(forget=True)
        self.assertIsNone(await other.verifying(old))
        self.now.seconds += 1
        self.assertIsNone(await one.verifying(old))

    async def test_when_no_new_one_can_be_written_the_old_one_signs(self) -> None:
        keys = self.process()
        first = await keys.signing()
        self.now.seconds += 30 * DAY
        self.file.error = OSError(28, "no space left")
        self.assertEqual((await keys.signing()).kid, first.kid)
        self.file.error = None
        self.assertNotEqual((await keys.signing()).kid, first.kid)

    async def test_a_file_that_is_damaged_meanwhile_changes_nothing(self) -> None:
        keys = self.process()
        first = await keys.signing()
        self.file.content = b"{"
        self.assertEqual((await keys.signing()).kid, first.kid)
        self.assertIsNotNone(await keys.verifying(first.kid))

    def test_a_damaged_file_stops_the_start_and_stays(self) -> None:
        for content in (
            b"{",
            b'{"keys":[]}',
            b'{"keys":[{"x":"AQ","y":"AQ","d":"AQ","made":1}]}',
        ):
            self.file.content = content
            error = self.assertRaises(StartError, self.process)
            self.assertIn("keys that tokens are signed with can't be used", str(error))
            self.assertEqual(self.file.content, content)

    async def test_they_are_kept_in_a_private_file(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        file = PrivateFile(folder.absolute(), "tokens.json")
        one = Keys(file, at_once, self.now, DAY, DAY)
        one.start()
        other = Keys(file, at_once, self.now, DAY, DAY)
        other.start()
        kid = one.rotate()
        self.assertEqual((await other.signing()).kid, kid)
        self.assertEqual(file.path.stat().st_mode & 0o777, 0o600)
