"""The suites of `scripts/bench.py`: each is a module with a function ``figures`` that yields what it measures."""
