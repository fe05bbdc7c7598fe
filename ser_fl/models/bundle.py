"""A trained model on disk: weights in safetensors, everything else that is needed to use them in JSON.

Legend: B batch, T samples, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ser_fl.config import FrontendConfig, ModelConfig
from ser_fl.data.frontend import LogMel, Standardisation
from ser_fl.errors import UserError, shown, unknown_name
from ser_fl.forms import conform
from ser_fl.models.catalogue import build_network
from ser_fl.records import MODEL_SCHEMA, RunFolder, State, write_bytes, write_json

_FRONTEND: TypeAdapter[FrontendConfig] = TypeAdapter(FrontendConfig)
_MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


class EmotionModel(nn.Module):
    """A trained classifier with its front end: what `ser_fl.load` gives.

    Called with standardised log-mel features it is a plain torch classifier, the thing that is attacked;
    `from_waveform` goes all the way from audio.
    """

    def __init__(
        self,
        network: nn.Module,
        standardisation: Standardisation,
        *,
        classes: tuple[str, ...],
        model: ModelConfig,
        frontend: FrontendConfig,
        synthetic: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.standardisation = standardisation
        self.frontend = LogMel(frontend)
        self.classes = classes
        self.model_config = model
        self.frontend_config = frontend
        self.synthetic = synthetic
        """Whether it was trained on the built-in corpus, whose speech is synthetic."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC

    def from_waveform(self, waveform_BT: Tensor) -> Tensor:
        """Logits of shape (B, C) from clips already at the front end's rate and length, differentiable throughout."""
        logits_BC: Tensor = self(self.standardisation(self.frontend(waveform_BT)))
        return logits_BC


def save_model(folder: Path, bundle: EmotionModel) -> None:
    """Write ``model.safetensors`` and ``model.json`` of a run."""
    run = RunFolder(folder)
    card = {
        "schema": MODEL_SCHEMA,
        "model": _MODEL.dump_python(bundle.model_config, mode="json"),
        "classes": list(bundle.classes),
        "synthetic": bundle.synthetic,
        "frontend": _FRONTEND.dump_python(bundle.frontend_config, mode="json"),
        "standardisation": {
            name: tensor.flatten().tolist() for name, tensor in bundle.standardisation.state_dict().items()
        },
    }
    write_bytes(run.weights, save_tensors(_contiguous(bundle.network.state_dict())))
    write_json(run.model, card)


def save_local_models(folder: Path, states: Mapping[str, State]) -> None:
    """Write ``clients/<id>.safetensors`` of a run that averages nothing; ``model.json`` describes them all."""
    run = RunFolder(folder)
    for client_id, state in states.items():
        write_bytes(run.weights_of(client_id), save_tensors(_contiguous(state)))


def load_model(folder: Path | str | RunFolder, *, client_id: str | None = None) -> EmotionModel:
    """The selected model of a run, in evaluation mode.

    Args:
        folder: The run folder, or what `ser_fl.train` gave.
        client_id: the client whose own model it shall be, of a run with ``federation=local_only``.

    Raises:
        UserError: the folder holds no model, or one of another schema, or one that does not fit its description; or
            none of that client.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
    weights = run.weights if client_id is None else _weights_of(run, client_id)
    card: Any = run.read_json(run.model)
    schema = card.get("schema") if isinstance(card, dict) else None
    if schema != MODEL_SCHEMA:
        raise UserError(f"{run.model} has schema {shown(schema)}, this version reads {MODEL_SCHEMA}: train it again")
    try:
        model, frontend = _MODEL.validate_python(card["model"]), _FRONTEND.validate_python(card["frontend"])
        columns = card["standardisation"].items()
        if odd := [name for name, values in columns if len(values) != frontend.num_mels]:
            raise ValueError(f"{odd[0]} must have {frontend.num_mels} entries, one a mel bin")
        standardisation = Standardisation(*(torch.zeros(frontend.num_mels) for _ in range(4)))
        standardisation.load_state_dict({name: _column(name, values) for name, values in columns})
        classes = conform(tuple[str, ...], card["classes"], "classes")
        tensors = load_tensors(weights.read_bytes())
        with torch.device("meta"):  # no memory for sizes that the weights do not have
            _check_shapes(build_network(model, len(classes), seed=0), tensors)
        network = build_network(model, len(classes), seed=0)
        network.load_state_dict(tensors)
    except FileNotFoundError:
        raise UserError(f"{run.root} has no {weights.name}: only its records were kept, train it again") from None
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the model in {run.root} cannot be loaded: {reason}") from None
    bundle = EmotionModel(
        network,
        standardisation,
        classes=classes,
        model=model,
        frontend=frontend,
        synthetic=bool(card.get("synthetic", False)),
    )
    return bundle.eval()


def _check_shapes(network: nn.Module, tensors: State) -> None:
    """Raise `ValueError` where weights are not of a network, or not finite."""
    for name, expected in network.state_dict().items():
        given = tensors.get(name)
        if given is None or given.shape != expected.shape:
            shape = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise ValueError(f"{name} is {shape}, expected {tuple(expected.shape)}")
        if not torch.isfinite(given).all():
            raise ValueError(f"{name} is not finite")


def _weights_of(run: RunFolder, client_id: str) -> Path:
    """The file of a client's own weights."""
    known = run.local_clients
    if not known:
        raise UserError(
            f"{run.root} keeps no client's own model, got {client_id!r}: only runs with federation=local_only do (an "
            "older one writes them when it is resumed)"
        )
    if client_id not in known:
        raise unknown_name("client", client_id, known)
    return run.weights_of(client_id)


def _column(name: str, values: list[float | None]) -> Tensor:
    """JSON has no infinities: null is an open side of the box."""
    open_side = float("-inf") if name.startswith("lower") else float("inf")
    return torch.tensor([open_side if value is None else value for value in values]).reshape(-1, 1)


def _contiguous(state: State) -> State:
    """Safetensors stores the plain layout; loading into channels-last parameters restores theirs."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
