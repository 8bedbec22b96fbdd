"""Chromium, driven by Selenium in a thread, beside a registry in the process of the tests."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from attrs import frozen
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.programs import PATIENCE, require

Scheme = Literal["light", "dark"]

LARGE, SMALL = (1280, 900), (390, 844)

_AXE = files("selenium_axe_python").joinpath("axe-core/axe.min.js")

# The rules of WCAG up to 2.2 AA, and what is good practice besides; or those that are named.
_RUN = """
const [rules, done] = arguments;
axe.run(document, {resultTypes: ["violations"], ...(rules.length && {runOnly: rules})}).then(
  (found) => done(found.violations.map((v) =>
    v.id + ": " + v.help + ": " + v.nodes.map((n) => n.html + " " + n.failureSummary).join("; "))),
  (error) => done(["axe failed: " + error]));
"""

# Each element in turn is a question to the browser; these are one for all of them.
_TEXTS = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent);"
_NAMED = """
return [...document.querySelectorAll(arguments[0])].find((e) =>
  e.innerText.trim() === arguments[1] && !e.disabled && e.checkVisibility());
"""

_OF_THE_BROWSER = ("chrome", "chrome-untrusted", "data")  # its empty page, pictures in a page

_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    # Nothing but this machine has a name.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


@frozen
class Chromium:
    """
    A browser that has a registry open.  Its methods block: call them in a thread, by :meth:`do`.

    :ivar origin: of the registry.
    """

    driver: webdriver.Chrome
    origin: str

    @classmethod
    async def start(cls, test: TestCase, port: int) -> Self:
        """
        Start one, which ends with the test, for the registry on ``port`` of 127.0.0.1.

        :raises SkipTest: see :func:`require`.
        """
        require("chromium", "chromedriver")
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for switch in (*_SWITCHES, f"--user-data-dir={Path(test.mktemp()).absolute()}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        driver = await deferToThread(webdriver.Chrome, options, service)
        test.addCleanup(deferToThread, driver.quit)
        # By default Selenium gives up sooner on a busy machine.
        assert isinstance(driver.command_executor, RemoteConnection)
        driver.command_executor.client_config.timeout = int(PATIENCE)
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        return cls(driver, f"http://127.0.0.1:{port}")

    async def do(self, steps: Callable[[Chromium], None]) -> None:
        """Run ``steps`` in a thread."""
        await deferToThread(steps, self)

    # -- what a person does

    def look(self, size: tuple[int, int], scheme: Scheme) -> None:
        """Have a window of that size, and the system's colors."""
        width, height = size
        self._tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == SMALL,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._tell("Emulation.setEmulatedMedia", features=features)

    def forget(self) -> None:
        """Have logged in nowhere, and seen nothing on the console."""
        self.driver.delete_all_cookies()
        self.complaints()
        self.hosts()

    def without_scripts(self) -> None:
        """Run no script from now on."""
        self._tell("Emulation.setScriptExecutionDisabled", value=True)

    def open(self, path: str) -> None:
        """Load a page of the registry."""
        self.driver.get(self.origin + path)

    def find(self, selector: str) -> WebElement:
        """The element that a CSS selector finds, once it is there."""
        found: WebElement = self.wait(lambda: next(iter(self.all(selector)), None))
        return found

    def all(self, selector: str) -> list[WebElement]:
        """The elements that a CSS selector finds now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of the elements that a CSS selector finds now, also those for ears alone."""
        found: list[str] = self.driver.execute_script(_TEXTS, selector)
        return [" ".join(text.split()) for text in found]

    def press(self, text: str, selector: str = "button, a") -> None:
        """Press the first button or link with that text, once it is there."""
        self.wait(lambda: self.driver.execute_script(_NAMED, selector, text)).click()

    def sees(self, text: str) -> None:
        """Wait until ``text`` can be read."""
        self.wait(lambda: text in "".join(self.texts("body")))

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until ``condition`` returns something true, and return that."""

        def until(_: object) -> Any:
            try:
                return condition()
            except StaleElementReferenceException:
                return None

        return WebDriverWait(self.driver, PATIENCE, 0.05).until(until)

    def log_in(self, name: str) -> None:
        """Log in by the form, as one of the users of ``GuardedCase``."""
        self.open("/ui/login")
        self.find("#user").send_keys(name)
        self.find("#password").send_keys(f"{name}!")
        self.press("Log in", "main button")
        self.wait(lambda: name in self.texts(".who"))

    # -- what a tester asks

    def photograph(self, name: str) -> None:
        """Leave a picture of the window in ``screenshots`` below trial's folder."""
        folder = Path("screenshots")
        folder.mkdir(exist_ok=True)
        taken = self._tell("Page.captureScreenshot", optimizeForSpeed=True)
        (folder / f"{name}.png").write_bytes(b64decode(taken["data"]))

    def barriers(self, *rules: str) -> list[str]:
        """What axe-core finds that shuts people out of the page, by all its rules or by these."""
        if not self.driver.execute_script("return 'axe' in window;"):
            self.driver.execute_script(_AXE.read_text())
        found: list[str] = self.driver.execute_async_script(_RUN, rules)
        return found

    def complaints(self) -> list[str]:
        """The errors and warnings that the console has shown since the last call."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")]

    def hosts(self) -> set[str]:
        """Whom the pages have asked since the last call; not what the browser begins with."""
        urls = map(urlsplit, self._requested())
        return {url.netloc for url in urls if url.scheme not in _OF_THE_BROWSER}

    def _requested(self) -> Iterator[str]:
        entries: list[dict[str, Any]] = self.driver.get_log("performance")
        for entry in entries:
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                yield message["params"]["request"]["url"]

    def _tell(self, command: str, **parameters: object) -> dict[str, Any]:
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(command, parameters)
        return answer
