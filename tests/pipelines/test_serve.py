"""The scoring service as a person starts it: scores, refusals, many clients at once, its page in a real browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dri_iqa import load_model
from pipelines.runtime.cluster import free_port
from tests import uploads
from tests.browser import Browser
from tests.pipelines import jobs

pytestmark = pytest.mark.ray
LIMIT = 300_000
"""Largest body of the service here, in bytes."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uploads.untrained(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: str) -> dict[str, dict[str, Any]]:
    """What `load_model(...).score` says of the good pictures, with as many threads as a replica has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = load_model(bundle, device="cpu").score(list(uploads.GOOD.values()))
    finally:
        torch.set_num_threads(threads)
    return dict(zip(uploads.GOOD, table.to_dict("records"), strict=True))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def server(bundle: str, log: Path) -> Iterator[str]:
    """`python pipelines/serve.py` until it is told to end; then nothing of it is left."""
    port = free_port()
    command = [sys.executable, str(jobs.ROOT / "pipelines" / "serve.py"), "cluster=local"]
    command += [f"serve.model={bundle}", f"serve.port={port}", f"output={log.parent / 'runs'}"]
    command += [f"serve.max_body_mb={LIMIT / 1e6}", "serve.queued=8"]
    command += ["serve.batch=4", "serve.ongoing=4"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=log.parent, env=jobs.environment()
        )
    deadline = time.monotonic() + 300
    while " is ready" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    others = psutil.Process(process.pid).children(recursive=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
        assert jobs.end_by_themselves(others)


def post(address: str, body: bytes, kind: str = "application/octet-stream") -> tuple[int, Any]:
    request = urllib.request.Request(address, body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            data, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        with error:
            data, status = error.read(), error.code
    return status, json.loads(data) if data.startswith(b"{") else data.decode()


def form(name: str, content: bytes) -> tuple[bytes, str]:
    head = f'--XX\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--XX--\r\n", "multipart/form-data; boundary=XX"


@pytest.mark.parametrize("kind", uploads.GOOD)
def test_scores_are_those_of_the_command_line_bit_for_bit(
    server: str, expected: dict[str, dict[str, Any]], kind: str
) -> None:
    status, answer = post(f"{server}/score", uploads.GOOD[kind])
    assert status == 200, answer
    assert answer["score"] == expected[kind]["score"]
    assert answer["std"] == expected[kind]["std"]
    assert answer["error"] is None
    assert answer["scale"]["name"] == "MOS"
    assert answer["scale"]["higher_is_better"] is True
    assert "maps" not in answer


def test_a_form_names_its_picture_and_maps_are_pictures(
    server: str, expected: dict[str, dict[str, Any]]
) -> None:
    body = form("C:\\photos\\one.jpg", uploads.GOOD["JPEG"])
    status, answer = post(f"{server}/score?maps=1&crops=9", *body)
    assert status == 200, answer
    assert answer["image"] == "one.jpg"
    assert answer["crops"] == "random9"
    assert answer["score"] != expected["JPEG"]["score"]
    for half in ("degradation", "quality"):
        picture = Image.open(io.BytesIO(base64.b64decode(answer["maps"][half])))
        assert (picture.format, picture.mode) == ("PNG", "L")
        assert np.asarray(picture).max() == 255


@pytest.mark.parametrize("route", ["score", "explain"])
@pytest.mark.parametrize("kind", uploads.BAD)
def test_what_is_no_picture_is_refused_with_the_reason(server: str, kind: str, route: str) -> None:
    content, begins = uploads.BAD[kind]
    status, answer = post(f"{server}/{route}", content)
    assert status == 400
    assert list(answer) == ["error"]
    assert answer["error"].startswith(begins)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("crops=some", 400, "expected a number"),
        ("crops=101", 400, "at most 100"),
        ("crops=whole", 400, "not served"),
        ("maps=banana", 422, "maps"),
    ],
)
def test_settings_that_cannot_be(server: str, query: str, status: int, words: str) -> None:
    found, answer = post(f"{server}/score?{query}", uploads.GOOD["JPEG"])
    assert found == status
    assert words in answer["error"]


def test_forms_without_a_picture_and_addresses_without_an_answer(server: str) -> None:
    no_file = b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--XX--\r\n'
    kind = "multipart/form-data; boundary=XX"
    for body, words in ((no_file, "no file"), (b"no form at all", "")):
        status, answer = post(f"{server}/score", body, kind)
        assert status == 400
        assert words in answer["error"]
    assert post(f"{server}/nowhere", b"") == (404, {"error": "Not Found"})
    assert post(f"{server}/health", b"") == (405, {"error": "Method Not Allowed"})


@pytest.mark.parametrize("length", ["stated", "not stated"])
def test_a_body_over_the_limit_is_refused_before_its_end(server: str, length: str) -> None:
    host = server.removeprefix("http://")
    with socket.create_connection(host.split(":"), timeout=60) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: {host}\r\n"
        if length == "stated":
            connection.sendall(f"{head}Content-Length: 50000000000\r\n\r\n".encode())
        else:
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
            for _ in range(LIMIT // 0x10000 + 1):
                connection.sendall(chunk)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert json.loads(answer.read()) == {"error": "the body is larger than 0.3 MB"}


def test_health_says_which_model_answers(server: str, bundle: str) -> None:
    with urllib.request.urlopen(f"{server}/health", timeout=60) as answer:
        health = json.loads(answer.read())
    model = load_model(bundle, device="cpu")
    assert health["ready"] is True
    assert health["digest"] == model.bundle.digest
    assert health["model"] == model.name


def test_eight_clients_get_their_own_answers(
    server: str, expected: dict[str, dict[str, Any]]
) -> None:
    until = time.monotonic() + 3

    def client(number: int) -> int:
        answered, kinds = 0, list(uploads.GOOD)
        while time.monotonic() < until:
            kind = kinds[(number + answered) % len(kinds)]
            status, answer = post(f"{server}/score", uploads.GOOD[kind])
            assert (status, answer["score"]) == (200, expected[kind]["score"])
            answered += 1
        return answered

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(client, range(8))) > 0


def test_beyond_the_queue_clients_are_told_to_come_back(server: str) -> None:
    def client(_: int) -> int:
        return post(f"{server}/score?crops=60", uploads.GOOD["PNG"])[0]

    with ThreadPoolExecutor(30) as pool:
        statuses = list(pool.map(client, range(30)))
    assert set(statuses) == {200, 503}
    assert post(f"{server}/score", uploads.GOOD["PNG"])[0] == 200, "and it goes on"


def test_counters_reach_rays_own_metrics(server: str, log: Path) -> None:
    post(f"{server}/score", b"")
    address = log.read_text().partition("metrics on ")[2].split()[0]
    wanted = {"ray_dri_iqa_requests_total", "ray_dri_iqa_seconds_bucket"}
    wanted.add("ray_serve_num_http_requests_total")
    deadline = time.monotonic() + 60
    while True:
        text = urllib.request.urlopen(address, timeout=60).read().decode()
        names = {line.partition("{")[0] for line in text.splitlines()}
        if wanted <= names and 'kind="empty"' in text:  # each process sends its own when it likes
            break
        assert time.monotonic() < deadline, wanted - names
        time.sleep(0.5)


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(
    server: str,
    expected: dict[str, dict[str, Any]],
    browser: Browser,
    tmp_path: Path,
    width: int,
) -> None:
    picture, text = tmp_path / "a <b>.jpg", tmp_path / "text.jpg"
    picture.write_bytes(uploads.GOOD["JPEG"])
    text.write_bytes(uploads.BAD["text"][0])
    with browser.online() as driver:
        assert browser.look(f"{server}/", width).console == []
        file, said = (driver.find_element("id", name) for name in ("file", "said"))
        file.send_keys(str(picture))
        browser.until("return document.querySelectorAll('#result section').length === 5")
        look = browser.look(None, width)
        assert look.title == "Picture quality"
        assert look.console == []
        assert look.sideways == 0
        assert [section["heading"] for section in look.sections] == [
            *("Crops", "Spread", "Maps", "Degradations seen", "Model")
        ]
        assert all(section["visible"] for section in look.sections), look.sections
        assert len(look.images) == 3
        assert all(image["whole"] for image in look.images)
        assert all(name.startswith(server) for name in look.requests)
        words = driver.find_element("id", "result").text
        assert "a <b>.jpg" in words
        assert f"{expected['JPEG']['score']:.3f}" in words
        assert "Higher is better" in words
        assert "is right for" in words, "the probe's accuracy is stated"
        assert not said.text
        file.send_keys(str(text))
        browser.until("return document.getElementById('said').classList.contains('failed')")
        assert said.text == "text.jpg cannot be scored: not an image."
        assert not driver.find_element("id", "result").text
        driver.get_log("browser")  # the refusal is in it
