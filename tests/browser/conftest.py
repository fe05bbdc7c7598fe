"""Headless Chromium, and small real runs for it to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ser_fl.cli.main import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Skips, with the reason, where playwright or Chromium is missing. It ends with its module: playwright keeps an
    event loop running, and a process, which other tests on the same worker would find.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trainings of a second on the built-in corpus. The first is attacked at several SNRs, of which it keeps two
    recordings, and at several epsilons, with a defence, and examines itself; the second at two epsilons.
    """
    folder = tmp_path_factory.mktemp("browser")
    runs = [folder / f"run_{seed}" for seed in (1, 2)]
    few = ["steps=2", "restarts=1", "curve_attacks=[]", "checks_subset=4"]
    heard = ["domain=waveform", "attacks=[pgd]", "snr_dbs=[40,20]", "write_audio=2", "checks=false"]
    asked = ["attacks=[fgsm,pgd]", "epsilons=[0.05,0.1,0.2]", "defences=[none,randomisation]"]
    learning = [
        "optimiser.learning_rate=0.01",
        "federation.num_rounds=8",
        "federation.local_epochs=3",
        "selection=last",
    ]
    learning += ["clients=iid", "clients.num_clients=2", "federation.batch_size=8", "federation.server_momentum=0.0"]
    for seed, run in enumerate(runs, start=1):
        settings = ["experiment=debug", "data.utterances_per_emotion=6", f"data.cache_dir={folder / 'cache'}"]
        assert main(["train", *settings, *learning, f"seed={seed}", f"run_dir={run}"]) == 0
    assert main(["benchmark", f"run={runs[0]}", *few, *heard]) == 0
    assert main(["benchmark", f"run={runs[0]}", *few, *asked]) == 0
    fewer = ["attacks=[fgsm,pgd]", "epsilons=[0.1,0.2]", "defences=[none]", "checks=false"]
    assert main(["benchmark", f"run={runs[1]}", *few, *fewer]) == 0
    return runs
