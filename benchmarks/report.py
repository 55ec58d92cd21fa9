"""docs/benchmarks.md from results: figures are put in, never typed; remarks stand in report_template.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.result import Result
from benchmarks.tables import number, target

_TEMPLATE = Path(__file__).with_name("report_template.md")
_NOISY = 0.2
"""Cores of foreign load above which a figure is marked."""

_PLOT_TITLES = {
    "peers.png": "Ours and the peers in one run: how many times faster, or smaller",
    "batch_size.png": "Throughput by batch size",
    "payload_size.png": "Throughput by payload size",
    "processes.png": "Throughput by number of learners and of actors",
    "table_size.png": "Throughput by table size",
    "latencies.png": "Latency histograms",
    "long_run.png": "Rates and memory of the long run",
}


class TemplateError(ValueError):
    """The template asks for something that does not exist."""


def write_report(results: Sequence[Result], plots: Sequence[str], images: str, template: str | None = None) -> str:
    """Return the page.

    In the template, ``{{ table }}`` and the like are whole sections; ``{{ value SUBJECT }}`` is a subject's figure and
    ``{{ ratio SUBJECT PATH }}`` how many times better it is than a peer's.

    Raises:
        TemplateError: a placeholder is none of these.
    """
    text = _TEMPLATE.read_text() if template is None else template
    by_name = {result.subject: result for result in results}

    def fill(found: re.Match[str]) -> str:
        word, *names = found.group(1).split()
        if word == "value" and len(names) == 1:
            return _value(by_name.get(names[0]))
        if word == "ratio" and len(names) == 2:
            return _ratio(by_name.get(names[0]), names[1])
        if word == "plots" and not names:
            return _plots(plots, images)
        if word in _SECTIONS and not names:
            return _SECTIONS[word](results)
        raise TemplateError(f"{found.group(0)!r}: there are {', '.join(_SECTIONS)}, plots, value NAME, ratio NAME PATH")

    return re.sub(r"\{\{ *(.+?) *\}\}", fill, text)


def _value(result: Result | None) -> str:
    return "(not measured)" if result is None else number(result.median, result.unit)


def _ratio(result: Result | None, path: str) -> str:
    peer = next((peer for peer in result.peers if peer.path == path), None) if result else None
    return "(not measured)" if peer is None else f"{number(peer.ratio)}x"


def _machine(results: Sequence[Result]) -> str:
    lines = []
    for machine in _distinct([result.machine for result in results]):
        versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in _OF_THE_MACHINE)
        lines.append(
            f"{machine['cpu']}, {machine['memory']}, {machine['system']}, Python {machine['python']}; {versions}"
        )
    days = sorted({result.at[:10] for result in results})
    return "; and ".join(lines) + f". Measured on {' and '.join(days)}."


_OF_THE_MACHINE = ("cpu", "memory", "system", "python")


def _distinct(machines: list[dict[str, str]]) -> list[dict[str, str]]:
    return [machine for at, machine in enumerate(machines) if machine not in machines[:at]]


def _commands(results: Sequence[Result]) -> str:
    return "```console\n" + "\n".join(dict.fromkeys(result.command for result in results)) + "\n```"


def _table(results: Sequence[Result]) -> str:
    lines = [
        "| subject | what is measured | target | result (min to max) | verdict | peer, same run | ratio | asked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.group in ("sweep", "part", "clients"):
            continue
        spread = "" if result.min == result.max else f" ({number(result.min)} to {number(result.max)})"
        mark = " †" if (result.foreign_load or 0) > _NOISY else ""
        peers = [
            (
                f"{peer.name} `{peer.path}`: {number(peer.median, result.unit)}",
                f"{number(peer.ratio)}x",
                "-" if peer.target_ratio is None else f"≥ {number(peer.target_ratio)}x: {peer.verdict}",
            )
            for peer in result.peers
        ] or [("-", "-", "-")]
        columns = ["<br>".join(column) for column in zip(*peers, strict=True)]
        lines.append(
            f"| `{result.subject}` | {result.title}{_transport(result)} | {target(result)} | "
            f"**{number(result.median, result.unit)}**{spread}{mark} | {result.verdict} | {' | '.join(columns)} |"
        )
    return "\n".join(lines)


def _clients(results: Sequence[Result]) -> str:
    lines = [
        "| program | at our server (min to max) | at dm-reverb's (min to max) | ratio | asked | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.group != "clients":
            continue
        name = result.subject.rpartition("/")[2]
        mark = " †" if (result.foreign_load or 0) > _NOISY else ""
        own = f"**{number(result.median, result.unit)}** ({number(result.min)} to {number(result.max)}){mark}"
        beside = [
            f"{number(peer.median, result.unit)} ({number(peer.min)} to {number(peer.max)}) | {number(peer.ratio)}x | "
            f"≥ {number(peer.target_ratio)}x | {peer.verdict}"
            for peer in result.peers
        ] or [f"- | - | {target(result)} | {result.verdict}"]
        lines += [f"| `{name}`: {result.title} | {own} | {each} |" for each in beside]
    return "\n".join(lines)


def _transport(result: Result) -> str:
    return f" ({result.details['transport']})" if "transport" in result.details else ""


def _latencies(results: Sequence[Result]) -> str:
    lines = ["| subject | | p50 | p90 | p99 | calls |", "|---|---|---|---|---|---|"]
    for result in results:
        if result.kind != "latency":
            continue
        rows = [
            ("reverb_async", result.details),
            *((f"{peer.name} `{peer.path}`", peer.details) for peer in result.peers),
        ]
        for who, details in rows:
            figures = " | ".join(number(details[name], result.unit) for name in ("p50", "p90", "p99"))
            lines.append(f"| `{result.subject}` | {who} | {figures} | {details['count']:,} |")
    return "\n".join(lines)


def _cost(results: Sequence[Result]) -> str:
    lines = [
        "| subject | server CPU s/million | client CPU s/million | peer's server | peer's client | foreign load |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.client_cpu_s_per_million is None or result.group in ("sweep", "part"):
            continue
        servers = [number(peer.details.get("server_cpu_s_per_million")) for peer in result.peers] or ["-"]
        clients = [number(peer.details.get("client_cpu_s_per_million")) for peer in result.peers] or ["-"]
        lines.append(
            f"| `{result.subject}` | {number(result.server_cpu_s_per_million)} | "
            f"{number(result.client_cpu_s_per_million)} | {'<br>'.join(servers)} | {'<br>'.join(clients)} | "
            f"{number(result.foreign_load)} |"
        )
    return "\n".join(lines)


def _sweeps(results: Sequence[Result]) -> str:
    lines = ["| subject | what is measured | median | min | max | foreign load |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{result.subject}` | {result.title} | {number(result.median, result.unit)} | {number(result.min)} | "
        f"{number(result.max)} | {number(result.foreign_load)} |"
        for result in results
        if result.group in ("sweep", "part")
    ]
    return "\n".join(lines)


def _settings(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        for peer in result.peers:
            chosen = {
                name: value for name, value in peer.details.get("setting", {}).items() if not name.startswith("tried")
            }
            if chosen:
                words = ", ".join(f"{name}={value}" for name, value in chosen.items())
                lines.append(f"- `{result.subject}`, {peer.name} `{peer.path}`: {words}")
    return "\n".join(lines)


def _noise(results: Sequence[Result]) -> str:
    noisy = [result for result in results if (result.foreign_load or 0) > _NOISY]
    if not noisy:
        return f"No result was taken while other programs used more than {_NOISY} cores."
    return (
        f"† {len(noisy)} of {len(results)} results were taken while other programs used more than {_NOISY} cores: "
        "lower bounds."
    )


def _missed(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        if result.verdict == "missed":
            lines.append(f"- `{result.subject}`: {number(result.median, result.unit)}, asked {target(result)}")
        lines += [
            f"- `{result.subject}` against {peer.name} `{peer.path}`: {number(peer.ratio)}x, "
            f"asked ≥ {number(peer.target_ratio)}x"
            for peer in result.peers
            if peer.verdict == "missed"
        ]
    return "\n".join(lines) or "None."


def _plots(plots: Sequence[str], images: str) -> str:
    return "\n\n".join(f"![{_PLOT_TITLES[name]}]({images}/{name})" for name in plots)


_SECTIONS: dict[str, Callable[[Sequence[Result]], str]] = {
    "machine": _machine,
    "commands": _commands,
    "table": _table,
    "clients": _clients,
    "latencies": _latencies,
    "cost": _cost,
    "sweeps": _sweeps,
    "settings": _settings,
    "noise": _noise,
    "missed": _missed,
}
