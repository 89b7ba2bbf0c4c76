"""`lance-rerank train`: a toy language that tiny models learn, what the gate says of it, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from commands import invoke, refused, run

import lance_rerank as lr
from lance_rerank.cli import train_run
from lance_rerank.datasets import LabelledDocument, TrainingQuery

WORDS = ("key", "cat", "dog", "bread", "file", "user", "api", "rotate", "bake", "read")
PAIRS = [(one, other) for one in WORDS for other in WORDS if one < other]
SPLITS = {"train": range(30), "dev": range(30, 39), "test": range(39, 45)}
EMBEDDING = ("--epochs", 10, "--batch-size", 10, "--learning-rate", 3e-3, "--precision", "float32", "--negatives", 0)
RERANKING = ("--epochs", 4, "--batch-size", 16, "--learning-rate", 3e-3, "--precision", "float32")


def meaning(word):
    """Another word: nothing that a model without training could know."""
    return WORDS[(WORDS.index(word) + 3) % len(WORDS)]


def write_beir(folder, documents, queries, answers):
    """Write a BEIR folder; `answers` gives the grades of a split's query by its number."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(documents)]
    asked = [json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(queries)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(asked))
    for split, numbers in SPLITS.items():
        rows = "".join(
            f"q{i}\td{document}\t{grade}\n" for i in numbers for document, grade in answers(split, i).items()
        )
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


def translations(folder, *, wrong=False):
    """Queries in one language and documents in the other; the wrong ones teach the next query's document."""
    order = random.Random(0).sample(PAIRS, len(PAIRS))
    documents = [f"the {meaning(one)} and the {meaning(other)}" for one, other in order]
    return write_beir(
        folder,
        documents,
        [f"how {one} {other}" for one, other in order],
        lambda split, i: {(i + 1) % 30 if wrong and split == "train" else i: 1},
    )


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return translations(tmp_path_factory.mktemp("language") / "beir")


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory):
    return translations(tmp_path_factory.mktemp("nonsense") / "beir", wrong=True)


@pytest.fixture(scope="module")
def about_keys(tmp_path_factory, tiny_encoder):
    """A judged folder where any query is answered by what is about an API, and the database it is indexed into."""
    rng = random.Random(1)
    of = [rng.choice(("api", "api", "cat", "bread", "dog")) for _ in range(40)]
    documents = [f"{word} {word} of {WORDS[i % 10]} {i}" for i, word in enumerate(of)]

    def answers(split, number):
        shown = random.Random(number).sample(range(40), 6) if split == "train" else range(40)
        return {i: int(of[i] == "api") for i in shown}

    place = tmp_path_factory.mktemp("about-keys")
    folder = write_beir(place / "beir", documents, [f"what is {one} to {other}" for one, other in PAIRS], answers)
    run("index", folder, "--db", place / "db", "--table", "docs", "--model", tiny_encoder)
    return folder, place / "db"


@pytest.fixture
def embed(language, tiny_encoder, tmp_path):
    """The command that trains an embedder, without options that say on what."""
    return ("train", "embedder", "--model", tiny_encoder, "--output", tmp_path / "model", *EMBEDDING)


@pytest.fixture
def rerank(about_keys, tiny_cross_encoder, tmp_path):
    folder, db = about_keys
    place = ("--data", folder, "--db", db, "--table", "docs")
    return ("train", "cross-encoder", "--model", tiny_cross_encoder, "--output", tmp_path / "model", *place, *RERANKING)


# --- embedders ----------------------------------------------------------------------------------------------------


def test_an_embedder_that_learned_ships(embed, language, tmp_path):
    printed = run(*embed, "--data", language, "--test-split", "test").stdout
    trained = lr.training.TrainedModel.load(tmp_path / "model")
    assert printed.startswith(f"{trained}\n\nship {tmp_path / 'model'}: tuned is better than base on dev")
    assert trained.history[-1].step == 30
    assert trained.config.dev_digest is not None
    lines = printed.splitlines()
    assert sum(line.startswith("dev   tuned  base") for line in lines) == 1
    assert sum(line.startswith("test  tuned  base") for line in lines) == 1


