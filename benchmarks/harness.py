"""Measures a subject: warm-up, several timed rounds, alternating between contestants; one `Result`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.processes import Contestant, ours
from benchmarks.result import Result, result_of
from benchmarks.subject import Options, Round, Subject
from benchmarks.usage import machine

_WARM_UP = 0.5
"""Of a round."""

_LEAST_WARM_UP_S = 0.5


def play_rounds(contestants: Sequence[Contestant], options: Options) -> list[list[Round]]:
    """Warm all contestants up, then let them take turns; return each one's rounds."""
    for contestant in contestants:
        contestant.play(max(_LEAST_WARM_UP_S, _WARM_UP * options.seconds))
    played: list[list[Round]] = [[] for _ in contestants]
    for _ in range(options.rounds):
        for contestant, rounds in zip(contestants, played, strict=True):
            rounds.append(contestant.play(options.seconds))
    return played


def measure_rounds(subject: Subject, options: Options) -> Iterable[Result]:
    """Measure rounds of the work of a subject's roles, alone."""
    with ours(subject) as contestant:
        rounds = play_rounds([contestant], options)[0]
    yield result_of(subject, rounds)


def measure(subject: Subject, options: Options) -> Iterator[Result]:
    """Measure a subject; gives one result, or several."""
    for result in (subject.run or measure_rounds)(subject, options):
        yield signed(result)


def signed(result: Result) -> Result:
    """Note when, where and how a result was found."""
    result.at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result.command = shlex.join(["python", "-m", "benchmarks", *_telling(sys.argv[1:])])
    result.machine = machine()
    return result


_OF_THIS_MACHINE = {"--json", "--plots", "--dm-reverb-python"}


def _telling(arguments: Sequence[str]) -> list[str]:
    """Leave out of a command line where its output went; a path of this machine becomes the word PATH."""
    told: list[str] = []
    words = iter(arguments)
    for word in words:
        option = word.partition("=")[0]
        if option in _OF_THIS_MACHINE:
            if word == option:
                next(words, None)
            if option == "--dm-reverb-python":
                told += [option, "PATH"]
        elif word != "--markdown":
            told.append(word)
    return told
