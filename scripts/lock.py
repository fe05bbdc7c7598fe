"""Lock files with hashes: every package that `make install`, `make docs` and `make bench` install, and a node.

``python scripts/lock.py`` remakes ``requirements/*.txt`` by the versions in ``constraints.txt``, and adds to it
what is new; ``--upgrade`` takes the newest that pyproject.toml allows, ``--upgrade NAME...`` of these alone. uv
resolves for every platform and Python that pyproject.toml allows, and lists the hashes of all files that PyPI has of a
version, so that one lock does for all. Each file holds what those before it lack:

- ``build.txt``: what builds wheels from sources (``pip install --no-build-isolation``);
- ``torch.txt``: torch, torchaudio and CUDA, apart because who has no GPU takes torch from another index;
- ``node.txt``: the core and the extra flower, for who runs a link or a node;
- ``dev.txt``, then ``docs.txt`` or ``bench.txt``: these extras;
- ``ge2e.txt``: the package whose weights frontend=ge2e loads, installed without its dependencies.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
BUILD = ("editables", "hatchling>=1.27", "setuptools", "wheel")
TORCH = ("torch>=2.9", "torchaudio>=2.9")
CUDA = ("torch", "triton", "cuda-", "nvidia-")
GE2E = "resemblyzer==0.1.4"
APART = ("bench-attacks",)
"""Extras that no environment can have beside the others (`tool.uv.conflicts`), and no lock has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take the newest versions: of all, or of these")
    upgrade = parser.parse_args().upgrade
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core, extras = project["dependencies"], project["optional-dependencies"]
    everything = [*core, *BUILD, *(line for extra, lines in extras.items() if extra not in APART for line in lines)]
    renewed = [] if upgrade is None else [f"--upgrade-package={name}" for name in upgrade] or ["--upgrade"]
    pins = compiled(everything, [*renewed, "--output-file", str(CONSTRAINTS)])
    CONSTRAINTS.write_text(
        "# One set of versions for all extras but bench-attacks; CI tests it with Python 3.11 on Linux.\n"
        f"# requirements/*.txt have the hashes. Remade by: make lock\n{pins}"
    )

    def locked(name: str, wanted: Sequence[str], left_out: Sequence[str], *before: str) -> str:
        """A lock without `left_out`, and without what each lock `before` has for every platform."""
        left_out = [*left_out, *(package for lock in before for package in packages(lock, r" \\"))]
        apart = [f"--no-emit-package={package}" for package in left_out]
        lock = compiled(wanted, ["--generate-hashes", "--constraint", str(CONSTRAINTS), *apart])
        (ROOT / "requirements" / f"{name}.txt").write_text(f"# Remade by: make lock\n{lock}")
        return lock

    build = locked("build", BUILD, [])
    of_torch = packages(compiled(TORCH, []))
    cuda = [package for package in of_torch if package.startswith(CUDA)]
    locked("torch", TORCH, sorted({*of_torch} - {*cuda}))
    node = locked("node", [*core, *extras["flower"]], cuda, build)
    dev = locked("dev", [*core, *extras["dev"]], cuda, build, node)
    for name in ("docs", "bench"):
        locked(name, extras[name], cuda, build, node, dev)
    weights = compiled([GE2E], ["--generate-hashes", "--no-deps"])
    (ROOT / "requirements" / "ge2e.txt").write_text(f"# Remade by: make lock\n{weights}")


def compiled(wanted: Sequence[str], options: Sequence[str]) -> str:
    """The lines of `uv pip compile` for the requirements `wanted`."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--no-config", "--universal", "--python-version=3.11"]
    command += ["--no-annotate", "--no-header", *options]
    done = subprocess.run(command, cwd=ROOT, input="\n".join(wanted), text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout


def packages(lock: str, after: str = "") -> list[str]:
    """The packages that the text of a lock pins, where the pattern `after` follows the version."""
    return re.findall(rf"^([\w.-]+)==[^ \n]+{after}", lock, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
