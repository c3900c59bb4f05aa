"""`python -m tests.doubles.llm MODULE:NAME`: the scripted endpoint in a process of its own, until it is interrupted."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from tests.doubles.llm.server import ScriptedLlm


def main(arguments: list[str]) -> int:
    """Serve the script (a function, a step or a sequence of steps) and print where."""
    parser = argparse.ArgumentParser(prog="python -m tests.doubles.llm", description=__doc__)
    parser.add_argument("script", metavar="MODULE:NAME", help="where the script is")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    given = parser.parse_args(arguments)
    module, _, name = given.script.partition(":")
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the server's thread starts: it inherits the mask
    with ScriptedLlm(getattr(importlib.import_module(module), name), port=given.port) as llm:
        print(llm.url, flush=True)
        signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
