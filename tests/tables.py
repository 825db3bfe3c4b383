"""The competition's labels and its command, small: what several test files begin with."""

import itertools

import pandas as pd

from cloudlearn.scenes.clouds import CLOUD_CLASSES

HEAD = "Image_Label,EncodedPixels\n"

BLANK = ["", "", "", ""]

SMALL_CLOUDS = ["--scenes", "40", "--size", "32x48", "--epochs", "1"]  # of the command `clouds`


def rows(picture, *texts):
    "Four rows of a CSV; texts that are not given are empty."
    return "".join(
        f"{picture}_{name},{text}\n"
        for name, text in itertools.zip_longest(CLOUD_CLASSES, texts, fillvalue="")
    )


def frame(*texts, names=None):
    "Labels as `read_labels` gives them."
    names = names or [f"{place}.jpg" for place in range(len(texts))]
    return pd.DataFrame(
        [list(four) for four in texts],
        index=pd.Index(names, name="picture"),
        columns=list(CLOUD_CLASSES),
    )


def call(*words):
    "What the command `cloudlearn` says to these words."
    from typer.testing import CliRunner

    from cloudlearn import cli

    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="cloudlearn")


def refused(*words):
    "The sentence of a refused command."
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr.strip().splitlines()[-1].removeprefix("cloudlearn: ")
