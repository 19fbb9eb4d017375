"""codes.construct.verify_correctness: both orders, what is dropped and why, and the rules backend's honest verdicts."""

import json
import re
from random import Random

import pytest

from codes.common.records import InputError, check_train_record, read_jsonl
from codes.construct import gptinst, gptout, verify_correctness
from codes.construct.bias_checks import source_name
from codes.construct.verifier_controls import changed_numbers, control_pairs, is_control, shuffled, truncated
from codes.construct.verify_correctness import combined_outcome, record_outcome
from tests.loopback_server import LoopbackServer, completion, error

GOOD, BAD, ALSO_GOOD = "It is 4.", "It is 5.", "Four (4)."


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(*rejected, chosen=GOOD, **fields):
    return {"id": "r", "question": "What is 2 + 2?", "chosen": chosen, "rejected": list(rejected), **fields}


def run(source, output, *flags, backend="rules"):
    args = ["--input_file", source, "--output_file", output, "--backend", backend, *flags]
    return verify_correctness.main([str(arg) for arg in args])


def verified(tmp_path, record, script=None, status=0, name="out.jsonl"):
    """The verified record, by the rules or by a server with this script."""
    source, output = write(tmp_path / "in.jsonl", [record]), tmp_path / name
    if script is None:
        assert run(source, output) == status
    else:
        with LoopbackServer(script) as server:
            flags = ["--model_name", "judge", "--base_url", server.base_url]
            assert run(source, output, *flags, backend="openai") == status
            verified.requests = server.requests
    (result,) = read_jsonl(output, check_train_record)
    return result


def shown(request):
    """The answers that the judge sees as A and as B."""
    return re.search(r"<answer_a>\n(.*)\n</answer_a>\n\n<answer_b>\n(.*)\n</answer_b>", request.prompt, re.S).groups()


def verdict(better, **fields):
    return completion(json.dumps({"reason": "because", "better": better, **fields}))


def fair_judge(request):
    """Prefers the answer with a 4 in it, wherever it stands."""
    right = ["4" in answer for answer in shown(request)]
    return verdict("tie" if right[0] == right[1] else "A" if right[0] else "B")


def test_each_rejected_answer_is_judged_in_both_orders(tmp_path):
    record = verified(tmp_path, row(BAD, "It is 6."), fair_judge)
    pairs = {shown(request) for request in verified.requests}
    assert pairs == {(GOOD, BAD), (BAD, GOOD), (GOOD, "It is 6."), ("It is 6.", GOOD)}
    assert record["verify_correctness"] == "CHOSEN_IS_BEST"
    assert record["rejected"] == [BAD, "It is 6."]
    assert "dropped" not in record
    for given in record["verdicts"]:
        assert (given["judge"], given["model"], given["outcome"]) == ("openai", "judge", "worse")
        assert [(order["A"], order["B"], order["better"]) for order in given["orders"]] == [
            ("chosen", "rejected", "chosen"),
            ("rejected", "chosen", "chosen"),
        ]
        assert [json.loads(order["reply"])["better"] for order in given["orders"]] == ["A", "B"]
        assert given["sampling"] == {"temperature": 0.0, "max_tokens": 2048}


def test_the_requests_do_not_say_which_answer_is_the_chosen_one(tmp_path):
    verified(tmp_path, row(BAD), fair_judge)
    assert not any(word in json.dumps(request.body) for request in verified.requests for word in ("chosen", "rejected"))


def test_an_answer_that_is_not_worse_is_dropped_with_its_reason(tmp_path):
    record = verified(tmp_path, row(ALSO_GOOD, BAD, bias_type=["original", "length"]), fair_judge)
    assert record["rejected"] == [BAD]
    assert record["bias_type"] == ["length"]
    assert len(record["verdicts"]) == len(record["provenance"]) == 1
    (dropped,) = record["dropped"]
    assert (dropped["answer"], dropped["position"], dropped["bias_type"]) == (ALSO_GOOD, 0, "original")
    assert dropped["verdict"]["outcome"] == "not_worse"
    assert "does not prefer" in dropped["reason"]
    assert record["verify_correctness"] == "CHOSEN_IS_BEST"


