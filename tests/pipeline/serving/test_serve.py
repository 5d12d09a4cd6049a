"""A server as programs and persons use it: its answers, what it refuses, what it counts, its page, and how it ends."""

from __future__ import annotations

import io
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.server import Server
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.upscalers import BicubicUpscaler, Upscaler
from pipeline.upscaling.images import decode_image, enlarge_image
from tests.conftest import ROOT
from tests.pipeline.serving.inputs import PHOTO, as_file, begin, bomb, eventually, write_model

PLACES = 4 + 2
"""Requests that a server with one replica and a queue of 2 takes at the same time."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def place(model: Path) -> Iterator[str]:
    """Host, port and path of a web server that has the model."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=model.parent)) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{web.server_port}/{model.name}"
        web.shutdown()


@pytest.fixture(scope="module")
def server(model: Path, place: str) -> Iterator[Server]:
    """A server with narrow limits, which all tests of this module share."""
    limits = ("--queue=2", "--max-mb=0.1", "--max-megapixels=0.5")
    log = model.parent / "log"
    started = Server.start(f"http://user:secret@{place}", log, "--replicas=1", "--device=cpu", *limits)
    yield started
    started.kill()


def test_the_answer_has_the_pixels_of_the_python_interface(server: Server, model: Path) -> None:
    upscalers: dict[str, Upscaler] = {
        "model": load_upscaler(find_model(str(model)), device="cpu"),
        "bicubic": BicubicUpscaler(4),
    }
    grey, opacity = PHOTO[:, :, 1], np.full(PHOTO.shape[:2], 77, np.uint8)
    for image in (PHOTO, grey, np.dstack([PHOTO, opacity]), grey.astype(np.uint16) * 257):
        content = as_file(image)
        for method, upscaler in upscalers.items():
            answer = server.upscale(content, method=method)
            assert answer.status_code == 200, answer.text
            got, expected = (
                decode_image(answer.content, 10**6),
                enlarge_image(upscaler, decode_image(content, 10**6)),
            )
            assert got.pixels.dtype == expected.pixels.dtype == image.dtype
            assert got.pixels.shape == expected.pixels.shape
            one = np.iinfo(image.dtype).max // 255  # threads may round a sum otherwise
            assert np.abs(got.pixels.astype(int) - expected.pixels).max() <= one
            assert (got.alpha is None) == (expected.alpha is None)


def test_an_image_comes_as_body_or_form_and_leaves_in_any_format(server: Server) -> None:
    content = as_file(PHOTO)
    for form in ("jpeg", "webp", "avif", "tiff"):
        answer = server.upscale(content, format=form, quality="80")
        assert answer.headers["content-type"] == f"image/{form}"
        assert re.fullmatch(r"total;dur=\d+", answer.headers["server-timing"])
        with Image.open(io.BytesIO(answer.content)) as opened:
            assert opened.format == form.upper()
            assert opened.size == (416, 320)
    finer, coarser = (len(server.upscale(content, format="jpeg", quality=quality).content) for quality in ("95", "30"))
    assert finer > 1.5 * coarser
    url = f"{server.url}/v1/upscale"
    files = [("other", ("other", b"x")), ("image", ("a.png", content))]
    form_answer = requests.post(url, files=files, timeout=60)
    assert form_answer.content == server.upscale(content).content

    def in_parts() -> Iterator[bytes]:
        yield from (content[:100], content[100:])

    assert requests.post(url, data=in_parts(), timeout=60).content == form_answer.content


@pytest.mark.parametrize(
    ("content", "parameters", "status", "sentence"),
    [
        (b"", {}, 400, "the request has no image, expected the bytes of an image file"),
        (as_file(PHOTO)[:2000], {}, 400, "the image "),
        (b"GIF is not here", {}, 415, "the image is no image of a known format"),
        (b"x" * 200_000, {}, 413, "the file is too large, expected at most 0.1 MB"),
        (as_file(np.zeros((200, 200), np.uint8)), {}, 413, "expected at most 0.5 megapixels after it is enlarged"),
        (bomb(), {}, 413, "expected at most 0.5 megapixels"),
        (as_file(PHOTO), {"format": "psd"}, 422, "the parameter format is psd: "),
        (as_file(PHOTO), {"quality": "0"}, 422, "the parameter quality is 0: "),
        (as_file(PHOTO), {"method": "magic"}, 422, "the parameter method is magic: "),
    ],
    ids=["empty", "cut off", "no image", "many bytes", "many pixels", "bomb", "format", "quality", "method"],
)
def test_what_cannot_be_upscaled_is_refused_in_a_sentence(
    server: Server, content: bytes, parameters: dict[str, str], status: int, sentence: str
) -> None:
    answer = server.upscale(content, **parameters)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert sentence in answer.json()["error"]


