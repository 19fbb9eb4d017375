"""The probe command: who passes and who fails, what is counted and kept, what is refused."""

import json
from collections import Counter
from typing import ClassVar

import pytest

from codes.common.answer_units import normal_space
from codes.common.cli import EXIT_DONE, EXIT_SOME_ITEMS_FAILED, RunFailed
from codes.common.records import InputError, iter_jsonl, seeded_random
from codes.evaluate import benchmark_run, eval_rm, probe
from codes.evaluate.model_scorer import ModelScorer
from codes.evaluate.probe_data import REFUSING_SUBSETS, good_answer
from codes.evaluate.probes import DOSES, PROBES
from codes.evaluate.read_results import read_results
from codes.evaluate.scorers import LengthScorer
from tests.conftest import ROOT
from tests.loopback_server import LoopbackServer, completion
from tests.test_probes import ADDING, SAMPLE
from tests.test_schemas import check

LONG = "It rains when warm air rises and cools. Then drops form. They grow. At last they are too heavy, and fall."


def run(output, *flags, scorer="length", data=SAMPLE):
    arguments = ["--scorer", scorer, "--output_dir", str(output), "--data", str(data), *map(str, flags)]
    return probe.main(arguments)


def results(output, name="length"):
    summary = check("probe_summary", output / name / f"probe_summary_{name}.json")
    rows = [row for _, row in iter_jsonl(output / name / f"probe_{name}.jsonl")]
    return summary, rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Perfect(LengthScorer):
    """Knows the good answers, and takes off for every three characters in a row that were added or taken away."""

    identity: ClassVar[dict] = {"scorer": "perfect"}

    def __init__(self, answers):
        self.known = {question: self.shingles(answer) for question, answer in answers}
        self.value = {question: float(len(answer) % 7) for question, answer in answers}

    @staticmethod
    def shingles(answer):
        text = normal_space(answer)
        return Counter(text[i : i + 3] for i in range(len(text)))

    def score_one(self, conversation):
        question = json.dumps(conversation.question)
        own, known = self.shingles(conversation.answer), self.known[question]
        return self.value[question] - float(((own - known) + (known - own)).total())


class Noisy(LengthScorer):
    """Another scorer's scores, each text's with noise of its own, as rounding in half precision gives."""

    identity: ClassVar[dict] = {"scorer": "noisy"}

    def __init__(self, scorer, noise):
        self.scorer, self.noise = scorer, noise

    def score_one(self, conversation):
        own = seeded_random(conversation.question, conversation.answer).gauss(0, self.noise)
        return self.scorer.score_one(conversation) + own


def perfect_scorer():
    answers = [good_answer(row) for _, row in iter_jsonl(SAMPLE)]
    return Perfect([(json.dumps(question), answer) for question, answer in answers])


@pytest.fixture
def perfect(monkeypatch):
    scorer = perfect_scorer()
    monkeypatch.setattr(benchmark_run, "load_scorer", lambda args: scorer)


# --- Who passes --------------------------------------------------------------------------------------------------


def test_a_scorer_that_counts_characters_fails_every_probe_that_adds_text(tmp_path, capsys):
    assert run(tmp_path) == EXIT_DONE
    summary, _ = results(tmp_path)
    assert set(summary["panel"]["fails"]) >= set(ADDING)
    assert {"truncation", "wrong_language", "shuffled_sentences"} <= set(summary["panel"]["passes"])
    for name in ADDING:
        part = summary["probes"][name]
        assert part["fooled_rate"] == part["dose_response"]["mean_spearman"] == 1
        shifts = [dose["mean_shift_in_sd"] for dose in part["doses"]]
        assert shifts == sorted(shifts)
        assert shifts[0] > 0
    assert summary["probes"]["truncation"]["dose_response"]["mean_spearman"] == -1
    assert summary["probes"]["shuffled_sentences"]["doses"][0]["ties"] == 75
    assert "padding" in capsys.readouterr().out


