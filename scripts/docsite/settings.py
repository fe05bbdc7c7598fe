"""The reference of settings, from the schema in ser_fl/config and the files in configs/: a page a group.

Types and descriptions are those of the dataclasses, defaults those of the YAML files, and of the dataclass where a
file says nothing.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from docsite.markdown import ROOT, escaped, linked_papers, table
from ser_fl.config.robustness import AttackChoice, BenchmarkConfig, TransferConfig
from ser_fl.config.schema import Config
from ser_fl.config.values import PATH, ObjectConfig, as_yaml

CONFIGS = ROOT / "configs"
PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "`true` or `false`", NoneType: "`null`"}
BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
ON_RESUME = {"may change when a run is resumed", "may grow when a run is resumed"}
LONGEST = 2**62
"""Bounds from here on are those of the machine."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    key: str
    """As on the command line: ``optimiser.momentum``."""
    kind: str
    default: str
    others: Mapping[str, str]
    """Defaults of other choices, where they differ: ``{"optimiser=sgd": "0.9"}``."""
    meaning: str
    resumed: str


def choices(group: str) -> dict[str, dict[str, Any]]:
    """What each file of a group sets, with what it builds on."""
    return {file.stem: _merged(group, file.stem) for file in sorted((CONFIGS / group).glob("*.yaml"))}


