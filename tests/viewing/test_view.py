"""`wsiad view`: what it answers, what it refuses, and that a browser shows it."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import openslide
import pytest
import tifffile
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

import wsiad
from support.browser import needs_browser
from support.builders import stained, write_scn, write_tiff
from support.runs import make_run, score_channel, use_channel
from wsiad.core.errors import InputError
from wsiad.core.geometry import SquareMicrons
from wsiad.runs.healthy_maps import HealthyMap, HealthyMaps
from wsiad.verbs.view import ViewConfig, open_server, viewed_slides
from wsiad.viewing.deep_zoom import DeepZoom

BRIGHT = 240  # red of the strange place: the score of its windows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of a plain slide, one with bounds, one with a gap, and a file that is none."""
    folder = tmp_path_factory.mktemp("view")
    slides = folder / "slides"
    slides.mkdir()
    image = stained(700, 900, seed=1) // 4 + 20
    image[320:384, 512:640, 0] = BRIGHT
    write_tiff(slides / "plain.tif", image, mpp=0.5)
    image = stained(640, 640, seed=2) // 4 + 20
    image[128:192, 256:320, 0] = BRIGHT - 20
    options = {"mpp": 0.5, "offset_px": (256, 128), "collection_px": (2048, 1024)}
    write_scn(slides / "bounded.scn", image, **options)
    image = stained(640, 640, seed=3) // 4 + 20
    image[:320, :320] = (90, 40, 70)  # without detail: not assessed
    write_tiff(slides / "gap.tif", image, mpp=0.5)
    (slides / "bad.svs").write_text("no slide")
    score_channel(folder, slides, quality={"min_sharpness": 1.0})
    return folder


@pytest.fixture
def serve(serve, made):
    """Serve results, by default all of :func:`made`."""
    return lambda results=made / "out", **values: serve(results, **values)


def ask(server, path, *, method="GET", host=None, token=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    where = f"/{server.token if token is None else token}/{path}"
    connection.request(method, where, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def get(server, path):
    answer, body = ask(server, path)
    assert answer.status == 200, (path, answer.status, body)
    return body


def place_of(server, name):
    slides = json.loads(get(server, "slides.json"))["slides"]
    return next(i for i, slide in enumerate(slides, start=1) if slide["name"] == name)


def test_slides_come_by_rank_and_those_that_failed_last(serve):
    found = json.loads(get(serve(), "slides.json"))
    assert found["title"] == "out"
    slides = found["slides"]
    assert [(s["rank"], s["name"], s["viewable"]) for s in slides] == [
        (1, "plain", True),
        (2, "bounded", True),
        (3, "gap", True),
        (None, "bad", False),
    ]
    assert slides[0]["score"] == pytest.approx(BRIGHT, abs=1)
    assert "not a slide" in slides[3]["reason"]


@pytest.mark.parametrize(("name", "file"), [("plain", "plain.tif"), ("bounded", "bounded.scn")])
def test_tiles_are_those_of_openslide(made, serve, name, file):
    server = serve()
    place = place_of(server, name)
    info = json.loads(get(server, f"slide/{place}/info"))
    assert info["problem"] == ""
    with openslide.OpenSlide(made / "slides" / file) as slide:
        zoom = DeepZoomGenerator(slide, info["tileSize"], info["overlap"], limit_bounds=False)
        assert (info["width"], info["height"]) == slide.dimensions == zoom.level_dimensions[-1]
        for level, (columns, rows) in enumerate(zoom.level_tiles):
            for column, row in {(0, 0), (columns - 1, rows - 1)}:
                data = get(server, f"slide/{place}/tile/{level}/{column}/{row}")
                expected = io.BytesIO()
                zoom.get_tile(level, (column, row)).save(expected, "JPEG", quality=85)
                assert data == expected.getvalue(), (level, column, row)
            for beyond in (f"{columns}/0", f"0/{rows}"):
                assert ask(server, f"slide/{place}/tile/{level}/{beyond}")[0].status == 404
        assert ask(server, f"slide/{place}/tile/{zoom.level_count}/0/0")[0].status == 404


def test_many_tiles_at_once_are_the_same_tiles(serve):
    server = serve()
    names = [f"slide/{place}/tile/{level}/0/0" for place in (1, 2, 3) for level in range(10)]
    one_by_one = {name: get(server, name) for name in names}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: get(server, name), names * 4))
    assert together == [one_by_one[name] for name in names] * 4


