"GeoTIFFs: windows equal the picture, answers go back on the map, and faults are sentences."

import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from torch import nn

from cloudlearn import geo, own, prediction
from cloudlearn.files import PictureError, read_picture
from cloudlearn.geo import Place, mask_geometry, open_geo
from cloudlearn.prediction import predict_files
from cloudlearn.runs import TrainRun, open_run

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000)
PLACES = {
    "north up": NORTH_UP,
    "south up": Affine(10, 0, 500_000, 0, 10, 5_000_000),
    "turned": Affine(9, 5, 500_000, 5, -9, 5_000_000),
}


@pytest.fixture(scope="module")
def picture():
    "Soft spots on (530, 600, 3), so that a layer of it has an overview."
    spots = np.random.default_rng(0).integers(0, 256, (7, 8, 3), np.uint8)
    return cv2.resize(spots, (600, 530), interpolation=cv2.INTER_CUBIC)


def save(path, picture, **more):
    "A GeoTIFF of (H, W, n)."
    height, width, count = picture.shape
    about = {"crs": "EPSG:32633", "transform": NORTH_UP, "photometric": "RGB", "tiled": True}
    about |= {"blockxsize": 64, "blockysize": 64, "dtype": picture.dtype, "count": count} | more
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, **about) as file:
        file.write(np.moveaxis(picture, -1, 0))
    return path


class Bright(nn.Module):
    "Two classes of the mean brightness of 3 x 3 pixels."

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 2, 3, padding=1)
        with torch.no_grad():
            self.mix.weight.fill_(20 / 27 / 255)
            self.mix.bias.copy_(torch.tensor([-10.0, -12.0]))

    def forward(self, x):
        return self.mix(x.float())


@pytest.fixture
def run(monkeypatch, tmp_path):
    "A run of that network, as far as `predict` asks; returns its answers."
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"pipeline": "train"}))
    decisions = pd.DataFrame({"class": ["light", "glare"], "threshold": [0.5, 0.5]})
    settings = TrainRun(frame="native", size=(64, 64), device="cpu")
    answers = own._answers(settings, own.place(Bright(), "cpu"), decisions, False)
    loaded = SimpleNamespace(answers=lambda flips, onnx: answers)
    monkeypatch.setattr(prediction, "load_run", lambda _: loaded)
    return SimpleNamespace(folder=folder, answers=answers)


def test_windows_equal_the_picture(picture, tmp_path):
    path = save(tmp_path / "a.tif", picture, compress="deflate")
    Image.fromarray(picture).save(tmp_path / "b.png")
    with open_geo(path) as opened:
        assert opened.shape == picture.shape
        for rows, columns in ((0, 530), (0, 600)), ((3, 77), (60, 70)), ((500, 530), (599, 600)):
            part = slice(*rows), slice(*columns)
            np.testing.assert_array_equal(opened[part], picture[part])
        for shape in (530, 600), (300, 400):
            wanted = read_picture(tmp_path / "b.png", shape)
            np.testing.assert_array_equal(opened.reduced(shape, tmp_path), wanted)
        small = opened.reduced((53, 60)).astype(float)
    assert abs(small - read_picture(tmp_path / "b.png", (53, 60))).mean() < 2
    four = save(tmp_path / "c.tif", np.dstack([picture, picture[..., :1]]), alpha="YES")
    with open_geo(four) as opened:
        np.testing.assert_array_equal(opened[0:9, 0:9], picture[:9, :9])


def test_faults_are_sentences(picture, tmp_path, monkeypatch):
    small = picture[:200, :200]
    whole = save(tmp_path / "whole.tif", small).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "vrt.tif").write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1">'
        "<SimpleSource><SourceFilename>/vsicurl/http://localhost/a.tif</SourceFilename>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    save(tmp_path / "deep.tif", small.astype(np.uint16))
    save(tmp_path / "one.tif", small[..., :1], photometric="MINISBLACK")
    save(tmp_path / "strip.tif", small, tiled=False, blockysize=200, compress="deflate")
    cases = {"cut": "fetch the file again", "empty": "not recognized", "vrt": "not recognized"}
    cases |= {"deep": "3 bands of uint16", "one": "1 band of uint8 .gray.", "none": "no such"}
    cases |= {"strip": "blocks of 200 x 200"}
    monkeypatch.setattr(geo, "BLOCK_BYTES", 100_000)
    for name, words in cases.items():
        path = tmp_path / f"{name}.tif"
        with pytest.raises(PictureError, match=words) as caught, open_geo(path) as opened:
            opened[0:200, 0:200]
        assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(".")
    monkeypatch.setattr(geo, "GEO_PIXELS", 39_999)
    with pytest.raises(PictureError, match="200 x 200 pixels, above the limit"):
        open_geo(tmp_path / "whole.tif").__enter__()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(PictureError, match=r'pip install "cloudlearn\[geo\]"'):
        open_geo(tmp_path / "whole.tif").__enter__()


