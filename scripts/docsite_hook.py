"""The hook of mkdocs.yml: adds generated pages, the navigation, and checks of the built site (`scripts/docsite`)."""

import logging
import sys
from pathlib import Path

from docsite import api, built, cards, commands, navigation, notebook, settings, sources
from docsite.markdown import ROOT
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.docs")
"""Warnings end `mkdocs build --strict`."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Docstrings are those of this tree, whatever is installed."""
    sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages made of the code, of a notebook, and of what pages link to; and a navigation with all of them."""
    texts = {
        file.src_uri: Path(file.abs_src_path).read_text(encoding="utf-8")
        for file in files.documentation_pages()
        if file.abs_src_path is not None
    }
    made = {**api.pages(), **cards.pages(), **commands.pages(), **settings.pages(), **notebook.pages()}
    texts |= {page: text for page, text in made.items() if isinstance(text, str)}
    config.nav = navigation.navigation(texts)
    for page, content in {**made, **sources.source_pages(texts)}.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ lead to the pages of those files; the landing page stands alone."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    return markdown if sources.is_source(page.file.src_uri) else sources.rewritten(page.file.src_uri, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """A warning for each link that leads nowhere."""
    for problem in built.problems(Path(config.site_dir)):
        log.warning(problem)
