"""The site of `make docs`: generated pages are whole, tutorials print what they show, and links lead somewhere."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from ser_fl.attacks.registry import ATTACKS, ON_RECORDINGS
from ser_fl.cli.main import COMMANDS
from ser_fl.config.compose import compose, compose_benchmark, compose_transfer
from ser_fl.config.groups import groups
from ser_fl.config.robustness import AttackChoice
from ser_fl.defences import DEFENCES
from ser_fl.runs.folder import RunFolder
from ser_fl.training.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "scripts"))
    import docsite_tutorials as tutorials
    from docsite import api, built, cards, commands, navigation, settings, sources
    from docsite.markdown import escaped, table, title_of


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return settings.pages()


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by name, down to what a user sets."""
    found: dict[str, Any] = {}
    for name, value in (config if isinstance(config, Mapping) else vars(config)).items():
        if is_dataclass(value):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def is_told(value: Any, section: str) -> bool:
    """Whether the default that a section tells, read as YAML, is this value."""
    (default,) = re.findall(r"default `(.*?)`", section)
    told = yaml.safe_load(default)
    if isinstance(value, float):  # 1e-08 is text to YAML
        return float(told) == value
    return told == (list(value) if isinstance(value, tuple) else value)


def entries(page: str) -> dict[str, str]:
    """Sections of a page of settings by the name of the setting; the first where a name comes twice."""
    found: dict[str, str] = {}
    for section in re.split(r"^#{2,3} (?=`)", page, flags=re.MULTILINE)[1:]:
        found.setdefault(section.split("`")[1], section)
    return found


def test_every_setting_is_there_with_its_default_and_meaning(reference: dict[str, str]) -> None:
    """Defaults are those of the configuration that `compose` makes; `objects` is written by the program alone."""
    apart = ("reference/settings/benchmark.md", "reference/settings/transfer.md")
    listed = {
        name: text for page, whole in reference.items() if page not in apart for name, text in entries(whole).items()
    }
    composed = flat(compose())
    composed["model.num_features"] = composed["model.layers"] = None  # of pooled, settled with the front end
    for name, value in composed.items():
        assert name in listed, name
        if name not in ("model.num_features", "model.layers"):
            assert is_told(value, listed[name]), (name, value)
    for page, config in (("benchmark", compose_benchmark(["run=RUN"])), ("transfer", compose_transfer(["A", "B"]))):
        told = entries(reference[f"reference/settings/{page}.md"])
        for name, value in vars(config).items():
            assert name in told, name
            if name not in ("run", "runs", "attacks", "curve_attacks"):
                assert is_told(value, told[name]), (name, value)


def test_every_setting_says_what_it_means(reference: dict[str, str]) -> None:
    for page, text in reference.items():
        for name, section in entries(text).items():
            meaning = section.split("\n\n")[1].strip()
            assert meaning, f"{name} of {page}: a sentence is missing under the field in ser_fl/config"


def test_every_choice_of_every_group_is_named(reference: dict[str, str]) -> None:
    for group, names in groups().items():
        page = reference[f"reference/settings/{'experiments' if group == 'experiment' else group}.md"]
        for name in names:
            assert f"`{group}={name}`" in page
    index = reference["reference/settings/index.md"]
    assert all(f"]({group}.md)" in index for group in groups() if group != "experiment")


def test_files_that_build_on_others_are_read_as_hydra_reads_them() -> None:
    mine = settings.choices("optimiser")["sgd"]
    assert mine == {name: getattr(compose(["optimiser=sgd"]).optimiser, name) for name in mine}
    nested = settings.choices("augmentation")["speeds"]["waveform"]
    theirs = asdict(compose(["augmentation=speeds"]).augmentation.waveform)
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in theirs.items()} == nested


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimiser.learning_rate", "A number, > 0; default `0.001` (`0.05` with `optimiser=sgd`)"),
        ("model.channels", "A list: each a whole number, ≥ 1, 3 at least"),
        ("split.fold", "A whole number, ≥ 0; default `0`."),
        ("data.channel", "`first`, `second` or `mean`"),
        ("federation.local_batches", "A whole number, ≥ 1, or `null`"),
        ("executor.workers", "A whole number, ≥ 1, or `auto`"),
        ("executor.root_certificates", "A path, or `null`"),
        ("federation.num_rounds", "It may grow when a run is resumed"),
        ("augmentation.waveform.snr_db", "A list of 2: each a number; default `[10, 30]`"),
        ("data.roots", "A mapping of names: each a path"),
    ],
)
def test_types_are_told_in_words(reference: dict[str, str], setting: str, words: str) -> None:
    page = reference[f"reference/settings/{setting.partition('.')[0]}.md"]
    assert words in entries(page)[setting]


def test_a_setting_that_is_named_elsewhere_is_a_link(reference: dict[str, str]) -> None:
    page = reference["reference/settings/optimiser.md"]
    assert "[`federation.keep_optimiser`](federation.md#federation.keep_optimiser)" in page