def _merged(group: str, name: str) -> dict[str, Any]:
    own = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    whole: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            whole = _over(whole, _merged(group, base))
    return _over(whole, own)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The upper settings over the lower ones, group by group."""
    nested = {name: _over(below[name], value) for name, value in above.items() if isinstance(below.get(name), dict)}
    return {**below, **above, **nested}


@cache
def chosen() -> dict[str, str]:
    """The file that each group is taken from where nobody says otherwise."""
    listed = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: name for entry in listed if isinstance(entry, dict) for group, name in entry.items()}


@cache
def descriptions(stage: type) -> dict[str, str]:
    """The sentence under each field of a settings class, on one line."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(stage))).body
    assert isinstance(declared, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(declared.body, declared.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def stages_of(hint: object) -> list[type]:
    """The settings classes that a type allows: one, or several that a name chooses among."""
    if is_dataclass(hint):
        return [cast(type, hint)] if hint is not ObjectConfig else []
    if get_origin(hint) in (Annotated, Union, UnionType):
        inside = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
        return [stage for part in inside for stage in stages_of(part)]
    return []


def kind_in_words(hint: object) -> str:
    """An annotated type as a user would say it: "a number, > 0, or `null`"."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [bound for part in inside[1:] for bound in _bounds(part)]
        base = "a path" if PATH in inside[1:] else kind_in_words(inside[0])
        return ", ".join([base, *bounds])
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(map(kind_in_words, inside)))
    if origin is Literal:
        return " or ".join(", ".join(f"`{value}`" for value in part) for part in (inside[:-1], inside[-1:]) if part)
    if origin is tuple and inside[-1] is Ellipsis:
        return f"a list: each {kind_in_words(inside[0])}"
    if origin is tuple:
        return f"a list of {len(inside)}: each {kind_in_words(inside[0])}"
    if origin is dict:
        return f"a mapping of names: each {kind_in_words(inside[1])}"
    if hint is ObjectConfig:
        return "an object of your own (`_target_`)"
    if hint is AttackChoice:
        return "a name, or a mapping of the settings of one attack (below)"
    if is_dataclass(hint):
        return "a mapping of settings"
    return PLAIN[cast(type, hint)]


def _bounds(part: object) -> Iterator[str]:
    if isinstance(part, FieldInfo):
        for inner in part.metadata:
            yield from _bounds(inner)
    elif isinstance(part, MinLen):
        yield f"{part.min_length} at least"
    elif type(part) in BOUNDS:
        attribute, sign = BOUNDS[type(part)]
        value = getattr(part, attribute)
        if abs(value) < LONGEST:
            yield f"{sign} {as_yaml(value)}"


def written(value: object) -> str:
    """A default as it would be typed."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {written(each)}" for name, each in value.items()) + "}"
    return as_yaml(value)


def settings_of(
    stage: type, files: Mapping[str, Mapping[str, Any]], prefix: str = "", group: str = ""
) -> Iterator[Setting]:
    """Every setting of a class; the first of the files has the defaults, the others what differs."""
    hints, meanings = get_type_hints(stage, include_extras=True), descriptions(stage)
    for field in fields(stage):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        given = {name: file[field.name] for name, file in files.items() if field.name in file}
        if is_dataclass(hint):
            inner = {name: file.get(field.name, {}) for name, file in files.items()}
            yield from settings_of(cast(type, hint), inner, f"{key}.", group)
            continue
        values = {name: written(given.get(name, _own_default(field))) for name in files}
        default = next(iter(values.values()), written(_own_default(field)))
        notes = ON_RESUME.intersection(part for part in get_args(hint) if isinstance(part, str))
        yield Setting(
            key=key,
            kind=kind_in_words(hint),
            default=default,
            others={f"{group}={name}": value for name, value in values.items() if value not in (default, name)},
            meaning=meanings.get(field.name, "Which choice it is." if field.name == "name" else ""),
            resumed=next(iter(notes), ""),
        )


def _own_default(field: Any) -> object:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def families(group: str) -> Iterator[tuple[type, dict[str, dict[str, Any]]]]:
    """The classes that a group's files are read as, each with its files; first the one that is taken by default."""
    files = choices(group)
    first = chosen()[group]
    in_order = {name: files[name] for name in sorted(files, key=lambda name: (name != first, name))}
    stages = stages_of(get_type_hints(Config, include_extras=True)[group])
    by_class: dict[type, dict[str, dict[str, Any]]] = {}
    for name, file in in_order.items():
        if "_target_" not in file:
            known = [stage for stage in stages if set(file) <= {field.name for field in fields(stage)}]
            fitting = [stage for stage in known if _takes(stage, file["name"])] if len(stages) > 1 else known
            by_class.setdefault(fitting[0], {})[name] = file
    yield from by_class.items()


def _takes(stage: type, name: str) -> bool:
    names = get_args(get_type_hints(stage)["name"])
    return not names or name in names


def group_page(group: str) -> str:
    """Everything that a group offers: its files, and every setting of each class of settings."""
    first = chosen()[group]
    named = sorted(choices(group), key=lambda name: (name != first, name))
    rows = [(f"`{group}={name}`", _about(group, name, first)) for name in named]
    parts = [f"# Settings: {group}\n"]
    classes = list(families(group))
    for stage, files in classes:
        about = inspect.getdoc(stage) or ""
        if len(classes) > 1:
            parts.append(f"## {' or '.join(f'`{group}={name}`' for name in files)}\n")
        if about and not about.startswith(f"{stage.__name__}("):
            parts.append(linked_papers(escaped(about)) + "\n")
        if len(classes) == 1:
            parts.append(table(("Choice", "What it is"), rows))
        level = "###" if len(classes) > 1 else "##"
        tag = f"{next(iter(files))}." if len(classes) > 1 and stage is not classes[0][0] else ""
        parts += [entry(setting, level, tag) for setting in settings_of(stage, files, f"{group}.", group)]
    if len(classes) > 1:
        parts.insert(1, table(("Choice", "What it is"), rows))
    return "\n".join(parts)


def _about(group: str, name: str, first: str) -> str:
    """What a file of settings is: its own words, or what in it differs from the default one."""
    files = choices(group)
    differing = [
        f"`{key}={written(value)}`" for key, value in files[name].items() if value != files[first].get(key, value)
    ]
    told = _comment(group, name) or ", ".join(differing)
    return f"The default. {told}".strip() if name == first else told


def _comment(group: str, name: str) -> str:
    """What a file of settings says of itself at its head."""
    lines = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    text = " ".join(head).replace("@package _global_", "").strip()
    return linked_papers(escaped(text))


def entry(setting: Setting, level: str, tag: str = "") -> str:
    """A setting as a section with an anchor of its own."""
    facts = [f"{setting.kind[0].upper()}{setting.kind[1:]}", f"default `{setting.default}`"]
    if setting.others:
        differing = ", ".join(f"`{value}` with `{choice}`" for choice, value in setting.others.items())
        facts[-1] += f" ({differing})"
    line = "; ".join(facts) + "."
    if setting.resumed:
        line += f" It {setting.resumed}."
    meaning = linked_papers(escaped(setting.meaning))
    return f"{level} `{setting.key}` {{ #{tag}{setting.key} }}\n\n{meaning}\n\n{line}\n{{ .setting }}\n"


def groups() -> list[str]:
    """Groups of settings, in the order of ``configs/train.yaml``."""
    return [group for group in chosen() if group != "experiment"]


def experiments_page() -> str:
    """Experiments by name, and the settings that belong to no group."""
    found = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
    about = table(
        ("Experiment", "What it is"), [(f"`experiment={name}`", _comment("experiment", name)) for name in found]
    )
    own = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    default = yaml.safe_load((CONFIGS / "experiment" / "default.yaml").read_text(encoding="utf-8"))
    entries = [
        entry(setting, "##")
        for setting in settings_of(Config, {"train": own | default})
        if setting.key.partition(".")[0] not in groups()
    ]
    return "\n".join(["# Settings: experiments and general\n", about, *entries])


def command_page(command: str, stage: type) -> str:
    """Settings of `ser-fl benchmark` or `ser-fl transfer`."""
    file = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text(encoding="utf-8"))
    entries = [entry(setting, "##") for setting in settings_of(stage, {command: file})]
    parts = [f"# Settings: ser-fl {command}\n", (inspect.getdoc(stage) or "") + "\n", *entries]
    if command == "benchmark":
        about = inspect.getdoc(AttackChoice) or ""
        parts.append(
            "## Settings of one attack { #attacks.one }\n\n"
            f"{about} For example `attacks=[pgd,{{name:fgsm,epsilon:0.1}}]`.\n"
        )
        parts += [entry(setting, "###", "attacks.") for setting in settings_of(AttackChoice, {})]
    return "\n".join(parts)


