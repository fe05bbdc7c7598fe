"""requirements/*.txt: what is installed by hash is all that pyproject.toml asks for, within its ranges."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
INSTALLS = {  # what an installation by hash is for, and its locks in their order (Makefile)
    "node": ([*CORE, *EXTRAS["flower"]], ("build", "torch", "node")),
    "dev": ([*CORE, *EXTRAS["dev"]], ("build", "torch", "node", "dev")),
    "docs": ([*CORE, *EXTRAS["dev"], *EXTRAS["docs"]], ("build", "torch", "node", "dev", "docs")),
    "bench": ([*CORE, *EXTRAS["dev"], *EXTRAS["bench"]], ("build", "torch", "node", "dev", "bench")),
}


def pins(text: str) -> list[tuple[Requirement, set[str]]]:
    """Each requirement of a lock that is for this machine, and the SHA-256 digests of its files."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    found = [
        (Requirement(line.split("--hash=")[0]), set(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)))
        for line in lines
    ]
    return [(pin, hashes) for pin, hashes in found if pin.marker is None or pin.marker.evaluate()]


def versions(*texts: str) -> dict[str, str]:
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for text in texts for pin, _ in pins(text)}


def locked(*names: str) -> dict[str, str]:
    return versions(*((ROOT / "requirements" / f"{name}.txt").read_text() for name in names))


def asked_for(lines: list[str], seen: set[str]) -> Iterator[tuple[str, Requirement]]:
    """Every requirement for this machine, directly or by what is installed, and who asks for it."""
    waiting = [("pyproject.toml", Requirement(line)) for line in lines]
    while waiting:
        by, wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        yield by, wanted
        try:
            further = metadata.requires(wanted.name) or []
        except metadata.PackageNotFoundError:
            continue  # the test then knows only that it is pinned itself
        for requirement in map(Requirement, further):
            extras = wanted.extras or {""}
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append((wanted.name, requirement))


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_has_one_version_and_a_hash(path: Path) -> None:
    for pin, hashes in pins(path.read_text()):
        assert re.fullmatch(r"==[\w.!+]+", str(pin.specifier)), pin
        assert hashes, f"{pin} has no hash: make lock"


@pytest.mark.parametrize("name", INSTALLS)
def test_locks_hold_all_that_is_asked_for_within_its_ranges(name: str) -> None:
    """By pyproject.toml, and by the metadata of what is installed here, down to the last dependency."""
    lines, locks = INSTALLS[name]
    held = locked(*locks)
    for by, wanted in asked_for(lines, set()):
        version = held.get(canonicalize_name(wanted.name))
        assert version, f"{by} asks for {wanted}, which no lock of {name} has: make lock"
        assert wanted.specifier.contains(version, prereleases=True), f"{by} asks for {wanted}, not {version}: make lock"


def test_constraints_are_the_versions_of_the_locks_and_of_every_extra_within_its_ranges() -> None:
    constrained = versions((ROOT / "constraints.txt").read_text())
    assert locked("build", "torch", "node", "dev", "docs", "bench").items() <= constrained.items()
    for extra, lines in EXTRAS.items():
        for wanted in map(Requirement, lines if extra != "bench-attacks" else []):
            assert wanted.specifier.contains(constrained[canonicalize_name(wanted.name)], prereleases=True), wanted


def test_make_installs_by_hash_alone() -> None:
    """Two exceptions: torch of another index, by its version, and this folder."""
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"(?:BY_HASH\)|pip install)[^;&\n]*", makefile.split("BY_HASH :=")[1].split("\n", 1)[1])
    without = [line for line in installs if not line.startswith("BY_HASH)")]
    assert [line.split()[-1] for line in without] == ["torchaudio", "."]
    assert all("--no-deps" in line for line in without)
    assert "--require-hashes" in makefile.split("BY_HASH :=")[1].split("\n", 1)[0]
    used = set(re.findall(r"requirements/(\w+)\.txt", " ".join(installs)))
    used |= set(re.findall(r"^LOCKED \?= (.+)$", makefile, flags=re.MULTILINE)[0].split())
    assert used == {path.stem for path in (ROOT / "requirements").glob("*.txt")}
