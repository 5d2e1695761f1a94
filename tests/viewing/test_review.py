"""Judgements in `wsiad view`: what the server takes and refuses, and that a browser sends it."""

import http.client
import json
import os
import shutil

import pytest

from support.browser import needs_browser
from support.builders import stained, write_tiff
from support.runs import score_channel
from wsiad.results.folder import Results
from wsiad.results.reviews import SlideReview, why_read_only


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of two slides with three and two regions."""
    folder = tmp_path_factory.mktemp("review")
    (folder / "slides").mkdir()
    for name, red in (("one", 240), ("two", 220)):
        image = stained(640, 640, seed=red) // 4 + 20
        image[64:128, 64:128, 0] = red
        image[320:384, 320:384, 0] = red - 20
        if name == "one":
            image[64:128, 448:512, 0] = red - 40
        write_tiff(folder / "slides" / f"{name}.tif", image, mpp=0.5)
    return score_channel(folder, folder / "slides")


@pytest.fixture
def results(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def post(server, path="slide/1/review", body=None, *, token=None, drop=(), **changed):
    """Send a judgement as the page does, but for some headers; return status and body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {
        "Host": f"127.0.0.1:{server.server_port}",
        "Origin": f"http://127.0.0.1:{server.server_port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
    } | {key.replace("_", "-"): value for key, value in changed.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    where = f"/{server.token if token is None else token}/{path}"
    connection.putrequest("POST", where, skip_host=True, skip_accept_encoding=True)
    for key, value in headers.items():
        if key not in drop:
            connection.putheader(key, value)
    connection.endheaders(content if len(content) < 1 << 20 else None)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def info(server, place=1):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", f"/{server.token}/slide/{place}/info")
    answer = connection.getresponse()
    assert answer.headers["Cache-Control"] == "no-store"  # judgements change it
    found = json.loads(answer.read())
    connection.close()
    return found


def judgement(server, **values):
    region = info(server)["reviews"][0]["id"]
    return {"region": region, "reviewer": "Ada", "verdict": "accepted", "comment": ""} | values


def test_a_judgement_is_stored_and_told_to_everyone(results, serve):
    server, other = serve(results), serve(results)
    status, body = post(server, body=judgement(server, comment="typical"))
    assert status == 200
    stored = json.loads(body)
    assert stored["before"] == {"verdict": "", "comment": ""}
    assert [one["verdict"] for one in stored["reviews"]] == ["accepted", "", ""]
    told = info(other)["reviews"][0]
    assert told["judgements"][0]["comment"] == "typical"
    body = post(other, body=judgement(other, verdict="rejected"))[1]
    assert json.loads(body)["before"] == {"verdict": "accepted", "comment": "typical"}
    assert info(server)["reviews"][0]["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"token": "x"}, 404),
        ({"path": "slide/9/review"}, 404),
        ({"path": "slide/1/info"}, 404),
        ({"path": "review"}, 404),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"drop": ("Origin",)}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/json; charset=utf-8"}, 415),
        ({"drop": ("Content-Type",)}, 415),
        ({"drop": ("Content-Length",)}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "99999999"}, 413),
        ({"Transfer_Encoding": "chunked"}, 411),
    ],
)
def test_only_the_page_is_listened_to(results, serve, changed, status):
    server = serve(results)
    assert post(server, body=judgement(server), **changed)[0] == status
    assert not (results / "reviews").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": "maybe"},
        {"verdict": None},
        {"reviewer": ""},
        {"reviewer": " \n"},
        {"reviewer": "A" * 81},
        {"reviewer": 3},
        {"comment": "x" * 2001},
        {"comment": ["x"]},
        {"further": 1},
        {"region": ""},
    ],
)
def test_what_is_no_judgement_is_refused(results, serve, changed):
    server = serve(results)
    assert post(server, body=judgement(server, **changed))[0] == 400
    assert not (results / "reviews").exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 60_000, b'{"a":1e999}'])
def test_content_that_is_no_json_object_is_refused(results, serve, body):
    assert post(serve(results), body=body)[0] == 400


def test_a_region_that_is_none_is_a_conflict(results, serve):
    server = serve(results)
    status, body = post(server, body=judgement(server, region="../../x"))
    assert status == 409
    assert b"no such region any more" in body
    assert not list(results.rglob("*.geojson.lock"))


def test_read_only_takes_nothing_and_says_so(results, serve, monkeypatch):
    server = serve(results, read_only=True)
    status, body = post(server, body=judgement(server))
    assert status == 403
    assert b"--read-only" in body
    assert why_read_only(results) == ""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    server = serve(results)
    status, body = post(server, body=judgement(server))
    assert (status, b"cannot be written" in body) == (403, True)
    assert not (results / "reviews").exists()


