"""Where Kubernetes' own programs are: where people already have them, else in the cache that `tests/cluster/build` fills."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

BUILD = Path(__file__).parent / "build"
BUILD_SECONDS = 1800  # from nothing, on a machine that is busy with everything else


class NotBuilt(Exception):
    """The programs are not here, and nobody is building them."""


def find(*names: str) -> dict[str, Path]:
    """The programs' paths: from KUBEBUILDER_ASSETS, PATH or the cache. In CI, and while somebody builds them, waits for the build;
    raises NotBuilt where neither holds."""
    for folder in (os.environ.get("KUBEBUILDER_ASSETS", ""), *os.environ.get("PATH", "").split(os.pathsep)):
        if folder and all(_runs(Path(folder) / name) for name in names):
            return {name: Path(folder) / name for name in names}
    if not shutil.which("go"):
        raise NotBuilt("neither KUBEBUILDER_ASSETS nor PATH has them, and there is no Go to build them")
    cache = Path(_build("--where"))
    if not all(_runs(cache / name) for name in names):
        if not (os.environ.get("CI") or _being_built(cache)):
            raise NotBuilt("run tests/cluster/build once: five minutes")
        _build(*names)
    return {name: cache / name for name in names}


def _runs(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)


def _being_built(cache: Path) -> bool:
    try:
        with (cache / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _build(*arguments: str) -> str:
    done = subprocess.run([BUILD, *arguments], stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=True)
    return done.stdout.strip()
