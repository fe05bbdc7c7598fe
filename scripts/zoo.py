"""Put a trained and attacked run into the package, as a model of the zoo: its records, weights, card and digests.

python scripts/zoo.py RUN NAME "ser-fl benchmark run=RUN attacks=[...] ..."    # the command that attacked it
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

from ser_fl.data.corpora import CORPORA
from ser_fl.errors import UserError
from ser_fl.files import write_bytes, write_json
from ser_fl.models.emotion_model import load_model
from ser_fl.report.four_way import four_way
from ser_fl.report.markup import to_markdown
from ser_fl.report.reader import read_run
from ser_fl.report.tables import summary_table
from ser_fl.runs import zoo
from ser_fl.runs.folder import RunFolder

KEPT = (
    *("config.yaml", "environment.json", "summary.json", "attacks.json"),
    *("model.json", "model.safetensors", "heard.json", "heard.safetensors"),
)
LARGEST_WEIGHTS, LARGEST_ATTACKS = 8_000_000, 300_000
LEFT_OUT = ("recording_products", "speaker_uar", "sex_uar", "emotion_recall", "confusion")
"""Of the records of attacks that are too large."""
_CHANGED = {"ravdess": " Measured on a public copy of its speech part: 1,434 files, every one cut to 2.389 s."}
_CARD = """# {name}

An emotion classifier (`model={model}`, {parameters:,} parameters) of clips repeated to {seconds:g} s (`{frontend}`).
Emotions: {emotions}. Trained by {training}.

## Data and licence

{data}

## Split

{split}.

## Figures

Trained by `{train}` (commit {commit}), attacked by `{benchmark}`.

{tables}
## Intended use

Research: a yardstick for other models, attacks and defences on the same split, a start for fine-tuning
(`init_from=zoo:{name}`), an example.

## Not for

Decisions about people, whatever they are: hiring, teaching, insurance, policing, health. It knows acted speech of a
few speakers in one language, and nobody has shown that it hears what others feel. The European Union forbids to infer
emotions at work and in schools (Regulation 2024/1689, article 5). Nor for claims of robustness beyond the attacks and
budgets above.
"""


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
    write_bytes(folder / zoo.CARD, card(folder, benchmark).encode())
    files = sorted(file for file in folder.iterdir() if file.name != zoo.DIGESTS)
    write_json(folder / zoo.DIGESTS, {file.name: sha256(file.read_bytes()).hexdigest() for file in files})
    return folder


def card(folder: Path, benchmark: str) -> str:
    """What to know of a model, its figures from its records."""
    run, model = read_run(folder), load_model(folder)
    info = CORPORA.get(str(run.setting("data.name")))
    if info is None:
        data = "The built-in corpus: SYNTHETIC speech. Figures on it are no evidence about real speech. Apache-2.0."
    else:
        data = f"{info.title} ({info.url}), {info.licence}.{_CHANGED.get(info.name, '')}"
    if info is not None and "NC" in info.licence:
        data += (
            f" The weights come from these recordings and are given under {info.licence} too: **no commercial use**,"
            " name the authors of the data, and share what you make of them under the same licence."
        )
    hardened = f"objective={run.setting('objective.name')}"
    return _CARD.format(
        name=folder.name,
        model=run.setting("model.name"),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        frontend=f"frontend={run.setting('frontend.name')}",
        seconds=run.setting("frontend.duration_s"),
        emotions=", ".join(run.summary.classes),
        training=f"federation={run.setting('federation.name')}, {hardened}, {run.summary.num_rounds} rounds",
        data=data,
        split=run.split_in_words[:1].upper() + run.split_in_words[1:],
        train=run.environment.get("command", "not on record"),
        commit=str(run.environment.get("git_commit"))[:12],
        benchmark=benchmark,
        tables="\n".join(to_markdown(table) for table in (summary_table([run]), four_way([run]))),
    )


if __name__ == "__main__":
    try:
        print(add(Path(sys.argv[1]), *sys.argv[2:4]))
    except UserError as error:
        sys.exit(str(error))
