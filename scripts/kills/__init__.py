"""What `scripts/kill_runs.py` and the tests of kills do: start a real run, kill it, let it go on, compare."""
