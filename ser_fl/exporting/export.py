"""`ser_fl.export`: a trained model as files for others, each held against the model before it is left on disk.

Legend: B clips, T samples, F bins, L frames.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fl.data.frontend import FeatureStatistics, repeat_to_length
from ser_fl.data.normalisation import Scale
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import UserError, unknown_name
from ser_fl.exporting.card import card, metadata
from ser_fl.exporting.formats import FORMATS, SCALES, Answers, Graph, check_installed
from ser_fl.exporting.graph import EnrolmentGraph, ModelGraph, exportable
from ser_fl.files import to_json, write_bytes
from ser_fl.models.emotion_model import EmotionModel, load_model, save_model
from ser_fl.models.networks import NetworkSource
from ser_fl.report.reader import read_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.zoo import CARD, is_zoo_model, readable_run

TOLERANCES = {"features": 1e-4, "waveform": 1e-3}
"""Largest difference to the model's own output, relative to the largest one where that is above 1. From the waveform a
transform by another algorithm rounds otherwise, and the logarithm makes much of it where little sounds."""
_BATCHES = (1, 3)


def export(
    run: Path | str | RunFolder,
    form: str,
    output: Path | str | None = None,
    *,
    client_id: str | None = None,
    network: NetworkSource | None = None,
) -> Path:
    """Write a trained model for programs that have no ser_fl, or as Hugging Face keeps models, with its card.

    "onnx" and "torch" (`torch.export`) are ``model``, from clips (B, T) at the front end's rate, ``features``, from
    what the front end makes of them (B, F, L), and of a model that scales speakers ``enrol``, from the clips of one
    speaker to what the others take as ``speaker_mean`` and ``speaker_deviation``; all of any number and length of
    clips. "hf" is a folder that `ser_fl.load` takes.

    Args:
        run: the run folder, what `ser_fl.train` gave, or a model of the zoo.
        form: "onnx", "torch" or "hf".
        output: a folder; None is ``exports/NAME-FORM``.
        client_id: the client whose own model it shall be, of a run with ``federation=local_only``.
        network: of a run that was given a network of its own: the same one again.

    Returns:
        The folder.

    Raises:
        UserError: an unknown form, a package that is missing, a model that cannot be loaded or exported, or a file that
            would not agree with the model: nothing is left of it.
    """
    if form not in (*FORMATS, "hf"):
        raise unknown_name("format", form, (*FORMATS, "hf"))
    if form == "onnx":
        check_installed()
    network = getattr(run, "network", None) if network is None else network
    folder = run.root if isinstance(run, RunFolder) else readable_run(run)
    model, records, name = (
        load_model(folder, client_id=client_id, network=network),
        read_run(folder),
        folder.resolve().name,
    )
    files, use = _folder_of(model, folder, name) if form == "hf" else _graphs_of(model, form)
    if not isinstance(run, RunFolder) and is_zoo_model(run):
        text = (folder / CARD).read_text(encoding="utf-8")
    else:
        text = card(records, model, name=name, start=str(folder), attacked=None)
    files["README.md"] = f"{metadata(records, name)}{text}\n## Use\n\n{use}\n".encode()
    target = Path("exports", f"{name}-{form}") if output is None else Path(output).expanduser()
    if target.exists() and not target.is_dir():
        raise UserError(f"output must be a folder, got the file {target}: name another one")
    for file, content in files.items():
        write_bytes(target / file, content)
    return target


def _folder_of(model: EmotionModel, folder: Path, name: str) -> tuple[dict[str, bytes], str]:
    """The files that Hugging Face keeps a model in, and how to use them."""
    if model.own_network is not None:
        raise UserError(
            f"hf keeps no code, and {name} has a network of its own, {model.own_network}: take onnx or torch"
        )
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place), model)
        saved = RunFolder(Path(place))
        told, weights = saved.read_json(saved.model), saved.weights.read_bytes()
    labels = dict(enumerate(model.classes))
    told |= {
        "architectures": [type(model.network).__name__],
        "model_type": "ser_fl",
        "id2label": labels,
        "label2id": {emotion: row for row, emotion in labels.items()},
        "sampling_rate": model.frontend.sample_rate_hz,
    }
    use = f"""```python
import ser_fl  # pip install ser-fl

model = ser_fl.load("{name}")  # this folder
print(ser_fl.predict("clip.wav", model))
```"""
    return {"config.json": to_json(told, indent=1).encode(), "model.safetensors": weights}, use


@exact_arithmetic()
def _graphs_of(model: EmotionModel, form: str) -> tuple[dict[str, bytes], str]:
    """Graphs as files, each of which agrees with the model, and how to use them."""
    made, heard = FORMATS[form], exportable(model.frontend, model.frontend_config)
    ways: dict[str, nn.Module] = {"features": nn.Identity()} | ({} if isinstance(heard, str) else {"waveform": heard})
    rate_hz, num_samples = model.frontend.sample_rate_hz, model.frontend.num_samples
    facts = {
        "classes": json.dumps(model.classes),
        "sample_rate_hz": str(rate_hz),
        "num_samples": str(num_samples),
        "temperature": str(model.temperature),
        "synthetic": json.dumps(model.synthetic),
    }
    files, lines = dict[str, bytes](), list[str]()
    for way, front in ways.items():
        cases = _cases(model, way)
        parts: dict[str, Graph] = {"model" if way == "waveform" else "features": ModelGraph(model, front)}
        if model.by_speaker and way == list(ways)[-1] and model.frontend_config.num_frames > 1:
            parts["enrol"] = EnrolmentGraph(front)
        for part, graph in parts.items():
            outputs = SCALES if part == "enrol" else ("logits", "probabilities")
            content = made.write(graph, way, cases[-1][:2], outputs, facts)
            apart = _apart(made.open(content), model, way, part == "enrol", cases)
            if not apart <= TOLERANCES[way]:
                raise UserError(
                    f"{part}{made.suffix} differs from the model by {apart:.2g}, more than {TOLERANCES[way]:g}: it was "
                    "not written"
                )
            files[part + made.suffix] = content
            shape = "clips, samples" if way == "waveform" else f"clips, {model.frontend_config.num_features}, frames"
            lines.append(
                f"- `{part}{made.suffix}`: `{way}`, float32 ({shape}), to `{outputs[0]}` and `{outputs[1]}`; within "
                f"{TOLERANCES[way]:g} of ser_fl's own, measured {apart:.1g}."
            )
    lines.append(
        f"\nClasses, in this order: {', '.join(model.classes)}. A waveform is mono in [-1, 1] at {rate_hz} Hz; clips "
        f"below {num_samples} samples are repeated to that many inside, as in training, longer ones are heard whole. "
        "Features are what the front end gives, before any scaling."
    )
    if isinstance(heard, str):
        lines.append(f"\nFrom features only: {heard}, `ser_fl.load(RUN).frontend`.")
    if model.by_speaker or model.fallback is not None:
        how = "inputs" if form == "onnx" else "buffers of `program.module()`, to be copied to"
        default = "the mean of training speakers" if model.fallback else "nothing: they must be given"
        enrolled = (
            "" if "enrol" + made.suffix in files else " `model.enrolled(clips).scale` in ser_fl gives those of one."
        )
        lines.append(f"\n`speaker_mean` and `speaker_deviation` are {how}; by default they are {default}.{enrolled}")
    return files, "\n".join(lines)


def _cases(model: EmotionModel, way: str) -> list[Tensor]:
    """Speech of two batch sizes, and of each two lengths: the built-in corpus's."""
    corpus = SyntheticCorpus(num_speakers=2, utterances_per_emotion=1)
    clips = [model.frontend.clip(*corpus.read(each)) for each in corpus.utterances[: max(_BATCHES)]]
    long = torch.stack(clips)
    if way == "features":
        with torch.no_grad():
            long = model.frontend(long)
    size = long.shape[-1]
    wide = torch.cat([long, long[..., : size // 2 + 1]], dim=-1)
    least = size // 2 + 1 if way == "waveform" else size
    return [wide[:rows, ..., :length].contiguous() for rows in _BATCHES for length in (least, wide.shape[-1])]


@torch.no_grad()
def _apart(answers: Answers, model: EmotionModel, way: str, enrols: bool, cases: Sequence[Tensor]) -> float:
    """The largest difference between a file's output and the model's, relative to the largest where that is above 1;
    with the mean training speaker and with one who is enrolled.
    """
    apart = 0.0
    for inputs in cases:
        features = inputs
        if way == "waveform":
            length = max(inputs.shape[1], model.frontend.num_samples)
            features = model.frontend(torch.stack([repeat_to_length(clip, length) for clip in inputs]))
        own = Scale.of(FeatureStatistics.of(features))
        if enrols:
            pairs = [(answers(inputs, {}), (own.mean, own.deviation))]
        else:
            scales = [own] if model.by_speaker or model.fallback is not None else []
            pairs = []
            for scale in [*([None] if model.fallback is not None or not scales else []), *scales]:
                scaled = copy(model)
                scaled.scale = scale
                logits = scaled(scaled.standardised(features))
                given = {} if scale is None else dict(zip(SCALES, (scale.mean, scale.deviation), strict=True))
                pairs.append((answers(inputs, given), (logits, model.probabilities(logits))))
        for found, expected in pairs:
            for one, other in zip(found, expected, strict=True):
                difference = float((one - other).abs().max() / other.abs().max().clamp(min=1))
                apart = max(apart, difference if math.isfinite(difference) else math.inf)
    return apart
