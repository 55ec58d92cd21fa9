"""Tables from DeepMind's server configuration: the text that dm-reverb's ``reverb_server --config`` takes.

The text is protobuf's text format of a `ReverbServerConfig` (``protos/deepmind/reverb/reverb_config.proto``), which the
package protobuf reads.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverb_async.compat.signatures import read_signature
from reverb_async.config.choices import Settings
from reverb_async.config.settings import Setting, read_text, table_place
from reverb_async.errors import InvalidArgument

DESCRIPTORS = Path(__file__).with_suffix(".binpb")
"""The message's definition, compiled: a `FileDescriptorSet`. `reverb_async.wire.regenerate` writes it."""

_FLAG = "--reverb-config"
_LIMITER = ("samples_per_insert", "min_size_to_sample", "min_diff", "max_diff")
_TABLE = ("table_name", "max_size", "max_times_sampled", "sampler", "remover", "rate_limiter", "signature")


def read_reverb_config(argument: str) -> tuple[dict[str, tuple[str, Settings]], Setting | None]:
    """Read what ``--reverb-config`` was given: the text itself, or ``@`` and the name of a file that has it.

    Returns:
        For each table, by name, how messages about it begin and its settings; and the port, None if the text has none.

    Raises:
        InvalidArgument: the file or the text cannot be read, protobuf is not installed, two tables have one name, a
            signature has no counterpart here, or a selector is none.
    """
    source = argument.removeprefix("@") if argument.startswith("@") else _FLAG
    config = _parse(read_text(Path(source)) if argument.startswith("@") else argument, source)
    if not config.tables:
        raise InvalidArgument(f'{source}: names no table: add tables {{ table_name: "replay" max_size: 1000000 }}')
    tables: dict[str, tuple[str, Settings]] = {}
    for number, table in enumerate(config.tables, 1):
        name = Setting(table.table_name, f'{source}: tables number {number}, field "table_name"').text()
        place = table_place(source, name)
        if name in tables:
            raise InvalidArgument(f"{place}given twice: names must be distinct")
        tables[name] = place, dict(_settings(table, place))
    # Absent and 0 are the same to proto3. dm-reverb then listens on a port that nobody is told.
    return tables, Setting(config.port, f'{source}: field "port"') if config.port else None


def _parse(text: str, source: str) -> Any:
    """Return the message, of a class made here: nothing enters the pool that a program shares with TensorFlow."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
    except ImportError:
        raise InvalidArgument(
            f"{_FLAG} needs the package protobuf: pip install 'reverb_async[reverb-config]'"
        ) from None
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("deepmind.reverb.ReverbServerConfig"))
    try:
        return text_format.Parse(text, kind(), descriptor_pool=pool)
    except text_format.ParseError as error:
        raise InvalidArgument(f"{source}: line:column {error}") from None
    except RecursionError:
        raise InvalidArgument(f"{source}: is nested too deeply") from None


def _settings(table: Any, place: str) -> Iterator[tuple[str, Setting]]:
    """Yield the settings of one table; what it leaves out is as in other configurations."""

    def setting(key: str, value: object) -> tuple[str, Setting]:
        return key, Setting(value, f'{place}field "{key}"')

    yield setting("max_size", table.max_size)
    yield setting("max_times_sampled", max(0, table.max_times_sampled))  # Theirs is unlimited below 1.
    for key in ("sampler", "remover"):
        if table.HasField(key):
            yield from _selector(getattr(table, key), Setting(None, f'{place}field "{key}"'), key)
    if table.HasField("rate_limiter"):
        kind, names = (
            ("min_size", ("min_size_to_sample",)) if _is_min_size(table.rate_limiter) else ("custom", _LIMITER)
        )
        yield setting("rate_limiter", kind)
        for name in names:
            yield setting(f"rate_limiter.{name}", getattr(table.rate_limiter, name))
        _warn_of_narrow_bounds(table.rate_limiter, place)
    if table.HasField("signature"):
        # Sorted maps: the same text has the same bytes in every process.
        encoded = table.signature.SerializeToString(deterministic=True)
        try:
            yield setting("signature", read_signature(encoded))
        except InvalidArgument as error:
            raise InvalidArgument(f'{place}field "signature": {error}') from None
    for part, known in ((table, _TABLE), (table.rate_limiter, _LIMITER)):
        for field, _ in part.ListFields():
            if field.name not in known:
                warnings.warn(f"{place}field {field.name} is a checkpoint's state: it is ignored", stacklevel=2)


def _is_min_size(limiter: Any) -> bool:
    bounds = (limiter.samples_per_insert, limiter.min_diff, limiter.max_diff)
    return bounds == (1.0, -sys.float_info.max, sys.float_info.max)


def _warn_of_narrow_bounds(limiter: Any, place: str) -> None:
    if limiter.max_diff - limiter.min_diff < max(1.0, limiter.samples_per_insert):
        warnings.warn(
            f'{place}field "rate_limiter": there is no room between min_diff {limiter.min_diff:g} and '
            f"max_diff {limiter.max_diff:g}: inserts and samples will wait for each other; without bounds, say "
            "min_diff: -1e300 max_diff: 1e300 (absent, both are 0)",
            stacklevel=2,
        )


def _selector(options: Any, where: Setting, key: str) -> Iterator[tuple[str, Setting]]:
    kind = options.WhichOneof("distribution")
    if kind is None:
        raise where.refuse("names no selector: write fifo: true, say, or drop the field")
    if kind == "heap":
        kind = "min_heap" if options.heap.min_heap else "max_heap"
    elif kind == "prioritized":
        exponent = options.prioritized.priority_exponent
        yield f"{key}.priority_exponent", Setting(exponent, f"{where.where}, priority_exponent")
    elif not getattr(options, kind):
        raise where.refuse(f"{kind}: false names no selector: write {kind}: true")
    yield key, Setting(kind, where.where)
