"""From command-line overrides to a checked `Config`, through Hydra's groups in ``configs/``."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from ser_fl.config.groups import configs_dir, folders_of_groups, groups
from ser_fl.config.robustness import BenchmarkConfig, TransferConfig
from ser_fl.config.schema import Config, checked
from ser_fl.config.text import (
    UNFIT,
    assignments,
    escaped,
    first_line,
    kind_of,
    read_settings,
    split,
    sweep_values,
    type_at,
)
from ser_fl.errors import UserError, shown, unknown_name

_LONGEST_OVERRIDE = 10_000
HYDRA_VERSION = "1.3"
OF_SPEECH = ("data", "split", "enrolment")
"""Groups of settings that say which utterances a trained model is shown."""


def compose(
    overrides: Sequence[str] = (), *, config_file: Path | None = None, config_dir: Path | None = None
) -> Config:
    """The configuration that overrides such as ``data=nemo federation.num_rounds=5`` ask for.

    Args:
        overrides: Hydra overrides, ``group=name`` or ``group.setting=value``; text is taken as it is typed.
        config_file: a resolved ``config.yaml`` to start from in place of the defaults; then overrides set values only.
        config_dir: groups and experiments of your own, beside ours.

    Raises:
        UserError: an unknown group, name or setting (the known ones are listed), or a value out of range.
    """
    if config_file:
        return checked(Config, _changed(config_file, overrides, Config))
    from hydra import compose as hydra_compose
    from hydra import initialize

    with (
        told_in_a_line(),
        hydra_ready(overrides, config_dir=config_dir) as (name, translated),
        initialize(config_path=None, job_name="ser-fl", version_base=HYDRA_VERSION),
    ):
        return parsed(hydra_compose(name, translated))


def compose_speech(settings: Sequence[str], config_file: Path) -> Config:
    """A run's configuration with the corpus and the split of other speech: ``data=NAME`` begins with the defaults of
    another corpus, ``split=NAME`` with those of another split, and all else changes the run's own. One of the run's own
    several corpora is that corpus where it lies, and is split as in the run.

    Raises:
        UserError: a setting of anything but ``data``, ``split`` and `enrolment`, an unknown one, or a value out of
            range.
    """
    for setting in settings:
        if _top_of(setting) not in OF_SPEECH:
            key, _ = _key_and_value(setting)
            raise unknown_name("setting", key, (*OF_SPEECH, "run", "part", "allow_seen", "out"))
    own = checked(Config, read_settings(config_file, Config)).data
    for name in own.corpora if len(own.corpora) > 1 else ():
        if f"data={name}" in settings:
            alone = [f"data.name={name}", "data.roots={}", *(["data.labels={}"] if name != "manifest" else [])]
            alone += [f"data.root={own.folders[name]}"] if name in own.folders else []
            settings = [*alone, *(setting for setting in settings if setting != f"data={name}")]
    of_corpus = [setting for setting in settings if _top_of(setting) != "enrolment"]
    groups = {setting.lstrip("+").partition("=")[0] for setting in of_corpus}
    anew = [setting for setting in of_corpus if "data" in groups or _top_of(setting) in groups]
    config = compose([setting for setting in settings if setting not in anew], config_file=config_file)
    if not anew:
        return config
    chosen = compose(anew)
    return replace(config, data=chosen.data if "data" in groups else config.data, split=chosen.split)


def _top_of(setting: str) -> str:
    return re.split(r"[.=@]", setting.lstrip("+"), maxsplit=1)[0]


def _apart(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings of the speech, where there are any, under their name, and all other overrides."""
    speech = [override for override in overrides if _top_of(override) in OF_SPEECH]
    return {"speech": speech} if speech else {}, [override for override in overrides if override not in speech]


def compose_benchmark(overrides: Sequence[str]) -> BenchmarkConfig:
    """The settings of `ser-fl benchmark`: ``configs/benchmark.yaml``, overrides such as ``attacks=[fgsm,pgd]``, and
    those of `compose_speech`; a `UserError` for an unknown setting (known ones are listed), or a value out of range.
    """
    speech, others = _apart(overrides)
    settings = _changed(configs_dir() / "benchmark.yaml", others, BenchmarkConfig, example="run=RUN")
    if not any(override.startswith("run=") for override in overrides):
        raise UserError("say which run: ser-fl benchmark run=RUN")
    return checked(BenchmarkConfig, {**settings, **speech})


def compose_transfer(arguments: Sequence[str]) -> TransferConfig:
    """The settings of `ser-fl transfer`: runs, ``configs/transfer.yaml``, and overrides such as ``epsilon=0.1``. What
    begins with a word and ``=`` is an override, all else a run; a folder of such a name is written with a ``./`` before
    it.

    Raises:
        UserError: fewer than two runs, an unknown setting (the known ones are listed), or a value out of range.
    """
    overrides = [argument for argument in arguments if re.match(r"[\w.]+=", argument)]
    runs = [argument for argument in arguments if argument not in overrides]
    speech, others = _apart(overrides)
    settings = _changed(configs_dir() / "transfer.yaml", others, TransferConfig, example="epsilon=0.1")
    return checked(TransferConfig, {**settings, **speech, "runs": runs})


