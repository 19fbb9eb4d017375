"""codes.construct.gptinst: a different question, an answer of the chosen one's length, with and without an LLM."""

import json

import pytest

from codes.common.records import check_train_record, read_jsonl
from codes.construct import gptinst
from codes.construct.gptinst import best_candidate, is_same_question, make_pool, question_problem, wording_overlap
from tests.loopback_server import LoopbackServer, completion

ROWS = [
    {
        "id": "a",
        "question": "How do I boil an egg for breakfast?",
        "chosen": "Boil it for 8 minutes.",
        "rejected": ["Never."],
    },
    {"id": "b", "question": "How do I fry an egg for dinner?", "chosen": "Fry it for 3 minutes.", "rejected": ["Raw."]},
    {"id": "c", "question": "Who wrote Faust?", "chosen": "Goethe wrote Faust, 1808.", "rejected": ["Schiller."]},
    {"id": "d", "question": "水的沸点是多少？", "chosen": "标准大气压下为100度。", "rejected": ["90度。"]},
    {"id": "e", "question": "酒精的沸点是多少？", "chosen": "大约是78度，比水低。", "rejected": ["120度。"]},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(source, output, *flags, backend="rules"):
    return gptinst.main(
        ["--input_file", str(source), "--output_file", str(output), "--backend", backend, *map(str, flags)]
    )


def run_openai(source, output, server):
    return run(source, output, "--model_name", "m", "--base_url", server.base_url, backend="openai")


def test_rules_take_the_most_similar_question_of_the_same_language(tmp_path):
    assert run(write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl") == 0
    records = {record["id"]: record for record in read_jsonl(tmp_path / "out.jsonl", check_train_record)}
    for one, other in (("a", "b"), ("b", "a"), ("d", "e"), ("e", "d")):
        partner = next(row for row in ROWS if row["id"] == other)
        assert records[one]["similar_question"] == partner["question"]
        assert records[one]["rejected"][-1] == partner["chosen"]
        assert records[one]["bias_type"] == ["original", "gptinst"]
        made = records[one]["provenance"][-1]
        assert (made["backend"], made["method"]) == ("rules", "another record's question and answer")
        assert 0 < made["question_similarity"] < 0.9


def test_the_choice_does_not_depend_on_the_order_of_the_input(tmp_path):
    run(write(tmp_path / "in.jsonl", ROWS), tmp_path / "one.jsonl")
    run(write(tmp_path / "reversed.jsonl", ROWS[::-1]), tmp_path / "two.jsonl")
    assert read_jsonl(tmp_path / "one.jsonl") == read_jsonl(tmp_path / "two.jsonl")[::-1]


def test_shards_choose_among_all_records(tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS)
    for name, flags in (("whole", []), ("1", ["--shard", "1/2"]), ("2", ["--shard", "2/2"])):
        run(source, tmp_path / f"{name}.jsonl", *flags)
    whole, *parts = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("whole", "1", "2"))
    assert sorted(parts[0] + parts[1], key=lambda record: record["id"]) == whole


def test_a_record_alone_in_its_file_is_kept_and_listed(tmp_path):
    assert run(write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl") == 3
    assert read_jsonl(tmp_path / "out.jsonl") == ROWS[:1]
    failure = json.loads((tmp_path / "out.jsonl.failures.jsonl").read_text())
    assert (failure["id"], failure["what"], failure["kind"]) == ("a", "similar_question", "no_candidate")


def test_the_same_question_and_the_same_answer_are_no_candidates():
    twins = [ROWS[0], {**ROWS[0], "id": "t", "question": "how do I boil  an egg for breakfast"}]
    assert best_candidate(ROWS[0], make_pool(twins, 0)) is None
    same_answer = {**ROWS[1], "chosen": ROWS[0]["chosen"]}
    assert best_candidate(ROWS[0], make_pool([same_answer], 0)) is None
    error_text = {**ROWS[1], "chosen": "Error code: 500"}
    assert best_candidate(ROWS[0], make_pool([error_text], 0)) is None


def test_the_pool_is_bounded_and_drawn_by_seed():
    rows = [{"question": f"Question {i}?", "chosen": "x"} for i in range(500)]
    pools = [make_pool(iter(rows), seed, size=20) for seed in (0, 0, 1)]
    assert pools[0] == pools[1] == make_pool(rows[::-1], 0, size=20)
    assert len(pools[0]) == 20
    assert {c.question for c in pools[0]} != {c.question for c in pools[2]}


def test_an_answer_of_similar_length_is_preferred():
    record = {"question": "How do I boil an egg?", "chosen": "x" * 100}
    near = {"question": "How do I poach fish?", "chosen": "y" * 110}
    far = {"question": "How do I boil an egg in beer?", "chosen": "z" * 500}
    assert best_candidate(record, make_pool([near, far], 0)).answer == near["chosen"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("How do I boil an egg?", "how do I  boil an egg", True),
        ("How do I boil an egg?", "How do I fry a fish?", False),
        ("水的沸点是多少？", "水的沸点是多少", True),
        ("Why?", "Why is the sky blue in the evening?", False),
        ("", "a", False),
        ("What is 2 + 2?", "What is 3 + 2?", False),
        ("a long question about " + "many words " * 300, "A long question, about " + "many words " * 300, True),
    ],
)
def test_questions_are_the_same_when_nearly_all_wording_is(first, second, same):
    assert is_same_question(first, second) == is_same_question(second, first) == same


def test_a_proposal_is_compared_with_the_whole_conversation_and_its_last_turn():
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    record = {"question": [*turns, {"role": "user", "content": "And what is that doubled?"}]}
    assert question_problem(record, "And what is that doubled?")
    assert question_problem(record, "And what is half of it, rounded down?") is None
    assert question_problem(record, "?!")
    assert question_problem(record, "Error code: 429 - slow down")


def test_overlap_counts_words_and_chinese_pairs():
    assert wording_overlap("boil an egg", "fry an egg") == 0.5
    assert wording_overlap("沸点", "沸点") == 1
    assert wording_overlap("", "") == 0


def test_an_llm_is_asked_for_a_question_and_then_for_its_answer(tmp_path):
    def script(request):
        if "Write one new question" in request.prompt:
            return completion("  Who painted {Guernica}? ")
        assert "<question>\nWho painted {Guernica}?\n</question>" in request.prompt
        assert "in about 5 words" in request.prompt
        return completion("Picasso did.")

    with LoopbackServer(script) as server:
        assert run_openai(write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl", server) == 0
    (record,) = read_jsonl(tmp_path / "out.jsonl", check_train_record)
    assert record["similar_question"] == "Who painted {Guernica}?"
    assert record["rejected"] == ["Never.", "Picasso did."]
    made = record["provenance"][-1]
    assert (made["backend"], made["model"], made["method"], made["prompt_version"]) == ("openai", "m", "generated", "1")


@pytest.mark.parametrize(
    ("replies", "kept", "asked"),
    [
        (["Picasso painted it there."], "Picasso painted it there.", 1),
        (["It was Picasso. " * 9, "It was Picasso, in Paris."], "It was Picasso, in Paris.", 2),
        (["No", "It was Picasso, in Paris."], "It was Picasso, in Paris.", 2),
        (["It was Picasso. " * 4, "It was Picasso. " * 9], "It was Picasso. " * 4, 2),
    ],
)
def test_an_answer_of_another_length_is_asked_for_again_once_and_the_nearer_is_kept(replies, kept, asked, tmp_path):
    prompts = []

    def script(request):
        if "Write one new question" in request.prompt:
            return completion("Who painted Guernica?")
        prompts.append(request.prompt)
        return completion(replies[len(prompts) - 1])

    with LoopbackServer(script) as server:
        assert run_openai(write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl", server) == 0
    (record,) = read_jsonl(tmp_path / "out.jsonl")
    made = record["provenance"][-1]
    assert (record["rejected"][-1], made["answers_asked"], len(prompts)) == (kept, asked, asked)
    assert made["length_ratio"] == round(len(kept.strip()) / len(ROWS[0]["chosen"]), 3)
    assert bool(made["checks"]) == (made["length_ratio"] > 2)
    assert ["An earlier answer had" in prompt for prompt in prompts] == [False, True][:asked]


def test_a_second_answer_that_fails_leaves_the_first_until_a_rerun(tmp_path):
    def script(request):
        if "Write one new question" in request.prompt:
            return completion("Who painted Guernica?")
        return completion(None, refusal="no") if "An earlier answer" in request.prompt else completion("No")

    source, output = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    with LoopbackServer(script) as server:
        assert run_openai(source, output, server) == 3
    assert read_jsonl(output)[0]["rejected"][-1] == "No"
    with LoopbackServer(lambda request: completion("It was Picasso, in Paris.")) as server:
        assert run_openai(source, output, server) == 0
        assert len(server.requests) == 1
    assert read_jsonl(output)[0]["rejected"][-1] == "It was Picasso, in Paris."


def test_a_proposal_that_does_not_differ_is_asked_for_again(tmp_path):
    proposals = iter([ROWS[0]["question"], ROWS[0]["question"].upper(), "Who painted Guernica?"])
    with LoopbackServer(
        lambda request: completion(next(proposals) if "Write one new" in request.prompt else "Picasso.")
    ) as server:
        assert run_openai(write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl", server) == 0
    assert read_jsonl(tmp_path / "out.jsonl")[0]["similar_question"] == "Who painted Guernica?"


def test_a_record_without_a_different_proposal_stays_as_it_was_and_a_rerun_asks_again(tmp_path):
    source, output = write(tmp_path / "in.jsonl", ROWS[:2]), tmp_path / "out.jsonl"
    with LoopbackServer(
        lambda request: completion(ROWS[0]["question"] if "Write one new" in request.prompt else "Picasso did.")
    ) as server:
        assert run_openai(source, output, server) == 3
    assert read_jsonl(output)[0] == ROWS[0]
    assert read_jsonl(output)[1]["similar_question"] == ROWS[0]["question"]
    with LoopbackServer(
        lambda request: completion("Who painted it?" if "Write one new" in request.prompt else "Picasso did.")
    ) as server:
        assert run_openai(source, output, server) == 0
        assert len(server.requests) == 2
    assert read_jsonl(output)[0]["similar_question"] == "Who painted it?"