def test_a_record_whose_every_rejected_answer_is_as_good_keeps_them_and_is_labelled(tmp_path):
    record = verified(tmp_path, row(ALSO_GOOD), fair_judge)
    assert record["rejected"] == [ALSO_GOOD]
    assert record["verify_correctness"] == "CHOSEN_NOT_BEST"


def test_a_judge_that_always_says_a_leaves_everything_undecided(tmp_path):
    record = verified(tmp_path, row(BAD, "It is 6."), lambda request: verdict("A"))
    assert record["verify_correctness"] == "UNDECIDED"
    assert record["rejected"] == [BAD, "It is 6."]
    assert [given["outcome"] for given in record["verdicts"]] == ["undecided"] * 2


def test_an_undecided_answer_beside_a_worse_one_is_dropped(tmp_path):
    def script(request):
        return verdict("A") if BAD in shown(request) else fair_judge(request)

    record = verified(tmp_path, row(BAD, "It is 6."), script)
    assert record["rejected"] == ["It is 6."]
    assert "depends on the order" in record["dropped"][0]["reason"]


def test_an_unparsable_verdict_is_its_own_outcome_and_a_rerun_asks_again(tmp_path):
    record = verified(tmp_path, row(BAD), lambda request: completion("I think C"), status=3)
    assert record["verify_correctness"] == "FAILED"
    assert [order["better"] for order in record["verdicts"][0]["orders"]] == ["unparsable"] * 2
    failures = (tmp_path / "out.jsonl.failures.jsonl").read_text().splitlines()
    assert ["I think C" in json.loads(line)["detail"] for line in failures] == [True, True]
    assert verified(tmp_path, row(BAD), fair_judge)["verify_correctness"] == "CHOSEN_IS_BEST"


def test_a_failed_request_in_one_order_is_completed_by_a_rerun_that_asks_only_for_it(tmp_path):
    def script(request):
        return error(400) if shown(request)[0] == BAD else fair_judge(request)

    record = verified(tmp_path, row(BAD), script, status=3)
    assert record["verify_correctness"] == "FAILED"
    assert [order["better"] for order in record["verdicts"][0]["orders"]] == ["chosen", "failed"]
    completed = verified(tmp_path, row(BAD), fair_judge)
    assert len(verified.requests) == 1
    assert completed == verified(tmp_path, row(BAD), fair_judge, name="fresh.jsonl")


def test_mechanical_checks_come_first_and_cost_no_request(tmp_path):
    record = row(f" {GOOD.lower()}\n", "Error code: 429 - busy", BAD, f"{BAD} ")
    result = verified(tmp_path, record, fair_judge)
    assert len(verified.requests) == 2
    assert result["rejected"] == [BAD]
    assert [dropped["reason"] for dropped in result["dropped"]] == [
        "the same text as the chosen answer",
        "an error text, not an answer",
        "the same text as rejected[2]",
    ]
    assert {dropped["verdict"]["judge"] for dropped in result["dropped"]} == {"rules"}


def test_a_chosen_answer_that_is_an_error_text_is_not_best(tmp_path):
    result = verified(tmp_path, row(BAD, chosen="Error code: 500 - oops"), fair_judge)
    assert result["verify_correctness"] == "CHOSEN_NOT_BEST"
    assert not verified.requests


@pytest.mark.parametrize(
    ("better", "outcome"),
    [
        (("chosen", "chosen"), "worse"),
        (("rejected", "rejected"), "not_worse"),
        (("tie", "tie"), "not_worse"),
        (("chosen", "rejected"), "undecided"),
        (("tie", "chosen"), "undecided"),
        (("unparsable", "chosen"), "failed"),
        (("failed", "rejected"), "failed"),
    ],
)
def test_two_orders_make_one_outcome(better, outcome):
    assert combined_outcome(better) == combined_outcome(better[::-1]) == outcome


