"""A batch's page in a browser, opened from disk: filters, a matrix, one job, many jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fluxfit.batch.sheet import write_sheet

from tests.batch.folders import fail, full_grid

EVIL = "</script><script>document.title = 'broken'</script><b id=evil>"


@pytest.fixture
def page(chromium: Any):
    opened = chromium.new_page(viewport={"width": 1400, "height": 900})
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("request", lambda request: opened.faults.extend(elsewhere(request.url)))
    yield opened
    assert not opened.faults
    opened.close()


def elsewhere(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [url]


def open_sheet(page: Any, folder: Path) -> None:
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector(".card")


def test_the_page_filters_lays_out_and_opens_jobs(page, tmp_path, artefacts):
    full_grid(tmp_path, [1, 2, 3], ["euler", "heun"], EVIL)
    fail(tmp_path, 9, {"5.seed": 4, "5.sampler": "heun", "2.text": "b"}, EVIL)
    write_sheet(tmp_path, "foxes")
    open_sheet(page, tmp_path)
    shown, count = page.locator(".card"), page.locator("#count")
    assert page.title() == "foxes" and page.locator("#evil").count() == 0
    assert shown.count() == 7 and count.inner_text() == "7 of 7 shown"
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth === 48)")
    page.locator("#filters input[value=heun]").check()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('4 of')")
    page.locator("#filters input[value=failed]").check()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('1 of')")
    assert EVIL in page.locator(".fault").inner_text()
    page.click("#clear")
    page.select_option("#view", "matrix")
    page.select_option("#by-row", label="seed")
    page.select_option("#by-column", label="sampler")
    assert page.locator("tbody tr").count() == 4 and page.locator("td .card").count() == 7
    page.screenshot(path=artefacts / "sheet_matrix.png")
    page.select_option("#view", "cards")
    page.keyboard.press("Tab")
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#facts >> text=Receipt")
    assert page.locator("#place").inner_text() == "2 of 7"
    assert "drawn by a model: euler" in page.locator("#facts").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#place").inner_text() == "3 of 7"
    page.screenshot(path=artefacts / "sheet_job.png")
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.ariaLabel?.startsWith('line 4: seed 2')")


def test_ten_thousand_jobs_do_not_freeze_the_page(page, tmp_path):
    entries = ({"5.seed": n, "2.text": f"prompt {n} " * 9} for n in range(10_000))
    with open(tmp_path / "manifest.jsonl", "w") as file:
        for line, values in enumerate(entries):
            job = {"job": f"{line:024x}", "line": line, "values": values, "error": "not drawn"}
            file.write(json.dumps(job) + "\n")
    write_sheet(tmp_path)
    started = time.monotonic()
    open_sheet(page, tmp_path)
    assert page.locator(".card").count() < 100
    page.evaluate("document.getElementById('main').scrollTop = 1e9")
    page.wait_for_selector("[aria-label^='line 9999:']")
    page.fill("#search", "9998")
    page.wait_for_selector("text=1 of 10,000 shown")
    assert time.monotonic() - started < 10