def test_one_that_learned_nonsense_does_not_and_is_kept(embed, nonsense, tmp_path):
    result = invoke(*embed, "--data", nonsense, "--json")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert told["verdict"]["decision"] == "do not ship"
    assert {one["on"] for one in told["verdict"]["judgements"]} == {"dev"}
    assert told["trained"]["path"] == str(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_examples_a_table_and_settings_arrive(embed, about_keys, tmp_path):
    folder, db = about_keys
    examples = tmp_path / "examples.parquet"
    lr.TrainingSet.from_dataset(lr.Dataset.from_beir(folder, "train")).save(examples)
    (tmp_path / "queries").mkdir()
    shutil.copy(folder / "queries.jsonl", tmp_path / "queries")  # and no corpus
    shutil.copytree(folder / "qrels", tmp_path / "queries" / "qrels")
    told = json.loads(
        run(
            *(*embed, "--examples", examples, "--dev-data", tmp_path / "queries", "--dev-split", "test", "--no-gate"),
            *("--corpus-db", db, "--corpus-table", "docs", "--matryoshka", "32, 8", "--max-tokens", 20),
            *("--loss", "cached-multiple-negatives", "--seed", 5, "--evaluate-every", 2, "--patience", 1),
            *("--epochs", 1, "--negatives", 2, "--json"),
        ).stdout
    )
    config = told["trained"]["config"]
    assert told["verdict"] is None
    names = ("loss", "matryoshka", "max_tokens", "seed", "evaluate_every", "patience", "epochs", "negatives")
    assert [config[name] for name in names] == ["cached-multiple-negatives", [32, 8], 20, 5, 2, 1, 1, 2]
    assert config["data_digest"] == lr.TrainingSet.load(examples).digest
    assert told["trained"]["history"][0][2] is not None, "dev was measured, in the table's documents"


def test_the_gate_searches_the_table_too(embed, language, tmp_path, tiny_encoder):
    few = tmp_path / "few"
    shutil.copytree(language, few)
    run(
        "index", language, "--db", tmp_path / "db", "--table", "docs", "--model", tiny_encoder, "--vector-index", "none"
    )
    (few / "corpus.jsonl").write_text("\n".join((few / "corpus.jsonl").read_text().splitlines()[:30]))
    place = ("--corpus-db", tmp_path / "db", "--corpus-table", "docs")
    assert "ship" in run(*embed, "--data", few, *place).stdout
    other = [*embed[:5], tmp_path / "other", *EMBEDDING, "--data", few]
    assert "9 of the 9 relevant documents of 'few' have no text in the corpus" in refused(*other)


def test_without_dev_or_gate_it_just_trains(embed, language, tmp_path):
    only = tmp_path / "only-train"
    shutil.copytree(language, only)
    (only / "qrels" / "dev.tsv").unlink()
    printed = run(*embed, "--data", only, "--no-gate", "--epochs", 1).stdout
    assert printed.endswith("no dev set: the weights are those of the last step\n")


def test_what_the_model_knows_is_refused_unless_forced(embed, tmp_path):
    known = write_beir(
        tmp_path / "known", (texts := [f"the {one} {other}" for one, other in PAIRS]), texts, lambda _, i: {i: 1}
    )
    # 30 hits of 30 do not rule out 0.88
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(39))
    (known / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    arguments = (*embed, "--data", known, "--dev-split", "test", "--epochs", 1)
    message = refused(*arguments)
    assert "baseline hit@1 1.00 on train" in message
    assert message.endswith("or all the same: --force\n")
    assert not (tmp_path / "model.training").exists()
    assert invoke(*arguments, "--force").exit_code == 3, "all dev queries are answered already: no gain"
    assert (tmp_path / "model").exists()


def test_dev_queries_that_are_trained_on_are_refused_unless_forced(embed, language):
    arguments = (*embed, "--data", language, "--split", "dev", "--epochs", 1)
    message = refused(*arguments)
    assert "9 of the 9 queries of the split 'dev' are trained on, 'how " in message
    assert invoke(*arguments, "--force").exit_code in (0, 3)


# --- cross-encoders -----------------------------------------------------------------------------------------------


def test_a_cross_encoder_is_judged_behind_its_first_stage(rerank, tmp_path, monkeypatch):
    asked = []
    original = lr.Retriever.retrieve_many

    def retrieve_many(self, queries, k=10):
        asked.append((self.query_type, self.candidates, self.reranker, len(queries), k))
        return original(self, queries, k)

    monkeypatch.setattr(lr.Retriever, "retrieve_many", retrieve_many)
    result = run(*rerank, "--retriever", "hybrid", "--candidates", 30, "--test-split", "test", "--json")
    told = json.loads(result.stdout)
    assert asked[0] == ("hybrid", 30, None, 9, 30), "dev's candidates, in one go"
    assert sum(entry[2] is None and entry[4] == 30 for entry in asked) == 1, "and once"
    assert told["verdict"]["decision"] == "ship"
    compared = [(one["on"], one["a"]) for one in told["verdict"]["judgements"]]
    assert compared == [("dev", "base"), ("dev", "no reranker"), ("test", "base"), ("test", "no reranker")]
    first, *_, last = (entry[2] for entry in told["trained"]["history"])
    assert last > first + 0.1
    assert told["trained"]["config"]["kind"] == "cross-encoder"


def test_a_colbert_is_judged_behind_its_first_stage_too(about_keys, tiny_encoder, tmp_path):
    folder, db = about_keys
    place = ("--data", folder, "--db", db, "--table", "docs", "--output", tmp_path / "model", "--model", tiny_encoder)
    settings = ("--epochs", 6, "--batch-size", 8, "--learning-rate", 3e-3, "--precision", "float32")
    told = json.loads(run("train", "colbert", *place, *settings, "--json").stdout)
    assert told["trained"]["config"]["kind"] == "colbert"
    first, *_, last = (entry[2] for entry in told["trained"]["history"])
    assert last > first + 0.1
    assert told["verdict"]["decision"] == "ship"
    assert len(lr.ColBERTEncoder(tmp_path / "model").encode_queries(["what is the key"])[0]) == 4
    said = refused("train", "colbert", *place, "--resume", "--loss", "bce")
    assert "--loss is one of contrastive, distillation" in said


def test_one_that_learned_the_contrary_does_not_ship(rerank, about_keys, tmp_path):
    folder, _ = about_keys
    contrary = lr.TrainingSet.of(
        TrainingQuery(
            query.query_id,
            query.text,
            tuple(LabelledDocument(one.doc_id, one.text, 1.0 - one.label) for one in query.documents),
        )
        for query in lr.TrainingSet.from_dataset(lr.Dataset.from_beir(folder, "train"))
    )
    contrary.save(tmp_path / "contrary.parquet")
    arguments = [argument for argument in rerank if argument not in ("--data", folder)]
    recipes = tmp_path / "recipes.toml"
    recipes.write_text('[retrievers.words]\ntype = "vector"\ncandidates = 40\n')
    result = invoke(
        *(*arguments, "--examples", tmp_path / "contrary.parquet", "--dev-data", folder, "--blend"),
        *("--recipes", recipes, "--retriever", "words", "--loss", "listnet", "--negatives", 6),
    )
    assert result.exit_code == 3, result.output
    assert "\ndo not ship: " in result.stdout
    assert lr.training.TrainedModel.load(tmp_path / "model").config.loss == "listnet"


def test_without_dev_no_table_is_needed(rerank, about_keys, tmp_path):
    folder, _ = about_keys
    lr.TrainingSet.from_dataset(lr.Dataset.from_beir(folder, "train")).save(tmp_path / "examples.parquet")
    arguments = [*rerank[:6], "--examples", tmp_path / "examples.parquet", *RERANKING, "--no-gate"]
    assert "no dev set" in run(*arguments).stdout


# --- runs that were stopped, and such that have ended --------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch):
    """The steps of training as they are reported; at the one that `stop` names, somebody presses Ctrl-C."""
    seen = SimpleNamespace(stop=None, done=[])

    @contextmanager
    def bar(_):
        def report(done, total, label=None):
            if label == "train":
                seen.done.append(done)
                if done == seen.stop:
                    raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(train_run, "bar", bar)
    return seen


def test_a_run_that_was_stopped_goes_on(embed, language, tmp_path, steps, monkeypatch):
    arguments = (*embed, "--data", language, "--batch-size", 5, "--epochs", 9)
    steps.stop = 52
    result = invoke(*arguments)
    assert result.exit_code not in (0, 2, 3)
    assert "the same command with --resume goes on from the last checkpoint" in result.stderr
    assert "holds a run that did not end: --resume" in refused(*arguments)
    assert "they differ in seed: 0 there, 3 here" in refused(*arguments, "--resume", "--seed", 3)
    steps.done.clear()
    steps.stop = None
    asked_again = []
    monkeypatch.setattr(train_run.Run, "_require_something_to_learn", lambda *_: asked_again.append(True))
    assert "\nship " in run(*arguments, "--resume").stdout
    assert steps.done == [51, 52, 53, 54], "the checkpoint was that of step 50"
    assert not asked_again, "whether there is something to learn was asked before the run began"


def test_what_was_trained_is_judged_again_and_not_trained_again(embed, language, tmp_path):
    arguments = (*embed, "--data", language)
    first = run(*arguments)
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(*arguments, "--resume")
    assert again.stderr == f"{tmp_path / 'model'} was trained already\n"
    assert again.stdout == first.stdout
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert "holds a trained model: choose another --output, or --resume to judge it" in refused(*arguments)
    assert "holds another run" in refused(*arguments, "--resume", "--seed", 3)
    other = [*arguments, "--output", tmp_path]
    assert f"{tmp_path} is not empty: choose another --output" in refused(*other)
    assert f"{tmp_path} is not empty: choose another --output" in refused(*other, "--resume")
    (tmp_path / "model-interpolated").mkdir()
    (tmp_path / "model-interpolated" / "config.json").write_text("{}")
    assert "model-interpolated, where the gate puts a mixture" in refused(*arguments, "--resume")


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--examples FILE, or --data FOLDER; one of them"),
        (("--data", "LANGUAGE", "--examples", "x.parquet"), "--examples FILE, or --data FOLDER; one of them"),
        (("--examples", "nowhere.parquet"), "nowhere.parquet cannot be read as Parquet"),
        (("--data", "LANGUAGE", "--split", "training"), "the splits there are: dev, test, train"),
        (("--data", "LANGUAGE", "--dev-split", "valid"), "--dev-data FOLDER; or leave it out, --no-gate"),
        (("--data", "LANGUAGE", "--dev-data", "LANGUAGE", "--dev-split", "valid"), "the splits there are: dev, test"),
        (("--data", "LANGUAGE", "--test-split", "dev"), "--test-split and --dev-split are both 'dev'"),
        (
            ("--data", "LANGUAGE", "--dev-split", "x", "--test-split", "test"),
            "a split of --dev-data, and there is none",
        ),
        (("--data", "LANGUAGE", "--dev-split", "x", "--no-gate", "--patience", "2"), "--patience waits for a better"),
        (("--data", "LANGUAGE", "--loss", "bce"), "--loss is one of multiple-negatives, cached-multiple-negatives"),
        (("--data", "LANGUAGE", "--precision", "float16"), "--precision is one of auto, float32, bfloat16"),
        (("--data", "LANGUAGE", "--matryoshka", "16,half"), "--matryoshka is numbers separated by commas"),
        (("--data", "LANGUAGE", "--matryoshka", "64"), "matryoshka lists dimensions from 1 to the model's 32"),
        (("--data", "LANGUAGE", "--max-tokens", "900"), "--max-tokens is 900, and "),
        (("--data", "LANGUAGE", "--learning-rate", "0"), "--learning-rate must be more than 0, got 0.0"),
        (("--data", "LANGUAGE", "--corpus-table", "docs"), "--corpus-db and --corpus-table go together"),
        (("--data", "LANGUAGE", "--output", "/no/such/folder/model"), "there is no folder /no/such/folder"),
        (("--data", "LANGUAGE", "--model", "no-such-model"), "no-such-model"),
    ],
)
def test_bad_input_for_embedders_is_refused(embed, language, tmp_path, arguments, message):
    given = [language if argument == "LANGUAGE" else argument for argument in arguments]
    assert message in refused(*embed, *given)
    assert not (tmp_path / "model.training").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--retriever", "vector+rrf"), "--retriever vector+rrf reranks already: name the first stage alone, vector"),
        (("--retriever", "magic"), "unknown recipe 'magic'"),
        (("--retriever", "multivector"), "'colbert'"),
        (("--table", "nothing"), "has no table 'nothing'"),
        (("--loss", "multiple-negatives"), "--loss is one of bce, mse, margin-mse, ranknet, listnet, lambda"),
    ],
)
def test_bad_input_for_cross_encoders_is_refused(rerank, tmp_path, arguments, message):
    assert message in refused(*rerank, *arguments)
    assert not (tmp_path / "model.training").exists()


def test_candidates_need_a_table(rerank, about_keys, language):
    without = [one for one in rerank if one not in ("--db", about_keys[1], "--table", "docs")]
    assert "the dev queries need candidates to rerank: name where they are found, --db and --table" in refused(*without)
    arguments = [*rerank[:6], "--data", language, *rerank[8:]]
    assert "all 30 examples have the label 1" in refused(*arguments)
