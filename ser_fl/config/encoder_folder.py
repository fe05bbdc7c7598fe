"""What a folder with a pretrained encoder of speech holds, as `save_pretrained` of transformers writes it.

Nothing in it is run or unpickled: settings are JSON, weights are safetensors.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ser_fl.config.values import Count, stage
from ser_fl.errors import UserError, shown
from ser_fl.files import parse_json
from ser_fl.runs.redaction import is_place

Kind = Literal["wav2vec2", "hubert", "wavlm", "whisper"]
SETTINGS, SCALING = "config.json", "preprocessor_config.json"
_SAVE = "save it anew by transformers, model.save_pretrained(DIR) and feature_extractor.save_pretrained(DIR)"


@stage
class EncoderForm:
    """What a run depends on of an encoder: by it the encoder is known again, wherever it lies."""

    kind: Kind
    num_layers: Count
    """Hidden layers, with what enters the first one."""
    size: Count
    """Units of a layer."""
    sample_rate_hz: Count
    window_samples: Count
    """Samples that a frame is of."""
    hop_samples: Count
    longest_samples: Count | None
    """Of a clip; None where there is no limit."""
    digest: str
    """Of settings and weights."""


def read_form(path: str) -> EncoderForm:
    """What a folder holds.

    Raises:
        UserError: transformers is not installed; there is no such folder, or it holds another kind of model, no weights
            or pickled ones alone, or no settings of a feature extractor.
    """
    refuse_without("transformers")
    folder = folder_of(path)
    settings = settings_of(folder, SETTINGS)
    if (kind := settings.get("model_type")) not in get_args(Kind):
        raise UserError(
            f"frontend.path must hold an encoder of speech ({', '.join(get_args(Kind))}), got {shown(kind)} in {folder}"
        )
    if not weights_of(folder):
        pickled = next((f"{file.name} alone, a pickle, which may hold code" for file in folder.glob("*.bin")), "none")
        raise UserError(f"{folder} must hold weights in safetensors, got {pickled}: {_SAVE}")
    scaling = settings_of(folder, SCALING)
    try:
        rate_hz, longest = scaling["sampling_rate"], None
        if kind == "whisper":
            window = hop = 2 * scaling["hop_length"]
            layers, size = settings["encoder_layers"], settings["d_model"]
            longest = settings["max_source_positions"] * hop
        else:
            layers, size, window, hop = settings["num_hidden_layers"], settings["hidden_size"], 1, 1
            for kernel, stride in zip(settings["conv_kernel"], settings["conv_stride"], strict=True):
                window, hop = window + (kernel - 1) * hop, hop * stride
        return EncoderForm(
            kind=cast(Kind, kind),
            num_layers=layers + 1,
            size=size,
            sample_rate_hz=rate_hz,
            window_samples=window,
            hop_samples=hop,
            longest_samples=longest,
            digest=digest_of(folder),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} has damaged settings, {SETTINGS} or {SCALING}: {error!r}; {_SAVE}") from None


def refuse_without(package: str) -> None:
    """A `UserError` where a package of the extra ``ssl`` is not installed."""
    if find_spec(package) is None:
        raise UserError(f"frontend=transformers needs the package {package}: pip install 'ser-fl[ssl]'")


def folder_of(path: str) -> Path:
    """The folder that `frontend.path` names; a `UserError` where it is not there."""
    folder = Path(path).expanduser()
    if is_place(path) or not folder.is_dir():
        raise UserError(
            f"the encoder's folder, {path}, is not on this machine: say where it is, with frontend.path=DIR, for a run "
            "that is done as path in its config.yaml and model.json"
        )
    return folder


def settings_of(folder: Path, name: str) -> Mapping[str, Any]:
    """Settings in JSON; a `UserError` where there are none."""
    try:
        content = parse_json((folder / name).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {shown(content)}")
        return content
    except OSError as error:
        raise UserError(f"{folder} must hold {name}: {error.strerror}; {_SAVE}") from None
    except ValueError as error:
        raise UserError(f"{folder / name} is damaged ({error}): {_SAVE}") from None


def weights_of(folder: Path) -> list[Path]:
    """Its files of weights, one or several."""
    return sorted([*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")])


def digest_of(folder: Path) -> str:
    """Of all that its outputs depend on: settings and weights, by their content; read once while nobody writes them."""
    files = [folder / SETTINGS, folder / SCALING, *weights_of(folder)]
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for file, _, _ in files:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "blake2b").digest()
        whole.update(file.name.encode() + digest)
    return whole.hexdigest()
