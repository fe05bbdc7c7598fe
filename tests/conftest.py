"""One thread a process: tests run side by side, and threads of several processes on few cores hinder each other."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_state() -> Iterator[None]:
    """What a machine remembers of runs (`ser_fl.places`) stays among the tests."""
    folder = tempfile.mkdtemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)