NAMES = {
    "attacks": {**ATTACKS, **ON_RECORDINGS},
    "defences": DEFENCES,
    "objectives": OBJECTIVES,
    "server": cards.server_classes(),
}
MAKERS = {
    "attacks": cards.attack_cards,
    "defences": cards.defence_cards,
    "objectives": cards.objective_cards,
    "server": cards.server_cards,
}


def test_there_is_no_card_of_what_is_not_there() -> None:
    assert {"WeightedMean", "FedAvg", "FedAvgM", "FedAdam", "LocalOnly"} <= {*cards.server_classes()}
    for kind, names in NAMES.items():
        assert {*cards.texts(kind)} == {*names}, f"{kind} in scripts/docsite/cards.yaml"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_every_name_has_a_card_with_its_paper_its_file_and_tests_that_name_it(kind: str, name: str) -> None:
    (card,) = (card for card in MAKERS[kind]() if card.name == name)
    assert re.search(r"arXiv \d{4}\.\d{4,5}", card.paper), "a paper with its number"
    assert card.about.what.endswith(".") and (ROOT / card.file).is_file() and card.tests
    code = "".join((ROOT / test).read_text(encoding="utf-8") for test in card.tests)
    source = (ROOT / card.file).read_text(encoding="utf-8")
    classes = [found for found in re.findall(r"^class (\w+)", source, re.MULTILINE) if found in code]
    assert re.search(rf"\b{name}\b", code) or classes, f"{card.tests} do not name {name}"


def test_papers_are_links_and_pages_link_to_code() -> None:
    page = cards.pages()["reference/attacks.md"]
    assert "[arXiv 1706.06083](https://arxiv.org/abs/1706.06083)" in page
    assert "[`ser_fl/attacks/pgd.py`](../../ser_fl/attacks/pgd.py)" in page
    assert "- **Effort:** 50 steps, 5 random starts by default; `restarts`, `step_size`, `steps` can be set" in page


def test_help_is_what_commands_print() -> None:
    assert "usage: ser-fl zoo" in commands.help_of("zoo")
    assert commands.actions_of(commands.help_of("corpus")) == ["list", "check", "describe"]
    assert commands.actions_of(commands.help_of("zoo")) == []


def test_public_names_are_in_the_reference() -> None:
    import ser_fl

    made = api.pages()
    documented = re.findall(r"^::: (\S+)", "\n".join(made.values()), re.MULTILINE)
    for name, (module, attribute) in ser_fl._HOMES.items():
        assert f"[`ser_fl.{name}`][{module}.{attribute}]" in made["reference/api/index.md"]
        assert {module, f"{module}.{attribute}"} & {*documented}, name


def test_the_page_of_the_run_folder_names_all_that_may_lie_there() -> None:
    page = (ROOT / "docs" / "reference" / "run-folder.md").read_text(encoding="utf-8")
    run = RunFolder(Path())
    for name in (name for name in vars(RunFolder) if not name.startswith("_")):
        if isinstance(path := getattr(run, name), Path) and path.parts:
            assert path.parts[0] in page, f"{path} is not in docs/reference/run-folder.md"


def pages_of_docs() -> dict[str, str]:
    folder = ROOT / "docs"
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in folder.rglob("*.md")}


def test_every_page_is_in_the_navigation_once() -> None:
    texts = pages_of_docs() | {"how-to/deep/zebra.md": "# Zebra", "new/page.md": "# Page"}

    def leaves(nav: Any) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [leaf for part in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(part)]

    found = leaves(navigation.navigation(texts))
    assert sorted(found) == sorted(texts)
    assert found[0] == "index.md" and found[1:4] == [f"tutorial/{name}" for name in tutorials.PAGES]


def test_sections_come_in_a_readers_order_and_pages_by_title() -> None:
    texts = {"index.md": "", "how-to/a.md": "# Zebra", "how-to/z.md": "# Ant", "tutorial/x.md": ""}
    assert navigation.navigation(texts | {"glossary.md": "# Words"}) == [
        {"Home": "index.md"},
        {"Tutorials": [{"x": "tutorial/x.md"}]},
        {"How-to": [{"Ant": "how-to/z.md"}, {"Zebra": "how-to/a.md"}]},
        {"Glossary": "glossary.md"},
    ]


def test_links_out_of_docs_become_pages_of_the_site() -> None:
    text = (
        "[a](../../ser_fl/api.py#L3) [b](attack.md) [`c`](../../configs) [d](https://x.org) [e](../../nothing.py)\n"
        "```\n[f](../../ser_fl/api.py)\n```\n[g](../../README.md)\n"
    )
    assert sources.rewritten("how-to/x.md", text) == (
        "[a](../source/ser_fl/api.py.md#__codelineno-0-3) [b](attack.md) [`c`](../source/configs/index.md) "
        "[d](https://x.org) [e](../../nothing.py)\n```\n[f](../../ser_fl/api.py)\n```\n[g](../index.md)\n"
    )
    made = sources.source_pages({"how-to/x.md": text})
    assert (ROOT / "ser_fl" / "api.py").read_text(encoding="utf-8").rstrip() in made["source/ser_fl/api.py.md"]
    assert "[`train.yaml`](train.yaml.md)" in made["source/configs/index.md"]
    assert "source/configs/model/crnn.yaml.md" in made


