"""Today's clouds: the address, and a service that answers well, badly, late or not at all."""

import datetime
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cloudlearn import cli, worldview
from cloudlearn.worldview import fetch_snapshot, snapshot_address, snapshot_size

DAY = datetime.date(2018, 7, 1)
BOX = (-61.0, 10.0, -40.0, 24.0)


def jpeg(height, width, shade=90):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def service(monkeypatch):
    "A server on this machine in NASA's place; what it shall answer, and what it was asked."
    told = {"status": 200, "content": None, "asked": []}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            told["asked"].append(asked)
            content = told["content"]
            if content is None:
                content = jpeg(int(asked["HEIGHT"]), int(asked["WIDTH"]))
            self.send_response(told["status"])
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/snapshot"
    monkeypatch.setattr(worldview, "SERVICE", address)
    monkeypatch.setattr(snapshot_address, "__defaults__", (None, address))
    yield told
    server.shutdown()
    server.server_close()


def test_the_question_has_latitude_first(service, tmp_path):
    path = fetch_snapshot(DAY, BOX, tmp_path / "new" / "clouds.jpg", size=(140, 210))
    with Image.open(path) as picture:
        assert picture.size == (210, 140) and picture.format == "JPEG"
    (asked,) = service["asked"]
    assert [float(number) for number in asked["BBOX"].split(",")] == [10, -61, 24, -40]
    assert asked["TIME"] == "2018-07-01" and asked["CRS"] == "EPSG:4326"
    assert asked["LAYERS"] == "MODIS_Terra_CorrectedReflectance_TrueColor"
    assert (asked["HEIGHT"], asked["WIDTH"]) == ("140", "210")


def test_a_hundred_pixels_a_degree_as_in_the_competition():
    assert snapshot_size(BOX) == (1400, 2100)
    assert "WIDTH=2100&HEIGHT=1400" in snapshot_address(DAY, BOX)


@pytest.mark.parametrize(
    "status, content, said",
    [
        (200, b"<ServiceException>no such day", "sent no picture but '<ServiceException>no such"),
        (200, jpeg(14, 21)[:300], "sent no picture but"),
        (200, b"", "sent no picture but ''"),
        (200, jpeg(14, 21, shade=0), "it is black"),
        (503, b"busy", "answers 503"),
        (404, b"gone", "answers 404"),
    ],
)
def test_a_bad_answer_leaves_a_sentence_and_no_file(service, tmp_path, status, content, said):
    service.update(status=status, content=content)
    with pytest.raises(OSError, match=said):
        fetch_snapshot(DAY, BOX, tmp_path / "clouds.jpg", size=(14, 21))
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(monkeypatch, tmp_path):
    monkeypatch.setattr(snapshot_address, "__defaults__", (None, "http://127.0.0.1:9/snapshot"))
    with pytest.raises(OSError, match="cannot be reached"):
        fetch_snapshot(DAY, BOX, tmp_path / "clouds.jpg", timeout=2)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_without_end_is_cut_off(service, monkeypatch, tmp_path):
    monkeypatch.setattr(worldview, "LIMIT", 1000)
    service["content"] = b"x" * 2000
    with pytest.raises(OSError, match="take a smaller box"):
        fetch_snapshot(DAY, BOX, tmp_path / "clouds.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "box",
    [(-40, 10, -61, 24), (-61, 24, -40, 10), (-181, 0, 0, 1), (0, 0, 1, 91), (np.nan, 0, 1, 1)],
)
def test_no_such_box(box):
    with pytest.raises(ValueError, match="--box .*west, south, east and north are meant"):
        snapshot_address(DAY, box)


@pytest.mark.parametrize("day", [datetime.date(1999, 1, 1), datetime.date(2999, 1, 1)])
def test_no_such_day(day):
    with pytest.raises(ValueError, match="from 2000-02-24 until today"):
        snapshot_address(day, BOX)


def test_a_file_that_is_there_is_left_alone(service, tmp_path):
    mine = tmp_path / "mine.jpg"
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="it is there already"):
        fetch_snapshot(DAY, BOX, mine)
    assert mine.read_bytes() == b"mine" and service["asked"] == []


def test_the_command(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["fetch", "--date", "2018-07-01", "--box", "-61,10,-40,24"]
    run = CliRunner().invoke(cli.app, [*command, "--size", "140x210"])
    assert run.exit_code == 0 and run.output.strip() == "clouds-2018-07-01.jpg"
    assert (tmp_path / "clouds-2018-07-01.jpg").is_file()
    for slip, said in (
        (["fetch", "--date", "July", "--box", "-61,10,-40,24"], "write it like 2018-07-01"),
        (["fetch", "--date", "2018-07-01", "--box", "1,2,3"], "west,south,east,north"),
        (command, "it is there already"),
    ):
        run = CliRunner().invoke(cli.app, slip)
        assert run.exit_code == 2 and said in run.output + run.stderr
