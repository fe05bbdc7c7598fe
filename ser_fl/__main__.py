"""`python -m ser_fl` is `ser-fl`."""

import sys

from ser_fl.cli import main

sys.exit(main())
