"""Tests of output whose reader or terminal is gone: training continues, and nothing is left to print at the end."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dupr_tf.streams import LastingStream, lasting_streams

ROOT = Path(__file__).resolve().parents[1]
TRAINING = """
import logging, os, sys
from dupr_tf.streams import lasting_streams
logging.basicConfig(level=logging.INFO)
with lasting_streams():
    for step in range(1000):
        print("step", step, flush=True)
        print("progress", step, file=sys.stderr)
        logging.info("note %d", step)
    print("the end")
open("ended", "w").close()
"""


def test_training_continues_after_its_reader_closes(tmp_path):
    read, write = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING], stdout=write, stderr=write, cwd=tmp_path, env=environment
    )
    os.close(write)
    os.read(read, 1)
    os.close(read)
    assert process.wait(60) == 0 and (tmp_path / "ended").exists()


def test_stream_writes_what_it_can(tmp_path):
    stream = LastingStream(io.StringIO())
    assert stream.write("abc") == 3 and stream.getvalue() == "abc"
    with (tmp_path / "file").open("w") as file:
        assert LastingStream(file).fileno() == file.fileno()


def test_streams_are_restored_after_an_error():
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), lasting_streams():
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
