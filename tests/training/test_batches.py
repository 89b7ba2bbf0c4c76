"""The order of the data: every example once, alike in length, none that spoils another."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_rerank.training.batches import Exclusion, plan_batches

lengths = st.lists(st.integers(1, 500), min_size=1, max_size=120)
sizes = st.integers(1, 9)


@given(lengths, sizes, st.integers(0, 5), st.integers(0, 3))
def test_every_example_is_in_one_batch_and_none_is_too_large(lengths, size, seed, epoch):
    batches = plan_batches(lengths, size, seed=seed, epoch=epoch)
    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert len(batches) == -(-len(lengths) // size)


@given(lengths, sizes, st.integers(0, 5))
def test_the_order_depends_on_seed_and_epoch_alone(lengths, size, seed):
    plan = plan_batches(lengths, size, seed=seed, epoch=1)
    np.random.default_rng().random()
    assert plan_batches(lengths, size, seed=seed, epoch=1) == plan


def test_epochs_and_seeds_have_orders_of_their_own():
    plans = [plan_batches(range(100), 10, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(plan) for plan in plans}) == 4


def test_little_is_spent_on_padding():
    lengths = np.random.default_rng(0).integers(10, 400, size=2000)
    batches = plan_batches(lengths.tolist(), 32, seed=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded / lengths.sum() < 1.1, "at random it is 1.9"


def test_short_and_long_batches_take_turns():
    lengths = list(range(1000))
    first = [max(batch) for batch in plan_batches(lengths, 10, seed=0)][:30]
    assert first != sorted(first)
    assert max(first) - min(first) > 500


groups = st.lists(st.integers(0, 12), min_size=1, max_size=80)


@settings(deadline=None)
@given(groups, sizes, st.integers(0, 3))
def test_no_batch_shows_what_one_of_its_examples_forbids(groups, size, seed):
    """Examples of a group have the same answer, and each shows the next group's as a negative."""
    exclusions = [
        Exclusion({("query", at), group, group + 1}, {("query", at), group}) for at, group in enumerate(groups)
    ]
    batches = plan_batches([1] * len(groups), size, seed=seed, exclusions=exclusions)
    assert sorted(at for batch in batches for at in batch) == list(range(len(groups)))
    for batch in batches:
        for one in batch:
            for other in batch:
                assert one == other or exclusions[one].shows.isdisjoint(exclusions[other].forbids)


def test_examples_that_all_exclude_each_other_end_up_alone_and_soon():
    exclusions = [Exclusion({"a"}, {"a"})] * 3000
    batches = plan_batches([1] * 3000, 4, seed=0, exclusions=exclusions)
    assert len(batches) == 3000


def test_a_few_exclusions_leave_batches_full():
    rng = np.random.default_rng(1)
    exclusions = [Exclusion({group}, {group}) for group in rng.integers(0, 400, size=3000).tolist()]
    batches = plan_batches([1] * 3000, 32, seed=0, exclusions=exclusions)
    assert len(batches) <= 3000 // 32 + 3