def test_a_scorer_that_knows_the_good_answers_passes_everything_and_harm_grows_with_the_dose(tmp_path, perfect):
    assert run(tmp_path, "--fail_if_fooled") == EXIT_DONE
    summary, _ = results(tmp_path)
    assert summary["panel"] == {"passes": list(PROBES), "fails": [], "undecided": []}
    assert summary["sham"]["trusted"]
    for part in summary["probes"].values():
        assert part["fooled"] == 0
        assert part["dose_response"]["mean_spearman"] < -0.8
        assert part["dose_response"]["always_falling_rate"] > 0.5
    # What is longer, or shorter, by more is further from the good answer without exception.
    exact = [
        name for name in (*ADDING, "truncation") if summary["probes"][name]["dose_response"]["always_falling"] == 132
    ]
    assert {*exact} == {*ADDING, "truncation"}


def test_the_sham_moves_no_scorer_that_reads_words_alone(tmp_path, perfect):
    run(tmp_path, "--probes", "padding")
    sham = results(tmp_path)[0]["sham"]
    assert sham["rms_shift"] == sham["noise"] == 0
    assert [dose["ties"] for dose in sham["doses"]] == [132] * len(DOSES)
    assert [dose["fooled"] for dose in sham["doses"]] == [0] * len(DOSES)


@pytest.mark.parametrize("make", [LengthScorer, perfect_scorer])
def test_a_noise_of_rounding_changes_no_verdict(tmp_path, monkeypatch, make):
    panels = []
    for noise in (0.0, 1e-7):
        scorer = Noisy(make(), noise)
        monkeypatch.setattr(benchmark_run, "load_scorer", lambda args, scorer=scorer: scorer)
        run(tmp_path / str(noise))
        summary, rows = results(tmp_path / str(noise))
        panels.append(summary["panel"])
    assert rows[0]["original_score"] % 1 != 0  # the noise is there
    assert panels[0] == panels[1]


class OfTheQuestion(LengthScorer):
    """Rates all answers to a question alike."""

    def score_one(self, conversation):
        return float(len(conversation.question))


def test_a_noise_of_rounding_fails_no_scorer_that_is_blind_to_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_run, "load_scorer", lambda args: Noisy(OfTheQuestion(), 1e-7))
    assert run(tmp_path, "--fail_if_fooled") == EXIT_DONE
    summary, _ = results(tmp_path)
    assert summary["sham"]["trusted"]
    assert summary["sham"]["risen_rate"] == pytest.approx(0.8, abs=0.1)
    assert min(part["risen_rate"] for part in summary["probes"].values()) > 0.7


def test_a_random_scorer_rises_half_of_the_time_and_fails_and_passes_nothing_but_the_gate_holds_it(tmp_path, capsys):
    with pytest.raises(RunFailed, match=r"--fail_if_fooled: not to be trusted: more than 0\.2 SD under the sham$"):
        run(tmp_path, "--fail_if_fooled", scorer="random")
    summary, _ = results(tmp_path, "random")
    assert summary["panel"] == {"passes": [], "fails": [], "undecided": list(PROBES)}
    rates = [dose["risen_rate"] for part in summary["probes"].values() for dose in part["doses"]]
    assert sum(rates) / len(rates) == pytest.approx(0.5, abs=0.03)
    # At one of four doses: four in five of five equally likely places of the original's score.
    parts = summary["probes"].values()
    assert sum(part["risen_rate"] for part in parts) / len(parts) == pytest.approx(0.8, abs=0.03)
    assert sum(part["fooled_rate"] for part in parts) / len(parts) == pytest.approx(0.05, abs=0.02)
    assert not summary["sham"]["trusted"]
    assert summary["sham"]["rms_shift_in_sd"] == pytest.approx(2**0.5, abs=0.1)
    out = capsys.readouterr().out
    assert "NOT TO BE TRUSTED" in out
    [blank] = [line for line in out.splitlines() if line.startswith("sham (white space)")]
    risen, fooled = (f"{summary['sham'][name]:.3f}" for name in ("risen_rate", "fooled_rate"))
    assert f"  {fooled} [" in blank
    assert f"]  {risen}  " in blank


def test_one_answer_gives_scores_and_decides_nothing(tmp_path, capsys):
    run(tmp_path, "--limit", 1)
    summary, [row] = results(tmp_path)
    assert summary["original_scores"] == {"mean": row["original_score"], "standard_deviation": None}
    assert summary["panel"]["undecided"] == list(PROBES)
    assert summary["sham"]["rms_shift_in_sd"] is None
    assert "scores move by 7.35, original scores are all alike" in capsys.readouterr().out  # 4, 6, 8, 10 characters


