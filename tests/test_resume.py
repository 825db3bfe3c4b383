"""A run that was killed goes on to the same networks, tables and masks, bit for bit."""

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors import safe_open

from cloudlearn.files import MANIFEST
from cloudlearn.scenes.cars import write_car_folder

# what each command is given, and the checkpoint after which it is killed: of the second network,
# where there are two
WINGS = {
    "cars": (
        "--scenes 4 --size 32x48 --epochs 2 --model unet-zero".split(),
        "network-1/segment-resume.ckpt",
    ),
    "xray": (
        "--scenes 40 --size 32x32 --epochs 2 --encoder small --weights none".split(),
        "networks/weighted-resume.ckpt",
    ),
    "train": (
        "--size 32x32 --epochs 2 --model unet-zero --weights none --frame native".split(),
        "network-resume.ckpt",
    ),
}

# libraries are loaded once, every run is a process of its own
CODE = """
import json, os, signal, sys
from matplotlib.figure import Figure
from PIL import Image
from cloudlearn import cli, own, training
from cloudlearn.cars import run
from cloudlearn.xray import run

def draw(figure, file, **options):   # nothing is said of drawings here, and they take long
    Image.new("RGB", (4, 4)).save(file, "PNG")

Figure.savefig = draw

def start(words, checkpoint):
    "Run a command; with a checkpoint, be killed as soon as it is written."
    write = training.write_file
    def write_and_die(path, content):
        write(path, content)
        if str(path).endswith(checkpoint): os.kill(os.getpid(), signal.SIGKILL)
    if checkpoint: training.write_file = write_and_die
    sys.argv = ["cloudlearn", *words]
    cli.main()

ends = []
for words, checkpoint in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            start(words, checkpoint)
            status = 0
        finally:
            os._exit(status)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("ends", *ends)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "For every command a folder with a run that was killed and resumed, and one that was not."
    home = tmp_path_factory.mktemp("runs")
    data = write_car_folder(home / "data", (4, 2, 2), (1, 1, 1), shape=(48, 64))
    jobs = []
    for wing, (words, checkpoint) in WINGS.items():
        words = [wing, *([str(data)] if wing == "train" else []), *words]
        stopped, whole = (["--out", str(home / wing / name)] for name in ("killed", "whole"))
        jobs.append(([*words, *stopped], checkpoint))
        jobs.append(([*words, *stopped, "--resume"], None))
        jobs.append(([*words, *whole], None))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ends = done.stdout.splitlines()[-1] if done.stdout else ""
    wanted = ["ends", *[str(-signal.SIGKILL), "0", "0"] * len(WINGS)]
    assert ends.split() == wanted, done.stdout + done.stderr
    return home


def tensors(path):
    "The tensors of a network's file, byte for byte; it holds the seconds of its epochs as well."
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}


def record(path):
    "What a run says of itself, without how long it took."
    return {name: said for name, said in json.loads(path.read_text()).items() if name != "seconds"}


def results(out):
    "What a run left, by its path: all but what holds seconds of the clock."
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        timed = name.endswith(("-log.csv", "-last.json", "-best.json", "report.html", MANIFEST))
        if not path.is_file() or path.name.startswith(".") or timed:
            continue
        if path.suffix == ".safetensors":
            found[name] = tensors(path)
        elif name == "run.json":
            found[name] = record(path)
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("wing", WINGS)
def test_a_killed_run_goes_on_bit_for_bit(runs, wing):
    killed, whole = (results(runs / wing / name) for name in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert {"scores.csv", "run.json"} <= killed.keys()
    assert any(name.endswith("-last.safetensors") for name in killed)
    assert wing == "xray" or any(name.startswith("masks/") for name in killed)
    for name in killed:
        assert killed[name] == whole[name], name
    assert not list((runs / wing).rglob("*.tmp")) and not list((runs / wing).rglob("*.ckpt"))
