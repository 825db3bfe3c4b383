"""What every test shares: the mark `real`, pictures without a screen, hypothesis without haste."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib
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
