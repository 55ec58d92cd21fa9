"""Samplers, removers and rate limiters as settings.

Settings are kept by canonical key, whichever way they were written: ``max_size``; ``rate_limiter``, which is a kind,
and ``rate_limiter.min_size_to_sample``, a parameter of that kind. The same for `sampler` and `remover`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reverb_async.config.settings import Setting, check_keys, shown
from reverb_async.core import rate_limiters, selectors
from reverb_async.errors import InvalidArgument

Settings = dict[str, Setting]

_SELECTORS: dict[str, Callable[..., selectors.Selector]] = {
    "uniform": selectors.Uniform,
    "prioritized": selectors.Prioritized,
    "fifo": selectors.Fifo,
    "lifo": selectors.Lifo,
    "min_heap": selectors.MinHeap,
    "max_heap": selectors.MaxHeap,
}
_SELECTOR_PARAMETERS: dict[str, tuple[str, ...]] = {
    name: ("priority_exponent",) if name == "prioritized" else () for name in _SELECTORS
}
_LIMITERS: dict[str, Callable[..., rate_limiters.RateLimiter]] = {
    "min_size": rate_limiters.MinSize,
    "sample_to_insert_ratio": rate_limiters.SampleToInsertRatio,
    "queue": rate_limiters.Queue,
    "stack": rate_limiters.Stack,
    "custom": rate_limiters.RateLimiter,
}
_LIMITER_PARAMETERS: dict[str, tuple[str, ...]] = {
    "min_size": ("min_size_to_sample",),
    "sample_to_insert_ratio": ("samples_per_insert", "min_size_to_sample", "error_buffer"),
    "queue": ("size",),
    "stack": ("size",),
    "custom": ("samples_per_insert", "min_size_to_sample", "min_diff", "max_diff"),
}
_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "sampler": _SELECTOR_PARAMETERS,
    "remover": _SELECTOR_PARAMETERS,
    "rate_limiter": _LIMITER_PARAMETERS,
}
"""What can be chosen, and what each choice is told."""
_ALL_LIMITER_PARAMETERS = tuple(dict.fromkeys(name for names in _LIMITER_PARAMETERS.values() for name in names))
_KEYS = (
    *("kind", "max_size", "max_times_sampled", "max_bytes", "seed", "signature"),
    *(*_PARAMETERS, "priority_exponent", *_ALL_LIMITER_PARAMETERS),
)


def expand(entry: Mapping[str, object], place: str) -> Settings:
    """Return settings by canonical key.

    Args:
        entry: what one place says about one table, without its name.
        place: how messages about it begin.

    Raises:
        InvalidArgument: an unknown key, sampler, remover, rate limiter or kind.
    """
    check_keys(entry, _KEYS, place)
    settings: Settings = {}
    beside: Settings = {}
    for key, value in entry.items():
        setting = Setting(value, f'{place}key "{key}"')
        if key in _PARAMETERS:
            settings |= _expand_choice(key, setting)
        elif key in _ALL_LIMITER_PARAMETERS:
            beside[f"rate_limiter.{key}"] = setting
        else:
            beside[key] = setting
    for key, setting in beside.items():
        if key in settings:
            raise setting.refuse("it is given within rate_limiter too: drop one")
    return settings | beside


def _expand_choice(key: str, setting: Setting) -> Settings:
    """Take ``"name"`` or ``{kind = "name", parameter = value}`` apart."""
    kinds = _PARAMETERS[key]
    if not isinstance(setting.value, Mapping):
        setting.choice(kinds)
        return {key: setting}
    inner = {name: Setting(value, f"{setting.where}, {name}") for name, value in setting.value.items()}
    if "kind" not in inner:
        raise setting.refuse(f'must say which one, as in {{kind = "{next(iter(kinds))}"}}, got {shown(setting.value)}')
    kind = inner.pop("kind")
    check_keys(inner, kinds[kind.choice(kinds)], f"{setting.where}: ")
    return {key: kind} | {f"{key}.{name}": value for name, value in inner.items()}


def overlay(base: Settings, over: Settings) -> Settings:
    """Return what holds when `over` is said after `base`.

    Another sampler, remover or rate limiter keeps those parameters that it also has. A `priority_exponent` beside the
    choices belongs to whichever of sampler and remover is prioritized; with no sampler named, that is the sampler.
    """
    merged = base | over
    for choice, kinds in _PARAMETERS.items():
        if choice in over:
            kept = {f"{choice}.{name}" for name in kinds[str(over[choice].value)]}
            merged = {
                key: setting
                for key, setting in merged.items()
                if key in over or key in kept or not key.startswith(f"{choice}.")
            }
    exponent = merged.pop("priority_exponent", None)
    if exponent is None:
        return merged
    if "sampler" not in merged:
        if merged.get("remover") is not None and merged["remover"].value == "prioritized":
            raise exponent.refuse(
                'is it for sampler or remover? Say sampler = "prioritized" (for both) or sampler = "uniform"'
            )
        merged["sampler"] = Setting("prioritized", exponent.where)
    takers = [
        f"{choice}.priority_exponent"
        for choice in ("sampler", "remover")
        if choice in merged and merged[choice].value == "prioritized" and f"{choice}.priority_exponent" not in over
    ]
    if not takers:
        raise exponent.refuse(
            'nothing takes it: say sampler = "prioritized" (with no exponent of its own within braces), or drop it'
        )
    return merged | dict.fromkeys(takers, exponent)


def read_selector(key: str, settings: Settings) -> selectors.Selector:
    """Return the `sampler` or `remover` that the settings name.

    Raises:
        InvalidArgument: its exponent is missing or cannot work.
    """
    chosen = settings[key]
    kind = chosen.choice(_SELECTORS)
    if kind != "prioritized":
        return _SELECTORS[kind]()
    exponent = settings.get(f"{key}.priority_exponent")
    if exponent is None:
        raise chosen.refuse('"prioritized" needs a priority_exponent: add priority_exponent = 0.6 (0 is uniform)')
    return selectors.Prioritized(exponent.finite(zero=True))


def read_limiter(settings: Settings, place: str) -> rate_limiters.RateLimiter:
    """Return the rate limiter that the settings name, or that their parameters imply.

    Args:
        settings: of one table.
        place: how messages begin about a parameter that is missing.

    Raises:
        InvalidArgument: a parameter is missing, or cannot work, or belongs to another rate limiter.
    """
    names = (name for name in _ALL_LIMITER_PARAMETERS if f"rate_limiter.{name}" in settings)
    given = {name: settings[f"rate_limiter.{name}"] for name in names}
    kind = settings["rate_limiter"].choice(_LIMITERS) if "rate_limiter" in settings else _implied_limiter(given)
    for name, setting in given.items():
        if name not in _LIMITER_PARAMETERS[kind]:
            takers = " or ".join(f'"{taker}"' for taker, names in _LIMITER_PARAMETERS.items() if name in names)
            raise setting.refuse(f'rate_limiter "{kind}" does not take it: drop it, or say rate_limiter = {takers}')
    values: dict[str, Any] = {}
    for name in _LIMITER_PARAMETERS[kind]:
        if name in given:
            values[name] = _LIMITER_READERS[name](given[name])
        elif name == "min_size_to_sample":
            values[name] = 1
        else:
            raise InvalidArgument(f'{place}key "{name}": rate_limiter "{kind}" needs it: {_suggestion(name, values)}')
    if kind != "sample_to_insert_ratio":
        return _LIMITERS[kind](**values)
    try:
        return rate_limiters.SampleToInsertRatio(**values)
    except InvalidArgument as error:
        raise given["error_buffer"].refuse(str(error)) from None


def describe_selector(selector: selectors.Selector) -> object:
    """Return what `expand` reads as this selector."""
    kind = next(name for name, make in _SELECTORS.items() if make is type(selector))
    if isinstance(selector, selectors.Prioritized):
        return {"kind": kind, "priority_exponent": selector.priority_exponent}
    return kind


def describe_limiter(limiter: rate_limiters.RateLimiter) -> dict[str, object]:
    """Return what `expand` reads as this rate limiter."""
    values = {
        "samples_per_insert": limiter.samples_per_insert,
        "min_size_to_sample": limiter.min_size_to_sample,
        "error_buffer": [limiter.min_diff, limiter.max_diff],
        "min_diff": limiter.min_diff,
        "max_diff": limiter.max_diff,
    }
    kind = next(name for name, make in _LIMITERS.items() if make is type(limiter))
    if isinstance(limiter, rate_limiters.Queue):
        values["size"] = int(limiter.max_diff)
    return {"kind": kind} | {name: values[name] for name in _LIMITER_PARAMETERS[kind]}


def _implied_limiter(given: Mapping[str, Setting]) -> str:
    if "min_diff" in given or "max_diff" in given:
        return "custom"
    if "samples_per_insert" in given or "error_buffer" in given:
        return "sample_to_insert_ratio"
    return "min_size"


def _read_buffer(setting: Setting) -> float | tuple[float, float]:
    if not isinstance(setting.value, list):
        return setting.number()
    if len(setting.value) != 2:
        raise setting.refuse(f"must be a number or a pair [low, high], got {shown(setting.value)}")
    low, high = (Setting(bound, setting.where).number() for bound in setting.value)
    return low, high


_LIMITER_READERS: dict[str, Callable[[Setting], Any]] = {
    "samples_per_insert": Setting.finite,
    "min_size_to_sample": lambda setting: setting.integer(1),
    "error_buffer": _read_buffer,
    "min_diff": Setting.number,
    "max_diff": Setting.number,
    "size": lambda setting: setting.integer(1),
}


def _suggestion(name: str, values: Mapping[str, Any]) -> str:
    """Say how to give a parameter that is missing; `values` are those before it."""
    match name:
        case "error_buffer":
            ratio, size = values["samples_per_insert"], values["min_size_to_sample"]
            buffer = max(1.0, ratio, 0.1 * ratio * size)
            return (
                f"add error_buffer = {buffer:g} and samples may run that far ahead of inserts * {ratio:g}, or behind "
                f"(a tenth of samples_per_insert * min_size_to_sample is usual, {max(1.0, ratio):g} the least)"
            )
        case "samples_per_insert":
            return "add samples_per_insert = 8, say"
        case "size":
            return "add size = 100 and inserts may run that far ahead of samples"
        case "min_diff":
            return "add min_diff = -inf for no bound"
        case "max_diff":
            return "add max_diff = inf for no bound"
    raise AssertionError(name)
