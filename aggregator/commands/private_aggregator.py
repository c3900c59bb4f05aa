"""An aggregator of one's own for one question: `investigate --standalone` starts it, asks, and ends it.

It takes the user's own settings for the model, Prometheus and the cluster, keeps its state in a directory that goes with it, and
tells and changes nothing: outputs are off, and it only recommends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from aggregator.client import UNREACHABLE, USAGE, CommandFailed
from aggregator.demo.processes import AggregatorProcess, DidNotStart, temporary_directory
from aggregator.settings import PREFIX, Address, Client, Settings, SettingsError

PASSED_ON = (
    *(
        "KUBERNETES",
        "LLM_API",
        "API_KEY",
        "MODEL",
        "LLM_BASE_URL",
        "MODELS_FILE",
        "SYSTEM_PROMPT_PATH",
        "RULES_OVERLAY",
    ),
    *("PROMETHEUS_URL", "ALERTMANAGER_URL", "MAX_TOOL_ROUNDS", "MAX_TOOL_OUTPUT", "CLUSTER_NAME", "LOG_LEVEL"),
    *("INVESTIGATION_TOKENS", "INVESTIGATION_USD", "INVESTIGATION_SECONDS"),
)


@contextlib.contextmanager
def private_aggregator() -> Iterator[Client]:
    """Start one, and give what a client needs to ask it. Raises CommandFailed."""
    try:
        Settings.from_environment()  # its own words name the variable; a child's would be in a log
    except SettingsError as error:
        raise CommandFailed(USAGE, str(error)) from error
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(temporary_directory()))
        chosen = {name: os.environ[PREFIX + name] for name in PASSED_ON if os.environ.get(PREFIX + name)}
        aggregator = AggregatorProcess(
            directory, ports=None, **{"KUBERNETES": "auto", "INVESTIGATE": "manual", **chosen}
        )
        stack.callback(aggregator.stop)
        aggregator.start()
        try:
            aggregator.wait_ready(sleep=time.sleep)
        except DidNotStart as error:
            raise CommandFailed(UNREACHABLE, str(error)) from error
        yield Client(aggregator_address=Address.parse(aggregator.address), token_file=None, tls_ca_file=None)
