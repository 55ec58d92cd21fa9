"""One table of the server program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reverb_async.config.choices import Settings, describe_limiter, describe_selector, read_limiter, read_selector
from reverb_async.config.settings import Setting, check_keys, shown, to_toml
from reverb_async.core import rate_limiters, selectors
from reverb_async.core.spec import ArraySpec, Signature, dtype_name
from reverb_async.errors import InvalidArgument
from reverb_async.table import Table

DEFAULT_MAX_SIZE = 1_000_000
_LARGEST_SIZE = 1 << 29
"""Tables number their slots, two and some for each item, with 31 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """One ``[[table]]`` of the TOML file; the fields are those of `Table`."""

    name: str
    max_size: int = DEFAULT_MAX_SIZE
    sampler: selectors.Selector = field(default_factory=selectors.Uniform)
    remover: selectors.Selector = field(default_factory=selectors.Fifo)
    rate_limiter: rate_limiters.RateLimiter = field(default_factory=lambda: rate_limiters.MinSize(1))
    max_times_sampled: int = 0
    max_bytes: int | None = None
    seed: int | None = None
    signature: Any = None

    def build(self) -> Table:
        """Make the table.

        Raises:
            InvalidArgument: `max_size` is more than this machine can hold.
        """
        return Table(
            self.name,
            max_size=self.max_size,
            sampler=self.sampler,
            remover=self.remover,
            rate_limiter=self.rate_limiter,
            max_times_sampled=self.max_times_sampled,
            max_bytes=self.max_bytes,
            seed=self.seed,
            signature=self.signature,
        )

    def to_toml(self) -> str:
        """Return the ``[[table]]`` section, defaults included.

        Raises:
            InvalidArgument: TOML has no words for the signature: it has a tuple, a namedtuple or None.
        """
        fields: dict[str, object] = {
            "name": self.name,
            "max_size": self.max_size,
            "sampler": describe_selector(self.sampler),
            "remover": describe_selector(self.remover),
            "rate_limiter": describe_limiter(self.rate_limiter),
            "max_times_sampled": self.max_times_sampled,
            "max_bytes": self.max_bytes,
            "seed": self.seed,
            "signature": self._describe_signature(),
        }
        lines = (f"# {key}: not set" if value is None else f"{key} = {to_toml(value)}" for key, value in fields.items())
        return "\n".join(["[[table]]", *lines]) + "\n"

    def _describe_signature(self) -> object:
        signature = Signature.of(self.signature)
        if signature is None:
            return None
        try:
            return _describe_specs(signature.nest)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"table {shown(self.name)}: {error}; its signature is {signature.structure.describe()}"
            ) from None

    def summary(self) -> str:
        """Return one line about the table."""
        said = f"table {shown(self.name)}: max_size {self.max_size}, sampler {self.sampler}, remover {self.remover}"
        said += f", rate_limiter {self.rate_limiter}"
        if self.max_times_sampled:
            said += f", max_times_sampled {self.max_times_sampled}"
        if self.max_bytes is not None:
            said += f", max_bytes {self.max_bytes}"
        if self.seed is not None:
            said += f", seed {self.seed}"
        signature = Signature.of(self.signature)
        return said if signature is None else f"{said}, signature of {len(signature.specs)} columns"


def read_table(name: str, settings: Settings, place: str) -> TableConfig:
    """Return a sound definition.

    Args:
        name: the table's.
        settings: by canonical key, see `overlay`.
        place: how messages begin about what is not there.

    Raises:
        InvalidArgument: a value that cannot work, a parameter that is missing or that nothing takes.
    """
    max_size = settings["max_size"].integer(1, _LARGEST_SIZE) if "max_size" in settings else DEFAULT_MAX_SIZE
    fields: dict[str, Any] = {}
    for key, least, most in (("max_times_sampled", 0, 2**31 - 1), ("seed", 0, None)):
        if key in settings:
            fields[key] = settings[key].integer(least, most)
    if "max_bytes" in settings:
        fields["max_bytes"] = settings["max_bytes"].nbytes()
    if "signature" in settings:
        fields["signature"] = _read_signature(settings["signature"])
    if "kind" in settings:
        fields |= _read_kind(settings, max_size)
    else:
        for key in ("sampler", "remover"):
            if key in settings:
                fields[key] = read_selector(key, settings)
        fields["rate_limiter"] = limiter = read_limiter(settings, place)
        if limiter.min_size_to_sample > max_size:
            raise settings["rate_limiter.min_size_to_sample"].refuse(
                f"{limiter.min_size_to_sample} items can never be reached with max_size = {max_size}: lower it, "
                f"or raise max_size"
            )
    return TableConfig(name=name, max_size=max_size, **fields)


def _read_kind(settings: Settings, max_size: int) -> dict[str, Any]:
    """Return what `Table.queue` or `Table.stack` would set."""
    kind = settings["kind"].choice(("queue", "stack"))
    for key, setting in settings.items():
        if key not in ("kind", "max_size", "max_bytes", "signature"):
            raise setting.refuse(
                f'kind = "{kind}" decides this (each item once, inserts wait while it is full): drop one of the two'
            )
    order = selectors.Fifo() if kind == "queue" else selectors.Lifo()
    limiter = rate_limiters.Queue if kind == "queue" else rate_limiters.Stack
    return {"sampler": order, "remover": order, "rate_limiter": limiter(max_size), "max_times_sampled": 1}


def _read_signature(setting: Setting) -> object:
    """Return the nest of `ArraySpec` that nested tables describe: ``{obs = {shape = [4], dtype = "float32"}}``."""
    if isinstance(setting.value, Signature):
        return setting.value
    nest = _read_specs(setting)
    try:
        Signature.of(nest)
    except InvalidArgument as error:
        raise setting.refuse(str(error)) from None
    return nest


def _read_specs(setting: Setting) -> object:
    nest = setting.value
    if isinstance(nest, list):
        return [_read_specs(Setting(value, f"{setting.where}, {at}")) for at, value in enumerate(nest)]
    if not isinstance(nest, Mapping):
        raise setting.refuse(f'must be {{shape = [4], dtype = "float32"}} or a table of these, got {shown(nest)}')
    if not isinstance(nest.get("dtype"), str):
        return {name: _read_specs(Setting(value, f"{setting.where}, {name}")) for name, value in nest.items()}
    check_keys(nest, ("shape", "dtype"), f"{setting.where}: ")
    shape = nest.get("shape", [])
    if not isinstance(shape, list):
        raise setting.refuse(f'shape must be a list such as [84, 84] or ["any", 4], got {shown(shape)}')
    for extent in shape:
        if isinstance(extent, str) and extent != "any":
            raise setting.refuse(f'write "any" for an open extent, got {shown(extent)}')
    try:
        return ArraySpec([None if extent == "any" else extent for extent in shape], nest["dtype"])
    except InvalidArgument as error:
        raise setting.refuse(str(error)) from None


def _describe_specs(nest: object) -> object:
    if isinstance(nest, ArraySpec):
        shape = ["any" if extent is None else extent for extent in nest.shape]
        return {"shape": shape, "dtype": dtype_name(nest.dtype)}
    if type(nest) is dict:
        return {name: _describe_specs(value) for name, value in nest.items()}
    if type(nest) is list:
        return [_describe_specs(value) for value in nest]
    raise InvalidArgument(f"TOML has dicts and lists, but no {type(nest).__name__}")
