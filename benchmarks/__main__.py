"""``python -m benchmarks`` lists the subjects; ``python -m benchmarks NAME...`` measures them, one JSON line each."""

from __future__ import annotations

import argparse
import asyncio
import sys

import uvloop

from benchmarks.harness import ROUND_S, ROUNDS, Result, run, run_client
from benchmarks.subjects import SUBJECTS


def markdown(results: list[Result]) -> str:
    """Return a table for docs/benchmarks.md."""
    lines = [
        "| subject | median | min | max | target | server CPU s/million | client CPU s/million | foreign load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        target = f"{result.target:,.0f}" if result.target else "-"
        lines.append(
            f"| `{result.subject}`: {result.title} | {result.rate:,.0f} {result.unit} | {result.rate_min:,.0f} | "
            f"{result.rate_max:,.0f} | {target} | {result.server_cpu_s_per_million} | "
            f"{result.client_cpu_s_per_million} | {result.foreign_load} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure reverb_async.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="subjects; 'all' for all; none lists them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="length of a round")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table at the end")
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)  # This process is the client's.
    parser.add_argument("--server-pid", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.names:
        for subject in SUBJECTS.values():
            print(f"{subject.name:20} {subject.title}")
        return 0
    names = list(SUBJECTS) if options.names == ["all"] else options.names
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {unknown[0]!r}; there are: {', '.join(SUBJECTS)}")
    if options.client:
        client = run_client(SUBJECTS[names[0]], options.client, options.server_pid, options.rounds, options.seconds)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(client)
        return 0
    results = []
    for name in names:
        results.append(run(SUBJECTS[name], rounds=options.rounds, seconds=options.seconds))
        print(results[-1].to_json(), flush=True)
    if options.markdown:
        print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
