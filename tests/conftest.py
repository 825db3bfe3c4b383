"""What every test shares: the mark `real`, pictures without a screen, hypothesis without haste."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from tables import SMALL_CLOUDS

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib
# before anything imports torch: digits depend on the number of threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a busy machine is no failure
settings.register_profile("cloudlearn", deadline=None, print_blob=True)
settings.load_profile("cloudlearn")

MARKS = {"real": "needs real pictures: set CLOUDLEARN_DATA to the folder that holds them"}


def pytest_configure(config):
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config, items):
    folder = os.environ.get("CLOUDLEARN_DATA")
    if folder and not Path(folder).is_dir():
        raise pytest.UsageError(
            f"CLOUDLEARN_DATA names {folder}, which is not a folder: correct it or unset it."
        )
    closed = {"real": not folder}
    for item in items:
        for name in MARKS:
            if closed[name] and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=MARKS[name]))


@pytest.fixture(scope="session")
def real_data():
    "The folder of real pictures, for tests marked `real`."
    return Path(os.environ["CLOUDLEARN_DATA"])


@pytest.fixture(autouse=True)
def close_figures():
    "Close what a test has drawn; matplotlib is not imported for it."
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def csv(tmp_path):
    "Writes text or bytes to a file and returns its path."

    def write(content, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="module")
def cloud_folder(tmp_path_factory):
    "A small folder in the competition's layout; read only."
    from cloudlearn.scenes.clouds import write_cloud_folder

    return write_cloud_folder(
        tmp_path_factory.mktemp("clouds") / "folder", train=12, test=5, shape=(70, 105)
    )


@pytest.fixture(scope="session")
def cloud_command(tmp_path_factory):
    "The smallest run of the command `clouds`: its folder and what it said. Read only."
    from typer.testing import CliRunner

    from cloudlearn import cli

    out = tmp_path_factory.mktemp("runs") / "clouds"
    words = ["clouds", "--out", str(out), *SMALL_CLOUDS]
    result = CliRunner().invoke(cli.app, words, prog_name="cloudlearn")
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture(scope="session")
def cloud_run(cloud_command):
    "The folder of that run. Read only."
    return cloud_command[0]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    "No network, an empty store; touching a socket is a failure."
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))

    def asked(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr("socket.create_connection", asked)
