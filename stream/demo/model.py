"""The demo's model: trained once on the simulated history, then found again by what it was made of."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from importlib.metadata import version
from pathlib import Path

from stream import __version__
from stream.demo.children import Child
from stream.demo.plan import Plan
from stream.errors import BundleRefused, UnavailableError
from stream.features.spec import Domain
from stream.scoring.bundle import verify
from stream.stack.cache import cache_folder, exclusive


def bundle_for(plan: Plan, domain: Domain, rates: Path, folder: Path, stop: threading.Event) -> Path | None:
    """The bundle's folder, trained first if need be (blocks for about a minute). None if stopped meanwhile.

    UnavailableError, with the end of its log, when the training fails.
    """
    made_of = {
        "riskstream": __version__,
        "torch": version("torch"),
        "spec_id": domain.spec_id,
        "training": dict(plan.training),
        "rates": rates.read_text(),
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    bundle = cache_folder() / "demo" / name
    with exclusive(bundle.with_suffix(".lock")):
        if _is_good(bundle, domain):
            return bundle
        shutil.rmtree(bundle, ignore_errors=True)
        options = [word for option in plan.training.items() for word in option]
        arguments = ["--set", f"scoring.rates={rates}", "train", *options, "--name", "demo", "--out", str(bundle)]
        training = Child(folder / "train", arguments)
        training.launch()
        try:
            while not training.has_ended():
                if stop.wait(0.2):
                    return None
        finally:
            training.stop(grace_s=0.0)
        if training.exit_code != 0:
            raise UnavailableError(f"training failed with exit code {training.exit_code}; {training.last_words()}")
    return bundle


def _is_good(bundle: Path, domain: Domain) -> bool:
    try:
        # The workers check the golden outputs; here the hashes tell whether the folder is whole.
        verify(bundle, domain=domain, golden=False)
    except BundleRefused:
        return False
    return True
