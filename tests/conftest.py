"""One thread a process: tests run side by side, and threads of several processes on few cores hinder each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