def test_only_backticks_are_markup_in_what_the_schema_says() -> None:
    assert escaped("model._target_ <x> 2 * 3 and `a_b*c`, ``d_<e>``") == (
        r"model.\_target\_ \<x> 2 \* 3 and `a_b*c`, ``d_<e>``"
    )


def test_a_title_is_the_first_heading_outside_code() -> None:
    assert title_of("```\n# no\n```\n# `Yes`\n", "x") == "Yes"
    assert title_of("nothing", "x") == "x"
    assert table(("a",), [("1|2",)]) == "| a |\n| --- |\n| 1\\|2 |\n"


PAGE = """# Page

```console
$ echo one; \\
    echo two
one
two
$ echo three
three
```

<!-- figures vary -->
```python
print("took 1.25 s of 3")
```

```text
took 9 s of 100
```

```sh
exit 1
```
"""


def test_what_a_page_shows_is_run_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert tutorials.run_page(page, tmp_path) == []
    for right, wrong in (("\ntwo\n", "\n2\n"), ("s of 100", "seconds of 100"), ("echo three", "echo three; exit 3")):
        page.write_text(PAGE.replace(right, wrong))
        (difference,) = tutorials.run_page(page, tmp_path)
        assert "page.md, line" in difference
    page.write_text(PAGE.replace("echo three\n", "echo run: 3 of 6; echo three\n"))
    assert tutorials.run_page(page, tmp_path) == []
    page.write_text(PAGE.replace("one\ntwo\n$", "$"))
    assert tutorials.run_page(page, tmp_path, write=True) == []
    assert page.read_text() == PAGE.replace("took 9 s of 100", "took 1.25 s of 3")


@pytest.mark.parametrize(
    ("shown", "output", "vary", "same"),
    [
        ("a\n", "a  \n\n", False, True),
        ("a\nb\n", "a\nc\n", False, False),
        ("a\n...\nz\n", "a\nb\nc\nz\n", False, True),
        ("1 s\n", "2 s\n", False, False),
        ("UAR 0.5 of\n12\n", "UAR 0.25\nof 3\n", True, True),
        ("UAR 0.5\n", "UAR nan\n", True, False),
        ("│ pgd │ 0.5 │\n├─┤\n", "│  pgd │  0.123 │\n├───┤\n", True, True),
    ],
)
def test_what_counts_as_the_same(shown: str, output: str, vary: bool, same: bool) -> None:
    assert tutorials.agrees(shown, output, vary=vary) is same


def test_tutorials_have_steps_that_run() -> None:
    for name in tutorials.PAGES:
        text = (ROOT / "docs" / "tutorial" / name).read_text(encoding="utf-8")
        steps = [step for block in tutorials.blocks(text) for step in tutorials.steps(block)]
        assert len(steps) >= 4 and any("ser-fl " in str(step.command) for step in steps)
        assert text.count("```console") + text.count("```python") == len([*tutorials.blocks(text)])


def test_a_built_site_is_searched_for_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="x">A</h1><a href="b.html#y">b</a><a href="https://x.org">c</a>')
    (tmp_path / "b.html").write_text('<h1 id="y">B</h1><a href="a.html#x">a</a>')
    assert [*built.problems(tmp_path)] == []
    (tmp_path / "b.html").write_text(
        '<a href="a.html#z"></a><a href="c.html"></a><a href="/a.html"></a><a href="."></a><img src="https://x.org/p.png">'
    )
    (tmp_path / "a.html").write_text('<h1 id="x">A</h1>')
    told = "\n".join(built.problems(tmp_path))
    for words in ("a.html#z leads to no anchor", "c.html leads to no file", "slash", "folder", "<img> from a network"):
        assert words in told
    assert len(told.splitlines()) == 5


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("material"), reason="needs mkdocs-material: pip install 'ser-fl[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """From a file, without a network: `docsite.built` looks at every page."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.html")}
    assert {page.replace(".md", ".html") for page in pages_of_docs()} <= pages
    assert "AutoPGD" in (tmp_path / "search" / "search_index.js").read_text(encoding="utf-8")
    commands_page = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in commands_page for name in COMMANDS)


def test_attack_choice_is_described_with_the_benchmark(reference: dict[str, str]) -> None:
    page = reference["reference/settings/benchmark.md"]
    assert all(f"{{ #attacks.{name} }}" in page for name in vars(AttackChoice(name="pgd")))


def test_the_configuration_of_the_site_asks_no_network() -> None:
    class Loader(yaml.SafeLoader):
        """Python names are of no interest here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    assert config["theme"]["font"] is False and config["use_directory_urls"] is False
    assert "offline" in config["plugins"]