@pytest.mark.parametrize("name", PLACES)
def test_polygons_give_the_mask_again(name):
    rng = np.random.default_rng(1)
    mask = np.kron(rng.random((12, 15)) < 0.4, np.ones((9, 8), bool))
    mask[20:80, 10:100] = True
    mask[40:50, 40:60] = False
    place = Place(rasterio.CRS.from_epsg(32633), PLACES[name])
    geometry = mask_geometry(mask, place)
    assert geometry["type"] == "MultiPolygon"
    back = transform_geom("EPSG:4326", place.crs, geometry)
    drawn = rasterize([back], mask.shape, transform=place.transform)
    np.testing.assert_array_equal(drawn.astype(bool), mask)
    assert any(len(rings) > 1 for rings in geometry["coordinates"]), "the hole is kept"
    for rings in geometry["coordinates"]:
        for number, ring in enumerate(rings):
            x, y = (np.array(ring) - ring[0]).T
            assert ring[0] == ring[-1]
            assert ((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0) == (number == 0)
            assert abs(np.array(ring)[:, 0] - 15).max() < 1, "longitude first"


@pytest.mark.parametrize("name", ["turned", "south up"])
def test_answers_go_back_on_the_map(picture, run, tmp_path, name):
    photos = tmp_path / "photos"
    photos.mkdir()
    save(photos / "a.tif", picture, transform=PLACES[name])
    Image.fromarray(picture[:90, :80]).save(photos / "b.png")
    out = tmp_path / "out"
    words = [photos], run.folder, out
    done = predict_files(*words, write="png,geojson,cog", progress=False)
    assert done.pictures == 2 and not done.unreadable
    maps = run.answers.probabilities(picture)
    with rasterio.open(out / "probabilities" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), maps)
        assert file.transform.almost_equals(PLACES[name]) and file.crs.to_epsg() == 32633
        assert file.descriptions == ("light", "glare") and file.overviews(1)
        assert (
            file.block_shapes[0] == (512, 512)
            and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        )
    found = json.loads((out / "masks.geojson").read_text())["features"]
    assert [row["properties"]["class"] for row in found] == ["light", "glare"]
    for row, mask in zip(found, maps > 0.5, strict=True):
        assert row["properties"] | {"class": ""} == {
            "picture": "a.tif",
            "class": "",
            "pixels": mask.sum(),
        }
        png = np.asarray(Image.open(out / "masks" / row["properties"]["class"] / "a.png"))
        np.testing.assert_array_equal(png > 0, mask)
    assert not (out / "probabilities" / "b.tif").exists()
    (out / "probabilities" / "a.tif").unlink()
    again = predict_files(*words, write="png,geojson,cog", progress=False)
    assert again.before == 1 and (out / "probabilities" / "a.tif").exists()


def test_killed_while_a_layer_is_made(picture, run, tmp_path):
    path = save(tmp_path / "a.tif", picture[:90, :80])
    out = tmp_path / "out"
    predict_files([path], run.folder, out, write="cog", progress=False)
    before = (out / "probabilities" / "a.tif").read_bytes()
    kill = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from cloudlearn.geo import open_geo, write_probabilities\n"
        "with open_geo(sys.argv[1]) as picture: place = picture.place\n"
        "target = Path(sys.argv[2]) / 'probabilities' / 'a.tif'\n"
        "with write_probabilities(target, (9, 9), ['a'], place): os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", kill, path, out]).returncode == -9
    assert list(out.rglob("*.tmp")), "something was left half made"
    with open_run(out):
        assert not list(out.rglob("*.tmp"))
    assert (out / "probabilities" / "a.tif").read_bytes() == before


def test_pictures_without_a_place(picture, run, tmp_path, capsys):
    Image.fromarray(picture[:90, :80]).save(tmp_path / "b.png")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="b.png: no georeference; give a GeoTIFF"):
        predict_files([tmp_path / "b.png"], run.folder, out, write="cog", progress=False)
    assert not out.exists()
    predict_files([tmp_path / "b.png"], run.folder, out, write="png,geojson", progress=False)
    assert "b.png: no georeference, so passed over there." in capsys.readouterr().err
    assert json.loads((out / "masks.geojson").read_text())["features"] == []


def test_a_broken_window_is_listed_and_stops_nothing(picture, run, tmp_path):
    whole = save(tmp_path / "a.tif", picture).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    done = predict_files(
        [tmp_path], run.folder, tmp_path.parent / f"{tmp_path.name} out", progress=False
    )
    assert done.pictures == 1 and "cut.tif: cannot be read as a GeoTIFF" in done.unreadable[0]


CHILD = """
import sys, threading, time
from types import SimpleNamespace
import numpy as np
from cloudlearn import prediction
from cloudlearn.runs import whole_answers

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.002)

maps = lambda picture: np.stack([picture.mean(2, dtype=np.float32) / 255] * 3)
answers = whole_answers("abc", (32, 48), maps, lambda picture: maps(picture) > 0.5)
prediction.load_run = lambda folder: SimpleNamespace(answers=lambda flips, onnx: answers)
prediction.pipeline_of = prediction.check_draws = lambda *words: None   # no torch is needed
seen = [anonymous()]
threading.Thread(target=watch, daemon=True).start()
prediction.predict_files(sys.argv[1:2], *sys.argv[2:4], progress=False)
print(max(seen) - seen[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say RssAnon")
def test_memory_does_not_grow_with_the_picture(run, tmp_path):
    "24 million pixels: three masks alone would be 72 MB, and run lengths as many again."
    shades = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
    shades.save(tmp_path / "large.jpg")
    words = tmp_path / "large.jpg", run.folder, tmp_path / "out"
    process = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 60