@pytest.mark.parametrize(
    ("outcomes", "label"),
    [
        (["not_worse", "worse"], "CHOSEN_IS_BEST"),
        (["not_worse"], "CHOSEN_NOT_BEST"),
        (["not_worse", "undecided"], "UNDECIDED"),
        (["undecided", "failed", "skipped"], "FAILED"),
        (["skipped", "not_worse"], "SKIPPED"),
    ],
)
def test_outcomes_of_the_answers_make_the_record_s_label(outcomes, label):
    assert record_outcome(outcomes) == label


# --- Without a judge -------------------------------------------------------------------------------------------------


@pytest.fixture
def biased(tmp_path):
    """A record as gptout and gptinst make them with the rules backend."""
    rows = [
        row("It is perhaps 5. I think so."),
        {"id": "s", "question": "What is 3 + 3?", "chosen": "It is 6.", "rejected": ["It is 7."]},
    ]
    source = write(tmp_path / "source.jsonl", rows)
    for command, given, made in ((gptout, source, "biased"), (gptinst, tmp_path / "biased.jsonl", "both")):
        output = tmp_path / f"{made}.jsonl"
        assert command.main(["--input_file", str(given), "--output_file", str(output), "--backend", "rules"]) == 0
    return read_jsonl(tmp_path / "both.jsonl")[0]


def test_rules_pass_what_they_injected_and_say_that_nothing_was_judged(biased, tmp_path):
    result = verified(tmp_path, biased)
    assert result["verify_correctness"] == "CHOSEN_IS_BEST"
    assert result["rejected"] == biased["rejected"]
    assert {given["judge"] for given in result["verdicts"]} == {"rules"}
    reasons = [given["reason"] for given in result["verdicts"]]
    assert "taken as given" in reasons[0]
    assert reasons[1] == reasons[2] == "rejected[0] with nothing but the bias's trait added"
    assert "nothing was judged" in reasons[3]


def test_rules_drop_an_injected_answer_in_which_more_than_the_trait_changed(biased, tmp_path):
    biased["rejected"][1] = biased["rejected"][1].replace("5", "4")
    result = verified(tmp_path, biased)
    assert len(result["rejected"]) == 3
    assert "more than the bias's trait" in result["dropped"][0]["reason"]


def test_rules_drop_what_was_made_from_an_answer_that_is_not_worse(biased, tmp_path):
    result = verified(tmp_path, {**biased, "chosen": biased["rejected"][0]})
    assert [dropped["position"] for dropped in result["dropped"]] == [0, 1, 2]
    assert result["bias_type"] == ["gptinst"]


def test_rules_do_not_judge_what_an_llm_wrote(tmp_path):
    made = {"command": "gptout", "backend": "openai", "model": "m", "bias": "length"}
    result = verified(tmp_path, row(BAD, provenance=[made]))
    assert result["verify_correctness"] == "SKIPPED"
    assert "verify with --backend openai" in result["verdicts"][0]["reason"]


def test_verifying_twice_changes_nothing_and_keeps_what_was_dropped(biased, tmp_path):
    biased["rejected"][1] = biased["rejected"][1].replace("5", "4")
    once = verified(tmp_path, biased)
    assert verified(tmp_path, once, name="twice.jsonl") == once


def test_rewards_go_with_dropped_answers_and_new_ones_have_none(biased, tmp_path):
    biased["rejected"][1] = biased["rejected"][1].replace("5", "4")
    biased["rewards"] = {"safe": list(range(1 + len(biased["rejected"])))}
    record = verified(tmp_path, biased)
    kept = [i for i, answer in enumerate(biased["rejected"]) if answer in record["rejected"]]
    assert len(kept) < len(biased["rejected"])
    assert record["rewards"] == {"safe": [0, *(1 + i for i in kept)]}
    source, output = write(tmp_path / "verified.jsonl", [record]), tmp_path / "more.jsonl"
    assert gptout.main(["--input_file", str(source), "--output_file", str(output), "--backend", "rules"]) == 0
    (more,) = read_jsonl(output, check_train_record)
    assert more["rewards"] == {"safe": [*record["rewards"]["safe"], None, None]}


