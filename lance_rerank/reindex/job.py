"""Filling a column with another model's vectors while apps go on searching the old one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lance_rerank import lance
from lance_rerank.columns.backfill import Progress
from lance_rerank.columns.ledger import forget
from lance_rerank.columns.string_spool import StringSpool
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.reindex.checks import local_folder, require_table, table_at, work_folder
from lance_rerank.reindex.evaluating import Gate, compare_columns
from lance_rerank.reindex.executors import Executor, opened, require_executor
from lance_rerank.reindex.filling import BackfillReport, Filling, OnPhase
from lance_rerank.reindex.former import Former, note_values
from lance_rerank.reindex.journal import Journal
from lance_rerank.reindex.kinds import kind_of
from lance_rerank.reindex.models import Model, load, require_planned
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.state import (
    LEASE_S,
    NOT_SWAPPED,
    Clock,
    JobState,
    Lease,
    Phase,
    jobs_of,
    read_state,
    what_to_do,
)
from lance_rerank.reindex.status import Status, status_of
from lance_rerank.reindex.swapping import Swapping, SwapReport, drop_old_column, new_and_old
from lance_rerank.reindex.sweeping import Sweeper
from lance_rerank.reindex.transforming import (
    AnswersInMemory,
    Transform,
    TransformedTexts,
    given_transform,
    not_given,
)
from lance_rerank.reindex.verifying import Verification, judge
from lance_rerank.search.retriever import Retriever

if TYPE_CHECKING:
    from ir_measures import Measure

logger = logging.getLogger(__name__)


class ReindexJob:
    """Carries out a `Plan`, step by step, from any process that has the table.

    Each step may be run again, after a kill too. What the job is at stands in the table's own metadata; what was
    embedded, and a journal, lie in a folder beside the table's rows. A lease keeps others from working on the column at
    the same time. It is free again when the process that holds it ends on this host, and when it expires elsewhere.

    Parameters
    ----------
    plan : Plan
        Of `plan_reindex`.
    table : lancedb.table.Table, optional
        By default the plan's, opened anew where the plan was read from a file.
    model : Encoder, TokenEncoder or EmbeddingFunction, optional
        Needed where the plan was read from a file and names an encoder that cannot be loaded by its name.
    transform : callable, optional
        That of the plan. Needed where the plan was read from a file or a table.
    clock : callable
        Returns the seconds since 1970.
    lease_s : float, default 600
        How long others wait for a process on another host that says nothing any more. Half as often, a commit of
        metadata renews the lease.

    Raises
    ------
    ArgumentError
        The table is not the plan's, or the plan's cannot be opened; or the transform is another one.

    Examples
    --------
    >>> import lancedb, lance_rerank
    >>> docs = lancedb.connect("data").open_table("docs")  # doctest: +SKIP
    >>> job = lance_rerank.ReindexJob(lance_rerank.plan_reindex(docs, model="models/embedder"))  # doctest: +SKIP
    >>> print(job.backfill())  # doctest: +SKIP
    vector_next_1a2b3c4d: 12,345 rows in 7 commits, 12,300 texts embedded, no index
    """

    def __init__(
        self,
        plan: Plan,
        table: object | None = None,
        *,
        model: object | None = None,
        transform: Transform | None = None,
        clock: Clock = time.time,
        lease_s: float = LEASE_S,
    ) -> None:
        self.plan = plan
        self._kind = kind_of(plan)
        handle, at_hand = plan.handles or (None, None)
        self._model: Model | None = at_hand
        given = table if table is not None else handle
        self._table = require_table(table_at(plan.uri) if given is None else given, "ReindexJob")
        if _where(self._table.uri) != _where(plan.uri):
            raise ArgumentError(f"the plan is for the table at {plan.uri}, this one is at {self._table.uri}")
        self._given_model = model
        self._transform: Transform | None = None
        self._planned_answers: AnswersInMemory | None = None
        if plan.transform_at_hand is not None:
            self._transform, self._planned_answers = plan.transform_at_hand
        if transform is not None:
            self._transform = given_transform(plan.transform, transform)
        self._clock = clock
        self._lease_s = lease_s
        self.folder = work_folder(plan.uri, plan.work_dir, plan.job)
        self._journal = Journal(self.folder)

    @classmethod
    def open(
        cls,
        table: object,
        column: str | None = None,
        *,
        model: object | None = None,
        transform: Transform | None = None,
        clock: Clock = time.time,
        lease_s: float = LEASE_S,
    ) -> ReindexJob:
        """Return the job that is on a table's column, as its metadata tell it, wherever the table was moved since.

        Raises
        ------
        ArgumentError
            There is none, or there are several and `column` names none of them.
        """
        opened = require_table(table, "ReindexJob")
        found = [state for state in jobs_of(opened) if column in (None, state.column)]
        if len(found) != 1:
            which = ", ".join(repr(state.column) for state in found)
            there = f"jobs on {which}: name one, column=..." if found else "no such job; lance_rerank.plan_reindex"
            raise ArgumentError(f"table {opened.name!r} has {there}")
        plan = replace(Plan.from_dict(found[0].plan), uri=opened.uri)
        return cls(plan, table, model=model, transform=transform, clock=clock, lease_s=lease_s)

    def __repr__(self) -> str:
        return f"ReindexJob({self.plan.table!r}, {self.plan.column!r}, {self.plan.model.name!r}, job {self.plan.job!r})"

    def status(self) -> Status:
        """Return how far the job is, whoever runs it."""
        self._table.checkout_latest()
        return status_of(self._table, self.plan, self._clock())

    # --- the backfill ----------------------------------------------------------------------------------------------

    def backfill(
        self,
        progress: Progress | None = None,
        on_phase: OnPhase | None = None,
        *,
        executor: Executor = "local",
        workers: int | None = None,
    ) -> BackfillReport:
        """Fill the shadow column and index it, and return what was done; run it again after a kill, or to catch up.

        Texts are embedded first, to a file beside the table, which meanwhile is not touched. Then the column is added
        and written. A kill costs one batch of texts at most; rows that others add, change, delete or compact meanwhile
        cost no embedding but that of new texts.

        Parameters
        ----------
        progress : callable, optional
            Called with (rows done, rows in all) of the phase.
        on_phase : callable, optional
            Called with the name of each phase that begins.
        executor : {"local", "ray"}, default "local"
            Where texts are embedded: on this machine, or by actors of a Ray cluster: one that is connected already,
            else the one that RAY_ADDRESS names, else one that is started here for as long as this takes. Its nodes need
            this package and, by the same path, the model. All else is done in this process, rows that came or changed
            meanwhile included.
        workers : int, optional
            How many processes or actors embed, each with a model of its own. By default this process alone does, and
            on Ray one actor a GPU, or one a core up to 8. One that dies costs the two batches it has at most, which
            another one embeds again. A script that asks for more than 1 has to be guarded by
            ``if __name__ == "__main__":``.

        Raises
        ------
        ModelError
            The model is another one than was planned with, cannot be loaded, failed, or answered wrong; or workers die
            of it.
        ColumnError
            The texts' column is gone.
        ConflictError
            Another process runs the job, or took it over; or other writers thwarted it on several attempts in a row.
        ArgumentError
            The column was swapped already; there is no such executor; or the encoder cannot be brought to workers.
        MissingExtra
            Ray is not installed.
        """
        require_executor(executor, workers)
        model, transform = self._loaded_model(), self._loaded_transform()
        self._table.checkout_latest()
        self._kind.require_column(self._table.schema)
        if self.plan.shadow in self._table.schema.names:
            executor, workers = "local", None  # the bulk is embedded
        lease = self._lease(self._noted_former())
        lease.acquire(NOT_SWAPPED)
        try:
            with (
                self._kind.spool(self.folder) as spool,
                opened(executor, workers, model, self.plan.fingerprint, lease.renew) as pool,
                self._texts(transform, lease) as texts,
            ):
                record, column = self._kind.record(), self._kind.column(model.encoder, spool, lease.renew)
                filling = Filling(self._table, self.plan, record, lease, self._journal, self._clock, progress, on_phase)
                report = filling.run(column, pool, texts)
        finally:
            lease.release()
            self._table.checkout_latest()
        logger.info("%s", report)
        return report

    def abort(self) -> None:
        """Take everything back that the job did, so that the table is as it was.

        Raises
        ------
        ArgumentError
            The column was swapped already: that is for `rollback`.
        ConflictError
            Another process runs the job.
        """
        state = read_state(self._table, self.plan.column)
        if state is not None and state.job == self.plan.job:
            lease = self._lease()
            lease.acquire(NOT_SWAPPED)
            try:
                lease.advance("embed")  # so that who goes on after a kill fills anew what is gone by then
                self._drop_shadow()
                self._remove_folder()
                lease.remove()
            finally:
                lease.release()
        self._remove_folder()
        self._table.checkout_latest()
        logger.info("job %s on %r was taken back", self.plan.job, self.plan.column)

    # --- the swap --------------------------------------------------------------------------------------------------

    def verify(self, sample: int = 200, seed: int = 0) -> Verification:
        """Return whether the new column is right, once rows that came or changed since have been swept.

        Rows are counted, those without a vector or with that of an older text are looked for, texts drawn at random are
        embedded again, and the index is looked at. Only what no sweep can repair is a fault. The version that was
        found right is noted: `swap` wants it. After the swap this looks at the column that is live then.

        Parameters
        ----------
        sample : int, default 200
            Rows to embed again; as many as the table has, or more, for all of them.
        seed : int, default 0
            Of the draw.

        Raises
        ------
        ArgumentError
            The job was not filled yet, or is over; or `sample` is no number of at least 1.
        ModelError
            The model is another one than was planned with, cannot be loaded, failed, or answered wrong.
        ConflictError
            Another process runs the job, or other writers thwarted the sweep on several attempts in a row.
        """
        if not isinstance(sample, int) or isinstance(sample, bool) or sample < 1:
            raise ArgumentError(f"sample is a number of rows, at least 1, got {sample!r}")
        with self._held("verify", ("ready", "swapped", "rolled-back")) as lease:
            encoder, plan = self._loaded_model().encoder, self.plan
            names = new_and_old(self._table, plan)
            with self._texts(self._loaded_transform(), lease) as texts:
                with self._kind.spool(self.folder) as spool:
                    column = self._kind.column(encoder, spool, lease.renew)
                    swept = Sweeper(self._table, plan.sources, column, lease, texts).sweep(names[0], plan.index)
                if names[0] == plan.column:
                    self._kind.follow(self._table, lease)
                examine = self._kind.examine(encoder, sample, seed, texts)
                found = judge(self._table, plan, names, swept, examine)
            lease.note(verified=found.version if found.ok else None)
            self._journal.record(self._clock(), "verify", {"version": found.version, "ok": found.ok})
        logger.info("%s", found)
        return found

    def evaluate(
        self, dataset: Dataset, retriever: Retriever | None = None, measures: Sequence[str | Measure] | None = None
    ) -> Gate:
        """Return how the new column does against the old one on judged queries, with the reranker that will serve.

        Nothing is written. Both columns are searched by the same recipe, each with its own model.

        Parameters
        ----------
        dataset : Dataset
            One split of the queries that matter.
        retriever : Retriever, optional
            The recipe that serves, on the live column. By default hybrid where the table has a full-text index, else
            vectors alone, without a reranker. Of token vectors one that reads them, which has to be given.
        measures : sequence of str or ir_measures.Measure, optional
            Written as ir-measures writes them; the first one decides.

        Raises
        ------
        ArgumentError
            The retriever does not search the live column alone, or the data set has no queries.
        ColumnError
            The new column is not there: it was not filled yet, or is live already.
        ModelError
            The model is another one than was planned with, or cannot be loaded.
        """
        encoder = self._loaded_model().encoder
        self._table.checkout_latest()
        gate = compare_columns(self._kind.recipes(self._table, encoder, retriever), dataset, measures)
        logger.info("%s", gate)
        return gate

    def swap(self, require_verified: bool = True, *, dual_writing: bool = False) -> SwapReport:
        """Put the new column in the old one's place, with all that is said of it, in one commit, and sweep what landed.

        The old column stays, hidden. Handles opened before go on writing to the column that they know; what they bring
        is swept. Call this again after a kill, or once writers that had begun before are through: it then goes on, or
        sweeps what came, or does nothing.

        Parameters
        ----------
        require_verified : bool, default True
            Refuse unless `verify` found the column right.
        dual_writing : bool, default False
            Let LanceDB's ``add`` fill the old column, too, until `drop_old`: apps then load both models, and `rollback`
            has less to embed. Otherwise `rollback` embeds what came since, and builds the old index again. Of token
            vectors it changes nothing: ``add`` fills none.

        Raises
        ------
        ArgumentError
            The job was not filled or not verified yet, or is over.
        ModelError
            The model is another one than was planned with, cannot be loaded, failed, or answered wrong.
        ConflictError
            Another process runs the job, or other writers thwarted a commit on many attempts in a row.
        """
        with self._held("swap", ("ready", "rolled-back", "swap", "swapped")) as lease:
            begun = lease.state.phase in ("swap", "swapped")
            if require_verified and not begun and (lease.state.notes or {}).get("verified") is None:
                raise ArgumentError(
                    "the new column was not verified, or was found wrong: run verify() and look at what it says, or "
                    "swap(require_verified=False)"
                )
            encoder = self._loaded_model().encoder
            with self._texts(self._loaded_transform(), lease) as texts:
                report = self._swapping(lease).swap(encoder, dual_writing, texts)
        logger.info("%s", report)
        return report

    def rollback(self, allow_nulls: bool = False) -> SwapReport:
        """Put the old column back in one commit, keeping every write made since the swap.

        Rows that came or changed since get vectors of the old model first, by the embedding function that the table had
        recorded for it, or, of token vectors, by the ColBERT checkpoint that the column names. Call this again after a
        kill. Afterwards the job can `verify` and `swap` again, or `abort`.

        Parameters
        ----------
        allow_nulls : bool, default False
            Go back even where rows then have no vector: the old model is not known, cannot be loaded or is another one
            now; or rows without a text have vectors that cannot be made again.

        Raises
        ------
        ArgumentError
            Nothing was swapped, or rows would have no vector and `allow_nulls` is False; the message says how many.
        ModelError
            The old model cannot be loaded, or makes other vectors now.
        ConflictError
            Another process runs the job, or other writers thwarted a commit on many attempts in a row.
        """
        with self._held("rollback", ("swap", "swapped", "rollback", "rolled-back")) as lease:
            report = self._swapping(lease).rollback(allow_nulls)
        logger.info("%s", report)
        return report

    def drop_old(self) -> None:
        """Drop the old column with its index, and all that the job kept: there is no way back after this.

        The live column and its model's fingerprint stay. Handles that were opened before the swap, and not moved to a
        later version since, cannot add rows any more.

        Raises
        ------
        ArgumentError
            The column is not swapped.
        ConflictError
            Another process runs the job, or other writers thwarted a commit on many attempts in a row.
        """
        with self._held("drop_old", ("swapped", "drop-old")) as lease:
            lease.advance("drop-old")
            drop_old_column(self._table, self.plan, self._kind)
            self._remove_folder()
            lease.remove()
        logger.info("job %s on %r is over", self.plan.job, self.plan.column)

    # --- what they stand on ----------------------------------------------------------------------------------------

    def _lease(self, notes: dict[str, Any] | None = None) -> Lease:
        plan = self.plan
        state = JobState(
            plan.job,
            "embed",
            plan.column,
            plan.shadow,
            plan.source,
            plan.model.name,
            plan.fingerprint,
            plan.to_dict(),
            started_at=self._clock(),
            notes=notes,
        )
        return Lease(self._table, state, self._clock, self._lease_s)

    @contextmanager
    def _held(self, step: str, phases: Sequence[Phase]) -> Iterator[Lease]:
        """Hold the lease of a job that was begun, and is in one of these phases."""
        self._table.checkout_latest()
        state = read_state(self._table, self.plan.column)
        phase = "planned" if state is None or state.job != self.plan.job else state.phase
        if phase not in phases:
            raise ArgumentError(
                f"{step}() is for a job that is in phase {' or '.join(phases)}, and this one is in {phase!r}. "
                + what_to_do(phase)
            )
        lease = self._lease()
        lease.acquire(phases)
        try:
            yield lease
        finally:
            lease.release()
            self._table.checkout_latest()

    def _swapping(self, lease: Lease) -> Swapping:
        return Swapping(self._table, self.plan, self._kind, lease, self._journal, self._clock, self.folder)

    def _noted_former(self) -> dict[str, Any] | None:
        """Note what the live column holds when the job begins: `rollback` goes by what was changed since."""
        former = Former.of(self._table, self.plan)
        if read_state(self._table, self.plan.column) is not None or not former.embeds_texts:
            return None
        note_values(self._table, self.plan.column, former.source)
        return {"noted": True}

    def _loaded_model(self) -> Model:
        """Return the model, once it was seen that it is the one that was planned with."""
        if self._model is None or self._given_model is not None:
            model, self._model, self._given_model = load(self.plan.model, self._given_model), None, None
            require_planned(self._kind.fingerprint(model), self.plan.fingerprint)
            self._model = model
        return self._model

    def _loaded_transform(self) -> Transform | None:
        if self._transform is None and self.plan.transform is not None:
            raise not_given(self.plan.transform)
        return self._transform

    @contextmanager
    def _texts(self, transform: Transform | None, lease: Lease) -> Iterator[TransformedTexts | None]:
        """Give what makes the texts of rows, with all that it answered before; None where rows have their own."""
        if transform is None or self.plan.transform is None:
            yield None
            return
        with StringSpool(self.folder / "texts") as answers:
            if self._planned_answers is not None:
                self._planned_answers.copy_to(answers)
            yield TransformedTexts(self.plan.transform, transform, answers, lease.renew)

    def _drop_shadow(self) -> None:
        self._table.checkout_latest()
        if self.plan.shadow in self._table.schema.names:
            forget(lance.dataset(self._table), self.plan.shadow)
            lance.drop_column(self._table, self.plan.shadow)
        self._kind.forget_live(self._table)

    def _remove_folder(self) -> None:
        """Remove the spool and the journal, and the folders of ours around them that are empty then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.plan.work_dir is None:
            for folder in list(self.folder.parents)[:2]:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _where(uri: str) -> str:
    folder = local_folder(uri)
    return uri if folder is None else str(folder.resolve())
