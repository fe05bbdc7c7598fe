"""`make sbom`: the bill of materials is what is installed, and the page of licences what the locks pin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name
from test_lock import locked

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\S+) \| (\S+) \| (.+) \| (build\.txt|torch\.txt|node\.txt|dev\.txt) \|$", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield


def test_page_has_every_locked_package_in_the_locked_version_and_no_other() -> None:
    rows = {name: version for name, version, _, _ in ROW.findall((ROOT / "docs/reference/licences.md").read_text())}
    pinned = locked("build", "torch", "node", "dev")
    assert rows.items() - pinned.items() == set(), "make sbom"
    assert pinned.keys() - rows.keys() <= {"setuptools"}, "make sbom"  # torch asks for it on Python 3.12 alone


def test_no_package_is_under_a_licence_that_binds_a_whole_product() -> None:
    """The page says so: no GPL or AGPL, and what is under the MPL or proprietary is named above the table."""
    text = (ROOT / "docs/reference/licences.md").read_text()
    rows = ROW.findall(text)
    assert len(rows) > 150
    for name, _, licence, _ in rows:
        assert not re.search(r"(?<!L)GPL|General Public", licence), f"{name} is under {licence}"
        if re.search("MPL|Mozilla|proprietary", licence, re.IGNORECASE):
            assert re.search(rf"\b{name}\b", text.split("| package |")[0]), f"{name} is under {licence}"


@pytest.mark.slow
def test_bill_of_materials_is_what_is_installed(tmp_path: Path) -> None:
    """Against importlib.metadata: names, versions, and licences where they are one identifier of SPDX."""
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed")
    from sbom import bill_of_materials, licence_of

    bill = bill_of_materials(tmp_path / "sbom.json")
    assert bill == json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    installed = {canonicalize_name(found.name): found for found in metadata.distributions()}
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("ser-fl", metadata.version("ser-fl"))
    listed = {canonicalize_name(component["name"]): component for component in bill["components"]}
    assert listed.keys() | {"ser-fl"} == installed.keys()
    for name, component in listed.items():
        assert component["version"] == installed[name].version
        assert canonicalize_name(component["purl"].split("/")[1].split("@")[0]) == name
    expressions = {name: found.metadata["License-Expression"] for name, found in installed.items()}
    for name, expression in expressions.items():
        if expression and name in listed and " " not in expression and "LicenseRef" not in expression:
            assert licence_of(listed[name]).startswith(expression), name


@pytest.mark.parametrize(
    ("name", "licences", "said"),
    [
        ("a", [{"license": {"id": "MIT"}}, {"license": {"name": "License :: OSI Approved :: MIT License"}}], "MIT"),
        ("a", [{"expression": "MPL-2.0 AND MIT"}], "MPL-2.0 AND MIT"),
        ("a", [{"license": {"name": "License :: OSI Approved :: BSD License"}}], "BSD License"),
        ("nvidia-cufft", [{"license": {"name": "License :: Other/Proprietary License"}}], "NVIDIA, proprietary"),
    ],
)
def test_licence_is_named_by_its_identifier_first(name: str, licences: list[Any], said: str) -> None:
    from sbom import licence_of

    assert licence_of({"name": name, "licenses": licences}) == said
