"""Reads the files named on standard input, within little memory: a line of JSON on each, of what came of it."""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from ser_fl.data.audio import content_digest, probe_audio, probe_header, read_audio
from ser_fl.data.frontend import repeat_to_length, resample
from ser_fl.data.headers import missing_bytes
from ser_fl.errors import UserError

ROOM = 1 << 30
"""Bytes of address space beyond what the libraries take."""


def outcome_of(path: Path, channel: str) -> dict[str, Any]:
    header, audio = probe_header(path), probe_audio(path, channel)
    about = {"header": header, "audio": audio, "missing": missing_bytes(path), "digest": len(content_digest(path, ""))}
    try:
        waveform_T, rate_hz = read_audio(path, channel)
    except UserError as error:
        return about | {"refused": str(error)}
    finite = bool(waveform_T.isfinite().all()) and float(waveform_T.abs().max()) <= 1
    about |= {"shape": list(waveform_T.shape), "sound": finite and waveform_T.dtype == torch.float32}
    try:
        clip_T = repeat_to_length(resample(waveform_T, rate_hz, 16000), 16000)
    except UserError as error:
        return about | {"odd rate": str(error)}
    return about | {"clip": list(clip_T.shape) if clip_T.isfinite().all() else "not finite"}


def main() -> None:
    resample(torch.zeros(100), 8000, 16000)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            outcome = outcome_of(*(Path(json.loads(line)["path"]), json.loads(line)["channel"]))
        except BaseException:
            outcome = {"traceback": traceback.format_exc()}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
