"""The page at ``/``: who gets it, what it may do, and a person's way through it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import uvicorn
from browser import Page, chromium
from conftest import unused_port
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from pipeline.evaluate.evidence import Evidence
from pipeline.storage import Place
from serve import keys, playground
from serve.api import build_api
from serve.sealed import sealed

HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
TRICK = '<img src=x onerror="document.title=1">'


class Tricky(FakeEngine):
    """Labels with markup, Chinese, and many."""

    labels = ["business", "science", "sport", "world", "科技", "<b>bold</b>", *(f"label {i}" for i in range(3))]  # noqa: RUF012


def test_a_browser_gets_the_page_and_everyone_else_json() -> None:
    with TestClient(build_api(FakeEngine(), ServeConfig())) as http:
        for accept in ("*/*", "application/json", "", "text/html;q=0, */*"):
            response = http.get("/", headers={"accept": accept})
            assert response.json()["name"] == "broadsheet"
            assert response.headers["vary"] == "accept"
        response = http.get("/", headers={"accept": HTML})
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.text.startswith("<!doctype html>")


def test_the_page_is_alone_and_may_do_little() -> None:
    text = playground.page()
    policy = sealed(text).headers["content-security-policy"]
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|style=|onclick", text)


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def engine() -> Tricky:
    return Tricky()


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The app behind a socket on the loopback."""
    port = unused_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def url(engine: Tricky, feedback: Path) -> Iterator[str]:
    """The API over a socket, with an index and feedback."""
    width = len(Tricky.labels)
    texts = [f"A row about {label} {TRICK}" for label in Tricky.labels]
    index = Evidence(
        [f"train.csv:{i}" for i in range(width)], texts, np.arange(width),
        np.zeros(width, np.float32), np.eye(width, dtype=np.float32),
    )  # fmt: skip
    with listening(build_api(engine, ServeConfig(feedback=str(feedback), max_text_chars=2_000), index)) as url:
        yield url


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def explained(page: Page) -> None:
    page.until("!document.getElementById('why').hidden && !document.getElementById('classify').disabled")


def shown(page: Page, selector: str) -> list[str]:
    found: list[str] = page.value(f"Array.from(document.querySelectorAll({selector!r}), (e) => e.textContent)")
    return found


def test_classify_explain_and_correct_with_the_mouse(page: Page, url: str, feedback: Path) -> None:
    page.open(url, 1200)
    text = f"{TRICK} 芯片 😀 a & b sport"
    page.click("#text")
    page.type(text)
    page.click("#classify")
    explained(page)
    assert shown(page, "#winner") == ["sport"]
    assert shown(page, "#bars .name")[0] == "sport"
    assert len(shown(page, "#bars .name")) == 8
    page.click("#all")
    assert set(shown(page, "#bars .name")) == set(Tricky.labels)
    words = shown(page, "#words .word")
    assert words == text.split()
    strong = page.value("Array.from(document.querySelectorAll('#words .word'), (e) => e.style.backgroundColor !== '')")
    assert strong == [word == "sport" for word in words]
    assert shown(page, "#near li")[0] == f"sport · similarity 1.00 · train.csv:2A row about sport {TRICK}"
    assert page.value("document.title") == "Broadsheet"
    assert page.value("document.querySelectorAll('img, b b, #near b, #bars b').length") == 0

    page.click("#send")
    page.until("document.getElementById('thanks').textContent.includes('Choose')")
    page.value("document.getElementById('truth').focus()")
    for _ in range(6):
        page.press("ArrowDown", 40)
    assert page.value("document.getElementById('truth').value") == "<b>bold</b>"
    page.click("#send")
    page.until("document.getElementById('thanks').textContent.includes('Kept')")
    (file,) = feedback.iterdir()
    (row,) = pq.read_table(file).to_pylist()
    wanted = {"text": text, "label": "<b>bold</b>", "predicted": "sport", "model_version": "fake-1"}
    assert {key: row[key] for key in wanted} == wanted
    assert page.complaints == []


