from lance_rerank.demo.examples import changed_examples

QUESTIONS = {"q1": "rose", "q2": "fell", "q3": "stayed", "q4": "moved below the answer"}
QRELS = {q: {"right": 1} for q in QUESTIONS}
BEFORE = {
    "q1": ["a", "right"],
    "q2": ["right", "a"],
    "q3": ["right", "a"],
    "q4": ["right", "a", "b"],
}
AFTER = {
    "q1": ["right", "a"],
    "q2": ["a", "b", "right"],
    "q3": ["right", "a"],
    "q4": ["right", "b", "a"],
}


def test_the_largest_gain_and_the_largest_loss_come_first():
    first, second, third = changed_examples(QUESTIONS, QRELS, BEFORE, AFTER)
    assert (first.question, first.rank_before, first.rank_after) == ("rose", 2, 1)
    assert (second.question, second.rank_before, second.rank_after) == ("fell", 1, 3)
    assert third.question == "moved below the answer"
    assert third.gain == 0


def test_unchanged_questions_are_no_examples():
    assert changed_examples(QUESTIONS, QRELS, BEFORE, BEFORE) == []


def test_an_answer_that_is_not_found_counts_as_no_rank():
    (example,) = changed_examples({"q": "lost"}, {"q": {"right": 1}}, {"q": ["right"]}, {"q": ["a"]})
    assert example.rank_after is None
    assert example.gain == -1
