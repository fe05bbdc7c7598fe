"""`python -m ser_fl` is `ser-fl`."""

import sys

from ser_fl.cli.main import program

sys.exit(program())
