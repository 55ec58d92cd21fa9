"""What a writer has appended: columns, grown as data come, and the episodes they belong to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reverb_async.client.checks import MAX_VARIABLE_RANK, Target
from reverb_async.client.writing.clock import Clock
from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.client.writing.history import ColumnHistory
from reverb_async.client.writing.plan import Plan
from reverb_async.core.nest import Path, Structure, flatten
from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec, as_leaf, leaf_spec
from reverb_async.errors import InvalidArgument

_CACHED = 1024
_MAX_EPISODES = 1024


class StepBuffer:
    """The last steps of a writer, by column.

    Args:
        keep: how many steps of each column stay nameable.
        needed_from: says the first step that something queued may need again.
        on_loosened: called with a column that is about to become variable.

    Attributes:
        clock: where the writer is.
        targets: the server's tables by name, once they are known.
        episode_steps: closed steps of the current episode.
    """

    def __init__(self, keep: int, needed_from: Callable[[], int], on_loosened: Callable[[ColumnBuffer], None]) -> None:
        self.clock = Clock(needed_from)
        self.targets: dict[str, Target] | None = None
        self.episode_steps = 0
        self._keep = keep
        self._keep_of: dict[Path, int] = {}
        self._on_loosened = on_loosened
        self._columns: dict[Path, ColumnBuffer] = {}
        self._structure: Structure | None = None
        self._plans: dict[Structure, Plan] = {}
        self._last: tuple[Structure | None, Plan] = (None, Plan((), self.clock))
        self._history: Any = None
        self._episode_starts = [0]
        self._first_episode = 0
        self.episode = 0
        """Number of the current episode."""

    # -- appending ----------------------------------------------------------------------------------------------------

    def append(self, data: object, is_partial: bool) -> None:
        """Store a copy of a step, or of some columns of it. See `TrajectoryWriter.append`."""
        leaves, structure = flatten(data)
        self._put(structure, leaves, is_partial)

    def _put(self, structure: Structure, leaves: Sequence[object], is_partial: bool) -> None:
        clock = self.clock
        step = clock.end - 1 if clock.is_open else clock.end
        known, plan = self._last
        if structure is not known:
            plan = self._plans.get(structure) or self._planned(structure, leaves, step)
        plan.put(step, leaves, self._loosen)
        if structure is not known:
            self._remember(structure, plan)
        clock.end = step + 1
        clock.version += 1
        clock.is_open = is_partial
        if not is_partial:
            self.episode_steps += 1

    def _planned(self, structure: Structure, leaves: Sequence[object], step: int) -> Plan:
        """Return the columns of a structure not seen before; new ones among them count only once `_remember`ed."""
        if self._structure is not None:
            self._structure.merge(structure)
        columns = []
        num_columns = len(self._columns)
        for path, leaf in zip(structure.paths, leaves, strict=True):
            column = self._columns.get(path)
            if column is None:
                column = self._new_column(path, num_columns, leaf, step)
                num_columns += 1
            columns.append(column)
        return Plan(columns, self.clock)

    def _new_column(self, path: Path, index: int, value: object, step: int) -> ColumnBuffer:
        wanted = next((target.by_path[path] for target in self._targets() if path in target.by_path), None)
        spec = leaf_spec(as_leaf(value, path, wanted))
        named = [target.by_path[path] for target in self._targets() if path in target.by_path]
        if all(None in wanted.shape[-len(spec.shape) :] for wanted in named):  # else only once extents do differ
            spec = self._loosened(path, spec, spec.shape) or spec
        return ColumnBuffer(path, index, self.clock, self._keep_of.get(path, self._keep), spec, step)

    def _remember(self, structure: Structure, plan: Plan) -> None:
        if structure not in self._plans:
            if len(self._plans) >= _CACHED:
                self._plans.clear()
            self._plans[structure] = plan
            self._structure = structure if self._structure is None else self._structure.merge(structure)
            self._columns.update((column.path, column) for column in plan.columns)
            self._history = None
        self._last = (structure, plan)

    def append_sequence(self, steps: object) -> None:
        """Store copies of several steps. See `TrajectoryWriter.append_sequence`."""
        values, structure = flatten(steps)
        sequences: list[Any] = []
        for value, path in zip(values, structure.paths, strict=True):
            sequence = value if isinstance(value, Ragged) else as_leaf(value, path)
            if isinstance(sequence, str | bytes) or (isinstance(sequence, np.ndarray) and sequence.ndim == 0):
                raise InvalidArgument(f"column {path} has no leading axis of steps; append() takes single steps")
            sequences.append(sequence)
        lengths = {len(sequence) for sequence in sequences}
        if len(lengths) != 1:
            named = ", ".join(f"{path}: {len(one)}" for path, one in zip(structure.paths, sequences, strict=True))
            raise InvalidArgument(
                f"all columns of a sequence need the same number of steps, got {named or 'no columns'}"
            )
        if self.clock.is_open:
            raise InvalidArgument("a step is open: close it with append() before append_sequence()")
        (length,) = lengths
        self._check_all(structure, sequences)
        for at in range(length):
            self._put(structure, [sequence[at] for sequence in sequences], False)

    def _check_all(self, structure: Structure, sequences: Sequence[Any]) -> None:
        """Refuse a sequence of which one step does not fit."""
        first = [sequence[0] for sequence in sequences if len(sequence)]
        if len(first) < len(sequences):
            return
        plan = self._plans.get(structure) or self._planned(structure, first, self.clock.end)
        for column, sequence in zip(plan.columns, sequences, strict=True):
            # Elements of an array are all alike.
            for element in sequence if isinstance(sequence, Ragged) else sequence[:1]:
                column.checked(element, self._loosen)

    # -- shapes that may differ ---------------------------------------------------------------------------------------

    def _targets(self) -> Sequence[Target]:
        return list(self.targets.values()) if self.targets else []

    def _loosen(self, path: Path, spec: ArraySpec, shape: tuple[int, ...]) -> ArraySpec | None:
        loosened = self._loosened(path, spec, shape)
        if loosened is not None and path in self._columns:
            self._on_loosened(self._columns[path])
        return loosened

    def _loosened(self, path: Path, spec: ArraySpec, shape: Sequence[int | None]) -> ArraySpec | None:
        """Return a spec with None where a signature has it, if it takes both; None without such a signature.

        The signature describes items, in which the column may have another name, and a time axis or none.
        """
        rank = len(shape)
        if not 0 < rank <= MAX_VARIABLE_RANK:
            return None
        for target in self._targets():
            for wanted in [target.by_path[path]] if path in target.by_path else target.by_path.values():
                extents = wanted.shape[len(wanted.shape) - rank :]
                if wanted.dtype != spec.dtype or None not in extents or len(wanted.shape) not in (rank, rank + 1):
                    continue
                loosened = ArraySpec(extents, spec.dtype)
                if loosened.admits(spec.shape) and loosened.admits(shape):
                    return loosened
        return None

    # -- looking back -------------------------------------------------------------------------------------------------

    @property
    def history(self) -> Any:
        """The columns, nested like the union of what was appended."""
        if self._history is None:
            if self._structure is None:
                raise InvalidArgument("history is empty before the first append: what columns it has is not known yet")
            columns = [ColumnHistory(self._columns[path]) for path in self._structure.paths]
            self._history = self._structure.unflatten(columns)
        return self._history

    def configure(self, path: Path, keep: int) -> None:
        """Keep another number of steps of a column, which may not exist yet."""
        self._keep_of[path] = keep
        if path in self._columns:
            self._columns[path].configure(keep)
            self.clock.version += 1

    def end_episode(self, clear: bool) -> None:
        """Let the next step begin an episode, with an empty history if `clear`."""
        clock = self.clock
        clock.is_open = False
        clock.version += 1
        self.episode_steps = 0
        self.episode += 1
        starts = self._episode_starts
        if clear:
            clock.origin = clock.end
            starts.clear()
            for column in self._columns.values():
                column.cleared()
        starts.append(clock.end)
        first_kept = min((column.first_kept for column in self._columns.values()), default=clock.end)
        while len(starts) > 1 and (starts[1] <= first_kept or len(starts) > _MAX_EPISODES):
            del starts[0]
        self._first_episode = self.episode - len(starts) + 1

    @property
    def spans_episodes(self) -> bool:
        """Whether kept steps belong to several episodes."""
        return len(self._episode_starts) > 1

    def episodes(self, first: int, last: int) -> tuple[int, int]:
        """Return the numbers of the episodes that two kept steps belong to."""
        starts = self._episode_starts
        if len(starts) == 1:
            return self.episode, self.episode
        before = self._first_episode - 1
        return before + max(1, bisect_right(starts, first)), before + max(1, bisect_right(starts, last))
