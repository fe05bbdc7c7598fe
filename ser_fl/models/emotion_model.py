"""A trained model on disk: weights in safetensors, everything else that is needed to use them in JSON.

Legend: B batch, T samples, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor, nn

from ser_fl.calibration import TEMPERATURES
from ser_fl.config.frontend import AnyFrontend
from ser_fl.config.training import ModelConfig
from ser_fl.config.values import ObjectConfig, OrOwn
from ser_fl.data.frontend import Standardisation
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.joint import Member
from ser_fl.data.normalisation import Scale
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import UserError, shown, unknown_name
from ser_fl.files import check_same_form, from_safetensors, to_safetensors, write_bytes, write_json
from ser_fl.models.networks import NetworkSource, build_network
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import MODEL_SCHEMA, State
from ser_fl.runs.redaction import is_place, recall, remember
from ser_fl.runs.zoo import readable_run

_LOG = logging.getLogger(__name__)
_FRONTEND: TypeAdapter[AnyFrontend] = TypeAdapter(AnyFrontend)
_MODEL: TypeAdapter[ModelConfig | ObjectConfig] = TypeAdapter(OrOwn[ModelConfig])
_CLASSES: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])
_LONGEST_CLIP = 1 << 28
"""Samples, over an hour and a half at 48 kHz: more is no clip but a damaged description."""


class EmotionModel(nn.Module):
    """A trained classifier with its front end: what `ser_fl.load` gives. Called with standardised log-mel features it
    is a plain torch classifier; `from_waveform` goes all the way from audio. Both give the network's own logits, which
    attacks are made on; `probabilities` makes calibrated ones of them.
    """

    def __init__(
        self,
        network: nn.Module,
        standardisation: Standardisation,
        *,
        classes: tuple[str, ...],
        model: ModelConfig | ObjectConfig,
        frontend: AnyFrontend,
        synthetic: bool = False,
        own_network: str | None = None,
        by_speaker: bool = False,
        fallback: Scale | None = None,
        temperature: float = 1.0,
        corpora: Mapping[str, Member] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.standardisation = standardisation
        self.frontend = build_frontend(frontend)
        self.classes = classes
        self.model_config = model
        self.frontend_config = frontend
        self.synthetic = synthetic
        """Whether it was trained on the built-in corpus, whose speech is synthetic."""
        self.own_network = own_network
        """Qualified name of a network that was given to `ser_fl.train` in place of the configured one."""
        self.by_speaker = by_speaker
        """Whether features must be scaled by their speaker's own clips before `standardisation`, which is but the box
        then: see `enrolled`."""
        self.fallback = fallback
        """For speakers of whom there is no clip; None where training speakers did not tell their mean. Of a model of
        several corpora that scales by corpus, for speech of any other.
        """
        self.scale: Scale | None = None
        """Of the speaker that the model is enrolled for."""
        self.temperature = temperature
        """What logits are divided by before they are probabilities (`ser_fl.calibration`); 1 leaves them."""
        self.corpora = corpora or {}
        """Several that it was trained on, by name; empty of one."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Calibrated probabilities of shape (B, C), softmax(logits / T): the likeliest class is that of the logits."""
        return (logits_BC / self.temperature).softmax(dim=1)

    def from_waveform(self, waveform_BT: Tensor) -> Tensor:
        """Logits of shape (B, C) from clips already at the front end's rate and length, differentiable throughout.
        Errors are those of `standardised`.
        """
        logits_BC: Tensor = self(self.standardised(self.frontend(waveform_BT)))
        return logits_BC

    def standardised(self, features_BFL: Tensor) -> Tensor:
        """What the front end gives, as the network takes it, of the speaker who is enrolled where the model scales
        speakers. A `UserError` where nobody is, and training speakers did not tell their mean.
        """
        if (scale := self.scale or self.fallback) is not None:
            features_BFL = scale.to(features_BFL.device)(features_BFL)
        elif self.by_speaker:
            raise UserError(
                "the model scales each speaker by own clips and knows none of this one: enrol some first, with "
                "model.enrolled(clips)"
            )
        standardised_BFL: Tensor = self.standardisation(features_BFL)
        return standardised_BFL

    @torch.no_grad()
    def enrolled(self, waveform_BT: Tensor) -> EmotionModel:
        """The same model for one speaker, who is scaled by these clips, at the front end's rate and length; nobody
        tells their emotions. Shares its weights. A `UserError` of a model that scales all speakers alike, or as
        `Scale.enrolled`.
        """
        if not self.by_speaker:
            raise UserError("the model scales all speakers alike (normalisation=pooled): nobody needs to be enrolled")
        model = copy(self)
        model.scale = Scale.enrolled(torch.cat([self.frontend(clip[None]) for clip in waveform_BT]), self.fallback)
        return model