@pytest.mark.parametrize(("name", "corner"), [("plain", (512, 320)), ("bounded", (512, 256))])
def test_heatmap_scores_and_regions_lie_in_level_0_pixels(serve, name, corner):
    server = serve()
    place = place_of(server, name)
    info = json.loads(get(server, f"slide/{place}/info"))
    strongest = info["regions"][0]
    (ring,) = strongest["rings"]
    x, y = zip(*ring, strict=True)
    assert (min(x), min(y)) == pytest.approx(corner, abs=1)  # bounds are added again
    assert strongest["measurements"]["wsiad: percentile"] == 100
    answer, body = ask(server, f"slide/{place}/scores")
    width, height = int(answer.headers["X-Width"]), int(answer.headers["X-Height"])
    scores = np.frombuffer(body, "<f4").reshape(height, width)
    box = info["heatmap"]["rectangle"]
    column = int((corner[0] + 16 - box["x"]) / box["width"] * width)
    row = int((corner[1] + 16 - box["y"]) / box["height"] * height)
    assert scores[row, column] == pytest.approx(np.nanmax(scores), abs=1)
    assert scores[row, column] > BRIGHT - 30
    picture = Image.open(io.BytesIO(get(server, f"slide/{place}/heatmap")))
    assert picture.size == (width, height)
    assert [step["below"] for step in info["heatmap"]["scale"]] == [0.5, 0.9, 0.99, 0.999, None]


def test_what_was_not_assessed_is_told(serve):
    server = serve()
    info = json.loads(get(server, f"slide/{place_of(server, 'gap')}/info"))
    (gap,) = info["notAssessed"]
    assert gap["name"] == "not assessed: sharpness"
    x, y = zip(*gap["rings"][0], strict=True)
    assert (min(x), min(y), max(x), max(y)) == pytest.approx((0, 0, 320, 320), abs=20)


@pytest.mark.parametrize(
    "path",
    [
        "../slides.csv", "%2e%2e/slides.csv", "static/view.js", "view.py", "slides.json/", "/",
        "//", "slide/0/info", "slide/5/info", "slide/-1/info", "slide/1/info/",
        "slide/1/info/1",
        "slide/1/../1/info", "slide/1/windows.npy", "slide/plain/info", "slide/1/tile/9/0/0/0",
        "slide/1/tile/9/0", "slide/1/tile/9/-1/0", "slide/1/tile/9/0/../../../slide.json",
        "slide/1/tile/99/0/0", "slide/1/tile//0/0", "slide/4/info", "slide/4/picture",
        "slide/4/tile/0/0/0", "slide/4/scores", "slide/%31/info", "slide/1/picture%00",
        "slide/٣/info", "slide/" + "9" * 5000 + "/info", "slide/1/tile/9/" + "1" * 40 + "/0",
    ],
)  # fmt: skip
def test_paths_that_are_none_lead_nowhere(serve, path):
    server = serve()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    # As bytes, and unchecked: no client has to be polite.
    connection._validate_path = lambda url: None
    connection.putrequest("GET", "x", skip_host=True)
    request = f"GET /{server.token}/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    connection._buffer = [request.rstrip(b"\r\n")]
    connection.endheaders()
    assert connection.getresponse().status == 404
    connection.close()


