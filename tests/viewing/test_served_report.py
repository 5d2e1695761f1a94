"""The report within `wsiad view`: what is served of it, and links between report and viewer."""

from __future__ import annotations

import http.client
import json
import shutil
from importlib.resources import files
from urllib.parse import quote

import pytest

import wsiad
from support.browser import needs_browser
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import InputError

ODD = "it's #1 & 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of a slide, one named by a number, one with odd characters, and a broken one."""
    folder = tmp_path_factory.mktemp("served")
    slides = folder / "slides"
    slides.mkdir()
    for seed, name in enumerate(["plain", "2", ODD]):
        image = stained(400, 400, seed=seed) // 4 + 20
        image[128:192, 192:256, 0] = 240 - seed
        write_tiff(slides / f"{name}.tif", image, mpp=0.5)
    (slides / "bad.svs").write_text("no slide")
    with pytest.MonkeyPatch.context() as patch:
        use_channel(patch)
        run = make_run(folder / "run")
        wsiad.heatmap(run=run, slides=slides, out=folder / "some results", quiet=True)
    return folder / "some results"


@pytest.fixture
def serve(serve, made):
    """Serve results, by default those of :func:`made`."""
    return lambda results=made, **values: serve(results, **values)


def ask(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", f"/{server.token}/{path}")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_report_is_served_with_its_pictures_and_marked_as_served(made, serve):
    server = serve()
    found = json.loads(ask(server, "slides.json")[1])
    assert (found["report"], found["contactSheet"]) == (True, True)
    for name in ("report.html", "contact_sheet.html"):
        answer, body = ask(server, f"results/{name}")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/html")
        written = (made / name).read_text()
        start, end = written.split("<body>")
        assert body.decode().endswith(f'<body class="viewed">{end}')
        assert body.decode().startswith(start.removesuffix("</head>\n"))
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "'unsafe-inline'" not in policy.split("script-src")[1]
        assert "connect-src" not in policy  # by default nothing: no judgement from here
    answer, body = ask(server, "results/all_regions.csv")
    assert body == (made / "all_regions.csv").read_bytes()
    for slide in ("plain", ODD):
        pictures = ["overlay.png", "tissue.png", "thumbnail.jpg", "overview.jpg"]
        pictures += [f"regions/{file.name}" for file in (made / slide / "regions").iterdir()]
        assert len(pictures) > 4
        for name in pictures:
            answer, body = ask(server, f"results/{quote(slide)}/{name}")
            assert answer.status == 200, name
            assert body == (made / slide / name).read_bytes()
            assert answer.headers["Content-Type"] in ("image/png", "image/jpeg")


@pytest.mark.parametrize(
    "path",
    [
        "results/", "results/run.json", "results/slides.csv", "results/plain/windows.npy",
        "results/plain/slide.json", "results/../some%20results/run.json", "results//report.html",
        "results/plain/../2/overlay.png", "results/plain/%2e%2e/2/overlay.png", "results/%00",
        "results/plain/regions/99.png", "results/plain", "results/plain/", "results/bad/thumb.jpg",
        "results/plain/overlay.png%00",
    ],
)  # fmt: skip
def test_nothing_but_the_report_and_its_pictures_is_served(serve, path):
    assert ask(serve(), path)[0].status == 404


def test_a_contact_sheet_of_a_report_that_was_written_elsewhere_leads_to_the_one_here(serve):
    answer, _ = ask(serve(), "report.html")
    assert (answer.status, answer.headers["Location"]) == (302, "results/report.html")


def test_without_a_report_nothing_links_it(made, serve, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    for name in ("report.html", "contact_sheet.html"):
        (tmp_path / "out" / name).unlink()
    server = serve(tmp_path / "out")
    found = json.loads(ask(server, "slides.json")[1])
    assert (found["report"], found["contactSheet"]) == (False, False)
    assert ask(server, "results/report.html")[0].status == 404


def test_a_slide_to_begin_with_must_be_one_that_can_be_shown(made, monkeypatch, capfd):
    def interrupted(server):
        raise KeyboardInterrupt

    monkeypatch.setattr("wsiad.viewing.server.ViewServer.serve_forever", interrupted)
    wsiad.view(results=made, slide=ODD, browser=False)
    assert "/#name=it%27s%20%231%20%26%202 " in capfd.readouterr().err
    with pytest.raises(InputError, match=r"plian: no slide.*did you mean 'plain'\?"):
        wsiad.view(results=made, slide="plian", browser=False)
    with pytest.raises(
        InputError, match=r"bad: there is nothing to show of this slide: .*not a sl"
    ):
        wsiad.view(results=made, slide="bad", browser=False)


SHOWN = "getComputedStyle(document.querySelector('{}')).display !== 'none'"


def follow(browser, link):
    """Open what a link leads to."""
    browser.open(browser.run(f"{link}.href"))


@needs_browser
def test_a_browser_goes_from_viewer_to_report_and_back_by_slide(serve, browser):
    server = serve()
    browser.open(f"{server.url}#name=2")  # the slide of this name, not of this rank
    browser.wait("document.querySelector('#name').textContent === '2'")
    browser.still()
    follow(browser, "document.querySelector('#reported a')")
    browser.wait("/^#slide-[0-9]$/.test(location.hash)")
    assert browser.run("document.querySelector(location.hash).dataset.slide") == "2"
    browser.wait("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth)")
    assert browser.run(SHOWN.format("article .served"))
    assert not browser.run(SHOWN.format("article code.by-command"))
    assert browser.run("[...document.querySelectorAll('#ranking button')].length") > 3  # its script
    odd = f"a => a.dataset.slide === {json.dumps(ODD)}"
    article = f"[...document.querySelectorAll('article')].find({odd})"
    follow(browser, f"{article}.querySelector('a.served')")
    browser.wait(f"document.querySelector('#name')?.textContent === {json.dumps(ODD)}")
    browser.still()
    follow(browser, "document.querySelectorAll('#pages a')[1]")
    browser.wait("document.querySelector('.sheet') !== null")
    follow(browser, "document.querySelector('.sheet a')")
    browser.wait("location.pathname.endsWith('/results/report.html') && location.hash")
    assert not browser.complaints


@needs_browser
def test_a_report_on_a_disk_tells_the_command_that_shows_each_slide(made, browser, tmp_path):
    moved = tmp_path / "it's moved"
    shutil.copytree(made, moved)
    browser.open((moved / "report.html").as_uri())
    commands = browser.run("[...document.querySelectorAll('article code')].map(c => c.textContent)")
    quoted = str(moved).replace("'", "'\"'\"'")
    assert commands[:2] == [
        f"wsiad view '{quoted}' --slide=plain", f"wsiad view '{quoted}' --slide=2",
    ]  # fmt: skip
    assert commands[2].endswith(""" --slide='it'"'"'s #1 & 2'""")
    assert browser.run(SHOWN.format("article code.by-command"))
    assert not browser.run(SHOWN.format("article .served"))
    assert (
        browser.run("getComputedStyle(document.querySelector('article code')).userSelect") == "all"
    )
    assert not browser.complaints


@needs_browser
@pytest.mark.parametrize(
    ("page", "slide", "shown", "all_slides"),
    [
        ("/C:/r/out/", "plain", "wsiad view C:/r/out --slide=plain", "wsiad view C:/r/out"),
        (
            "/C:/it%20is/out/",
            "sp ace",
            'wsiad view "C:/it is/out" --slide="sp ace"',
            'wsiad view "C:/it is/out"',
        ),
        ("/C:/r/", "größe,1", 'wsiad view C:/r --slide="größe,1"', "wsiad view C:/r"),
        ("server/share/r/", "a", "wsiad view //server/share/r --slide=a", "wsiad view //server/s"),
        ("/C:/r/", "sp ace&calc", "open the viewer and choose the slide", "wsiad view C:/r"),
        ("/C:/r/", "%PATH%", "open the viewer and choose the slide", "wsiad view C:/r"),
        ("/C:/r/", 'a" b', "open the viewer and choose the slide", "wsiad view C:/r"),
        ("/C:/r/", "$(calc)", "open the viewer and choose the slide", "wsiad view C:/r"),
        (
            "/C:/a%26b/",
            "plain",
            "open the viewer and choose the slide",
            "wsiad view with the path of the results",
        ),
    ],
)
def test_a_report_on_a_disk_of_windows_quotes_as_its_shells_do_or_prints_no_command(
    made, browser, page, slide, shown, all_slides
):
    browser.open((made / "report.html").as_uri())
    script = files("wsiad.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    # The page's own script once more, which believes to be somewhere else.
    there = f"new URL({json.dumps(f'file://{page}report.html')})"
    browser.run(
        f"document.querySelector('article').dataset.slide = {json.dumps(slide)};"
        f"((location) => {{ {script} }})({there})"
    )
    zoom = "document.querySelector('article .zoom').firstChild"
    following = f"{zoom}.nextSibling"
    assert browser.run(f"{zoom}.data + {following}.textContent") == f"Zoom: {shown}"
    assert all_slides in browser.run("document.querySelector('p.by-command').textContent")
    assert not browser.complaints
