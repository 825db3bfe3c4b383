"""A network leaves its run's folder: for smp, for ONNX Runtime, and for every later version.

`tests/runs/tiny` is a small trained run; `tests/runs/make_tiny.py` made it with the real command.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from safetensors.torch import save_file
from tables import call, refused
from torch import nn

from cloudlearn import sharing
from cloudlearn.cars.segment import deeplab
from cloudlearn.clouds.segment import Cuts
from cloudlearn.encoders import Normalise, build_network, build_zero
from cloudlearn.files import read_manifest, read_picture, write_file
from cloudlearn.own import own_maps, own_window
from cloudlearn.prediction import load_run
from cloudlearn.runs import MANIFEST, CarRun, CloudRun, TrainRun, clear_run, complete, open_run
from cloudlearn.sharing import (
    OnnxNetwork,
    export_run,
    network_digest,
    onnx_networks,
    shared_networks,
    smp_config,
    write_shared,
)

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "runs" / "tiny"


def quiet(function, *words, **more):
    "What a function gives that likes to print."
    with redirect_stdout(io.StringIO()):
        return function(*words, **more)


def same_answers(first, second):
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(first.eval()(noise), second.eval()(noise))


def scores_of(*names, **more):
    row = {"pictures": 6, "present": 5, "dice": 0.8123, "low": 0.7, "high": float("nan")}
    return pd.DataFrame([more | {"class": name} | row for name in names])


def decided(*rows):
    return pd.DataFrame(rows, columns=["class", "threshold"])


def plain(planes):
    "The smallest network there is."
    return nn.Sequential(Normalise((0.5,) * 3, (0.5,) * 3), nn.Conv2d(3, planes, 1)).eval()


# ----------------------------------------------------------------------- the run in the repository


def test_the_stored_run_is_small_and_names_no_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "tests/runs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no git here")
    files = [ROOT / name for name in listed.stdout.split()]
    stored = {path.name for path in files if path.parent == TINY}
    assert stored == {path.name for path in TINY.iterdir()}, "git does not see all of it"
    assert sum(path.stat().st_size for path in files) <= 300_000
    record = json.loads((TINY / "run.json").read_text())
    assert not Path(record["settings"]["data"]).is_absolute()
    for path in TINY.iterdir():
        content = path.read_bytes()
        assert not any(mark in content for mark in (b"/tmp/", b"/home/", b"/root/", b"/work/"))


def stored_answer():
    "The picture, its probabilities and masks, as they were when the run was made."
    with np.load(TINY / "answer.npz") as stored:
        probabilities = stored["probabilities"].astype(np.float32)
    names = json.loads((TINY / "run.json").read_text())["classes"]
    masks = [cv2.imread(str(TINY / f"mask-{name}.png"), cv2.IMREAD_GRAYSCALE) for name in names]
    return read_picture(TINY / "picture.png", masks[0].shape), probabilities, np.stack(masks) > 0


def test_the_stored_run_answers_as_it_did():
    picture, probabilities, masks = stored_answer()
    answers = load_run(TINY).answers()
    assert abs(answers.probabilities(picture) - probabilities).max() <= 1e-3
    assert (answers.masks(picture) == masks).mean() >= 0.999
    assert 0.02 < masks[0].mean() < 0.2 and 0.02 < masks[1].mean() < 0.2


def test_the_stored_run_predicts_from_the_command_line(tmp_path):
    result = call("predict", TINY / "picture.png", "--run", TINY, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    _, _, masks = stored_answer()
    for name, mask in zip(("bar", "disc"), masks):
        found = cv2.imread(str(tmp_path / f"out/masks/{name}/picture.png"), cv2.IMREAD_GRAYSCALE)
        assert ((found > 0) == mask).mean() >= 0.999


# ------------------------------------------------------------------------------- for others to load


@pytest.mark.parametrize(
    "model, encoder",
    [
        ("unet", "efficientnet-lite0"),
        ("fpn", "resnet18"),
        ("deeplabv3plus", "resnet34"),
        ("segformer", "tu-test_efficientnet"),
    ],
)
def test_smp_loads_the_folder_bit_for_bit(model, encoder, tmp_path, offline):
    network = build_network(model, encoder, 2, "none")
    quick = dict(data=Path("leaves"), weights="none", size=(64, 64))
    run = TrainRun(out=tmp_path, model=model, encoder=encoder, **quick)
    write_shared(
        complete(run),
        network,
        decided(("a", 0.5), ("b", 0.25)),
        scores=scores_of("a", "b"),
        parts={"train": 3},
    )
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.json",
        "model.safetensors",
    }
    again = quiet(smp.from_pretrained, tmp_path / "model")
    assert type(again) is type(network[1]) and not again.training
    assert same_answers(again, network[1])
    assert network_digest(again) == network_digest(network[1])


def test_no_path_and_no_download_in_the_config(tmp_path, monkeypatch, offline):
    "timm finds a downloaded file by a path among the arguments."
    body = build_network("unet", "tu-test_efficientnet", 2, "none")[1].encoder.model
    file = tmp_path / "secret" / "model.safetensors"
    file.parent.mkdir()
    save_file(body.state_dict(), file)
    monkeypatch.setattr("cloudlearn.encoders.fetch_weights", lambda encoder: str(file))
    network = build_network("linknet", "tu-test_efficientnet", 2, "imagenet")[1]
    assert "secret" in str(network.config), "the reason for this test is gone"
    config = smp_config(network)
    assert "secret" not in str(config) and config["encoder_weights"] is None


def test_cars_have_a_folder_for_each_arm(tmp_path):
    networks = {
        arm: deeplab("tu-test_efficientnet", "none", False, 3, seed=seed, depth=4)
        for seed, arm in enumerate(("as drawn", "dilated by 2"))
    }
    table = pd.DataFrame(
        {
            "class": ["dent", "scratch", "spacing"],
            "arm": ["as drawn", "as drawn", "dilated by 2"],
            "threshold": [0.5, 0.4, 0.3],
        }
    )
    run = complete(
        CarRun(out=tmp_path, encoder="tu-test_efficientnet", weights="none", size=(32, 48))
    )
    scores = pd.concat([scores_of("dent", arm=arm) for arm in (*networks, "chosen")])
    write_shared(run, networks, table, scores=scores, parts={"train": 4}, notes=("Only 1.",))
    for place, arm in (("as-drawn", "as drawn"), ("dilated-by-2", "dilated by 2")):
        folder = tmp_path / "model" / place
        assert same_answers(quiet(smp.from_pretrained, folder), networks[arm][1])
        card = (folder / "README.md").read_text()
        assert "- Only 1." in card and "never seen a real picture" in card
        assert card.count("| dent | 6 | 5 | 0.812 | 0.700 | – |") == 1 and "| arm |" not in card
    about = json.loads((folder / "model.json").read_text())
    assert about["thresholds"] == [None, None, 0.3] and about["size"] == [32, 48]
    found = shared_networks(run, networks, table)
    assert [one.place for one in found] == ["as-drawn/network", "dilated-by-2/network"]


def test_clouds_share_the_network_that_draws(tmp_path):
    drawn, told = build_network("unet", "tu-test_efficientnet", 4, "none"), plain(4)
    run = complete(CloudRun(out=tmp_path, encoder="tu-test_efficientnet", weights="none"))
    decisions = Cuts((0.3, 0.4, 0.5, 0.6), (0,) * 4), np.array([0.1, 0.2, 0.3, 0.4])
    ladder = pd.DataFrame([{"step": "raw", "dice": 0.5, "low": 0.4, "high": 0.6}])
    write_shared(run, (drawn, told), decisions, scores=ladder, parts={"train": 4, "valid": 2})
    assert same_answers(quiet(smp.from_pretrained, tmp_path / "model"), drawn[1])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| raw | 0.500 | 0.400 | 0.600 |" in card and "presence classifier" in card
    assert "4 in train, 2 in valid" in card and "288 generated scenes" in card
    places = [(one.place, one.draws) for one in shared_networks(run, (drawn, told), decisions)]
    assert places == [("network", True), ("presence", False)]


def card_of(tmp_path, network, **settings):
    "The folder of a network, and its card."
    quick = dict(data=Path("/somebody/leaves"), out=tmp_path, weights="none", size=(64, 96))
    run = complete(TrainRun(**quick | settings))
    table = decided(("leaf", 0.5), ("moss", 0.505))
    write_shared(run, network, table, scores=scores_of("leaf", "moss"), parts={"train": 3})
    folder = tmp_path / "model"
    return run, folder, (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "model, frame, scale",
    [
        ("fpn", "whole", 1.0),
        ("linknet", "native", 0.5),
        ("unet-zero", "whole", 1.0),
        ("unet-zero", "native", 1.0),
    ],
)
def test_the_code_of_a_card_runs_and_gives_the_masks(model, frame, scale, tmp_path, offline):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = (
            build_zero(model, 2)
            if model == "unet-zero"
            else build_network(model, "tu-test_efficientnet", 2, "none")
        ).eval()
    run, folder, card = card_of(
        tmp_path, network, model=model, encoder="tu-test_efficientnet", frame=frame, scale=scale
    )
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (130, 190, 3), np.uint8)
    cv2.imwrite(str(folder / "PICTURE.png"), picture[:, :, ::-1])
    lines = card.split("```python\n")[1].split("```")[0].replace("PICTURE.jpg", "PICTURE.png")
    assert len(lines.splitlines()) <= 18
    assert ("build_zero" in lines) == (model == "unet-zero")
    names, home = {}, os.getcwd()
    os.chdir(folder)
    try:
        quiet(exec, lines, names)
    finally:
        os.chdir(home)
    shape = run.size if frame == "whole" else (round(130 * scale), round(190 * scale))
    assert names["masks"].shape == (2, *shape) and names["masks"].dtype == bool
    seen = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
    if frame == "whole":
        expected = own_maps(network, seen, run)
        assert abs(names["probabilities"] - expected).max() < 1e-5
        cuts = np.float32([0.5, 0.505])[:, None, None]
        sure = abs(expected - cuts) > 1e-5
        assert ((expected > cuts) == names["masks"])[sure].all()


def test_a_card_says_what_has_to_be_known(tmp_path):
    network = build_network("linknet", "tu-test_efficientnet", 2, "none")
    _, folder, card = card_of(tmp_path, network, model="linknet", encoder="tu-test_efficientnet")
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "segmentation-models-pytorch" and "license" not in head
    assert huggingface_hub.ModelCard(card).data.pipeline_tag == "image-segmentation"
    mean = [round(value / 255, 6) for value in network[0].mean.flatten().tolist()]
    about = json.loads((folder / "model.json").read_text())
    assert about["mean"] == mean and f"`mean = {mean}`" in card
    for said in ("folder `leaves`", "3 in train", "| moss | 0.505 |", "64 x 96", "No licence"):
        assert said in card, said
    assert "/somebody" not in card + (folder / "model.json").read_text()
    assert f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB" in card


def test_a_fresh_start_clears_the_folder(tmp_path):
    network = build_network("linknet", "tu-test_efficientnet", 2, "none")
    with open_run(tmp_path / "run") as out:
        card_of(out, network, model="linknet", encoder="tu-test_efficientnet")
        card_of(out, network, model="linknet", encoder="tu-test_efficientnet")  # with --resume
        assert {"model/README.md", "model/config.json"} <= read_manifest(out).keys()
        write_file(out / "model" / "network.onnx", "an export")
        clear_run(out)
        assert [path.name for path in out.iterdir() if path.name[0] != "."] == [MANIFEST]


# ---------------------------------------------------------------------------------- ONNX Runtime


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A copy of the stored run, exported by the command, and what the command said."
    folder = tmp_path_factory.mktemp("export") / "tiny"
    shutil.copytree(TINY, folder)
    # real pictures where the run's record looks for them
    home, result = os.getcwd(), None
    os.chdir(folder.parent)
    try:
        (folder.parent / "pictures" / "images").mkdir(parents=True)
        shutil.copy(TINY / "picture.png", "pictures/images/a.png")
        (folder.parent / "pictures" / "images" / "broken.png").write_bytes(b"no picture")
        result = call("export", "tiny", "--to", "onnx")
    finally:
        os.chdir(home)
    return folder, result


def test_export_says_how_far_the_answers_part(exported):
    folder, result = exported
    assert result.exit_code == 0, result.output
    assert result.stderr == "" and len(result.stdout.splitlines()) == 1
    assert "4 random and 1 real pictures" in result.stdout
    difference = float(result.stdout.split("probabilities ")[1].split(",")[0])
    flipped = float(result.stdout.split("flipped ")[1].strip().rstrip("%"))
    assert 0 < difference < 1e-4 and flipped < 0.1
    assert [path.name for path in (folder / "model").iterdir()] == ["network.onnx"]


def test_an_exported_file_holds_what_a_reader_needs_and_no_path(exported):
    import onnx

    path = exported[0] / "model" / "network.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
    content = path.read_bytes()
    for mark in (b".py", b"site-packages", str(ROOT).encode(), sys.prefix.encode()):
        assert mark not in content, mark
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == ["bar", "disc"] and json.loads(about["size"]) == [96, 96]
    assert about["network"] == network_digest(load_run(TINY).networks)
    network = OnnxNetwork(path)
    first = network.session.get_inputs()[0]
    assert (first.name, first.type, first.shape[1:]) == ("pictures", "tensor(uint8)", [3, 96, 96])


def test_an_exported_network_takes_the_place_of_torch(exported):
    loaded = load_run(exported[0])
    asked = onnx_networks(loaded)
    draw = np.random.default_rng(1)
    batch = torch.from_numpy(draw.integers(0, 256, (5, 3, 96, 96), dtype=np.uint8))
    with torch.inference_mode():
        expected = loaded.networks(batch)
        for given in (batch, batch.float(), batch.contiguous(memory_format=torch.channels_last)):
            assert (asked(given) - expected).abs().max() < 1e-3
        part = asked(batch[:1, :, :64, :80])  # a smaller window: mirrored to the right and below
    mirrored = np.pad(batch[:1, :, :64, :80].numpy(), [(0, 0), (0, 0), (0, 32), (0, 16)], "reflect")
    with torch.inference_mode():
        expected = loaded.networks(torch.from_numpy(mirrored))[..., :64, :80]
    assert part.shape == (1, 2, 64, 80) and (part - expected).abs().max() < 1e-3
    with pytest.raises(ValueError, match="larger than the 96 x 96"):
        asked(torch.zeros(1, 3, 128, 96))
    picture, _, masks = stored_answer()
    answers = loaded.pipeline.answers(loaded.run, asked, loaded.decisions, True)
    by_torch = loaded.answers(True)
    assert (answers.masks(picture) == by_torch.masks(picture)).mean() >= 0.999


@pytest.mark.parametrize("content", [b"mine", None])
def test_an_export_writes_over_no_file_of_somebody_else(exported, tmp_path, content):
    import onnx

    shutil.copytree(TINY, tmp_path / "run")
    mine = tmp_path / "run" / "model" / "network.onnx"
    mine.parent.mkdir()
    if content is None:  # a network, but no export of ours
        model = onnx.load(exported[0] / "model" / "network.onnx")
        model.ClearField("metadata_props")
        content = model.SerializeToString()
    mine.write_bytes(content)
    said = refused("export", tmp_path / "run")
    assert said == f"{mine}: no export of this tool wrote this file; move it away."
    assert mine.read_bytes() == content


def test_a_file_of_another_training_is_refused(exported, tmp_path):
    loaded = load_run(exported[0])
    other = build_network("linknet", "tu-test_efficientnet", 2, "none")
    with pytest.raises(ValueError, match="another network than the run has now"):
        onnx_networks(replace(loaded, networks=other))
    shutil.copytree(exported[0], tmp_path / "run")
    path = tmp_path / "run" / "model" / "network.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="ONNX Runtime cannot read it"):
        onnx_networks(load_run(tmp_path / "run"))
    path.unlink()
    with pytest.raises(ValueError, match="there is no such file; `cloudlearn export"):
        onnx_networks(load_run(tmp_path / "run"))


def test_predict_by_onnx_draws_the_same_masks(exported, tmp_path):
    words = "predict", TINY / "picture.png", "--run", exported[0], "--out", tmp_path / "out"
    result = call(*words, "--onnx")
    assert result.exit_code == 0, result.output
    assert "pictures a second, torch" in result.stderr and "on the first 1" in result.stderr
    _, _, masks = stored_answer()
    for name, mask in zip(("bar", "disc"), masks):
        found = cv2.imread(str(tmp_path / f"out/masks/{name}/picture.png"), cv2.IMREAD_GRAYSCALE)
        assert ((found > 0) == mask).mean() >= 0.999
    assert "1 of them done before" in call(*words, "--onnx").stdout
    other = call(*words)
    assert "0 of them done before" in other.stdout and "onnx" not in other.stderr
    assert "there is no such file; `cloudlearn export" in refused(
        "predict", TINY / "picture.png", "--run", TINY, "--out", tmp_path / "new", "--onnx"
    )
    assert not (tmp_path / "new").exists()


class Odd(nn.Module):
    "What no exporter can follow."

    def forward(self, pictures):
        raise TypeError("not with me")


def loaded_cars(tmp_path, networks):
    "What `export_run` needs of a loaded run of cars."
    run = complete(CarRun(out=tmp_path, size=(32, 32), weights="none"))
    table = pd.DataFrame({"class": ["dent"], "arm": ["as drawn"], "threshold": [0.5]})
    pipeline = SimpleNamespace(window=None)
    return SimpleNamespace(run=run, pipeline=pipeline, networks=networks, decisions=table)


def test_nothing_is_written_where_one_network_cannot_be_exported(tmp_path, exported, monkeypatch):
    odd = nn.Sequential(plain(1)[0], Odd())
    loaded = loaded_cars(tmp_path, {"as drawn": plain(1), "dilated by 2": odd})
    content = (exported[0] / "model" / "network.onnx").read_bytes()
    real = sharing.export_network
    monkeypatch.setattr(
        sharing, "export_network", lambda one: real(one) if one.network is odd else content
    )
    monkeypatch.setattr(sharing, "_compare", lambda *_: (0.0, 0.0))
    with pytest.raises(ValueError, match="dilated-by-2/network cannot be exported") as raised:
        export_run(loaded)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "model").exists()


def test_a_network_of_each_arm_is_exported(tmp_path):
    loaded = loaded_cars(tmp_path, {"as drawn": plain(1), "dilated by 2": plain(1)})
    done = export_run(loaded, most=1)
    places = ["as-drawn/network.onnx", "dilated-by-2/network.onnx"]
    assert [one.path.relative_to(tmp_path / "model").as_posix() for one in done] == places
    assert not list(tmp_path.rglob("*.data"))
    asked = onnx_networks(loaded)
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for arm, network in loaded.networks.items():
        with torch.inference_mode():
            assert (asked[arm](batch) - network(batch)).abs().max() < 1e-5


def test_export_refuses_in_a_sentence(tmp_path, monkeypatch):
    assert "there is no such file" in refused("export", tmp_path)
    assert "choose from onnx" in refused("export", TINY, "--to", "tflite")
    (tmp_path / "run.json").write_text('{"pipeline": "xray"}')
    assert "draws no masks" in refused("export", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refused("export", TINY)
    assert said == 'onnxruntime is not installed; pip install "cloudlearn[export]" brings it.'


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    loaded = loaded_cars(tmp_path, {"as drawn": plain(1)})
    with open_run(tmp_path):
        with pytest.raises(ValueError, match="a run is writing there; wait"):
            export_run(loaded)


def test_the_size_of_tiles_is_that_of_prediction(monkeypatch):
    "The largest window that a native run's network is asked about."
    seen = []

    class Counts(nn.Module):
        def forward(self, pictures):
            seen.append(tuple(pictures.shape[-2:]))
            return pictures[:, :1]

    for run in (TrainRun(frame="native", size=(32, 64)), TrainRun(size=(64, 96))):
        seen.clear()
        own_maps(Counts(), np.zeros((1024, 512, 3), np.uint8), complete(run))
        assert max(seen) == own_window(run), seen


def test_speed_is_measured_on_what_can_be_read(tmp_path):
    picture = np.zeros((30, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (tmp_path / "b.png").write_bytes(b"")
    asked = []
    answers = SimpleNamespace(size=None, decide=None, masks=lambda one: asked.append(one.shape))
    line = sharing.speed_line(answers, answers, [tmp_path / "a.png", tmp_path / "b.png"])
    assert line.startswith("onnx ") and line.endswith("on the first 1, here and now")
    assert asked == [(30, 40, 3)] * 4
    assert sharing.speed_line(answers, answers, [tmp_path / "b.png"]).startswith("onnx: its speed")
