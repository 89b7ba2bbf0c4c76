"""Which examples are trained on together: of similar length, and none that spoils another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from typing import NamedTuple

import numpy as np

WINDOW = 32  # batches sorted by length together: enough to pad little, few enough to mix the data
_OPEN = 64  # batches that wait for a fitting example; the oldest leaves unfilled when there are more


class Exclusion(NamedTuple):
    """What keeps an example from a batch: no example may show what another one in its batch forbids.

    Attributes
    ----------
    shows : Set
        What the example brings to the batch; for in-batch negatives its query and its documents.
    forbids : Set
        What is no negative for it; its query and all the documents that answer it.
    """

    shows: Set[Hashable]
    forbids: Set[Hashable]


def plan_batches(
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    exclusions: Sequence[Exclusion] | None = None,
) -> list[list[int]]:
    """Return the batches of one epoch, each example in one of them; decided by the arguments alone.

    Examples are shuffled, sorted by length within windows of a few batches, cut into batches, and these shuffled.

    Parameters
    ----------
    lengths : sequence of int
        Of each example, in whatever unit.
    batch_size : int
        Most examples a batch. Where exclusions leave too few that go together, batches are smaller.
    seed, epoch : int
        Of the shuffle.
    exclusions : sequence of Exclusion, optional
        Of each example; by default all go together.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).tolist()
    span = WINDOW * batch_size
    batches: list[list[int]] = []
    waiting: list[int] = []
    for start in range(0, len(order), span):
        window = sorted(waiting + order[start : start + span], key=lambda at: lengths[at])
        packed = _packed(window, batch_size, exclusions)
        last = start + span >= len(order)
        batches += [batch for batch in packed if last or len(batch) == batch_size]
        # what did not fill a batch tries again with the next window, but no more of it than a window holds
        unfilled = [at for batch in packed if not last and len(batch) < batch_size for at in batch]
        waiting, leftover = unfilled[:span], unfilled[span:]
        batches += _packed(leftover, batch_size, exclusions)
    return [batches[at] for at in rng.permutation(len(batches)).tolist()]


def _packed(order: Sequence[int], batch_size: int, exclusions: Sequence[Exclusion] | None) -> list[list[int]]:
    """Return examples in batches, each in the first that has room and nothing against it."""
    if exclusions is None:
        return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    done: list[list[int]] = []
    unfilled: list[_Batch] = []
    for at in order:
        batch = next((batch for batch in unfilled if batch.takes(exclusions[at])), None)
        if batch is None:
            batch = _Batch()
            unfilled.append(batch)
        batch.add(at, exclusions[at])
        if len(batch.examples) == batch_size:
            unfilled.remove(batch)
            done.append(batch.examples)
        elif len(unfilled) > _OPEN:
            done.append(unfilled.pop(0).examples)
    return done + [batch.examples for batch in unfilled]


class _Batch:
    """A batch that is being filled."""

    def __init__(self) -> None:
        self.examples: list[int] = []
        self.shown: set[Hashable] = set()
        self.forbidden: set[Hashable] = set()

    def takes(self, example: Exclusion) -> bool:
        return self.forbidden.isdisjoint(example.shows) and self.shown.isdisjoint(example.forbids)

    def add(self, at: int, example: Exclusion) -> None:
        self.examples.append(at)
        self.shown |= example.shows
        self.forbidden |= example.forbids