REVIEWS = "[...document.querySelectorAll('#regions button')].map((b) => b.dataset.verdict)"


def ready(browser, server, place=1):
    browser.open(f"{server.url}#{place}")
    browser.wait("document.querySelectorAll('#regions button').length > 1")
    browser.wait("document.querySelector('svg.shapes g').getAttribute('transform') !== null")


@needs_browser
def test_a_browser_judges_by_keys_without_a_first_click_and_undoes(results, serve, browser):
    server = serve(results, reviewer="Ada")
    ready(browser, server)
    for key in "jaj":
        browser.press(key)
    browser.press("x")
    browser.wait(f"{REVIEWS}.join() === 'accepted,rejected,'")
    browser.press("c")
    browser.write("fat")
    browser.press("Enter")
    one = SlideReview(Results(results).slide("one"))
    browser.wait("document.querySelector('#undo').disabled === false")
    browser.wait("document.activeElement.id !== 'comment'")
    browser.press("j")  # not written into the comment
    browser.press("k")
    browser.wait("document.querySelector('#comment').value === 'fat'")
    first, second = one.regions()
    assert (first.verdict, second.verdict) == ("accepted", "rejected")
    assert second.by("Ada").comment == "fat"
    # A comment that the click on a button ends is stored, and so is what the button says.
    browser.press("c")
    browser.write(" and folds")
    browser.click("#accept")
    browser.wait(f"{REVIEWS}.join() === 'accepted,accepted,'")
    assert one.regions()[1].by("Ada").comment == "fat and folds"
    for verdicts in (
        "accepted,rejected,",
        "accepted,rejected,",
        "accepted,rejected,",
        "accepted,,",
    ):
        browser.press("u")
        browser.wait(f"{REVIEWS}.join() === '{verdicts}'")
    for verdicts in (",,",):
        browser.press("u")
        browser.wait(f"{REVIEWS}.join() === '{verdicts}'")
    browser.wait("document.querySelector('#undo').disabled")
    assert one.regions() == []
    assert not browser.complaints


@needs_browser
def test_a_browser_asks_the_name_once_and_judges_by_mouse(results, serve, browser):
    server = serve(results)
    ready(browser, server)
    browser.click("#regions li:nth-child(2) button")
    browser.click("#reject")
    browser.wait("document.querySelector('#ask').open")
    browser.write("Bo <b>")
    browser.press("Enter")
    browser.wait(f"{REVIEWS}.join() === ',rejected,'")
    browser.click("#regions li:nth-child(3) button")
    browser.click("#accept")
    browser.wait(f"{REVIEWS}.join() === ',rejected,accepted'")
    browser.click("#accept")  # again: withdrawn
    browser.wait(f"{REVIEWS}.join() === ',rejected,'")
    assert browser.run("document.querySelector('#reviewer').textContent") == "Reviewer: Bo <b>"
    (region,) = SlideReview(Results(results).slide("one")).regions()
    assert region.by("Bo <b>").verdict == "rejected"
    # Another slide, and back: it is still there, and told in the list of slides.
    browser.still()
    browser.press("PageDown")
    browser.wait("document.querySelector('#name').textContent === 'two'")
    browser.still()
    browser.press("PageUp")
    browser.wait("document.querySelector('#name').textContent === 'one'")
    browser.wait(f"{REVIEWS}.join() === ',rejected,'")
    assert "1 judged" in browser.run("document.querySelector('#slides').textContent")
    assert not browser.complaints


@needs_browser
def test_a_browser_says_that_nothing_is_stored(results, serve, browser):
    ready(browser, serve(results, read_only=True))
    browser.press("j")
    browser.press("a")
    assert browser.run("document.querySelector('#review').hidden")
    words = browser.run("document.querySelector('#readonly').textContent")
    assert "no judgements are stored" in words
    assert not (results / "reviews").exists()
    assert not browser.complaints


@needs_browser
def test_keys_work_on_a_keyboard_without_latin_letters(results, serve, browser):
    ready(browser, serve(results, reviewer="Ada"))
    for key, code in (("о", "KeyJ"), ("ф", "KeyA")):  # a Russian keyboard
        browser.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=code, text=key)
        browser.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=code)
    browser.wait(f"{REVIEWS}.join() === 'accepted,,'")
    # AZERTY: the letter counts, not the place, where a US keyboard has q.
    browser.send("Input.dispatchKeyEvent", type="keyDown", key="a", code="KeyQ", text="a")
    browser.send("Input.dispatchKeyEvent", type="keyUp", key="a", code="KeyQ")
    browser.wait(f"{REVIEWS}.join() === ',,'")
    assert not browser.complaints
