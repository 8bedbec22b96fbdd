"""The templates of the page."""

from __future__ import annotations

import shutil
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactd.web.page import rendering


class ReplacedTests(SynchronousTestCase):
    def test_a_page_is_made_of_the_templates_of_the_start(self) -> None:
        """A later version of the program may have taken their place."""
        folder = Path(self.mktemp())
        shutil.copytree(Path(rendering.__file__).parent, folder)
        self.patch(rendering, "_HERE", folder)
        pages = rendering.Rendering()
        shutil.rmtree(folder)
        shown = dict.fromkeys(
            ("parts", "section", "who", "has_session", "accounts", "read_only", "told"), ""
        )
        page = pages.render("error.html", {**shown, "message": "no such page", "request_id": ""})
        self.assertIn(b"no such page", page)
