"""The catalog that this process uses: the packaged one, or a site's overlay on it. Kept apart so that rules do no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aggregator.rules.catalog import Catalog, CatalogError, load

VARIABLE = "GCM_SENTINEL_RULES_OVERLAY"


class SiteRulesError(Exception):
    """The overlay cannot be used. The message names the variable and says why: exit code 2."""


def catalog(environ: Mapping[str, str]) -> Catalog:
    """The catalog under the overlay that the environment names, if it names one. Raises SiteRulesError."""
    path = environ.get(VARIABLE, "")
    if not path:
        return load()
    try:
        return load(Path(path).read_bytes())
    except OSError as error:
        raise SiteRulesError(f"{VARIABLE}: cannot read {path}: {error.strerror}") from error
    except CatalogError as error:
        raise SiteRulesError(f"{VARIABLE}: {path}: {error}") from error