def save_model(folder: Path, bundle: EmotionModel) -> None:
    """Write ``model.safetensors`` and ``model.json`` of a run. What was measured of a model before, that of a run which
    was done and went on, is put aside first.
    """
    run, columns = RunFolder(folder), bundle.standardisation.state_dict()
    weights = to_safetensors(bundle.network.state_dict())
    if run.weights.exists() and run.weights.read_bytes() != weights:
        for place in (run.root, *sorted(run.evaluations.glob("*"))):
            for name in ("attacks.json", "transfer.json", "evaluation.json", "predictions.csv"):
                if (file := place / name).exists():
                    aside = file.with_name(f"{file.stem}.before{file.suffix}")
                    _LOG.warning("%s is of the model before: it is %s now", file, aside.name)
                    file.replace(aside)
    frontend = _FRONTEND.dump_python(bundle.frontend_config, mode="json")
    if "path" in frontend:
        frontend["path"] = remember(frontend["path"])
    card = {
        "schema": MODEL_SCHEMA,
        "network": bundle.own_network,
        "model": _MODEL.dump_python(bundle.model_config, mode="json"),
        "classes": list(bundle.classes),
        "synthetic": bundle.synthetic,
        "temperature": bundle.temperature,
        "frontend": frontend,
        "standardisation": {name: column_F1.flatten().tolist() for name, column_F1 in columns.items()},
        "normalisation": "speaker" if bundle.by_speaker else "pooled",
        "fallback": bundle.fallback and bundle.fallback.plain(),
    }
    if bundle.corpora:
        card["corpora"] = {
            name: {"emotions": member.emotions, "scale": member.scale and member.scale.plain()}
            for name, member in bundle.corpora.items()
        }
    write_bytes(run.weights, weights)
    write_json(run.model, card)


def save_local_models(folder: Path, states: Mapping[str, State]) -> None:
    """Write ``clients/<id>.safetensors`` of a run that averages nothing; ``model.json`` describes them all."""
    run = RunFolder(folder)
    for client_id, state in states.items():
        write_bytes(run.weights_of(client_id), to_safetensors(state))