def test_answers_added_after_a_verification_have_no_verdict_yet(biased, tmp_path):
    source = write(tmp_path / "verified.jsonl", [verified(tmp_path, biased)])
    output = tmp_path / "more.jsonl"
    assert gptout.main(["--input_file", str(source), "--output_file", str(output), "--backend", "rules"]) == 0
    (record,) = read_jsonl(output)
    assert len(record["verdicts"]) == len(record["rejected"]) == len(record["provenance"])
    assert record["verdicts"][-2:] == [None, None]


OWN_NAME = source_name(BAD)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"backend": 5},
        {"backend": "rules"},
        {"backend": "rules", "source": [1], "bias": {}},
        {"backend": "rules", "source": OWN_NAME, "bias": "gender"},
        {"backend": "rules", "source": OWN_NAME, "bias": ["length"]},
    ],
)
def test_provenance_that_nobody_here_wrote_is_skipped_not_trusted(made, tmp_path):
    assert verified(tmp_path, row(BAD, provenance=[made]))["verify_correctness"] == "SKIPPED"


def test_rules_check_biases_of_one_s_own_where_their_file_is_given(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps([{"name": "pirate", "look": "Arr.", "sentences": ["Arr!"]}]))
    own = ["--bias_file", tmp_path / "own.json"]
    given, made = write(tmp_path / "given.jsonl", [row(BAD)]), tmp_path / "made.jsonl"
    flags = ["--input_file", given, "--output_file", made, "--backend", "rules", "--bias_types", "pirate", *own]
    assert gptout.main([str(flag) for flag in (*flags, "--biases_per_item", 1)]) == 0
    assert run(made, tmp_path / "with.jsonl", *own) == 0
    assert run(made, tmp_path / "without.jsonl") == 0
    reasons = [read_jsonl(tmp_path / f"{name}.jsonl")[0] for name in ("with", "without")]
    assert reasons[0]["verdicts"][1]["reason"] == "rejected[0] with nothing but the bias's trait added"
    assert "is its --bias_file missing?" in reasons[1]["dropped"][0]["reason"]


# --- Controls and the pointwise question -----------------------------------------------------------------------------

LONG = "Water boils at {} degrees at sea level. It boils earlier on a mountain. Salt raises it a little. So it varies."


def many(count):
    return [row(f"Bad {i}.", chosen=LONG.format(i + 50), id=f"r{i}") for i in range(count)]


def longer_wins(request):
    """Prefers the longer answer: of the controls it sees through truncation alone."""
    first, second = map(len, shown(request))
    return verdict("tie" if first == second else "A" if first > second else "B")


def test_controls_measure_the_judge_and_enter_no_record(tmp_path):
    source = write(tmp_path / "in.jsonl", many(40))
    with LoopbackServer(longer_wins) as server:
        flags = ["--model_name", "judge", "--base_url", server.base_url]
        assert run(source, tmp_path / "without.jsonl", *flags, backend="openai") == 0
        assert len(server.requests) == 80
        assert run(source, tmp_path / "with.jsonl", *flags, "--controls", 0.5, backend="openai") == 0
        assert run(source, tmp_path / "without.jsonl", *flags, "--controls", 0.5, backend="openai") == 0
    assert (tmp_path / "with.jsonl").read_bytes() == (tmp_path / "without.jsonl").read_bytes()
    found = json.loads((tmp_path / "with.jsonl.controls.json").read_text())
    assert found == json.loads((tmp_path / "without.jsonl.controls.json").read_text())
    false_alarms, detections = found["false_alarms"], found["detections"]
    assert 10 < false_alarms["pairs"] == detections["pairs"] < 30
    assert false_alarms["rate"] == 0
    assert false_alarms["by_kind"]["copy"]["outcomes"].keys() == {"not_worse"}
    assert set(detections["by_kind"]) == {"sentences shuffled", "truncated", "numbers negated"}
    assert detections["by_kind"]["truncated"]["rate"] == 1
    assert detections["by_kind"]["numbers negated"]["rate"] == 0
    low, high = detections["ci95"]
    assert 0 < low < detections["rate"] < high < 1
    assert (found["share"], found["model"], found["judge"]) == (0.5, "judge", "openai")