def test_other_mistakes_are_refused_in_a_sentence(server: Server) -> None:
    url = f"{server.url}/v1/upscale"
    text = requests.post(url, data=b"x", headers={"Content-Type": "text/html"}, timeout=60)
    assert (text.status_code, text.json()["error"][:28]) == (415, "the content type is text/htm")
    for body in (b"", b"--b\r\nno header", b"--b\r\nContent-Disposition: form-data; name=image\r\n\r\nx\r\n--b--\r\n"):
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        assert requests.post(url, data=body, headers=form, timeout=60).status_code == 400
    large = requests.post(url, files={"image": b"x" * 150_000}, timeout=60)
    assert large.status_code == 413
    unknown = requests.get(f"{server.url}/nothing", timeout=60)
    assert unknown.status_code == 404
    assert unknown.json()["error"].startswith("GET /nothing is not answered here")
    get = requests.get(url, timeout=60)
    assert (get.status_code, get.headers["allow"]) == (405, "POST")


def test_every_answer_protects_browsers(server: Server) -> None:
    forbidden = 'sr_requests_total{status="403"}'
    before = server.count(forbidden)
    answers = [
        *(requests.get(f"{server.url}{path}", timeout=60) for path in ("/", "/page.js", "/metrics", "/nothing")),
        server.upscale(b""),
        requests.get(server.url, headers={"Host": "evil.example"}, timeout=60),
        *(
            requests.post(f"{server.url}/v1/upscale", headers=headers, timeout=60)
            for headers in (
                {"Sec-Fetch-Site": "cross-site", "Origin": server.url},
                {"Origin": "http://evil.example"},
                {"Origin": "null"},
                {"Origin": server.url},
            )
        ),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 400, 403, 403, 403, 403, 400]
    assert server.count(forbidden) == before + 3


def test_an_address_does_not_change_the_page(server: Server) -> None:
    for path in ("/", "/page.js", "/page.css"):
        plain = requests.get(server.url + path, timeout=60)
        asked = requests.get(
            server.url + path, params={"content": "alert(1)", "answer": "x", "media_type": "x"}, timeout=60
        )
        assert plain.content == asked.content
        assert plain.headers["content-type"] == asked.headers["content-type"]


def test_the_schema_names_every_answer(server: Server, place: str) -> None:
    schema = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    assert {"/v1/upscale", "/v1/model", "/healthz", "/metrics"} == set(schema["paths"])
    upscale = schema["paths"]["/v1/upscale"]["post"]
    assert {"200", "400", "403", "408", "413", "415", "422", "500", "503"} == set(upscale["responses"])
    assert {one["name"] for one in upscale["parameters"]} == {"format", "quality", "method"}
    assert "image/*" in upscale["requestBody"]["content"]
    about = requests.get(f"{server.url}/v1/model", timeout=60).json()
    assert (about["scale"], about["device"], about["max_megabytes"]) == (4, "cpu", 0.1)
    assert about["model"] == f"http://{place}"
    assert requests.get(f"{server.url}/healthz", timeout=60).json() == {"status": "ok", "replicas": 1}


def test_a_full_queue_is_answered_with_503_and_those_inside_are_served(server: Server) -> None:
    content = as_file(PHOTO)
    refused = 'sr_requests_total{status="503"}'
    before = server.count(refused)
    with ExitStack() as stack:
        inside = [stack.enter_context(begin(server, content)) for _ in range(PLACES)]
        assert eventually(lambda: server.count("sr_requests_inside") == PLACES)
        answer = server.upscale(content)
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"].startswith("the server is busy")
        for connection in inside:
            connection.sendall(content)
        assert [connection.recv(12) for connection in inside] == [b"HTTP/1.1 200"] * PLACES
    assert server.upscale(content).status_code == 200
    assert server.count(refused) == before + 1


