"""`gcm-sentinel demo`: fault scenarios through the real agent, the real stream and the real store.

Compares each verdict with the expected one. Exit codes: 0 all as expected; 1 one was not; 2 no such scenario.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from aggregator.demo.interrupt import Interrupt
from aggregator.demo.scenario import Scenario, load_scenarios


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which scenarios, or the live one."""
    parser.add_argument(
        "--scenario", metavar="NAME", action="append", default=[], help="only this one; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument(
        "--live", action="store_true", help="this machine's agent and one simulated fault, until Ctrl-C (make run)"
    )


def run(args: argparse.Namespace) -> int:
    """Play; return the exit code."""
    interrupt = Interrupt()
    try:
        scenarios = load_scenarios(args.scenario)
    except KeyError as error:
        sys.stderr.write(f"gcm-sentinel demo: no scenario {error.args[0]!r}; --list names them\n")
        return 2
    if args.list:
        for scenario in scenarios:
            print(f"{scenario.name:26} {scenario.title}")
        return 0
    if args.live:
        from aggregator.demo.live import run_live
        from aggregator.demo.processes import DidNotStart

        try:
            return run_live(interrupt)
        except DidNotStart as error:
            sys.stderr.write(f"gcm-sentinel demo: {error}\n")
            return 1
    return _play_all(scenarios, interrupt)


def _play_all(scenarios: Iterable[Scenario], interrupt: Interrupt) -> int:
    from aggregator.demo.play import play
    from aggregator.demo.processes import DidNotStart, temporary_directory

    failed = 0
    print(f"{'scenario':26} {'verdict':42} {'seconds':>7}  as expected")
    for scenario in scenarios:
        try:
            with temporary_directory() as scratch:
                outcome = play(scenario, Path(scratch), interrupt.sleep)
        except DidNotStart as error:
            sys.stderr.write(f"gcm-sentinel demo: {error}\n")
            return 1
        verdicts = [
            f"{i.assessment.severity} {i.assessment.fault_class} {i.assessment.action}" for i in outcome.incidents
        ]
        shown = ", ".join(dict.fromkeys(verdicts)) or "no incident"
        failed += bool(outcome.problems)
        print(
            f"{scenario.name:26} {shown[:42]:42} {outcome.seconds:7.1f}  {'no' if outcome.problems else 'yes'}",
            flush=True,
        )
        for problem in outcome.problems:
            print(f"    {problem}")
    return 1 if failed else 0