@contextmanager
def hydra_ready(
    overrides: Sequence[str],
    *,
    config_name: str = "train",
    config_file: Path | None = None,
    config_dir: Path | None = None,
    is_sweep: bool = False,
) -> Iterator[tuple[str, list[str]]]:
    """Inside, Hydra finds our settings: gives the config's name, and the overrides in Hydra's grammar. Overrides, file
    and folder are those of `compose`; in a sweep a setting may have several values. A `UserError` tells of an unknown
    name or an unreadable file.
    """
    from ser_fl.config.hydra_context import hydra_over

    values, typed = _translated(overrides, {} if config_file else groups(config_dir), is_sweep=is_sweep)
    whole = read_settings(config_file, Config) if config_file else None
    with hydra_over(folders_of_groups(config_dir), whole=whole, typed=typed) as (name, laid_over):
        yield name or config_name, [*values, *laid_over]


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """What Hydra, OmegaConf or YAML find wrong inside is told in one line of ours, a `UserError`."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, *UNFIT) as error:
        if several := re.match(r"Ambiguous value for argument '\+*(.+?)'", str(error)):
            raise _ambiguous(several[1]) from None
        raise UserError(first_line(error)) from None


def _ambiguous(setting: str) -> UserError:
    return UserError(f"{setting} has several values: write [...] around a list, or -m for a sweep")


def parsed(composed: Any) -> Config:
    """What Hydra composed, checked."""
    from omegaconf import OmegaConf

    return checked(Config, cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)))


def _translated(
    overrides: Sequence[str], known: Mapping[str, Sequence[str]], *, is_sweep: bool
) -> tuple[list[str], dict[str, Any]]:
    """Overrides in Hydra's grammar, and settings that it cannot name: those under keys of the user's own. Misspelt
    names are found before Hydra does, in many lines.
    """
    values: list[str] = []
    typed: dict[str, Any] = {}
    settings = [field.name for field in fields(Config)]
    for override in overrides:
        if re.match(r"~|\+*hydra[/.]", override):  # Hydra's own: its launcher, its sweeper, its folders
            values.append(override)
            continue
        key, value = _key_and_value(override)
        name = key.lstrip("+")
        if (group := name.partition("@")[0]) in known:
            choices = split(value) if is_sweep and "(" not in value else [value]
            for place, choice in enumerate(choices):
                names = [choice]
                if group == "data" and "(" not in choice:  # a file for several corpora is made up (`LiteralFiles`)
                    listed = choice[1:-1] if choice.startswith("[") and choice.endswith("]") else choice
                    names = [one for each in split(listed) for one in each.split("+")]
                    choices[place] = "+".join(names)
                for one in names or [choice]:
                    if "(" not in one and one.strip("'\"") not in known[group]:
                        raise unknown_name(group, one, known[group])
            values.append(f"{key}={','.join(choices)}")
            continue
        if (top := name.partition(".")[0]) not in settings:
            raise unknown_name("setting", top, [*settings, *known])
        swept = sweep_values(Config, name, value) if is_sweep else [value]
        # A text is escaped where OmegaConf would take ${...} for another setting.
        found = [assignments(Config, name, each, lambda text: _quoted(escaped(text))) for each in swept]
        is_known = is_sweep and known and type_at(Config, tuple(name.split("."))) is not None
        add = "" if is_known else "++"  # a sweeper writes down the names of what it found
        if len(found) > 1:
            values.append(f"{add}{name}={','.join(text for ((_, text),) in found)}")
            continue
        for path, text in found[0]:
            if kind_of(type_at(Config, path[:-1])).is_mapping:
                _set(typed, path, text)
            else:
                values.append(f"{add}{'.'.join(path)}={text}")
    return values, typed


def _key_and_value(override: str, example: str = "seed=2") -> tuple[str, str]:
    key, separator, value = override.partition("=")
    if not separator:
        raise UserError(f"{shown(override)} is not a setting: write key=value, such as {example}")
    if len(override) > _LONGEST_OVERRIDE:
        raise UserError(f"the value of {shown(key)} has {len(value)} characters, expected {_LONGEST_OVERRIDE} at most")
    return key, value


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def _changed(file: Path, overrides: Sequence[str], schema: object, *, example: str = "seed=2") -> dict[str, Any]:
    """Settings of a file with overrides, which set values only."""
    settings = read_settings(file, schema)
    for override in overrides:
        key, value = _key_and_value(override, example)
        with told_in_a_line():
            for path, text in assignments(schema, key.lstrip("+"), value, _quoted):
                _set(settings, path, text)
    return settings


def _set(settings: dict[str, Any], path: Sequence[str], text: str) -> None:
    """Set a value that is written in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override, node = OverridesParser.create().parse_override(f"_={text}"), settings
    if override.is_sweep_override():
        raise _ambiguous(f"{'.'.join(path)}={text}")
    for depth, name in enumerate(path[:-1], start=1):
        node[name] = {} if node.get(name) is None else node[name]
        node = node[name]
        if not isinstance(node, dict):
            raise UserError(f"{'.'.join(path[:depth])} holds one value and no settings, got {shown('.'.join(path))}")
    node[path[-1]] = override.value()