def test_a_judge_that_says_a_to_everything_raises_no_false_alarm_and_detects_nothing(tmp_path):
    source = write(tmp_path / "in.jsonl", many(3))
    with LoopbackServer(lambda request: verdict("A")) as server:
        flags = ["--model_name", "judge", "--base_url", server.base_url, "--controls", 0.99]
        assert run(source, tmp_path / "out.jsonl", *flags, backend="openai") == 0
    found = json.loads((tmp_path / "out.jsonl.controls.json").read_text())
    assert found["false_alarms"]["rate"] == found["detections"]["rate"] == 0
    assert found["detections"]["outcomes"] == {"undecided": 3}


def test_controls_without_a_judge_are_refused(tmp_path):
    source = write(tmp_path / "in.jsonl", many(1))
    with pytest.raises(InputError, match="--controls"):
        run(source, tmp_path / "out.jsonl", "--controls", 0.1)
    with pytest.raises(InputError, match=r"--controls.*1\.5"):
        run(source, tmp_path / "out.jsonl", "--controls", 1.5)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("damage", "answer", "broken"),
    [
        (changed_numbers, "It is 5, or -3.5 at 20 C.", "It is -5, or 3.5 at -20 C."),
        (changed_numbers, "1. Take 2 eggs.\n2. It is 5. Wait\n10", "1. Take -2 eggs.\n2. It is -5. Wait\n-10"),
        (changed_numbers, "No figures, but x2 and B12.", None),
        (truncated, "abcdefghij" * 6, "abcdefghij" * 2 + "abcd"),
        (truncated, "Too short.", None),
        (shuffled, "One here. Two here.", None),
    ],
)
def test_damage_breaks_an_answer_in_a_known_way(damage, answer, broken):
    assert damage(answer, Random(0)) == broken


def test_shuffling_keeps_every_sentence():
    answer = LONG.format(100)
    mixed = shuffled(answer, Random(0))
    assert mixed != answer
    assert sorted(word.strip(".") for word in mixed.split()) == sorted(word.strip(".") for word in answer.split())


def test_controls_are_drawn_by_seed_and_id():
    drawn = [sum(is_control(str(i), 0.02, seed) for i in range(20_000)) for seed in (0, 1)]
    assert all(340 < count < 460 for count in drawn)
    assert control_pairs(many(1)[0], 3) == control_pairs(many(1)[0], 3)
    assert control_pairs(row(BAD, chosen="Error code: 500"), 3) == []
    assert [pair.group for pair in control_pairs(row(BAD, chosen="Yes"), 3)] == ["sham"]


def test_faults_are_recorded_on_request_and_decide_nothing(tmp_path):
    def script(request):
        if "What is wrong with this answer" in request.prompt:
            return completion(json.dumps({"faults": ["It is not 5."]}))
        return fair_judge(request)

    source = write(tmp_path / "in.jsonl", [row(BAD)])
    with LoopbackServer(script) as server:
        flags = ["--model_name", "judge", "--base_url", server.base_url]
        assert run(source, tmp_path / "out.jsonl", *flags, "--pointwise", backend="openai") == 0
        assert len(server.requests) == 3
        with pytest.raises(InputError, match="pointwise"):
            run(source, tmp_path / "out.jsonl", *flags, backend="openai")
    with LoopbackServer(
        lambda r: completion("all is well") if "What is wrong" in r.prompt else fair_judge(r)
    ) as server:
        flags = ["--model_name", "judge", "--base_url", server.base_url]
        assert run(source, tmp_path / "bad.jsonl", *flags, "--pointwise", backend="openai") == 3
    (good,), (failed,) = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("out", "bad"))
    assert good["verdicts"][0]["pointwise"]["faults"] == ["It is not 5."]
    assert failed["verdicts"][0]["pointwise"]["faults"] is None
    assert good["verify_correctness"] == failed["verify_correctness"] == "CHOSEN_IS_BEST"