def index_page() -> str:
    """How settings are given, and where each group is described."""
    rows = [
        (f"[{group}]({group}.md)", f"`{chosen()[group]}`", ", ".join(f"`{name}`" for name in choices(group)))
        for group in groups()
    ]
    return (
        (ROOT / "scripts" / "docsite" / "settings.md").read_text(encoding="utf-8")
        + "\n"
        + table(("Group", "Default", "Choices"), rows)
    )


def pages() -> dict[str, str]:
    """Generated pages by path, with references from one setting to another as links."""
    made = {f"{group}.md": group_page(group) for group in groups()}
    made["experiments.md"] = experiments_page()
    made["benchmark.md"] = command_page("benchmark", BenchmarkConfig)
    made["transfer.md"] = command_page("transfer", TransferConfig)
    anchors = {key: page for page, text in made.items() for key in re.findall(r"\{ #([\w.]+) \}", text)}

    def link(found: re.Match[str]) -> str:
        key = found[1]
        return f"[`{key}`]({anchors[key]}#{key})" if "." in key and key in anchors else found[0]

    linked = {
        page: "\n".join(
            line if line.startswith("#") else re.sub(r"(?<!\[)`([a-z_]+\.[\w.]+)`", link, line)
            for line in text.splitlines()
        )
        for page, text in made.items()
    }
    return {f"reference/settings/{name}": text for name, text in {"index.md": index_page(), **linked}.items()}