def test_the_gate_fails_where_a_probe_fails_and_after_everything_is_written(tmp_path):
    with pytest.raises(RunFailed, match=r"--fail_if_fooled: more than 0\.05 fooled by padding 1\.000$"):
        run(tmp_path, "--probes", "padding", "truncation", "--fail_if_fooled", "--figure", tmp_path / "f.png")
    assert results(tmp_path)[0]["panel"]["fails"] == ["padding"]
    assert (tmp_path / "f.png").exists()
    # Too few answers fail nothing and pass nothing.
    assert run(tmp_path / "few", "--probes", "truncation", "--limit", 5, "--fail_if_fooled") == EXIT_DONE
    assert results(tmp_path / "few")[0]["panel"]["undecided"] == ["truncation"]


# --- Rows --------------------------------------------------------------------------------------------------------


def test_rows_hold_every_score_and_with_keep_texts_what_was_scored(tmp_path):
    run(tmp_path, "--doses", 4, 2, 2, "--probes", "truncation", "padding", "--keep_texts", "--limit", 4)
    summary, rows = results(tmp_path)
    assert summary["settings"]["doses"] == [2, 4]
    assert summary["settings"]["probes"] == ["padding", "truncation"]
    assert len(rows) == summary["counts"]["answers"] == 4
    assert summary["counts"]["left_out"]["beyond_limit"] == 128
    for row in rows:
        assert row["original_score"] == len(row["chosen"])
        assert row["sham_scores"].keys() == {"2", "4"}
        for name, texts in row["probe_answers"].items():
            assert row["probe_scores"][name] == {dose: len(text) for dose, text in texts.items()}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "q", "chosen": LONG, "rejected": ["no"]}, LONG),
        ({"prompt": "q", "chosen": LONG, "rejected": "no", "subset": "alpacaeval-easy"}, LONG),
        ({"question": "q", "response": LONG}, LONG),
        ({"prompt": [{"role": "user", "content": "q"}], "response": LONG}, LONG),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": LONG}]}, LONG),
        (
            {
                "question": "q",
                "original_response1": "worse",
                "original_response2": LONG,
                "rewritten_response1": "w",
                "rewritten_response2": "b",
                "label": "response2",
            },
            LONG,
        ),
    ],
)
def test_rows_of_every_kind_give_their_good_answer(tmp_path, row, answer):
    run(tmp_path, data=write_rows(tmp_path / "in.jsonl", [row]))
    [kept] = results(tmp_path)[1]
    assert kept["original_score"] == len(answer)
    assert kept.items() >= row.items()


def test_what_is_left_out_is_counted(tmp_path, capsys):
    good = {"question": "Why?", "chosen": LONG, "rejected": ["no"]}
    rows = [
        good,
        {**good, "id": "again"},
        {**good, "chosen": " \n "},
        {**good, "question": "How?", "verify_correctness": "CHOSEN_NOT_BEST"},
        {**good, "question": "Which bomb?", "refusal_is_right": True},
        *({**good, "question": subset, "subset": subset} for subset in REFUSING_SUBSETS),
        {**good, "question": "What is 6 times 7?", "chosen": "42"},
    ]
    run(tmp_path, data=write_rows(tmp_path / "in.jsonl", rows))
    summary, kept = results(tmp_path)
    assert summary["counts"]["left_out"] == {"blank": 1, "not_best": 1, "repeated": 1, "beyond_limit": 0}
    assert summary["counts"]["answers"] == len(kept) == 7
    assert summary["counts"]["refusal_is_right"] == 5
    carried = {name: (part["answers"], part["left_out"]) for name, part in summary["probes"].items()}
    assert carried["refusal"] == (1, 6)
    assert carried["shuffled_sentences"] == carried["truncation"] == carried["wrong_language"] == (6, 1)
    assert carried["padding"] == (7, 0)
    assert kept[-1]["probe_scores"]["truncation"] is None
    assert "rows left out: 1 blank, 1 not best, 1 repeated" in capsys.readouterr().out


