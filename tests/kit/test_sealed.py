"""Text that a client keeps for us, and can't make or change."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactd.kit.sealed import seal, unseal

KEY, OTHER = bytes(range(32)), bytes(32)


class SealTests(SynchronousTestCase):
    def test_it_opens_to_what_was_sealed_and_is_the_same_each_time(self) -> None:
        for content in (b"a", b"content", bytes(range(256))):
            for bound in ((), (b"",), (b"image", b"list")):
                sealed = seal(KEY, content, *bound)
                self.assertEqual(seal(KEY, content, *bound), sealed)
                self.assertRegex(sealed, r"^[0-9A-Za-z_-]+$")
                self.assertEqual(unseal(KEY, sealed, *bound), content)

    def test_it_opens_with_its_key_and_for_what_it_is_bound_to_alone(self) -> None:
        sealed = seal(KEY, b"content", b"image", b"list")
        for key, bound in (
            (OTHER, (b"image", b"list")),
            (KEY, ()),
            (KEY, (b"image",)),
            (KEY, (b"imagelist",)),
            (KEY, (b"list", b"image")),
            (KEY, (b"image", b"list", b"")),
        ):
            self.assertIsNone(unseal(key, sealed, *bound))

    def test_no_other_text_opens(self) -> None:
        sealed = seal(KEY, b"content!")
        self.assertEqual(len(sealed) % 4, 0)
        others = [sealed[:at] + "A" + sealed[at + 1 :] for at in range(len(sealed))]
        others += ["", "A", "AAAA", sealed[:-1], sealed + "A", sealed + "=", f" {sealed}", "\u00e4"]
        others += [sealed[:9] + "*" + sealed[9:], sealed + "\n", sealed + "===="]
        for text in others:
            if text != sealed:
                self.assertIsNone(unseal(KEY, text), text)

    def test_nor_one_that_differs_only_in_bits_that_the_coding_drops(self) -> None:
        sealed = seal(KEY, b"content")
        self.assertEqual(len(sealed) % 4, 3)
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        opened = [last for last in alphabet if unseal(KEY, sealed[:-1] + last) is not None]
        self.assertEqual(opened, [sealed[-1]])
