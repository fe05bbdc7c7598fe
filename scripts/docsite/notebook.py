"""The notebook tutorial as a page: as `make docs` executed it, or else as it was written."""

from typing import Any

from docsite.markdown import ROOT

WRITTEN = ROOT / "docs" / "tutorial" / "notebook.ipynb"
EXECUTED = ROOT / "build" / "tutorial" / "notebook.ipynb"


def pages() -> dict[str, str | bytes]:
    """The page, and the pictures that it shows; nothing where there is no notebook."""
    if not WRITTEN.exists():
        return {}
    import nbconvert

    exporter: Any = nbconvert.MarkdownExporter
    text, resources = exporter().from_filename(str(EXECUTED if EXECUTED.exists() else WRITTEN))
    pictures = {f"tutorial/{name}": content for name, content in resources["outputs"].items()}
    return {"tutorial/notebook.md": text, **pictures}