@exact_arithmetic()
def load_model(
    folder: Path | str | RunFolder, *, client_id: str | None = None, network: NetworkSource | None = None
) -> EmotionModel:
    """The selected model of a run, in evaluation mode.

    Args:
        folder: The run folder, what `ser_fl.train` gave, what `ser_fl.export` made of it for Hugging Face, or the name
            of a model of the zoo (`ser_fl.runs.zoo`).
        client_id: the client whose own model it shall be, of a run with ``federation=local_only``.
        network: of a run that was given a network of its own: the same one again.

    Raises:
        UserError: the folder holds no model, or one of another schema, or one that does not fit its description; or
            none of that client.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder(readable_run(folder))
    run.refuse_links_out()
    weights = run.weights
    if client_id is not None:
        if not (known := run.local_clients):
            raise UserError(
                f"{run.root} keeps no client's own model, got {client_id!r}: only runs with federation=local_only do "
                "(an older one writes them when it is resumed)"
            )
        if client_id not in known:
            raise unknown_name("client", client_id, known)
        weights = run.weights_of(client_id)
    described = run.model if run.model.exists() or not run.hub.exists() else run.hub
    card: Any = run.read_json(described)
    schema = card.get("schema") if isinstance(card, dict) else None
    if schema != MODEL_SCHEMA:
        raise UserError(f"{described} has schema {shown(schema)}, this version reads {MODEL_SCHEMA}: train it again")
    if (needed := card.get("network")) is not None and network is None:
        raise UserError(
            f"{run.root} was trained with a network of its own, {shown(needed)}, which no file holds: load it with "
            "ser_fl.load(run, network=...) and benchmark what that gives"
        )
    if needed is None and network is not None:
        raise UserError(f"{run.root} was trained with the configured network: load it without one")
    try:
        return _described(card, from_safetensors(weights.read_bytes()), network).eval()
    except FileNotFoundError:
        raise UserError(f"{run.root} has no {weights.name}: only its records were kept, train it again") from None
    except UserError as error:
        raise UserError(f"the model in {run.root} cannot be loaded: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the model in {run.root} cannot be loaded: {reason}") from None


def _described(card: Mapping[str, Any], state: State, own: NetworkSource | None) -> EmotionModel:
    """The model that ``model.json`` describes, with these weights; sizes are checked before memory is taken for them. A
    ValueError, KeyError or other names what is missing or does not fit.
    """
    front = dict(card["frontend"])
    if is_place(place := front.get("path")):
        front["path"] = recall(place) or place
    model, frontend = _MODEL.validate_python(card["model"]), _FRONTEND.validate_python(front)
    classes = _CLASSES.validate_python(card["classes"])
    if own is None:
        with torch.device("meta"):
            described = build_network(model, len(classes), seed=0, frontend=frontend).state_dict()
        try:
            check_same_form(state, described)
        except ValueError as error:
            raise ValueError(f"its weights are not as model.json describes: {error}") from None
    if frontend.window_samples > frontend.num_samples or frontend.num_samples > _LONGEST_CLIP:
        raise ValueError(f"clips of {frontend.num_samples} samples")
    columns: State = {}
    for name, values in card["standardisation"].items():
        if len(values) != frontend.num_features:
            raise ValueError(f"{name} has {len(values)} values for {frontend.num_features} bins")
        open_side = float("-inf") if name.startswith("lower") else float("inf")  # JSON, which lacks it, says null
        columns[name] = torch.tensor([open_side if value is None else value for value in values]).reshape(-1, 1)
    temperature = card.get("temperature", 1.0)  # of runs before there was one
    if type(temperature) not in (int, float) or not TEMPERATURES[0] <= temperature <= TEMPERATURES[-1]:
        raise ValueError(f"a temperature of {shown(temperature)}")
    standardisation = Standardisation(*(torch.zeros(frontend.num_features) for _ in range(4)))
    standardisation.load_state_dict(columns)

    def scale_of(told: Any) -> Scale | None:
        columns = () if told is None else (told["mean"], told["deviation"])
        return Scale(*(torch.tensor(each).reshape(frontend.num_features, 1) for each in columns)) if columns else None

    corpora = {
        str(name): Member(emotions=_CLASSES.validate_python(told["emotions"]), scale=scale_of(told["scale"]))
        for name, told in card.get("corpora", {}).items()
    }
    if odd := {emotion for member in corpora.values() for emotion in member.emotions} - {*classes}:
        raise ValueError(f"a corpus with {min(odd)}, which is no class")
    network = build_network(model, len(classes), seed=0, own=own, frontend=frontend)
    network.load_state_dict(state)
    return EmotionModel(
        network,
        standardisation,
        classes=classes,
        model=model,
        frontend=frontend,
        synthetic=bool(card.get("synthetic", False)),
        own_network=card.get("network"),
        by_speaker=card.get("normalisation", "pooled") == "speaker",
        fallback=scale_of(card.get("fallback")),
        temperature=temperature,
        corpora=corpora,
    )