def test_a_client_that_goes_away_leaves_no_trace(server: Server) -> None:
    content = as_file(PHOTO)
    gone = 'sr_requests_total{status="499"}'
    before = server.count(gone)
    begin(server, content).close()
    assert eventually(lambda: server.count(gone) == before + 1)
    assert server.count("sr_requests_inside") == 0


@pytest.mark.parametrize("reads", [True, False], ids=["reads late", "goes away"])
def test_a_request_keeps_its_place_until_its_image_is_sent(server: Server, reads: bool) -> None:
    noise = as_file(np.random.default_rng(0).integers(0, 256, (170, 170, 3), np.uint8))
    before = server.count("sr_request_seconds_count")
    address = urlsplit(server.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # buffers of the system hold a few of these
        connection.settimeout(60)
        connection.connect((address.hostname, address.port))
        head = f"Host: {address.netloc}\r\nContent-Length: {len(noise)}\r\nConnection: close\r\n\r\n"
        connection.sendall(f"POST /v1/upscale?method=bicubic HTTP/1.1\r\n{head}".encode() + noise)
        assert eventually(lambda: server.count("sr_request_seconds_count") == before + 1)
        assert server.count("sr_requests_inside") == 1
        if reads:
            answer = b"".join(iter(lambda: connection.recv(2**16), b""))
            assert answer.partition(b"\r\n\r\n")[2] == server.upscale(noise, method="bicubic").content
    assert eventually(lambda: server.count("sr_requests_inside") == 0)


def test_what_is_counted_is_what_was_done(server: Server) -> None:
    names = ('sr_requests_total{status="200"}', "sr_output_pixels_total", "sr_request_seconds_count")
    before = [server.count(name) for name in names]
    for _ in range(3):
        server.upscale(as_file(PHOTO))
    after = [server.count(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3 * 416 * 320, 3]
    assert server.count("sr_replicas") == 1


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    """The server's page in a headless browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser: install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        opened = started.new_page(viewport={"width": 1100, "height": 800})
        opened.set_default_timeout(30_000)
        opened.goto(server.url)
        yield opened
        started.close()


def boundary(page: Page) -> float:
    """Return the left edge of what is visible of the model's image, as a share of its width."""
    left, width = page.locator("#stage").evaluate(
        "stage => [getComputedStyle(stage, '::after').left, stage.getBoundingClientRect().width]"
    )
    return float(left.removesuffix("px")) / float(width)


def test_a_person_compares_zooms_and_downloads(page: Page, server: Server) -> None:
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    content = as_file(PHOTO)
    page.get_by_label("Choose an image").set_input_files(
        {"name": "a b.png", "mimeType": "image/png", "buffer": content}
    )
    expect(page.get_by_role("region", name="Result")).to_be_visible()
    for image in ("#before", "#after"):
        assert page.locator(image).evaluate("image => [image.naturalWidth, image.naturalHeight]") == [416, 320]
    facts = page.locator("#facts").inner_text()
    assert "104 x 80 pixels" in facts
    assert "416 x 320 pixels" in facts
    assert re.search(r"\d\.\d\d s", facts)

    slider = page.get_by_label("Boundary between bicubic and the model")
    slider.press("Home")
    assert boundary(page) == 0
    slider.press("End")
    assert boundary(page) == pytest.approx(1, abs=0.01)
    box = page.locator("#stage").bounding_box()
    assert box
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    page.mouse.up()
    assert boundary(page) == pytest.approx(0.25, abs=0.02)

    page.get_by_role("button", name="8x").click()
    assert page.locator("#after").evaluate("image => image.getBoundingClientRect().width") == 8 * 416
    assert page.locator("#after").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    view = page.locator("#view")
    assert view.evaluate("view => view.scrollLeft + view.clientWidth / 2") == pytest.approx(4 * 416, abs=2)

    with page.expect_download() as saving:
        page.get_by_role("link", name="Download").click()
    assert saving.value.suggested_filename == "a b-x4.png"
    assert saving.value.path().read_bytes() == server.upscale(content).content
    page.get_by_label("Format").select_option("webp")
    expect(page.locator("#size")).to_contain_text("WEBP")
    assert not faults
    assert {url.split("/v1")[0].rstrip("/") for url in asked if not url.startswith("blob:")} == {server.url}


def test_the_page_says_what_is_wrong_and_takes_dropped_images(page: Page) -> None:
    page.get_by_label("Choose an image").set_input_files(
        {"name": "notes.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    expect(page.get_by_role("alert")).to_contain_text("The image is no image of a known format")
    page.evaluate(
        """bytes => {
          const dropped = new DataTransfer();
          dropped.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
        }""",
        list(as_file(PHOTO[:40, :60])),
    )
    expect(page.locator("#upscaled")).to_have_text("240 x 160 pixels")
    expect(page.locator("#error")).to_be_empty()


def test_markup_in_a_file_name_is_text_and_the_policy_stops_other_scripts(page: Page) -> None:
    name = "<img src=x onerror='window.planted = 1'>.png"
    content = as_file(PHOTO[:40, :50])
    page.get_by_label("Choose an image").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
    expect(page.locator("#upscaled")).to_have_text("200 x 160 pixels")
    suggested = page.locator("#download").get_attribute("download")
    assert suggested
    assert suggested.startswith(f"{name.removesuffix('.png')}-x4.")
    blocked = page.evaluate(
        """async () => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", event => blocked.push(event.effectiveDirective));
          document.body.insertAdjacentHTML("beforeend", "<b onclick='window.planted = 1' style='color: red'>x</b>");
          document.body.lastChild.click();
          const script = document.createElement("script");
          script.textContent = "window.planted = 1";
          document.body.append(script);
          await fetch("http://127.0.0.1:1/").catch(() => 0);
          await new Promise(done => setTimeout(done, 100));
          return blocked.toSorted();
        }"""
    )
    assert blocked == ["connect-src", "script-src-attr", "script-src-elem", "style-src-attr"]
    assert page.evaluate("window.planted") is None


def test_two_images_are_never_compared(page: Page) -> None:
    def choose(width: int) -> None:
        content = as_file(PHOTO[:40, :width])
        page.get_by_label("Choose an image").set_input_files(
            {"name": f"{width}.png", "mimeType": "image/png", "buffer": content}
        )

    choose(60)
    expect(page.locator("#upscaled")).to_have_text("240 x 160 pixels")
    page.route("**/v1/upscale?*", lambda route: route.fulfill(status=503, json={"error": "the server is busy"}))
    choose(50)
    expect(page.get_by_role("alert")).to_have_text("The server is busy.")
    expect(page.locator("#upscaled")).to_have_text("240 x 160 pixels")
    page.unroute("**/v1/upscale?*")
    page.get_by_label("Format").select_option("png")
    page.get_by_label("Format").select_option("jpeg")
    expect(page.locator("#upscaled")).to_have_text("200 x 160 pixels")
    for image in ("#before", "#after"):
        assert page.locator(image).evaluate("image => image.naturalWidth") == 200


def test_the_examples_of_the_guide_work(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs" / "guides" / "serving.md").read_text().replace("http://127.0.0.1:8000", server.url)
    Path("photo.jpg").write_bytes(as_file(PHOTO, "JPEG"))
    curl = next(block for block in re.findall(r"```\n(.*?)```", guide, re.S) if block.startswith("curl"))
    (python,) = re.findall(r"```python\n(.*?)```", guide, re.S)
    exec(compile(python, "serving.md", "exec"), {})
    assert Image.open("photo-x4.webp").size == (416, 320)
    if shutil.which("curl"):
        subprocess.run(["sh", "-ec", curl], check=True, capture_output=True)
        assert Image.open("photo-x4.png").size == Image.open("photo-x4.jpg").size == (416, 320)


def test_only_loopback_is_open_and_no_open_file_grows(server: Server) -> None:
    port = urlsplit(server.url).port
    main = psutil.Process(server.process.pid)
    listening = [one.laddr for one in main.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]
    held = {Path(one.path) for process in (main, *server.replicas()) for one in process.open_files()}
    sizes = {file: file.stat().st_size for file in held if not file.name.startswith("python-core-")}
    for _ in range(3):
        server.upscale(as_file(PHOTO))
    assert {file: file.stat().st_size for file in sizes} == sizes


def test_ctrl_c_ends_everything(server: Server) -> None:
    """This is the last test, because the others use the server."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert server.interrupt() == 130
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert gone
    assert not alive
    assert "Traceback" not in server.log.read_text()
