"""What Ana does: opens the address, picks a kernel in the Launcher, runs a cell, restarts, runs it again. In a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.lab.running import Up, running_up

PICTURES = "ELASTIC_KERNELS_PICTURES"
SIZE = (1280, 800)
SECONDS = 60.0
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
)
WEATHER = "Basel,14\nLisbon,19\nOslo,6\nRome,17\nVienna,11\n"
# The editor indents what follows a colon.
CELL = """import csv, os

print("This kernel is the pod", os.environ["KERNEL_POD_NAME"])
for city, degrees in csv.reader(open("weather.csv")):
print(f"{city:8}{degrees:>3} °C ", "■" * int(degrees))"""
POD = "This kernel is the pod"
LAST = "Vienna"


class Page:
    """JupyterLab in a browser, by what is written on it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def see(self, selector: str, text: str = "") -> WebElement:
        """Wait for an element that is shown and has this text in it."""
        element = self._wait(lambda: self._shown(selector, text), f"{selector} with {text!r} does not appear")
        assert isinstance(element, WebElement)
        return element

    def miss(self, selector: str, text: str = "") -> None:
        """Wait until no element that is shown has this text in it."""
        self._wait(lambda: self._shown(selector, text) is None, f"{selector} with {text!r} does not go")

    def _shown(self, selector: str, text: str) -> WebElement | None:
        script = """return [...document.querySelectorAll(arguments[0])]
            .find(e => e.offsetParent !== null && e.textContent.includes(arguments[1])) || null"""
        found: WebElement | None = self.driver.execute_script(script, selector, text)
        return found

    def _wait(self, condition: Callable[[], Any], complaint: str) -> Any:
        try:
            return WebDriverWait(self.driver, SECONDS, poll_frequency=0.1).until(lambda _: condition())
        except Exception as error:
            page = self.driver.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{complaint}; there is: {page}") from error

    def click(self, selector: str, text: str = "") -> None:
        self.see(selector, text).click()

    def settled(self) -> None:
        """Wait until all pictures are there and nothing is in the way of them."""
        self.driver.execute_async_script("""const done = arguments[0];
            Promise.all([...document.images].map(image => image.decode().catch(() => 0)))
                .then(() => document.fonts.ready).then(() => requestAnimationFrame(() => requestAnimationFrame(done)))""")

    def save(self, name: str) -> None:
        """Keep a picture of the page, if pictures are asked for."""
        if os.environ.get(PICTURES):
            self.settled()
            assert self.driver.save_screenshot(str(Path(os.environ[PICTURES]) / f"{name}.png"))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.fail("This test needs chromium and chromedriver on PATH (on Debian: the packages chromium and chromium-driver).")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*OPTIONS, f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(option)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    # the window is larger than what it shows
    size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield Page(chrome)
    finally:
        chrome.quit()


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Up]:
    """``elastic-kernels up`` of a user ana, with the profiles that ship with it and a folder with one file."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    (notebooks / "weather.csv").write_text(WEATHER)
    environment = {"LOGNAME": "ana", "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=2"}
    with running_up(tmp_path, "--notebooks", str(notebooks), environment=environment) as up:
        yield up


def test_pick_a_kernel_run_restart_and_run_again(page: Page, shipped: Up) -> None:
    page.driver.get(shipped.address)
    card = '.jp-LauncherCard[data-category="Notebook"]'
    for name in ("Python 3 | 1 CPU 2 GB", "Python 3 | 4 CPU 16 GB", "Python 3 | 2 CPU 4 GB | spot", "Python 3 | GPU"):
        page.see(card, name)
    page.save("launcher")

    page.click(card, "Python 3 | 2 CPU 4 GB | spot")
    page.see(".jp-Toolbar-kernelName", "Python 3 | 2 CPU 4 GB | spot")
    page.see('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    page.click(".jp-Notebook .jp-InputArea-editor .cm-content")
    page.driver.switch_to.active_element.send_keys(CELL)
    page.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ENTER)
    page.see(".jp-OutputArea-output", LAST)
    first = page.see(".jp-OutputArea-output", POD).text
    page.save("notebook")
    assert first.startswith(f"{POD} ana-")
    assert first.splitlines()[1] == "Basel    14 °C  ■■■■■■■■■■■■■■"
    page.click(".lm-MenuBar-itemLabel", "Kernel")
    page.click(".lm-Menu-itemLabel", "Restart Kernel and Clear Outputs of All Cells…")
    page.click(".jp-Dialog-button.jp-mod-accept")
    # which happens once the kernel has restarted: until then it may be idle as it was before
    page.miss(".jp-OutputArea-output", POD)
    page.see('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    page.click(".jp-Notebook .jp-InputArea-editor .cm-content")
    page.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ENTER)
    page.see(".jp-OutputArea-output", LAST)
    second = page.see(".jp-OutputArea-output", POD).text
    page.see(".jp-InputPrompt", "[1]:")
    assert first != second, "the restarted kernel is another pod"


def test_who_has_all_they_may_have_reads_so(page: Page, shipped: Up) -> None:
    """A third kernel is refused in a sentence, for a new notebook and for another kernel of one that is open."""
    card = '.jp-LauncherCard[data-category="Notebook"]'
    sentence = "You have 2 of 2 interactive kernels: 'Python 3 | 1 CPU 2 GB' (Untitled.ipynb, since "
    advice = "Shut one down (in JupyterLab under Running Terminals and Kernels) to start another."
    page.driver.get(shipped.address)
    for number in range(3):
        page.click(card, "Python 3 | 1 CPU 2 GB")
        if number < 2:
            page.see('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status="idle"]')
            page.click(".lm-TabBar-addButton")
    page.see(".jp-Dialog", sentence)
    assert advice in page.see(".jp-Dialog", advice).text
    page.click(".jp-Dialog-button.jp-mod-accept")
    page.see(".jp-Dialog", "Select Kernel")
    page.click(".jp-Dialog-button", "No Kernel")

    page.click(".lm-TabBar-tabLabel", "Untitled1.ipynb")
    page.click(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Toolbar-kernelName", "Python 3 | 1 CPU 2 GB")
    page.see(".jp-Dialog", "Select Kernel")
    page.driver.execute_script(
        """const select = document.querySelector(".jp-Dialog select");
        const wanted = [...select.options].find(option => option.textContent.includes(arguments[0]));
        select.value = wanted.value; select.dispatchEvent(new Event("change", {bubbles: true}))""",
        "2 CPU 4 GB | spot",
    )
    page.click(".jp-Dialog-button.jp-mod-accept")
    page.see(".jp-Dialog", sentence)
