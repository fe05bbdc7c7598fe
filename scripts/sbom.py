"""What an installation consists of: a bill of materials in CycloneDX, and a page of licences of the same data.

``python scripts/sbom.py`` in the environment of `make install` writes ``build/sbom.json`` (CycloneDX 1.6, made by
cyclonedx-bom of what is installed) and ``docs/reference/licences.md`` (what the locks pin; ``build/`` is not in git).
"""

import json
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Any

from lock import packages
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "licences.md"
INTRODUCTION = """# Licences

What `make install` brings, and under which licences, as the packages declare them. Made by `make sbom`, which also
writes `build/sbom.json`, a bill of materials in [CycloneDX](https://cyclonedx.org) 1.6, for scanners. The hashes of all
files are in `requirements/*.txt`. ser_fl itself is under Apache-2.0, the models of its zoo under CC BY-NC-SA 4.0: not
for commerce, and what is made of them is passed on under the same licence.

**What binds a user.** No package is under the GPL or AGPL. To run ser_fl binds to nothing but NVIDIA's terms, where its
packages are installed. Whoever passes on an environment, a container or a product with it minds these:

- **MPL-2.0** ({mpl}):
  copyleft file by file. Changed files of these packages are passed on as source; your own code is not touched.
- **LGPL** (shared libraries within wheels, whose metadata do not say so: libsndfile in soundfile, libquadmath in numpy
  and scipy): pass the licence on, and leave them libraries that can be replaced, as they are in the wheels.
  libgfortran, in numpy and scipy, is under the GPL with the exception for runtime libraries, which asks for no more.
- **NVIDIA's terms** ({nvidia}):
  no free software; passed on only within an application, as NVIDIA's CUDA EULA says. A CPU-only torch needs none of
  them.
- Everything else is permissive (MIT, BSD, Apache-2.0, ISC, PSF and the like): pass on the notices.

Not in the table, as only their extras bring them: `opensmile` (extra `baseline`) is for research only, no commercial
use; `pesq` (extra `perception`) holds code of ITU-T P.862, whose use may need a licence of its own. Resemblyzer's
weights (`frontend=ge2e`) are under Apache-2.0. This page is no legal advice.

By licence, in each package's own words: {counts}.

| package | version | licence | pinned in |
| :--- | :--- | :--- | :--- |
"""


def main() -> None:
    bill = bill_of_materials(ROOT / "build" / "sbom.json")
    PAGE.write_text(page(bill), encoding="utf-8")


def bill_of_materials(path: Path) -> dict[str, Any]:
    """CycloneDX of this environment, written to `path`; the same environment gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    options = ["--output-reproducible", "--spec-version=1.6", "--output-format=JSON", "--output-file", str(path)]
    subprocess.run([*program, *options, sys.executable], check=True)
    bill: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return bill


def page(bill: dict[str, Any]) -> str:
    """The page of licences: a row for each component that a lock pins."""
    brought_by: dict[str, str] = {}
    for lock in ("build", "torch", "node", "dev"):
        for name in packages((ROOT / "requirements" / f"{lock}.txt").read_text()):
            brought_by.setdefault(name, f"{lock}.txt")
    rows, licences = list[str](), Counter[str]()
    names_under: dict[str, list[str]] = {"MPL": [], "NVIDIA": []}
    for component in sorted(bill["components"], key=lambda component: canonicalize_name(component["name"])):
        name, licence = canonicalize_name(component["name"]), licence_of(component)
        if name in brought_by:
            rows.append(f"| {name} | {component['version']} | {licence} | {brought_by[name]} |\n")
            licences[licence] += 1
            for word, names in names_under.items():
                names += [f"`{name}`"] if word in licence else []
    text = INTRODUCTION.format(
        mpl=", ".join(names_under["MPL"]),
        nvidia=", ".join(names_under["NVIDIA"]),
        counts="; ".join(f"{licence}: {count}" for licence, count in licences.most_common()),
    )
    lines = []
    for line in text.splitlines():
        indent = "  " if line.startswith("- ") else ""
        lines.append(
            line if line.startswith("|") else fill(line, 120, subsequent_indent=indent, break_on_hyphens=False)
        )
    return "\n".join(lines) + "\n" + "".join(rows)


def licence_of(component: dict[str, Any]) -> str:
    """By SPDX where the package says so, else in the words of its classifiers or of its field License."""
    declared = component.get("licenses", [])
    spdx = [entry.get("expression") or entry.get("license", {}).get("id") for entry in declared]
    named = [entry["license"]["name"].split(" :: ")[-1] for entry in declared if "name" in entry.get("license", {})]
    if any(spdx):
        return " / ".join(filter(None, spdx))
    if component["name"].startswith(("nvidia-", "cuda-")):
        return "NVIDIA, proprietary"
    if not named:
        fields = metadata.metadata(component["name"]).json
        named = [str(fields.get("license") or "not declared").splitlines()[0].strip()]
    return " / ".join(name for name in named if name != "OSI Approved")


if __name__ == "__main__":
    main()
