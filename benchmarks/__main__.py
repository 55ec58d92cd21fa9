"""``python -m benchmarks`` lists the subjects; ``python -m benchmarks NAME...`` measures them, one JSON line each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import measure
from benchmarks.report import write_report
from benchmarks.result import Result
from benchmarks.subject import ROUND_S, ROUNDS, Options, Subject
from benchmarks.subjects import ALL_SUBJECTS, CLIENTS, SUBJECTS
from benchmarks.tables import markdown

_GROUPS = {
    "all": "everything but 'sweeps' and 'long'",
    "alone": "those of 'all' that no peer can do",
    "sweeps": "throughput by batch size, payload, learners, actors, table size",
    "long": "ten minutes of load",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["peers"]:
        return _peers(arguments[1:])
    if arguments[:1] == ["reverb-clients"]:
        return _reverb_clients(arguments[1:])
    if arguments[:1] == ["report"]:
        return _report(arguments[1:])
    return _subjects(arguments)


def _subjects(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure reverb_async. 'peers' measures others beside it, 'reverb-clients' its clients at "
        "our server, 'report' writes docs/benchmarks.md.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="subjects, 'all', 'alone', 'sweeps' or 'long'; none lists them"
    )
    _add_measuring(parser)
    _add_output(parser)
    parser.add_argument("--make-peer-env", type=Path, metavar="DIR", help=_MAKE_HELP)
    options = parser.parse_args(arguments)
    if options.make_peer_env is not None:
        return _make_environment(options.make_peer_env)
    if not options.names:
        _list()
        return 0
    subjects = _chosen(parser, options.names, SUBJECTS)
    how = _how(options)
    _measure_all(subjects, options, lambda subject: measure(subject, how))
    return 0


def _peers(arguments: list[str]) -> int:
    from benchmarks.peers import comparison

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Measure the same work on other libraries and on ours, in alternating rounds.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="subjects; none: all that a peer can do")
    parser.add_argument("--cpprb", action="store_true", help="compare with cpprb, in that Python or in this one")
    _add_reverb(parser)
    _add_measuring(parser)
    _add_output(parser)
    options = parser.parse_args(arguments)
    if options.make_peer_env is not None:
        return _make_environment(options.make_peer_env)
    peers = comparison.Peers.find(options.dm_reverb_python, options.cpprb, options.allow_open_port)
    able = {name: subject for name, subject in SUBJECTS.items() if peers.works(subject)}
    if not able:
        parser.error("nobody to compare with: give --dm-reverb-python PATH, --cpprb, or both")
    print(peers.describe(), file=sys.stderr)
    subjects = _chosen(parser, options.names or list(able), able)
    how = _how(options)
    with peers:
        _measure_all(subjects, options, lambda subject: comparison.compare(subject, peers, how))
    return 0


def _reverb_clients(arguments: list[str]) -> int:
    from benchmarks.peers import comparison, reverb_clients

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks reverb-clients",
        description="Measure dm-reverb's clients at our server and at their own, in alternating rounds.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"none: all of {', '.join(map(_last_word, CLIENTS))}")
    _add_reverb(parser)
    _add_measuring(parser)
    _add_output(parser)
    options = parser.parse_args(arguments)
    if options.make_peer_env is not None:
        return _make_environment(options.make_peer_env)
    if options.dm_reverb_python is None:
        parser.error("whose clients? give --dm-reverb-python PATH")
    subjects = _chosen(parser, options.names, {_last_word(name): subject for name, subject in CLIENTS.items()})
    peers = comparison.Peers.find(options.dm_reverb_python, False, options.allow_open_port)
    print(peers.describe(), file=sys.stderr)
    how = _how(options)
    with peers, ExitStack() as stack:
        ours = reverb_clients.OurServer(peers, stack)
        chosen = subjects or list(CLIENTS.values())
        _measure_all(chosen, options, lambda subject: reverb_clients.compare_clients(subject, ours, how))
    return 0


def _last_word(name: str) -> str:
    return name.rpartition("/")[2]


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description="Print docs/benchmarks.md from collected JSON lines."
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.jsonl", help="of one subject, the last line counts"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots there, too")
    parser.add_argument("--images", default="images", metavar="PATH", help="where the page finds the plots")
    options = parser.parse_args(arguments)
    results = _read(options.files)
    drawn = _plot(results, options.plots) if options.plots else []
    print(write_report(results, drawn, options.images), end="")
    return 0


def _measure_all(
    subjects: Iterable[Subject], options: argparse.Namespace, how: Callable[[Subject], Iterable[Result]]
) -> None:
    results = []
    for subject in subjects:
        for result in how(subject):
            results.append(result)
            print(result.to_json(), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(result.to_json() + "\n")
    if options.markdown:
        print(markdown(results))
    if options.plots:
        _plot(results, options.plots)


def _plot(results: list[Result], directory: Path) -> list[str]:
    from benchmarks.plots import draw_all  # matplotlib is of the `bench` extra.

    drawn = draw_all(results, directory)
    for name in drawn:
        print(directory / name, file=sys.stderr)
    return drawn


def _read(files: Sequence[Path]) -> list[Result]:
    """Return each subject's last line, of those beside peers if there are any; in the registry's order."""
    latest: dict[str, Result] = {}
    for file in files:
        for line in file.read_text().splitlines():
            result = Result.from_json(line)
            if result.peers or not (result.subject in latest and latest[result.subject].peers):
                latest[result.subject] = result
    order = {name: at for at, name in enumerate(ALL_SUBJECTS)}

    def place(result: Result) -> int:
        return order.get(result.subject, order.get(result.subject.partition(":")[0], len(order)))

    return sorted(latest.values(), key=place)


def _list() -> None:
    for subject in SUBJECTS.values():
        target = "" if subject.target is None else f" [{subject.target:,} {subject.measure.unit}]"
        print(f"{subject.name:26} {subject.title}{target}")
    for name, meaning in _GROUPS.items():
        print(f"{name:26} = {meaning}")


def _chosen(parser: argparse.ArgumentParser, names: list[str], among: dict[str, Subject]) -> list[Subject]:
    groups = {"all": "design", "sweeps": "sweep", "long": "long"}
    chosen: list[Subject] = []
    for name in names:
        if name == "alone":
            chosen += [subject for subject in among.values() if subject.group == "design" and not subject.peers]
        elif name in groups:
            chosen += [subject for subject in among.values() if subject.group == groups[name]]
        elif name in among:
            chosen.append(among[name])
        elif parts := [subject for other, subject in among.items() if other.startswith(f"{name}/")]:
            chosen += parts
        else:
            parser.error(f"no subject {name!r}; there are: {', '.join([*_GROUPS, *among])}")
    return list({subject.name: subject for subject in chosen}.values())


def _add_reverb(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dm-reverb-python", type=Path, metavar="PATH", help="a Python that has dm-reverb")
    parser.add_argument(
        "--allow-open-port",
        action="store_true",
        help="run dm-reverb's server, which binds every address, without a network namespace of its own",
    )
    parser.add_argument("--make-peer-env", type=Path, metavar="DIR", help=_MAKE_HELP)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="length of a round (default %(default)s)")
    parser.add_argument("--full", action="store_true", help="include a table of 10M items (8 GB, minutes)")
    parser.add_argument(
        "--long-seconds", type=float, default=600.0, help="length of long-run (default %(default)s); ratio: 60 at most"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the lines to a file, too")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table at the end")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots of these results there")


def _how(options: argparse.Namespace) -> Options:
    return Options(max(1, options.rounds), options.seconds, options.full, options.long_seconds)


_MAKE_HELP = "make a virtual environment with dm-reverb, TensorFlow and cpprb there (about 2 GB), and stop"


def _make_environment(directory: Path) -> int:
    from benchmarks.peers.environment import make_environment

    print(make_environment(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
