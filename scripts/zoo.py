"""Put a trained and attacked run into the package, as a model of the zoo: its records, weights, card and digests.

python scripts/zoo.py RUN NAME "ser-fl benchmark run=RUN attacks=[...] ..."    # the command that attacked it
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

from ser_fl.errors import UserError
from ser_fl.exporting.card import card
from ser_fl.files import write_bytes, write_json
from ser_fl.models.emotion_model import load_model
from ser_fl.report.reader import read_run
from ser_fl.runs import zoo
from ser_fl.runs.folder import RunFolder

KEPT = (
    *("config.yaml", "environment.json", "summary.json", "attacks.json"),
    *("model.json", "model.safetensors", "heard.json", "heard.safetensors"),
)
LARGEST_WEIGHTS, LARGEST_ATTACKS = 8_000_000, 300_000
LEFT_OUT = ("recording_products", "speaker_uar", "sex_uar", "emotion_recall", "confusion")
"""Of the records of attacks that are too large."""


def add(source: Path, name: str, benchmark: str) -> Path:
    """Copy what a model of the zoo keeps of a run, and write its card and digests; a folder that is there is renewed.

    Raises:
        UserError: the run has no attacks on record, or is too large.
    """
    run, folder = read_run(source), zoo.ZOO / name
    if not run.attacks:
        raise UserError(f"{source} was never attacked: ser-fl benchmark run={source}")
    if (size := RunFolder(source).weights.stat().st_size) > LARGEST_WEIGHTS:
        raise UserError(f"weights must have at most {LARGEST_WEIGHTS / 1e6:g} MB, got {size / 1e6:.1f}: {source}")
    for file in KEPT:
        if (source / file).exists():
            write_bytes(folder / file, (source / file).read_bytes())
    attacks = folder / "attacks.json"
    if attacks.stat().st_size > LARGEST_ATTACKS:
        content = json.loads(attacks.read_text(encoding="utf-8"))
        content["records"] = [
            {key: value for key, value in record.items() if key not in LEFT_OUT} for record in content["records"]
        ]
        write_json(attacks, content)
    told = card(read_run(folder), load_model(folder), name=name, start=f"zoo:{name}", attacked=benchmark)
    write_bytes(folder / zoo.CARD, told.encode())
    files = sorted(file for file in folder.iterdir() if file.name != zoo.DIGESTS)
    write_json(folder / zoo.DIGESTS, {file.name: sha256(file.read_bytes()).hexdigest() for file in files})
    return folder


if __name__ == "__main__":
    try:
        print(add(Path(sys.argv[1]), *sys.argv[2:4]))
    except UserError as error:
        sys.exit(str(error))