def test_by_keyboard_alone_in_the_dark_on_a_narrow_screen(page: Page, url: str) -> None:
    page.open(url, 390, dark=True)
    assert page.value("document.activeElement.id") == "text"
    page.type("长" * 300 + " " + "x" * 300 + " 科技 world")
    page.press("Tab", 9)
    assert page.value("document.activeElement.id") == "classify"
    page.press("Enter", 13)
    explained(page)
    assert shown(page, "#winner") == ["world"]
    assert page.value("document.documentElement.scrollWidth") <= 390
    page.value("document.getElementById('text').focus()")
    page.value("document.getElementById('text').select()")
    page.type("a sport")
    page.press("Enter", 13, modifiers=2)
    page.until("document.getElementById('winner').textContent === 'sport'")
    explained(page)
    assert page.complaints == []


def test_errors_of_the_api_in_words(page: Page, url: str, engine: Tricky) -> None:
    page.open(url, 800)
    page.click("#classify")
    assert "There is no text yet" in page.value("document.getElementById('problem').textContent")
    page.type("a " * 1_001)
    page.click("#classify")
    page.until("document.getElementById('problem').textContent.includes('at most 2000 are allowed')")
    page.value("document.getElementById('text').select()")
    page.type("sport sport")
    page.click("#classify")
    page.until("document.getElementById('problem').textContent.includes('The server answered 500')")
    assert page.value("document.getElementById('classify').disabled") is False
    page.value("document.getElementById('text').select()")
    page.type("science")
    page.click("#classify")
    explained(page)
    assert page.value("document.getElementById('problem').hidden") is True


def test_a_server_with_keys_asks_for_one(page: Page, tmp_path: Path) -> None:
    place = Place.of(tmp_path / "keys.json")
    secret = keys.add(place, "ana")
    with listening(build_api(FakeEngine(), ServeConfig(keys=str(place), feedback=str(tmp_path / "kept")))) as url:
        page.complaints.clear()
        page.open(url, 390)
        assert page.value("document.activeElement.id") == "secret"
        assert page.value("document.getElementById('form').hidden") is True
        assert "sport" not in page.value("document.documentElement.outerHTML")
        page.type("bs_wrong ключ")
        page.press("Enter", 13)
        page.until("document.getElementById('problem').textContent.includes('401: the server does not know this API')")
        assert page.value("document.getElementById('secret').value") == ""
        page.type(f" {secret}\t")
        page.press("Enter", 13)
        page.until("document.getElementById('unlock').hidden && document.activeElement.id === 'text'")
        assert page.value("document.getElementById('problem').hidden") is True
        page.type("a sport")
        page.click("#classify")
        explained(page)
        assert shown(page, "#winner") == ["sport"]
        assert page.value("document.documentElement.scrollWidth") <= 390
        kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href, history.state])"
        assert secret not in page.value(kept) + page.value("document.documentElement.outerHTML")
        page.value("document.getElementById('truth').value = 'world'")
        page.click("#send")
        page.until("document.getElementById('problem').textContent.includes('403')")
        keys.revoke(place, "ana")
        page.until("document.getElementById('classify').click() || document.getElementById('form').hidden")
        page.until("document.getElementById('problem').textContent.includes('401')")
        page.open(url, 390)
        assert page.value("document.activeElement.id") == "secret"
    assert all("Failed to load resource" in complaint for complaint in page.complaints), page.complaints
    page.complaints.clear()


def test_the_control_is_hidden_where_no_feedback_is_kept(page: Page) -> None:
    with listening(build_api(FakeEngine(), ServeConfig())) as url:
        page.open(url, 800)
        page.type("sport")
        page.click("#classify")
        explained(page)
        assert page.value("document.getElementById('wrong').hidden") is True
        assert page.value("document.getElementById('evidence').hidden") is True
