"""The same rounds on Flower: a ServerApp and a ClientApp around the functions that the local loop calls.

Tensors cross between hosts as safetensors, all else as JSON, both checked before they are used. Audio and features stay
where they are; the server sees names of speakers, counts, sums over features, models and confusion matrices.
"""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Unless the environment says this, Flower and Ray call home, and install packages while they run."""
