"""`/docs` in a real browser."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.processes import Server
from tests.packages import INSTALL_SECONDS_MAX, installed
from tests.support import SEEN, TOKEN, password
from trunkline.gateway.routes import bindings

PACKAGES = ("chromium", "chromium-driver")
WAIT_SECONDS_MAX = 30
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
)
KEY = "5f0c"
PATCH = "operations-Trunks-UpdateSipTrunk"


@dataclass(frozen=True)
class Browser:
    """A window on the documentation."""

    driver: webdriver.Chrome

    def shown(self, css: str) -> WebElement:
        """Wait for an element that can be seen."""
        found: WebElement = self._until(
            expected.visibility_of_element_located((By.CSS_SELECTOR, css))
        )
        return found

    def click(self, css: str) -> None:
        """Wait for an element that can be clicked, and click it."""
        # By script: an element may lie under another one for the length of an animation.
        found = self._until(expected.element_to_be_clickable((By.CSS_SELECTOR, css)))
        self.driver.execute_script("arguments[0].click()", found)

    def write(self, css: str, text: str) -> None:
        """Put a text in place of a field's."""
        # Not clear(): the page's framework would put the text back.
        self.shown(css).send_keys(Keys.CONTROL + "a" + Keys.NULL + text)

    def console(self) -> list[str]:
        """What the page has said on the console."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The URLs that were asked for, but those within the browser."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [
            str(event["params"]["request"]["url"])
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("chrome:", "data:"))]

    def _log(self, name: str) -> Any:
        return self.driver.get_log(name)  # type: ignore[no-untyped-call]

    def _until(self, condition: Any) -> Any:
        return WebDriverWait(self.driver, WAIT_SECONDS_MAX).until(condition)


@pytest.fixture(scope="module")
def programs() -> tuple[str, str]:
    """Chromium and its driver, installed where that can be done."""
    found = installed([*PACKAGES], ["chromium", "chromedriver"])
    if found is None:
        pytest.skip(f"Chromium is not there: install {' and '.join(PACKAGES)}")
    return found[0], found[1]


@pytest.fixture
def browser(programs: tuple[str, str], tmp_path: Path) -> Iterator[Browser]:
    """A browser of the test's own, which finds no host but this one."""
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.mark.timeout(INSTALL_SECONDS_MAX + 180)
async def test_an_update_is_tried_out_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    async with Server(tmp_path, http_address="127.0.0.1:0") as server:
        await server.ready()
        base = "http://" + server.out.rpartition("http=")[2].split()[0]
        trunk = await _created(base)
        answered = await asyncio.to_thread(_try_out, browser, base, trunk["id"], tmp_path)
        async with _client(base) as client:
            after = (await client.get(f"/sip-trunks/trunks/{trunk['id']}")).json()
            revision = (await client.get(f"/sip-trunks/trunks/{trunk['id']}/revisions/2")).json()
    assert answered == after
    assert after["qualify_frequency"] == 45
    assert after["etag"] != trunk["etag"]
    assert (revision["changed_fields"], revision["request_id"]) == (["qualify_frequency"], KEY)
    assert browser.console() == []
    requests = browser.requests()
    assert [url for url in requests if not url.startswith(f"{base}/")] == []
    assert {f"{base}/docs", f"{base}/openapi.json", f"{base}/sip-trunks/trunks/{trunk['id']}"} <= {
        *requests
    }


def _try_out(browser: Browser, base: str, trunk_id: str, directory: Path) -> Any:
    """Authorise, fill in the update, and send it; the answer that the page shows."""
    browser.driver.get(f"{base}/docs")
    browser.click("button.authorize")
    browser.write(".auth-container input", TOKEN)
    browser.click(".auth-btn-wrapper button.authorize")
    browser.click(".auth-btn-wrapper button.btn-done")
    for method in (b.method for b in bindings() if b.resource == "SipTrunk"):
        assert browser.shown(f"#operations-Trunks-{method}").text
    operation = browser.shown(f"#{PATCH}")
    assert operation.text.startswith("PATCH\n/sip-trunks/trunks/{id}")
    browser.click(f"#{PATCH} .opblock-summary-control")
    browser.write(f'#{PATCH} input[placeholder="id"]', trunk_id)
    browser.write(f'#{PATCH} input[placeholder="Idempotency-Key"]', KEY)
    examples = Select(browser.shown(f"#{PATCH} .examples-select-element"))
    assert {option.text for option in examples.options} >= {"one field", "credentials"}
    browser.write(f"#{PATCH} textarea", '{"qualify_frequency": 45}')
    browser.click(f"#{PATCH} button.execute")
    status = browser.shown(f"#{PATCH} .live-responses-table .response .response-col_status")
    # Looked at by people, where a change of the viewer or of the document calls for it.
    browser.driver.set_window_size(1280, 3000)
    browser.driver.save_screenshot(str(directory / "docs.png"))
    assert status.text.split()[0] == "200"
    body = browser.shown(f"#{PATCH} .live-responses-table .highlight-code code").text
    SEEN.add(body.encode())
    return json.loads(body)


def _client(base: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=30)


async def _created(base: str) -> Any:
    async with _client(base) as client:
        response = await client.post(
            "/sip-trunks/trunks",
            json={
                "name": "Acme Mumbai",
                "provider": "plivo",
                "auth_type": "userpass",
                "auth_username": "acme",
                "auth_password": password(),
                "gateways": [{"gateway_address": "sip.example.com"}],
            },
        )
    assert response.status_code == 201, response.text
    return response.json()
