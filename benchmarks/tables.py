"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.result import PeerResult, Result


def number(value: float | None, unit: str = "") -> str:
    """Return a figure for humans: thousands separated, decimals only where they matter."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
    return f"{text} {unit}".strip()


def markdown(results: Iterable[Result]) -> str:
    """Return all that was measured, a row per result."""
    lines = [
        "| subject | median | min | max | target | verdict | server CPU s/million | client CPU s/million "
        "| foreign load | peers |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{result.subject}`: {result.title} | {number(result.median, result.unit)} | {number(result.min)} | "
        f"{number(result.max)} | {target(result)} | {result.verdict} | {number(result.server_cpu_s_per_million)} | "
        f"{number(result.client_cpu_s_per_million)} | {number(result.foreign_load)} | "
        f"{'; '.join(beside(peer, result.unit) for peer in result.peers) or '-'} |"
        for result in results
    ]
    return "\n".join(lines)


def target(result: Result) -> str:
    """Return what was asked for, with its direction."""
    if result.target is None:
        return "-"
    return f"{'≥' if result.better == 'higher' else '≤'} {number(result.target)}"


def beside(peer: PeerResult, unit: str) -> str:
    """Return a peer's figure and the ratio, in one phrase."""
    asked = "" if peer.target_ratio is None else f", asked {number(peer.target_ratio)}x: {peer.verdict}"
    return f"{peer.name} `{peer.path}` {number(peer.median, unit)}: {number(peer.ratio)}x{asked}"
