"""`lance-rerank demo`: the whole way from texts to a reranked search, on Python's own documentation."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lance_rerank.cli.progress import bar, talk

if TYPE_CHECKING:
    from lance_rerank.demo.examples import Example
    from lance_rerank.evaluation import EvaluationResult
    from lance_rerank.types import Document

MEASURES = ("nDCG@10", "Success@5")
HYBRID, RERANKED, BLENDED = "hybrid", "hybrid + late interaction", "hybrid + blend of it"


def demo(
    db: Annotated[
        Path | None, typer.Option(help="Keep the table in this folder; by default it is made in a temporary one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Index Python's documentation and compare vector, full-text, hybrid and reranked search on questions about it."""
    import lancedb

    import lance_rerank as lr
    from lance_rerank.demo.corpus import build_corpus
    from lance_rerank.demo.examples import changed_examples
    from lance_rerank.demo.questions import load_questions

    start = time.perf_counter()
    corpus = build_corpus()
    queries, qrels, missing = load_questions({document.doc_id for document in corpus})
    talk(
        f"{len(corpus):,} docstrings of the standard library and of installed packages; {len(queries)} questions "
        f"written for them ({len(missing)} right answers are not in this Python and are left out)"
    )
    data = lr.Dataset.from_memory(queries, qrels, corpus, name="Python's documentation", split="demo")
    with _folder(db) as folder:
        _index(corpus, folder)
        table = lancedb.connect(folder).open_table("docs")
        encoder = lr.ColBERTEncoder()
        with bar("encode tokens") as progress:
            lr.add_multivector_column(table, encoder=encoder, progress=progress)
        hybrid = lr.Retriever(table, query_type="hybrid")
        late = lr.LateInteractionReranker(encoder, table=table)
        retrievers = {
            "vector": lr.Retriever(table, query_type="vector"),
            "full text": lr.Retriever(table, query_type="fts"),
            HYBRID: hybrid,
            RERANKED: hybrid.with_reranker(late),
            BLENDED: hybrid.with_reranker(lr.BlendReranker(late)),
        }
        for retriever in retrievers.values():  # the first query of each pays for loading; it is not to be measured
            retriever.retrieve(queries[0].text)
        with bar("search") as progress:
            result = lr.evaluate(retrievers, data, MEASURES, progress=lambda name, done, n: progress(done, n, name))
    examples = changed_examples(data.queries, data.qrels, result.runs[HYBRID], result.runs[RERANKED])
    if as_json:
        print(json.dumps({**result.to_dict(), "missing_answers": missing}))
        return
    print(f"\n{result}\n\n{_verdict(result)}\n")
    _print_examples(examples)
    talk(f"done in {time.perf_counter() - start:.0f} s")


@contextlib.contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="lance_rerank_demo_", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _index(corpus: Sequence[Document], folder: Path) -> None:
    from lance_rerank.jobs import index_documents

    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "python_documentation.jsonl"
    with source.open("w", encoding="utf-8") as lines:
        for document in corpus:
            lines.write(json.dumps({"id": document.doc_id, "text": document.text}) + "\n")
    with bar("embed texts") as progress:
        index_documents(source, folder, "docs", progress=progress)


def _verdict(result: EvaluationResult) -> str:
    """Return both ways to rerank against none, and what to make of them."""
    compared = {one.b: one for one in result.comparisons(baseline=HYBRID) if one.b in (RERANKED, BLENDED)}
    advice = {
        "better": "Reranking helps here: the gain is more than the luck of these questions.",
        "worse": "Reranking hurts here. Keep the hybrid order, or try another reranker.",
    }.get(compared[RERANKED].verdict, "Reranking makes no difference that these questions can show.")
    return (
        "\n".join(map(str, compared.values()))
        + f"\n{advice}\n"
        + "Before you have judged queries of your own, take the blend: it keeps what the words and the vectors said, "
        "so that a reranker which suits your texts badly costs little. With some hundred judged queries, lr.fit_blend "
        "learns how far to trust it."
    )


def _print_examples(examples: Sequence[Example]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for example in examples:
        console.print(f"[bold]{example.question}?[/bold]", markup=True)
        for label, names in (("hybrid", example.before), ("reranked", example.after)):
            shown = ", ".join(f"[green]{name}[/green]" if name in example.answers else name for name in names)
            console.print(f"  {label:<9} {shown}")
        console.print(f"  {_moved(example)}\n")


def _moved(example: Example) -> str:
    before, after = (f"rank {rank}" if rank else "not found" for rank in (example.rank_before, example.rank_after))
    return f"first right answer: {before} -> {after}"
