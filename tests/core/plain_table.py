"""What a table does, written down with lists and dictionaries only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from reverb_async.core.rate_limiters import RateLimiter
from reverb_async.core.selectors import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Selector


@dataclass(eq=False)
class PlainItem:
    key: int
    priority: float
    nbytes: int
    episodes: tuple[int, int] | None
    inserted: int
    updated: int
    rows: list[int]
    times_sampled: int = 0
    unsettled: int = 0
    sampled_out: bool = False
    gone: bool = False
    """Not in the table and not to return to it."""


@dataclass
class PlainDraw:
    item: PlainItem
    probability: float
    priority: float
    times_sampled: int
    table_size: int


@dataclass
class PlainTable:
    """One operation at a time; random choices are told, and checked to be possible."""

    max_size: int
    sampler: Selector
    remover: Selector
    limiter: RateLimiter
    max_times_sampled: int = 0
    max_bytes: int | None = None
    items: dict[int, PlainItem] = field(default_factory=dict)
    drawn: list[PlainItem] = field(default_factory=list)
    inserts: int = 0
    samples: int = 0
    deletes: int = 0
    num_unique_samples: int = 0
    num_deleted_episodes: int = 0
    highest: float = -math.inf
    ticks: int = 0

    # -- the rate limiter, as facts 1.5 has it ------------------------------------------------------------------------

    def can_insert(self) -> bool:
        limiter = self.limiter
        if self.inserts + 1 - self.deletes <= limiter.min_size_to_sample:
            return True
        return (self.inserts + 1) * limiter.samples_per_insert - self.samples <= limiter.max_diff

    def can_sample(self) -> bool:
        limiter = self.limiter
        if self.inserts - self.deletes < limiter.min_size_to_sample:
            return False
        return self.inserts * limiter.samples_per_insert - self.samples - 1 >= limiter.min_diff

    def admitted_samples(self, n: int) -> int:
        """Of `n` samples in a row, none removing its item."""
        before, admitted = self.samples, 0
        while admitted < n and self.can_sample():
            self.samples += 1
            admitted += 1
        self.samples = before
        return admitted

    # -- items --------------------------------------------------------------------------------------------------------

    def order(self, selector: Selector) -> list[PlainItem]:
        """The items as a deterministic selector would pick them."""
        ranks: dict[type, Callable[[PlainItem], tuple[float, ...]]] = {
            Fifo: lambda item: (item.inserted,),
            Lifo: lambda item: (-item.inserted,),
            MinHeap: lambda item: (item.priority, item.updated),
            MaxHeap: lambda item: (-item.priority, item.updated),
        }
        return sorted(self.items.values(), key=ranks[type(selector)])

    def probability(self, item: PlainItem, selector: Selector) -> float:
        if selector.is_deterministic:
            return float(item is self.order(selector)[0])
        if isinstance(selector, Prioritized):
            weights = {key: _weight(other.priority, selector) for key, other in self.items.items()}
            total = math.fsum(weights.values())
            if total:
                return weights[item.key] / total
        return 1 / len(self.items)

    def insert(self, item: PlainItem, victim: Callable[[], int]) -> None:
        """Insert, then evict; `victim` tells what a random remover chose."""
        if not self.items:
            self.highest = -math.inf
        if math.isnan(item.priority):
            item.priority = 1.0 if self.highest == -math.inf else self.highest
        self.highest = max(self.highest, item.priority)
        if item.key in self.items:
            self.update(item.key, item.priority)
            return
        self.ticks += 1
        item.inserted = item.updated = self.ticks
        self.items[item.key] = item
        while len(self.items) > self.max_size or (self.max_bytes is not None and self.nbytes > self.max_bytes):
            if self.remover.is_deterministic:
                evicted = self.order(self.remover)[0]
            else:
                evicted = self.items[victim()]
                assert self.probability(evicted, self.remover) > 0
            self._remove(evicted).gone = True
        self.inserts += 1

    def update(self, key: int, priority: float) -> bool:
        if key not in self.items:
            return False
        self.ticks += 1
        self.items[key].priority = priority
        self.items[key].updated = self.ticks
        self.highest = max(self.highest, priority)
        return True

    def delete(self, key: int) -> bool:
        if key not in self.items:
            return False
        self._remove(self.items[key]).gone = True
        return True

    def _remove(self, item: PlainItem) -> PlainItem:
        before = self.episodes()
        del self.items[item.key]
        self.deletes += 1
        self.num_deleted_episodes += len(before.keys() - self.episodes().keys())
        return item

    def draw(self, told: Callable[[], int]) -> PlainDraw:
        """Sample once; `told` says what a random sampler chose. Call it when a sample is admitted."""
        item = self.order(self.sampler)[0] if self.sampler.is_deterministic else self.items[told()]
        self.samples += 1
        item.times_sampled += 1
        item.unsettled += 1
        self.num_unique_samples += item.times_sampled == 1
        drawn = PlainDraw(
            item, self.probability(item, self.sampler), item.priority, item.times_sampled, len(self.items)
        )
        if item.times_sampled == self.max_times_sampled:
            self._remove(item).sampled_out = True
        if item not in self.drawn:
            self.drawn.append(item)
        return drawn

    def acknowledge(self, draws: list[PlainDraw]) -> None:
        for drawn in draws:
            drawn.item.unsettled -= 1

    def hand_back(self, draws: list[PlainDraw]) -> None:
        """The latest first, so that of two items with one key the newer returns."""
        self.samples -= len(draws)
        for item in [drawn.item for drawn in reversed(draws)]:
            item.unsettled -= 1
            item.times_sampled -= 1
            self.num_unique_samples -= item.times_sampled == 0 and not item.gone
            if item.sampled_out:
                item.sampled_out = False
                item.gone = item.key in self.items
                if not item.gone:
                    before = self.episodes()
                    self.items[item.key] = item
                    self.deletes -= 1
                    self.num_deleted_episodes -= len(self.episodes().keys() - before.keys())

    def reset(self) -> None:
        self.items.clear()
        self.drawn.clear()
        self.inserts = self.samples = self.deletes = self.num_unique_samples = self.num_deleted_episodes = 0
        self.highest = -math.inf

    # -- sums ---------------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.items.values())

    def episodes(self) -> Counter[object]:
        """Items by episode."""
        counts: Counter[object] = Counter()
        for item in self.items.values():
            if item.episodes is None:
                counts[item] += 1
            else:
                counts.update(range(item.episodes[0], item.episodes[1] + 1))
        return counts

    def references(self) -> Counter[int]:
        """How many items show each row: those of the table, and where sampling removes items, those not settled."""
        held = list(self.items.values())
        if self.max_times_sampled:
            held += [item for item in self.drawn if item.unsettled and self.items.get(item.key) is not item]
        return Counter(row for item in held for row in item.rows)


def _weight(priority: float, selector: Prioritized) -> float:
    return priority**selector.priority_exponent if priority else 0.0