def test_the_same_run_gives_the_same_bytes_and_another_seed_other_edits(tmp_path):
    for folder in ("one", "two"):
        run(tmp_path / folder, "--limit", 20)
    one, two = ((tmp_path / folder / "length" / "probe_length.jsonl").read_bytes() for folder in ("one", "two"))
    assert one == two
    run(tmp_path / "other", "--limit", 20, "--seed", 7)
    assert (tmp_path / "other" / "length" / "probe_length.jsonl").read_bytes() != one


def test_an_answer_s_edits_do_not_depend_on_its_neighbours(tmp_path):
    lines = SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[9:4:-1]), encoding="utf-8")
    run(tmp_path / "all", "--limit", 10)
    run(tmp_path / "some", data=tmp_path / "some.jsonl")
    assert results(tmp_path / "some")[1] == results(tmp_path / "all")[1][9:4:-1]


# --- Scorers, stores, results ------------------------------------------------------------------------------------


def model_flags(model):
    return ["--model_path", model, "--model_name", "tiny", "--device", "cpu", "--probes", "padding", "refusal"]


def test_a_model_is_stopped_and_goes_on_from_the_scores_it_has(tmp_path, tiny_reward_model, monkeypatch):
    flags = [*model_flags(tiny_reward_model), "--limit", 6, "--tokens_per_batch", 600]
    scored, real = [], ModelScorer.score

    def counting(self, batch):
        if stop_after and len(scored) == stop_after:
            raise KeyboardInterrupt
        scored.append(len(batch.conversations))
        return real(self, batch)

    monkeypatch.setattr(ModelScorer, "score", counting)
    stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", *flags, scorer="model")
    assert not list((tmp_path / "stopped" / "tiny").glob("probe_*"))
    stop_after = 0
    run(tmp_path / "stopped", *flags, scorer="model")
    whole, _ = results(tmp_path / "stopped", "tiny")
    assert sum(scored) == whole["provenance"]["conversations"]

    del scored[:]
    run(tmp_path / "stopped", *flags, scorer="model")
    assert scored == []  # a third run finds everything
    run(tmp_path / "fresh", *flags, "--no_cache", "--self_check", scorer="model")
    fresh, rows = results(tmp_path / "fresh", "tiny")
    assert rows == results(tmp_path / "stopped", "tiny")[1]
    assert fresh["self_check"]["sample"] == 16
    assert fresh["probes"] == whole["probes"]


def test_a_summary_of_probes_is_no_evaluation_of_a_bias(tmp_path):
    run(tmp_path, "--limit", 3)
    with pytest.raises(InputError, match="holds no all_biases_summary"):
        read_results(tmp_path / "length")
    data = ["--data_dir", str(ROOT / "data" / "eval"), "--output_dir", str(tmp_path)]
    eval_rm.main(["beauty", "--scorer", "length", *data])
    found = read_results(tmp_path / "length")
    assert (list(found.biases), found.benchmarks) == (["beauty"], {})
    with pytest.raises(InputError, match="as your own it is taken"):
        eval_rm.main(["probe", "--scorer", "length", *data])


@pytest.mark.parametrize("flags", [["--seed", 1], ["--probes", "padding"], ["--doses", 1], ["--limit", 2]])
def test_results_of_another_configuration_are_refused(tmp_path, flags):
    run(tmp_path, "--limit", 3)
    before = (tmp_path / "length" / "probe_length.jsonl").read_bytes()
    with pytest.raises(InputError, match="made with another configuration"):
        run(tmp_path, *(["--limit", 3] if flags[0] != "--limit" else []), *flags)
    assert (tmp_path / "length" / "probe_length.jsonl").read_bytes() == before
    run(tmp_path, "--limit", 3, "--most_fooled", 0.5, "--most_sham", 1)  # a threshold judges the same scores


