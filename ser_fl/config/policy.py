"""The policy of a node: what a server may ask of it. One file beside the node's key, which only its owner writes.

It is read when the node starts, and again for every message, so that a change counts at once. What is not allowed is
refused before anything is computed. The policy binds the ser_fl that is installed on the node, and no other code: that
is why an app with code of its own is refused first of all.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from ser_fl.config.schema import checked
from ser_fl.config.values import Amount, Count, Positive, stage
from ser_fl.errors import UserError, one_line, shown

FrontEndKind = Literal["log_mel", "ge2e", "transformers"]
SplitName = Literal[
    "within_speaker", "speaker_independent", "text_independent", "speaker_and_text_independent", "published"
]
ModelName = Literal["crnn", "vgg15", "resnet", "pooled"]

DEFAULT = """\
# The policy of this node: what a server may ask of it. Whatever else is asked is refused, and both are written to
# audit.jsonl in the node's state folder. A change counts from the next message on.
# What each line protects against: docs/how-to/node-policy.md
schema: 1

# installed: this node runs the ser_fl that is installed on it, and no code that is sent.
# any: whoever may submit runs may run any code here. No limit below binds such code, so this line then stands alone.
app: installed

# What a run may be made of.
front_ends: [log_mel, ge2e]
splits: [within_speaker, speaker_independent, text_independent, speaker_and_text_independent, published]
models: [crnn, vgg15, resnet, pooled]
most_parameters: 50_000_000

# A client with fewer training utterances stays home, and so do the utterances of a speaker who has fewer of them to
# validate or to test with: nobody is told that they are there.
least_utterances: 20
least_scored: 5

# How many different views of a corpus (split, front end, clip length, labels ...) this node takes part in. Answers
# about views that differ in one utterance tell of that utterance.
most_views: 1

# Sums over features, which `normalisation=pooled` needs. once: of one view of a corpus, the same sums whenever they are
# asked for. never: only runs with `normalisation=speaker`.
statistics: once

# Resources. Memory in GB is what one answer may take beside what is taken already; null: no limit.
most_rounds: 1000
most_local_epochs: 100
most_threads: 4
most_memory_gb: null
most_message_mb: 256
most_answers_per_hour: 2000

# Least noise multiplier of differential privacy. This version of ser_fl has none: a number here refuses all runs.
least_noise: null

# Size of audit.jsonl at which it becomes audit.jsonl.1, and so on to .4.
most_audit_mb: 10
"""
"""What `ser-fl federation keys` writes: the defaults below, in words."""


@stage
class Policy:
    """Every default is as in `DEFAULT`."""

    schema: Literal[1] = 1
    app: Literal["installed", "any"] = "installed"
    front_ends: tuple[FrontEndKind, ...] = ("log_mel", "ge2e")
    splits: tuple[SplitName, ...] = (
        "within_speaker",
        "speaker_independent",
        "text_independent",
        "speaker_and_text_independent",
        "published",
    )
    models: tuple[ModelName, ...] = ("crnn", "vgg15", "resnet", "pooled")
    most_parameters: Count = 50_000_000
    least_utterances: Count = 20
    """Training utterances of a client that takes part."""
    least_scored: Count = 5
    """Validation, and test, utterances of a speaker of whom figures are told."""
    most_views: Count = 1
    statistics: Literal["once", "never"] = "once"
    most_rounds: Count = 1000
    most_local_epochs: Count = 100
    most_threads: Annotated[int, Field(ge=1, le=1024)] = 4
    most_memory_gb: Positive | None = None
    most_message_mb: Positive = 256
    most_answers_per_hour: Amount = 2000
    least_noise: Positive | None = None
    most_audit_mb: Positive = 10


def read_policy(path: Path) -> Policy:
    """A node's policy; a `UserError` in one line where the file is missing, may be written by others, or has a key that
    is unknown, given twice, out of its range or at odds with another.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except FileNotFoundError:
        name = path.name.removesuffix(".policy.yaml")
        raise UserError(
            f"{path} is missing: `ser-fl federation keys DIR --policies {name}` writes one with safe defaults"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if mode & 0o022:
        raise UserError(f"{path} can be written by others on this machine: chmod 600 {path}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {one_line(str(error), 300)}") from None
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path} must hold settings such as `least_utterances: 20`, got {shown(content)}")
    names = [str(key.value) for key, _ in node.value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: {twice[0]} is given twice")
    try:
        policy = checked(Policy, {str(name): value for name, value in content.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if policy.app == "any" and (others := [name for name in names if name not in ("schema", "app")]):
        raise UserError(
            f"{path}: app: any lets code of others run, which {others[0]} does not bind: remove all other lines, or "
            "say app: installed"
        )
    return policy
