"""Make `tests/runs/tiny`, a small trained run: `python tests/runs/make_tiny.py`, minutes.

It runs `cloudlearn train` on generated pictures of discs and bars, stores the numbers of the
network in half precision, asks the stored run about a picture that it has not seen, and keeps what
`tests/test_sharing.py` compares every later version with.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
COMMAND = (
    "train pictures --out tiny --model linknet --encoder tu-test_efficientnet --weights none "
    "--size 96x96 --epochs 60 --batch-size 8 --learning-rate 0.005 --device cpu --precision 32"
)
NAMES = ("disc", "bar")


def scene(seed, shape):
    "A noisy picture (h, w, 3) with a disc, in two of three with a bar, and its masks (2, h, w)."
    draw = np.random.default_rng(seed)
    height, width = shape
    masks = np.zeros((2, *shape), np.uint8)
    centre = int(draw.integers(20, width - 20)), int(draw.integers(20, height - 20))
    cv2.circle(masks[0], centre, int(draw.integers(10, 18)), 1, -1)
    if seed % 3:
        top, left = int(draw.integers(8, height - 16)), int(draw.integers(8, width - 44))
        masks[1, top : top + 8, left : left + 36] = 1
    picture = draw.normal(90, 12, (*shape, 3))
    picture[masks[0] > 0] += (80, 30, -30)
    picture[masks[1] > 0] += (-40, 50, 80)
    return picture.clip(0, 255).astype(np.uint8), masks > 0


def write_pictures(folder, count):
    "images/NAME.png and masks/CLASS/NAME.png."
    for place in ("images", *(f"masks/{name}" for name in NAMES)):
        (folder / place).mkdir(parents=True)
    for seed in range(count):
        picture, masks = scene(seed, (96, 96))
        cv2.imwrite(str(folder / "images" / f"{seed:02}.png"), picture[:, :, ::-1])
        for name, mask in zip(NAMES, masks):
            cv2.imwrite(str(folder / "masks" / name / f"{seed:02}.png"), mask * np.uint8(255))


def halve(path):
    "Store weights in half precision; short tensors, and whole numbers, stay as they are."
    state = load_file(path)
    for name, values in state.items():
        if values.dtype == np.float32 and values.size > 64:
            state[name] = values.astype(np.float16)
    save_file(state, path)
    path.chmod(0o644)


def main():
    from cloudlearn.prediction import load_run

    with tempfile.TemporaryDirectory() as home:
        write_pictures(Path(home) / "pictures", 40)
        program = "from cloudlearn.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *COMMAND.split()], cwd=home, check=True)
        shutil.rmtree(HERE / "tiny", ignore_errors=True)
        (HERE / "tiny").mkdir()
        for name in ("run.json", "scores.csv", "network-last.safetensors"):
            shutil.copy(Path(home) / "tiny" / name, HERE / "tiny")
    out = HERE / "tiny"
    halve(out / "network-last.safetensors")
    picture, _ = scene(101, (80, 112))
    cv2.imwrite(str(out / "picture.png"), picture[:, :, ::-1])
    answers = load_run(out).answers()
    probabilities = answers.probabilities(picture)
    np.savez_compressed(out / "answer.npz", probabilities=probabilities.astype(np.float16))
    for name, mask in zip(answers.classes, answers.masks(picture)):
        cv2.imwrite(str(out / f"mask-{name}.png"), mask * np.uint8(255))


if __name__ == "__main__":
    main()