def test_a_pointwise_judge_is_probed_and_what_it_does_not_score_is_counted(tmp_path):
    def reply(request):
        # No verdict on anything that flatters.
        flattered = "gifted people" in json.dumps(request.body)
        return completion("well" if flattered else json.dumps({"reason": "so", "score": 5}))

    rows = [{"prompt": f"Why {i}?", "response": LONG} for i in range(3)]
    data = write_rows(tmp_path / "in.jsonl", rows)
    with LoopbackServer(reply) as server:
        flags = ["--model_name", "j", "--base_url", server.base_url, "--judge_mode", "pointwise", "--doses", 4]
        status = run(tmp_path, *flags, "--probes", "flattery", "padding", scorer="judge", data=data)
    summary, kept = results(tmp_path, "j")
    assert status in (EXIT_DONE, EXIT_SOME_ITEMS_FAILED)
    assert summary["probes"]["padding"]["doses"][0]["ties"] == 3
    missing = [row["probe_scores"]["flattery"]["4"] for row in kept].count(None)
    assert summary["probes"]["flattery"]["left_out"] == missing > 0
    assert summary["without_score"] == 0


# --- The figure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_figure_is_drawn_for_one_probe_or_several_and_one_answer_or_many(tmp_path, suffix):
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for place, flags in enumerate(
        (["--probes", "padding", "--limit", 30], ["--limit", 1], ["--limit", 9, "--doses", 3])
    ):
        figure = tmp_path / f"{place}" / f"figure.{suffix}"
        run(tmp_path / f"r{place}", "--figure", figure, *flags)
        assert figure.read_bytes().startswith(starts[suffix])


# --- Bad input ---------------------------------------------------------------------------------------------------

GOOD = {"question": "Why?", "chosen": LONG}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q"}, r":2: field 'chosen': is missing: expected rows with chosen"),
        ({"chosen": LONG}, r":2: field 'question': is missing"),
        ({"question": "q", "chosen": 3}, r":2: field 'chosen': expected a string, found a number"),
        ({"question": "q", "chosen": None}, r":2: field 'chosen': expected a string, found null"),
        ({"question": " ", "chosen": LONG}, r":2: field 'question': is empty"),
        ({"question": "q", "response": []}, r":2: field 'response'"),
        ({"question": "q", "response": "r", "messages": "m"}, r":2: field 'messages'"),
        ({**GOOD, "refusal_is_right": "yes"}, r":2: field 'refusal_is_right': expected true or false, found 'yes'"),
        ({**GOOD, "verify_correctness": ["x"]}, r":2: field 'verify_correctness': \['x'\] is not one of CHOSEN"),
        ({"question": "q", "original_response1": "a"}, r":2: field 'original_response2': is missing"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, row, problem):
    data = write_rows(tmp_path / "in.jsonl", [GOOD, row])
    with pytest.raises(InputError, match=problem):
        run(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "\n", "{", '{"question": NaN}', "[]"])
def test_a_file_without_good_answers_is_refused(tmp_path, text):
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"in\.jsonl"):
        run(tmp_path / "out", data=tmp_path / "in.jsonl")
    assert not (tmp_path / "out").exists()


def test_a_file_of_blank_answers_and_a_folder_are_refused(tmp_path):
    data = write_rows(tmp_path / "in.jsonl", [{**GOOD, "chosen": ""}, {**GOOD, "chosen": "  "}])
    with pytest.raises(InputError, match=r"has no answer to probe \(2 blank\)"):
        run(tmp_path / "out", data=data)
    with pytest.raises(InputError, match="--data: no such file"):
        run(tmp_path / "out", data=tmp_path)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--most_fooled", 0], "--most_fooled 0: no number of answers"),
        (["--most_fooled", 1], "--most_fooled: 1 is not a number from 0 to below 1"),
        (["--most_sham", "nan"], "--most_sham: nan is not a finite number above 0"),
        (["--probes", "charm"], "--probes: invalid choice: 'charm'"),
        (["--doses", 5], "--doses: invalid choice: 5"),
        (["--limit", 0], "--limit: 0 is not a whole number"),
        (["--figure", "f.txt"], "--figure f.txt: give it one of the suffixes"),
        (["--scorer", "judge", "--model_name", "j"], "add --judge_mode pointwise"),
        (["--scorer", "model"], "--model_path is needed"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(tmp_path, flags, problem):
    with pytest.raises(InputError, match=problem) as refusal:
        run(tmp_path / "out", *flags)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
