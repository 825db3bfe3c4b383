"""Encoders: what the installed weights know, normalisation, shapes, networks from zero."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.transforms import v2

from cloudlearn import encoders
from cloudlearn.encoders import (
    IMAGENET,
    ZERO,
    Normalise,
    build_classifier,
    build_network,
    build_unet,
    build_zero,
    encoder_share,
    normalisation,
)
from cloudlearn.learning import seeded
from cloudlearn.weights import LITE0, lite0_state


@pytest.fixture(scope="module")
def state():
    return lite0_state()


@pytest.fixture(scope="module")
def unet():
    with seeded(0):
        return build_unet().eval()


@pytest.fixture(scope="module")
def photographs():
    "The two photographs of scikit-learn as 224x224 squares."
    planes = [torch.tensor(picture).permute(2, 0, 1) for picture in load_sample_images().images]
    squares = [v2.functional.center_crop(picture, 427) for picture in planes]
    return v2.functional.resize(torch.stack(squares), [224, 224], antialias=True)


def test_weights_are_imagenets(state, photographs):
    body = timm.create_model(LITE0, pretrained=False)
    body.load_state_dict(state)
    with torch.inference_mode():
        prob = body.eval()(Normalise(*normalisation())(photographs)).softmax(1)
    # palace, bell cote, monastery, castle, church
    assert prob[0].argmax().item() in {698, 442, 663, 483, 497}
    assert prob[1].argmax().item() == 985  # daisy
    assert prob.max(1).values.min() > 0.2


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_are_sure_of_nothing(seed, photographs):
    with seeded(seed):
        body = timm.create_model(LITE0, pretrained=False).eval()
    with torch.inference_mode():
        assert body(Normalise(*normalisation())(photographs)).softmax(1).max() < 0.15


def test_unet_and_classifier_carry_the_installed_weights(state, unet):
    inside = unet[1].encoder.model.state_dict()
    assert inside and all(torch.equal(t, state[name]) for name, t in inside.items())
    classifier = build_classifier()[1].state_dict()
    body = {name: t for name, t in classifier.items() if not name.startswith("classifier")}
    assert all(torch.equal(t, state[name]) for name, t in body.items())
    assert classifier["classifier.weight"].shape == (4, 1280)


def test_building_leaves_no_trace_of_the_seed(unet):
    before = torch.get_rng_state()
    with seeded(0):
        again = build_unet()
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(unet.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ZeroDivisionError), seeded(1):
        1 / 0
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------ normalisation


def test_normalisation_of_families():
    assert normalisation() == ((127 / 255,) * 3, (128 / 255,) * 3)
    assert normalisation("tu-tf_efficientnet_lite0") == normalisation()
    for name in ("resnet34", "vgg11", "efficientnet-b0"):
        assert normalisation(name) == IMAGENET
    assert normalisation("xception") == normalisation("inceptionv4") == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation("tu-tf_efficientnet_b0.ap_in1k") == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation("dpn68")[0][0] == 124 / 255


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["efficientnet-lite0", "resnet34", "dpn68", "xception"]),
    st.booleans(),
)
def test_normalise_equals_torchvision(seed, name, whole):
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=draw)
    ours = Normalise(*normalisation(name))(pictures if whole else pictures.float())
    theirs = v2.Normalize(*normalisation(name))(pictures / 255)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_lite0_normalisation_by_hand():
    colours = torch.tensor([0.0, 127, 255]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    expected = torch.tensor([-127 / 128, 0, 1]).expand(3, 3)
    found = Normalise(*normalisation())(colours)[0, :, 0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_normalise_is_part_of_the_state(unet):
    assert {"0.mean", "0.std"} <= set(unet.state_dict())


# ------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("shape", [(160, 240), (70, 105), (33, 97), (32, 32), (175, 263)])
def test_any_picture_size(unet, shape):
    with torch.inference_mode():
        assert unet(torch.zeros(1, 3, *shape, dtype=torch.uint8)).shape == (1, 4, *shape)


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "tu-resnet18"])
@pytest.mark.parametrize("classes", [1, 3])
def test_other_encoders_pass_to_smp(encoder, classes):
    network = build_unet(encoder, classes, "none").eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 40, 50, dtype=torch.uint8)).shape == (1, classes, 40, 50)


def test_offline_is_no_random_start(offline):
    with pytest.raises(OSError, match="weights='none' to start from random numbers"):
        build_unet("resnet34")


def test_offline_default_needs_nothing(offline):
    build_unet()
    build_classifier()


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_downloaded_weights_arrive_in_the_encoder(monkeypatch, tmp_path, encoder):
    with seeded(5):
        body = timm.create_model("resnet18", pretrained=False)
    save_file(body.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(encoders, "fetch_weights", lambda name: str(tmp_path / "model.safetensors"))
    network = build_unet(encoder)
    inside = network[1].encoder.model if encoder.startswith("tu-") else network[1].encoder
    assert torch.equal(inside.conv1.weight, body.conv1.weight)
    assert torch.equal(inside.layer4[1].conv2.weight, body.layer4[1].conv2.weight)


def test_classifier_takes_a_body_and_keeps_its_head_fresh(tmp_path, state):
    file = tmp_path / "body.pth"
    torch.save({"state_dict": {f"model.{name}": t + 1 for name, t in state.items()}}, file)
    with seeded(0):
        fresh = build_classifier(weights="none")
    with seeded(0):
        loaded = build_classifier(weights=str(file))
    assert torch.equal(loaded[1].conv_stem.weight, state["conv_stem.weight"] + 1)
    assert torch.equal(loaded[1].classifier.weight, fresh[1].classifier.weight)


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnet43", "resnet34"),
        ("efficientnet_lite0", "efficientnet-lite0"),
        ("tu-nothing", "tu-NAME"),
    ],
)
def test_unknown_encoder(name, near):
    with pytest.raises(ValueError, match=near):
        build_unet(name, weights="none")


@pytest.mark.parametrize("model", list(ZERO))
@pytest.mark.parametrize("shape", [(33, 47), (64, 96)])
def test_networks_from_zero_take_raw_pictures_of_any_size(model, shape):
    with seeded(0):
        network = build_zero(model, classes=3).eval()
    with seeded(0):
        again = build_zero(model, classes=3).eval()
    pictures = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    with torch.inference_mode():
        logits, same = network(pictures), again(pictures)
    assert logits.shape == (2, 3, *shape) and torch.equal(logits, same)
    shades = torch.tensor([0.0, 127.5, 255.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert torch.allclose(network[0](shades)[0, 0, 0], torch.tensor([-2.0, 0.0, 2.0]), atol=1e-5)


def test_an_unknown_network_from_zero():
    with pytest.raises(ValueError, match="unet-zero or deeplabv3-zero"):
        build_zero("unet")


@pytest.mark.parametrize(
    "model, weights, share",
    [
        ("unet", "imagenet", 0.1),
        ("unet", "body.pth", 0.1),
        ("unet", "none", 1.0),
        ("unet-zero", "imagenet", 1.0),
    ],
)
def test_only_an_encoder_that_can_see_learns_slowly(model, weights, share):
    assert encoder_share(model, weights) == share


def test_smp_unet_with_the_same_weights_gives_the_same_logits(unet):
    with seeded(0):
        plain = smp.Unet(f"tu-{LITE0}", encoder_weights=None, classes=4)
    plain.load_state_dict(unet[1].state_dict())
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96))
    with torch.inference_mode():
        expected = plain.eval()((torch.tensor(picture).float() - 127) / 128)
        found = unet(torch.tensor(picture, dtype=torch.uint8))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert isinstance(unet, nn.Sequential)


# ----------------------------------------------------------------------------- other architectures


@pytest.mark.parametrize("encoder", ["efficientnet-lite0", "resnet18"])
def test_a_unet_by_its_name_is_the_unet(encoder):
    start = "imagenet" if encoder == "efficientnet-lite0" else "none"
    with seeded(3):
        one = build_unet(encoder, 2, start).state_dict()
    with seeded(3):
        two = build_network("unet", encoder, 2, start).state_dict()
    with seeded(3):
        direct = smp.Unet("resnet18", encoder_weights=None, classes=2).state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    if encoder == "resnet18":
        assert all(torch.equal(one[f"1.{key}"], direct[key]) for key in direct)


@pytest.mark.parametrize("model", ["fpn", "segformer"])
def test_every_architecture_gets_the_installed_weights(model, state):
    network = build_network(model, classes=3)
    stem = network[1].encoder.model.conv_stem.weight
    assert torch.equal(stem, state["conv_stem.weight"])


def test_a_pair_that_does_not_fit_is_a_sentence():
    with pytest.raises(
        ValueError, match="dpt cannot be built on the encoder 'resnet18' .*take tu-"
    ):
        build_network("dpt", "resnet18", 2, "none")
    with pytest.raises(ValueError, match="take efficientnet-lite0 or resnet34, or another model"):
        build_network("unet", "tu-vit_tiny_patch16_224", 2, "none")
    with pytest.raises(ValueError, match="cannot be built on the encoder"):
        build_network("unett", "resnet18", 2, "none")


# ------------------------------------------------------------------------------- the experiment


def test_encoders_experiment_pairs_its_arms_and_freezes(monkeypatch):
    built = []

    def noted(weights):
        built.append(build_unet(weights=weights))
        return built[-1]

    monkeypatch.setattr(encoders, "build_unet", noted)
    settings = {"shape": (32, 48), "train": 4, "test": 2, "steps": 2, "batch": 2}
    frame = encoders.encoders_experiment(seeds=(3,), arms=("frozen", "fine-tuned"), **settings)
    frozen, tuned = built
    fresh = build_unet().state_dict()
    inside = [name for name in fresh if ".encoder." in name]
    assert all(torch.equal(frozen.state_dict()[name], fresh[name]) for name in inside)
    assert not all(torch.equal(tuned.state_dict()[name], fresh[name]) for name in inside)
    assert list(frame.columns) == ["seed", "arm", "step", "class", "dice", "scene"]
    assert len(frame) == 2 * 2 * 4  # arms, steps 0 and 2, classes
    assert (frame.scene[frame.step == 0] == "").all() and frame.dice.between(0, 1).all()
    first = frame[frame.step == 0].pivot(index="class", columns="arm", values="dice")
    assert (first["frozen"] == first["fine-tuned"]).all()  # the same decoder, the same scenes


def test_pooled_dice_is_of_all_pixels_but_the_swath():
    truth = torch.zeros(2, 4, 2, 4, dtype=torch.bool)
    truth[0, 1, 0, :3] = truth[1, 1, 1, :2] = True
    seen = torch.ones(2, 1, 2, 4, dtype=torch.bool)
    seen[1, 0, 1, 0] = False
    logits = torch.full((2, 4, 2, 4), -1.0)
    logits[0, 1, 0, 1:] = logits[1, 1, 1, 0] = 1.0  # 3 pixels, 2 of them right; 1 in the swath
    answer = nn.Identity()
    scores = encoders._pooled_dice(answer, (logits, truth, seen))
    assert scores == pytest.approx([0, 2 * 2 / (3 + 4), 0, 0])


def test_an_unknown_arm_of_the_experiment():
    with pytest.raises(ValueError, match="unknown arm 'asleep': the arms are from zero, frozen"):
        encoders.encoders_experiment(arms=("asleep",))
