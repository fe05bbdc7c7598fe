"""What README and docs/ tell people to type, to open and to believe is there: commands, links, code, tables."""

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from ser_fl.attacks.registry import ATTACKS, ON_RECORDINGS, SUITES
from ser_fl.cli.main import COMMANDS, main
from ser_fl.config.compose import compose, compose_benchmark, compose_transfer
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.config.schema import Config
from ser_fl.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/README.md")])
FORMS = sorted(path for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml") if path.name != "config.yml")
MADE = ROOT / "docs" / "reference"
MOST_WORDS = 1200
FILLED_IN = {"NAME": "debug", "CORPUS": "nemo", "SEED": "1", "FOLD": "0", "K": "1", "3": "3"}
"""What stands in pages for a reader's own."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """Every `ser-fl ...` of a page, and whether it is whole: lines of code blocks, where a backslash goes on, are;
    within sentences it may be a part of one.
    """
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from ((line, True) for line in re.findall(r"^ser-fl .*", re.sub(r"\\\n\s*", "", block), re.MULTILINE))
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from ((" ".join(code.split()), False) for code in re.findall(r"`(ser-fl [^`]*)`", prose))


def words_of(command: str) -> list[str]:
    """The words of a command: one of several choices, and something in place of what a reader fills in."""
    words = []
    for word in shlex.split(command.split("  #")[0].split(" > ")[0], comments=True)[1:]:
        if word.strip("[]") in ("...", "…"):
            continue
        key, equals, value = word.partition("=")
        if equals and not key.startswith("-"):
            value = value.split("|")[0]
            word = f"{key}={FILLED_IN.get(value, value)}"
        words.append(word)
    return words


def check(name: str, words: list[str], *, whole: bool) -> None:
    """A command with options and settings that are known and fit together; raises what a user would be told."""
    parser = argparse.ArgumentParser(f"ser-fl {name}")
    import_module(f"ser_fl.cli.{name}").add_arguments(parser)
    of_actions = name in ("corpus", "federation")
    options = [word.split("=")[0] for word in words if word.startswith("-")]
    if whole:
        (parser.parse_args if of_actions else parser.parse_intermixed_args)(words)
    elif not of_actions:
        assert all(option in parser.format_help() for option in options), options
    settings = [word for word in words if re.match(r"[\w.+]+=", word)]
    if not settings or {"-m", "--multirun", "--config"} & set(options):
        return
    if name == "benchmark":
        config = compose_benchmark(settings)
        named = {choice.name for choice in (*config.attacks, *config.adaptive, *config.curve_attacks)}
        assert named <= {*ATTACKS, *SUITES, *ON_RECORDINGS}, f"no attack of that name: {sorted(named)}"
    elif name == "transfer":
        compose_transfer(words)
    elif name in ("train", "crossval", "baseline", "evaluate"):
        own = {"run", "part", "allow_seen", "out", "features", "baseline", "root"}
        own |= {"enrolment"} if name == "evaluate" else set()  # it goes by the run's normalisation
        if name == "crossval":
            own |= {field.name for field in fields(BenchmarkConfig)} - {field.name for field in fields(Config)}
        settings = [setting for setting in settings if re.split(r"[.=]", setting)[0] not in own]
        try:
            compose(settings)
        except UserError as error:
            if "needs data.root" not in str(error):
                raise
            compose([*settings, "data.root=DIR"])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs make of headings."""
    heads = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_command_of_a_page_is_one_that_there_is(page: Path) -> None:
    for command, whole in dict.fromkeys(commands(page.read_text(encoding="utf-8"))):
        name, *rest = words_of(command)
        if name.startswith("-") or name == "COMMAND":  # ser-fl --help
            continue
        assert name in COMMANDS, command
        try:
            check(name, [] if "..." in command and not whole else rest, whole=whole)
        except (Exception, SystemExit) as error:
            pytest.fail(f"`{command}`: {error}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:|mailto:", target):
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() and MADE in found.parents:
            continue  # `make docs` makes it, and ends with an error where a link leads nowhere
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_every_example_is_named_to_who_contributes() -> None:
    named = set(re.findall(r"\]\((examples/[^)]*)\)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert named == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.py")}


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_hooks_before_a_commit_are_checks_of_make_lint_and_download_nothing() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    checks = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].removesuffix(" --force-exclude") in checks


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_forms_of_issues_are_as_github_wants_them(form: Path) -> None:
    known = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(known)
    asked = [field for field in known["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("textarea", "input", "dropdown") and field["attributes"]["label"] for field in asked)
    assert len({field["id"] for field in asked}) == len(asked)


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
    monkeypatch.chdir(tmp_path)
    told: dict[str, float] = {}
    exec(code, told)
    assert 0 <= told["records"][-1].robust_uar < told["run"].metrics().uar  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", [page for page in PAGES if "docs/results" in page.as_posix()], ids=name_of)
def test_tables_of_the_results_are_those_that_the_named_command_prints(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that stand after `ser-fl report --markdown results/...`, but for the deviations over seeds."""
    monkeypatch.chdir(ROOT)
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"`ser-fl report\s+--markdown\s+(results/[^`]*)`", text):
        table = re.search(r"(^\| .*\n)+", text[found.end() :], re.MULTILINE)
        assert table
        runs = sorted(str(path) for path in Path().glob(found[1]))
        assert main(["report", "--markdown", *runs]) == 0
        printed = re.sub(r" \(sd [\d.]+\)", "", capsys.readouterr().out).splitlines()
        missing = [row for row in table[0].splitlines() if row not in printed]
        assert not missing, missing[0]


def test_security_names_tests_and_settings_that_there_are() -> None:
    """What is not there does not hold."""
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", text))
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
