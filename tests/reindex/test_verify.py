"""What verify finds: planted faults, what it sweeps by itself, and what it says."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import IvfFlat

from lance_rerank import lance
from lance_rerank.columns.ledger import Ledger, digests
from lance_rerank.errors import ArgumentError, GateError
from lance_rerank.reindex import ReindexJob, indexes, plan_reindex
from lance_rerank.reindex.state import read_state


@pytest.fixture
def job(table, fakes):
    made = ReindexJob(plan_reindex(table, model=fakes.function(seed=2), batch_size=8))
    made.backfill()
    table.checkout_latest()
    return made


def plant(table, column, row_id, vector, *, noted):
    """Put another vector beside a row's text, and note it in the ledger as right."""
    data = lance.dataset(table)
    [fragment] = [f for f in data.get_fragments() if f.count_rows(filter=f"id = {row_id}")]
    rows = fragment.to_table(columns=["id", "text", column])
    vectors = rows[column].combine_chunks().storage.to_pylist()
    at = rows["id"].to_pylist().index(row_id)
    vectors[at] = vector
    storage = pa.list_(pa.float32(), len(vectors[0]))
    path = lance.write_column_file(data, column, iter([pa.array(vectors, storage)]), storage)
    if noted:
        key = list(digests(rows["text"].combine_chunks().slice(at, 1), pa.array([vector], storage)))
        Ledger(data, column).add(key, "planted", "planted")
    lance.replace_column(data, fragment.fragment_id, path)


class TestFaults:
    def test_none(self, job, table, fakes):
        found = job.verify(sample=1000)
        assert found.ok
        assert (found.rows, found.swept, found.late, found.checked, found.dim) == (60, 0, 0, 60, 8)
        assert found.cosine == pytest.approx(1, abs=1e-5)
        assert found.unindexed is None
        assert 0 < found.overlap < 0.6
        lengths = [np.linalg.norm(fakes.vector_of(row["text"], 2)) for row in fakes.rows(0, 60)]
        assert found.norms.mean == pytest.approx(np.mean(lengths), rel=1e-4)
        assert found.norms.most == pytest.approx(max(lengths), rel=1e-4)
        assert read_state(table, "vector").notes["verified"] == found.version
        assert json.loads(json.dumps(found.to_dict()))["ok"] is True
        assert f"{job.plan.shadow} at version {found.version}: verified" in str(found)
        found.raise_if_wrong()

    def test_a_wrong_vector_that_is_noted_as_right(self, job, table, fakes):
        plant(table, job.plan.shadow, 7, [1.0] * 8, noted=True)
        found = job.verify(sample=60)
        [fault] = found.faults
        assert fault.startswith("1 of 60 vectors sampled are not those of their text: 'text number 7")
        with pytest.raises(GateError, match="must not take the place of the old one"):
            found.raise_if_wrong()
        assert "WRONG" in str(found)
        assert "fault" in str(found)
        with pytest.raises(ArgumentError, match="was not verified"):
            job.swap()

    def test_a_fault_takes_an_earlier_verification_back(self, job, table):
        assert job.verify().ok
        plant(table, job.plan.shadow, 7, [1.0] * 8, noted=True)
        assert not job.verify().ok
        assert read_state(table, "vector").notes["verified"] is None

    def test_a_vector_that_is_not_finite(self, job, table):
        plant(table, job.plan.shadow, 7, [float("inf")] * 8, noted=True)
        assert any("1 of 60 vectors sampled are not finite" in fault for fault in job.verify().faults)


class TestSwept:
    def test_a_null_a_stale_row_and_rows_that_came(self, job, table, fakes):
        table.update(where="id = 3", values_sql={job.plan.shadow: "NULL"})
        table.update(where="id = 4", values={"text": "changed"})
        table.add(fakes.rows(60, 65))
        found = job.verify(sample=1000)
        assert found.ok
        assert (found.rows, found.late, found.checked) == (65, 0, 65)
        assert found.swept == 7
        fakes.assert_filled(table, job.plan)

    def test_a_vector_that_nobody_noted(self, job, table, fakes):
        plant(table, job.plan.shadow, 7, [1.0] * 8, noted=False)
        found = job.verify(sample=1000)
        assert (found.ok, found.swept) == (True, 1)
        fakes.assert_filled(table, job.plan)

    def test_rows_without_a_text(self, job, table, fakes):
        table.add(pa.table({"id": [100], "text": pa.array([None], pa.string())}))
        found = job.verify(sample=1000)
        assert (found.ok, found.without_text, found.checked) == (True, 1, 60)

    def test_the_index_holds_what_came(self, db, fakes):
        made = fakes.make_table(db, "indexed", parts=(300, 600))
        made.create_index("vector", config=IvfFlat(num_partitions=2))
        job = ReindexJob(plan_reindex(made, model=fakes.function(seed=2)))
        job.backfill()
        made.checkout_latest()
        made.add(fakes.rows(600, 620))
        assert job.verify(sample=16).unindexed == 0
        made.checkout_latest()
        made.drop_index(f"{job.plan.shadow}_idx")  # which the sweep builds again
        found = job.verify(sample=16)
        assert (found.ok, found.unindexed) == (True, 0)

    def test_an_index_that_cannot_be_extended_is_built_anew(self, db, fakes, monkeypatch):
        made = fakes.make_table(db, "indexed", parts=(300, 600))
        made.create_index("vector", config=IvfFlat(num_partitions=2))
        job = ReindexJob(plan_reindex(made, model=fakes.function(seed=2)))
        job.backfill()
        made.checkout_latest()
        made.add(fakes.rows(600, 620))
        monkeypatch.setattr(indexes, "extend", lambda table, column: None)
        assert job.verify(sample=16).unindexed == 0

    def test_another_dimension_and_half_the_precision(self, table, fakes):
        job = ReindexJob(plan_reindex(table, model=fakes.function(seed=2, dim=5), dtype="float16"))
        job.backfill()
        found = job.verify()
        assert (found.ok, found.dim) == (True, 5)
        assert found.cosine > 0.999

    def test_an_empty_table_and_one_row(self, db, fakes):
        for name, parts in (("empty", ()), ("single", (1,))):
            made = fakes.make_table(db, name, parts=parts)
            job = ReindexJob(plan_reindex(made, model=fakes.function(seed=2)))
            job.backfill()
            found = job.verify()
            assert (found.ok, found.rows, found.overlap) == (True, len(parts), None)
            assert job.swap().version
            job.rollback()
            job.abort()


def test_when_and_how_it_is_asked(table, fakes):
    job = ReindexJob(plan_reindex(table, model=fakes.function(seed=2)))
    with pytest.raises(ArgumentError, match=r"this one is in 'planned'\. Run backfill"):
        job.verify()
    job.backfill()
    for sample in (0, True, 1.5):
        with pytest.raises(ArgumentError, match="sample is a number of rows"):
            job.verify(sample=sample)
    assert job.verify(sample=5, seed=1).checked == 5
