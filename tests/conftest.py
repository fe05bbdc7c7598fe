"""One thread a process: the tests run side by side, and threads of several processes on few cores wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
