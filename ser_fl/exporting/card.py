"""The model card: what whoever takes a model must know of it, in Markdown, below the metadata of Hugging Face."""

from collections.abc import Mapping
from typing import Any

import yaml

from ser_fl.data.corpora import CORPORA
from ser_fl.data.corpora.info import CorpusInfo
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.report.four_way import four_way
from ser_fl.report.markup import to_markdown
from ser_fl.report.reader import RunRecords
from ser_fl.report.tables import summary_table
from ser_fl.report.wording import budget
from ser_fl.runs.records import NO_DEFENCE, WORST_CASE

_LICENCES = {"CC BY 4.0": "cc-by-4.0", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC BY-NC-ND 4.0": "cc-by-nc-nd-4.0"}
"""As Hugging Face names them; all else is "other"."""
_CHANGED = {"ravdess": " Measured on a public copy of its speech part: 1,434 files, every one cut to 2.389 s."}
_CARD = """# {name}

An emotion classifier (`model={model}`, {parameters:,} parameters) of clips repeated to {seconds:g} s (`{frontend}`).
Emotions: {emotions}. Trained by {training}.

## Data and licence

{data}

## Split

{split}.

## Figures

Trained by `{train}` (commit {commit}){attacked}.

{tables}
## Intended use

Research: a yardstick for other models, attacks and defences on the same split, a start for fine-tuning
(`init_from={start}`), an example.

## Not for

Decisions about people, whatever they are: hiring, teaching, insurance, policing, health. It knows acted speech of a
few speakers in one language, and nobody has shown that it hears what others feel. The European Union forbids to infer
emotions at work and in schools (Regulation 2024/1689, article 5). Nor for claims of robustness beyond the attacks and
budgets above.
"""


def card(run: RunRecords, model: EmotionModel, *, name: str, start: str, attacked: str | None) -> str:
    """What to know of a model, its figures from its records.

    Args:
        run: the records.
        model: the run's.
        name: the title.
        start: the run as ``init_from`` takes it.
        attacked: the command that did; None where nobody wrote it down.
    """
    return _CARD.format(
        name=name,
        start=start,
        model=run.setting("model.name"),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        frontend=f"frontend={run.setting('frontend.name')}",
        seconds=run.setting("frontend.duration_s"),
        emotions=", ".join(model.classes),
        training=f"federation={run.setting('federation.name')}, objective={run.setting('objective.name')}, "
        f"{run.summary.num_rounds} rounds",
        data="\n\n".join(map(_terms, _corpora(run)))
        or "SYNTHETIC speech: the built-in corpus. Figures on it are no evidence about real speech. Apache-2.0.",
        split=run.split_in_words[:1].upper() + run.split_in_words[1:],
        train=run.environment.get("command", "not on record"),
        commit=str(run.environment.get("git_commit"))[:12],
        attacked=f", attacked by `{attacked}`" if attacked else "",
        tables="\n".join(to_markdown(table) for table in (summary_table([run]), four_way([run]))),
    )


def _corpora(run: RunRecords) -> list[CorpusInfo]:
    """Those that the model was trained on; none for the built-in one."""
    return [CORPORA[name] for name in str(run.setting("data.name")).split("+") if name in CORPORA]


def _terms(info: CorpusInfo) -> str:
    data = f"{info.title} ({info.url}), {info.licence}.{_CHANGED.get(info.name, '')}"
    if "NC" in info.licence:
        data += (
            f" The weights come from these recordings and are given under {info.licence} too: **no commercial use**,"
            " name the authors of the data, and share what you make of them under the same licence."
        )
    return data


def metadata(run: RunRecords, name: str) -> str:
    """The YAML that a card begins with on Hugging Face."""
    licences = {info.licence for info in _corpora(run)} or {"Apache-2.0"}
    licence = next(iter(licences)) if len(licences) == 1 else "; ".join(sorted(licences))
    known = _LICENCES | {"Apache-2.0": "apache-2.0"}
    told: dict[str, Any] = {"license": known.get(licence, "other")}
    if licence not in known:
        told["license_name"] = licence
    scores = [{"type": "recall", "name": "UAR", "value": run.test.uar}] if run.test.uar is not None else []
    scores += [
        {"type": "recall", "name": f"UAR, worst case ({budget(record)})", "value": record.robust_uar}
        for record in run.attacks
        if record.attack == WORST_CASE and record.defence == NO_DEFENCE
    ]
    dataset = {"name": run.corpus, "type": str(run.setting("data.name")), "split": "test"}
    result: Mapping[str, Any] = {"task": {"type": "audio-classification"}, "dataset": dataset, "metrics": scores}
    told |= {
        "library_name": "ser_fl",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "federated-learning", "adversarial-robustness"],
        "datasets": [info.name for info in _corpora(run)],
        "metrics": ["recall"],
        "model-index": [{"name": name, "results": [result]}] if scores else [],
    }
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}---\n\n"