def test_only_who_knows_the_address_and_names_this_machine_is_answered(serve):
    server = serve()
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 20
    assert server.token != serve().token
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "0.0.0.0:1", ":1"):
        assert ask(server, "slides.json", host=host)[0].status == 421, host
    for host in ("localhost", "localhost:9999", "127.0.0.1:1", "LOCALHOST:80"):
        assert ask(server, "slides.json", host=host)[0].status == 200, host
    for token in ("", "x", server.token[:-1], server.token + "x"):
        assert ask(server, "slides.json", token=token)[0].status == 404
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(server, "slides.json", method=method)[0].status == 501
    answer, _ = ask(server, "")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_slide_that_is_not_there_or_another_one_is_not_shown(made, serve, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(made / "out", tmp_path / "out")
    table = tmp_path / "out" / "slides.csv"
    table.write_text(table.read_text().replace(str(made / "slides"), str(moved)))
    server = serve(tmp_path / "out")
    info = json.loads(get(server, "slide/1/info"))
    assert "is not at" in info["problem"]
    assert "--slides" in info["problem"]
    assert info["regions"]
    assert ask(server, "slide/1/tile/0/0/0")[0].status == 404
    assert Image.open(io.BytesIO(get(server, "slide/1/picture"))).size[0] > 10
    # Said where they are now.
    found = json.loads(get(serve(tmp_path / "out", slides=made / "slides"), "slide/1/info"))
    assert found["problem"] == ""
    # Another slide of the same name.
    moved.mkdir()
    write_tiff(moved / "plain.tif", stained(700, 900, seed=9), mpp=0.5)
    server = serve(tmp_path / "out")
    assert "another slide than the scored one" in json.loads(get(server, "slide/1/info"))["problem"]
    assert ask(server, "slide/1/tile/0/0/0")[0].status == 404


def test_slides_that_were_given_relative_to_a_folder_are_found_from_any_other(
    tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    write_tiff(tmp_path / "s.tif", stained(300, 300), mpp=0.5)
    (tmp_path / "bad.svs").write_text("no slide")
    use_channel(monkeypatch)
    run = make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    wsiad.heatmap(run=run, slides=["s.tif", "bad.svs"], out="out", quiet=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    one, failed = viewed_slides(tmp_path / "out")
    assert (one.file, failed.file) == (tmp_path / "s.tif", tmp_path / "bad.svs")
    pages = open_server(ViewConfig(results=tmp_path / "out", browser=False))
    try:
        assert json.loads(pages.pages.answer("slide/1/info").body)["problem"] == ""
    finally:
        pages.server_close()


def test_bad_input_is_named(made, tmp_path):
    with pytest.raises(InputError, match="does not hold results"):
        viewed_slides(tmp_path)
    with pytest.raises(InputError, match="holds no slides"):
        viewed_slides(made / "out", [tmp_path])
    with pytest.raises(InputError, match="holds no slides"):
        wsiad.view(results=made / "out", slides=tmp_path, browser=False)
    taken = open_server(ViewConfig(results=made / "out"))
    with pytest.raises(InputError, match=f"127.0.0.1:{taken.server_port}: cannot be used"):
        open_server(ViewConfig(results=made / "out", port=taken.server_port))
    taken.server_close()


def test_damage_is_told_and_the_server_goes_on(made, serve, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "out" / "plain" / "lesions.geojson").write_text("{")
    server = serve(tmp_path / "out")
    answer, body = ask(server, "slide/1/info")
    assert answer.status == 500
    assert b"lesions.geojson" in body
    get(server, "slide/2/info")


def test_few_slides_are_kept_open(made):
    zoom = DeepZoom()
    names = [made / "slides" / name for name in ("plain.tif", "gap.tif", "bounded.scn")]
    copies = []
    for number in range(4):
        for name in names:
            copies.append(made / f"copy{number}{name.suffix}-{name.stem}{name.suffix}")
            shutil.copy(name, copies[-1])
    for name in [*names, *copies]:
        assert zoom.tile(name, 0, 0, 0) is not None
    assert len(zoom._open) == 8
    assert zoom.tile(names[0], 0, 0, 0) is not None


def test_ctrl_c_ends_it_quietly(made):
    command = [sys.executable, "-m", "wsiad", "view", str(made / "out"), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    url = re.search(r"http://127\.0\.0\.1:([0-9]+)/([\w-]+)/", line)
    assert url, line
    connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=30)
    connection.request("GET", f"/{url[2]}/slides.json")
    assert connection.getresponse().status == 200
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there always is a screen")
@pytest.mark.parametrize("screen", [True, False])
def test_a_browser_is_started_where_there_is_a_screen(made, monkeypatch, capfd, screen):
    def interrupted(server):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setattr("wsiad.viewing.server.ViewServer.serve_forever", interrupted)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
    assert wsiad.view(results=made / "out").summary == ""
    said = capfd.readouterr().err
    assert re.search(r"Open http://127\.0\.0\.1:[0-9]+/[\w-]{22}/", said)
    assert ("open the address yourself" in said) == (not screen)
    assert len(opened) == screen
    opened.clear()
    wsiad.view(results=made / "out", browser=False)
    assert not opened


def test_openseadragon_comes_along_with_its_licence():
    import hashlib

    static = files("wsiad") / "viewing" / "static"
    notice = (static / "NOTICE").read_text()
    digest = hashlib.sha256((static / "openseadragon.min.js").read_bytes()).hexdigest()
    assert f"sha256 {digest}" in notice
    version = re.search(r"OpenSeadragon ([0-9.]+),", notice)[1]
    head = (static / "openseadragon.min.js").read_text(encoding="utf-8")[:200]
    assert f"openseadragon {version}" in head
    assert "Redistribution and use" in (static / "openseadragon.LICENSE.txt").read_text()


MATRIX = "document.querySelector('svg.shapes g').getAttribute('transform')"


def wait_for_pixels(browser):
    browser.wait("document.querySelectorAll('#slides button').length === 4")
    browser.wait("document.querySelectorAll('svg.shapes .region').length > 0")
    browser.wait(f"{MATRIX} !== null")
    browser.still()  # tiles fade in


def shot(browser, path):
    return np.asarray(Image.open(browser.screenshot(path)).convert("RGB")).astype(int)


def on_screen(browser, x, y):
    """Where a level-0 position lies in the window."""
    scale, _, _, _, left, top = map(float, re.findall(r"[-\d.e]+", browser.run(MATRIX)))
    box = browser.run(
        "(({x, y}) => [x, y])(document.querySelector('#viewer').getBoundingClientRect())"
    )
    return round(box[0] + left + x * scale), round(box[1] + top + y * scale)


@needs_browser
@pytest.mark.parametrize(("place", "corner"), [(1, (512, 320)), (2, (512, 256))])
def test_a_browser_lays_heatmap_and_outlines_over_the_right_place(
    serve, browser, tmp_path, place, corner
):
    browser.open(f"{serve().url}#{place}")
    wait_for_pixels(browser)
    assert not browser.run("document.querySelector('#message').textContent")
    x, y = on_screen(browser, corner[0] + 12, corner[1] + 12)
    with_heat = shot(browser, tmp_path / "a.png")
    for key in "hon":
        browser.press(key)
    browser.still()
    plain = shot(browser, tmp_path / "b.png")
    # The strange place is red in the slide itself, and the heatmap changes it there.
    assert plain[y, x, 0] > 180 > plain[y, x, 1] + 60
    assert np.abs(with_heat[y, x] - plain[y, x]).sum() > 60
    outside = on_screen(browser, corner[0] - 12, corner[1] + 12)[::-1]
    assert plain[outside][0] < 150
    edge = on_screen(browser, corner[0], corner[1] + 16)
    across = slice(edge[0] - 4, edge[0] + 5)
    assert with_heat[edge[1], across].sum(axis=1).min() < 150  # black line
    assert with_heat[edge[1], across].sum(axis=1).max() > 650  # on white
    browser.move(x, y)
    browser.wait("document.querySelector('#pointer').textContent.startsWith('score 2')")
    words = browser.run("document.querySelector('#pointer').textContent")
    told = [int(number) for number in re.findall(r"[xy] ([0-9]+)", words)]
    assert told == pytest.approx([corner[0] + 12, corner[1] + 12], abs=4)
    assert not browser.complaints


@pytest.fixture(scope="module")
def together(made, tmp_path_factory):
    """The same results, whose regions come from neighbourhoods."""
    results = tmp_path_factory.mktemp("together") / "out"
    shutil.copytree(made / "out", results)
    rng = np.random.default_rng(0)
    maps = [
        HealthyMap(f"h{i}", (130 * rng.random((14, 20))).astype(np.float32), (16.0, 16.0))
        for i in range(3)
    ]
    HealthyMaps(tuple(maps), SquareMicrons(256.0)).write(results / "healthy_maps.safetensors")
    wsiad.export(results=results, scales_um=[48], region_quantile=0.5, quiet=True)
    return results


def test_the_map_that_regions_come_from_is_shown(serve, together):
    server = serve(together)
    place = place_of(server, "plain")
    listed = json.loads(get(server, "slides.json"))["slides"][place - 1]
    assert listed["rankedBy"] == "scan"
    info = json.loads(get(server, f"slide/{place}/info"))
    assert info["neighbourhoods"]["rectangle"] == info["heatmap"]["rectangle"]
    assert info["neighbourhoods"]["scale"] != info["heatmap"]["scale"]
    picture = get(server, f"slide/{place}/neighbourhoods")
    assert picture == (together / "plain" / "spatial.png").read_bytes()
    values = tifffile.imread(together / "plain" / "spatial.ome.tif")
    assert listed["score"] == pytest.approx(float(np.nanmax(values)), rel=1e-6)
    got = np.frombuffer(get(server, f"slide/{place}/neighbourhoodscores"), "<f4")
    np.testing.assert_array_equal(got.reshape(values.shape), values)


def test_without_neighbourhoods_there_is_no_map_of_them(serve):
    server = serve()
    place = place_of(server, "plain")
    assert json.loads(get(server, f"slide/{place}/info"))["neighbourhoods"] is None
    for name in ("neighbourhoods", "neighbourhoodscores"):
        assert ask(server, f"slide/{place}/{name}")[0].status == 404


@needs_browser
def test_a_browser_shows_neighbourhoods_and_by_a_key_single_windows(
    serve, together, browser, tmp_path
):
    server = serve(together)
    browser.open(f"{server.url}#{place_of(server, 'plain')}")
    wait_for_pixels(browser)
    assert not browser.run("document.querySelector('#nearby').hidden")
    x, y = on_screen(browser, 512 + 12, 320 + 12)
    words = "document.querySelector('#pointer').textContent"
    browser.move(x, y)
    browser.wait(f"{words}.includes('standard deviations')")
    assert "neighbourhoods" in browser.run("document.querySelector('#legend').textContent")
    labels = browser.run(
        "[...document.querySelectorAll('#legend text')].map((one) => {"
        " const box = one.getBoundingClientRect();"
        " return [one.textContent, box.left, box.right, Math.round(box.top)]; })"
    )
    assert len(labels) >= 4
    assert not [text for text, *_ in labels if "-" in text]
    for (_, _, end, top), (_, start, _, below) in itertools.pairwise(labels):
        assert top != below or end < start  # neighbours in a row do not touch
    near = shot(browser, tmp_path / "near.png")
    browser.press("m")
    browser.wait(f"{words}.startsWith('score 2')")  # the pointer has not moved
    browser.still()
    assert "windows" in browser.run("document.querySelector('#legend').textContent")
    alone = shot(browser, tmp_path / "alone.png")
    assert np.abs(near[y, x] - alone[y, x]).sum() > 60  # colours of two maps
    browser.press("m")
    browser.wait(f"{words}.includes('standard deviations')")
    assert not browser.complaints


@needs_browser
@pytest.mark.slow
def test_a_browser_opens_slides_and_regions_by_keyboard(serve, browser):
    browser.open(serve().url)
    wait_for_pixels(browser)
    before = browser.run(MATRIX)
    length = browser.run("document.querySelector('#length').textContent")
    browser.run("document.querySelector('#regions button').focus()")
    browser.press("Enter")
    browser.wait(f"{MATRIX} !== {json.dumps(before)}")
    browser.still()
    scale = float(re.findall(r"[-\d.e]+", browser.run(MATRIX))[0])
    bar = browser.run("document.querySelector('#bar').getBoundingClientRect().width")
    shown = browser.run("document.querySelector('#length').textContent")
    assert shown != length
    assert bar * 0.5 / scale == pytest.approx(float(shown.removesuffix(" µm")), rel=0.05)
    assert browser.run("document.querySelectorAll('.region.chosen').length") == 1
    browser.run("document.querySelector('.openseadragon-canvas').focus()")
    zoomed = browser.run(MATRIX)
    browser.press("r")  # elsewhere this turns the picture, and would leave the outlines behind
    browser.still()
    assert browser.run(MATRIX) == zoomed
    browser.press("ArrowDown")
    browser.wait(f"{MATRIX} !== {json.dumps(zoomed)}")
    browser.press("0")
    browser.still()
    assert float(re.findall(r"[-\d.e]+", browser.run(MATRIX))[0]) < scale / 2
    browser.run("document.querySelector('#slides li:nth-child(3) button').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('#name').textContent === 'gap'")
    assert browser.run("document.querySelectorAll('svg.shapes .gap').length") == 1
    browser.press("n")
    assert browser.run("document.querySelector('svg.shapes .gap').hasAttribute('hidden')")
    assert browser.run("document.querySelector('#slides li:nth-child(4) button').disabled")
    browser.run("document.querySelector('#filter').focus()")
    browser.write("PLAIN")
    assert (
        browser.run("[...document.querySelectorAll('#slides li')].filter(i => !i.hidden).length")
        == 1
    )
    assert not browser.complaints


@needs_browser
def test_without_the_slide_its_picture_is_shown_with_the_heatmap_over_it(
    made, serve, browser, tmp_path
):
    shutil.copytree(made / "out", tmp_path / "out")
    table = tmp_path / "out" / "slides.csv"
    table.write_text(table.read_text().replace(str(made / "slides"), "/nowhere"))
    browser.open(f"{serve(tmp_path / 'out').url}#2")  # the one with bounds
    wait_for_pixels(browser)
    assert "is not at /nowhere" in browser.run("document.querySelector('#message').textContent")
    browser.press("h")
    browser.press("o")
    browser.still()
    pixels = shot(browser, tmp_path / "a.png")
    x, y = on_screen(browser, 512 + 32, 256 + 32)
    assert pixels[y, x, 0] > pixels[y, x, 1] + 60  # the strange place of the small picture
    assert not browser.complaints


def outlines(folder, name, *rings, group="Tumor"):
    """A folder with the outlines of a slide, level-0 pixels."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {"objectType": "annotation", "classification": {"name": group}},
        }
        for ring in rings
    ]
    folder.mkdir(exist_ok=True)
    values = {"type": "FeatureCollection", "wsiad": {"origin": [0, 0]}, "features": features}
    (folder / f"{name}.geojson").write_text(json.dumps(values))
    return folder


def test_ground_truth_is_told_where_there_is_some(serve, tmp_path):
    square = [[500, 300], [660, 300], [660, 400], [500, 400]]
    folder = outlines(tmp_path / "truth", "plain", square)
    (folder / "gap.geojson").write_text("{")
    server = serve(annotations=folder)
    told = {
        name: json.loads(get(server, f"slide/{place_of(server, name)}/info"))["truth"]
        for name in ("plain", "bounded", "gap")
    }
    named = "ground truth: plain.geojson"
    assert told["plain"] == {"told": named, "problem": "", "rings": [square]}
    none = "no outlines of this slide in truth"  # not: no tumour
    assert told["bounded"] == {"told": none, "problem": "", "rings": []}
    assert "cannot be read" in told["gap"]["problem"]
    assert json.loads(get(serve(), "slide/1/info"))["truth"] is None
    with pytest.raises(InputError, match="is no folder of outlines"):
        serve(annotations=tmp_path / "nowhere")


@needs_browser
def test_a_browser_draws_truth_and_an_overview_and_opens_a_slide_by_name(serve, browser, tmp_path):
    square = [[400, 200], [720, 200], [720, 500], [400, 500]]
    server = serve(annotations=outlines(tmp_path / "truth", "plain", square))
    for width in (800, 1920):
        browser.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=700, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        browser.open("about:blank")
        browser.open(f"{server.url}#plain")
        wait_for_pixels(browser)
        assert browser.run("document.querySelector('#name').textContent") == "plain"
        x, y = on_screen(browser, 400, 350)
        line = shot(browser, tmp_path / f"{width}.png")[y - 20 : y + 20, x - 3 : x + 4]
        assert ((line[..., 1] > line[..., 0] + 60) & (line[..., 1] > line[..., 2] + 20)).any()
        # Nothing is beside the window, and the buttons of a review are in it.
        assert browser.run("document.documentElement.scrollWidth") == width
        for button in ("accept", "reject", "undo"):
            edges = f"document.querySelector('#{button}').getBoundingClientRect()"
            inside = "document.querySelector('#review').getBoundingClientRect().right"
            assert browser.run(f"{edges}.right <= {inside}")
        shape = (
            "(({clientWidth: w, clientHeight: h}) => [w, h])(document.querySelector('.navigator'))"
        )
        across, down = browser.run(shape)
        assert across / down == pytest.approx(900 / 700, rel=0.03)  # the slide's, at any width
        assert across > 130
        overview = "document.querySelector('.navigator').checkVisibility()"
        assert browser.run(overview)
        browser.press("v")
        browser.press("t")
        assert not browser.run(overview)
        browser.still()
        line = shot(browser, tmp_path / f"{width}.png")[y - 20 : y + 20, x - 3 : x + 4]
        assert not ((line[..., 1] > line[..., 0] + 60) & (line[..., 1] > line[..., 2] + 20)).any()
    browser.run("location.hash = '#bounded'")
    browser.wait("document.querySelector('#name').textContent === 'bounded'")
    assert "no outlines of this slide" in browser.run(
        "document.querySelector('#facts').textContent"
    )
    assert not browser.complaints
