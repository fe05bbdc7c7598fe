"""Pictures of report.html for the documentation: `python scripts/report_screenshots.py RUN...`.

Makes the report of the runs and docs/screenshots/report-*.png: wide and narrow, light and dark, each below 150 kB. The
wide dark one shows the panel of the first run; give one whose ``adversarial/`` holds recordings.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from ser_fl.files import write_bytes
from ser_fl.report.page import write_report

FOLDER = Path(__file__).parents[1] / "docs" / "screenshots"
PICTURES: dict[str, tuple[int, int, Any, str]] = {
    "wide-light": (1280, 1500, "light", "h1"),
    "wide-dark": (1280, 1500, "dark", "#each"),
    "narrow-light": (400, 1300, "light", "h1"),
    "narrow-dark": (400, 1300, "dark", "#budget"),
}
"""Width and height, colour scheme, and what stands at the top."""
LARGEST = 150_000


def main(runs: list[Path]) -> None:
    page_path = write_report(runs, Path(tempfile.mkdtemp()) / "report.html")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scheme, top) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(page_path.as_uri())
            page.evaluate("document.querySelector('details.run').open = true")
            page.wait_for_timeout(500)
            page.evaluate("top => document.querySelector(top).scrollIntoView()", top)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG", optimize=True)
            assert len(buffer.getvalue()) < LARGEST, (name, len(buffer.getvalue()))
            write_bytes(FOLDER / f"report-{name}.png", buffer.getvalue())


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
