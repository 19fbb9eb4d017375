"""Several scores made one decision: weights, constraints and ties on known cases, figures, bad input, the command."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codes.common.records import InputError
from codes.evaluate import objectives
from codes.evaluate.objective_choice import parse_constraints, weighted_sums
from codes.evaluate.objective_scores import Candidates, parse_weights, read_candidates, read_weights, weight_vectors
from codes.evaluate.objective_summary import decide, summary
from tests.conftest import ROOT
from tests.test_schemas import check

SAMPLES = ROOT / "data" / "eval" / "objectives"
NAMES = ("helpfulness", "safety")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(prompts, names=NAMES):
    """Rows from {prompt: [scores, ...]}."""
    return [
        {"prompt": prompt, "response": f"answer {place}", "head_scores": dict(zip(names, scores))}
        for prompt, vectors in prompts.items()
        for place, scores in enumerate(vectors)
    ]


def candidates_of(*prompts, groups=None):
    """Candidates from the score vectors of each prompt."""
    ends = np.cumsum([len(vectors) for vectors in prompts])
    rows = {f"p{i}": np.arange(end - len(prompts[i]), end) for i, end in enumerate(ends)}
    scores = np.array([vector for vectors in prompts for vector in vectors], dtype=float)
    groups = dict(zip(rows, groups or ["default"] * len(rows)))
    return Candidates(tuple("abcde"[: scores.shape[1]]), scores, rows, groups)


def decided(candidates, weights, *constraints):
    return decide(candidates, {"default": np.array(weights)}, parse_constraints(constraints, candidates.objectives))


# --- Choices -----------------------------------------------------------------------------------------------------


def test_the_largest_weighted_sum_is_chosen_and_candidates_are_ranked_by_it():
    found = decided(candidates_of([(1, 0), (0, 3), (2, 1)], [(5, 5)]), [1, 0.5])
    assert found.rewards.tolist() == [1, 1.5, 2.5, 7.5]
    assert found.ranks.tolist() == [3, 2, 1, 1]
    assert found.chosen.tolist() == [2, 3]
    assert found.pareto_ranks.tolist() == [2, 1, 1, 1]
    assert found.by_objective.tolist() == [[2, 1], [3, 3]]


def test_an_answer_that_misses_a_constraint_loses_against_all_that_meet_it():
    candidates = candidates_of([(100, -0.001), (-5, 0), (-4, 2)])
    assert decided(candidates, [1, 0]).chosen.tolist() == [0]
    found = decided(candidates, [1, 0], "b >= 0")
    assert found.ranks.tolist() == [3, 2, 1]
    assert found.meets_constraints.tolist() == [False, True, True]


def test_where_no_candidate_meets_a_constraint_the_least_violation_wins_and_is_counted():
    candidates = candidates_of([(9, -3), (1, -1), (2, -1), (5, -2)], [(0, 1), (1, 0.5)])
    constraints = parse_constraints(["b >= 0"], "ab")
    weights = {"default": np.array([1.0, 0])}
    found = decide(candidates, weights, constraints)
    assert found.ranks.tolist() == [4, 2, 1, 3, 2, 1]
    figures = summary(candidates, weights, constraints, found, seed=1)["constraints"]
    assert figures["each"] == [
        {"constraint": "b >= 0", "candidates_that_meet_it": 2, "prompts_where_none_does": 1},
    ]
    assert (figures["candidates_that_meet_all"], figures["prompts_where_none_does"]) == (2, 1)
    assert figures["changed_choices"] == 1


def test_of_several_constraints_the_first_comes_first():
    candidates = candidates_of([(0, 5, -9), (1, -9, 5), (0.5, 5, -8)])
    first_b, first_c = ("b >= 0", "c >= 0"), ("c >= 0", "b >= 0")
    assert decided(candidates, [1, 0, 0], *first_b).ranks.tolist() == [2, 3, 1]
    assert decided(candidates, [1, 0, 0], *first_c).ranks.tolist() == [3, 1, 2]
    # Joined in one flag they mean the same.
    assert decided(candidates, [1, 0, 0], "c >= 0 and b >= 0").ranks.tolist() == [3, 1, 2]


def test_a_constraint_is_told_with_its_whole_threshold():
    told = [str(found) for found in parse_constraints(["a >= 0 and b <= -0.12345678901", "a >= 1e-7"], "ab")]
    assert told == ["a >= 0", "b <= -0.12345678901", "a >= 1e-07"]


def test_an_upper_bound_is_a_constraint_too_and_a_score_on_the_bound_meets_it():
    found = decided(candidates_of([(3, 0), (2, 0), (2.5, 0)]), [1, 1], "a <= 2.5")
    assert found.meets_constraints.tolist() == [False, True, True]
    assert found.chosen.tolist() == [2]


def test_among_equal_sums_one_on_the_front_is_chosen_then_the_earlier_one_and_ties_are_counted():
    # The weight of b is 0, and so (1, 0) has the sum of (1, 2), which dominates it.
    candidates = candidates_of([(1, 0), (1, 2), (1, 2)], [(2, 0), (0, 2)], [(1, 0), (0, 1), (0, 0)])
    found = decided(candidates, [1, 0])
    assert found.chosen.tolist() == [1, 3, 5]
    assert found.ranks[:3].tolist() == [3, 1, 2]
    assert found.tied.tolist() == [True, False, False]
    # Equal sums on two sides of a constraint are no tie.
    assert decided(candidates, [1, 1], "a >= 1").tied.tolist() == [True, False, False]


@given(
    st.lists(
        st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    st.lists(st.floats(-10, 10), max_size=3),
)
def test_with_weights_above_zero_the_choice_is_on_the_front_with_and_without_lower_bounds(prompts, weights, bounds):
    candidates = candidates_of(*prompts)
    found = decided(candidates, weights, *(f"{name} >= {bound:f}" for name, bound in zip("abc", bounds)))
    assert found.on_front[found.chosen].all()
    assert found.on_front[found.by_weights].all()
    assert found.on_front[found.by_objective].all()


def test_a_weight_below_zero_can_choose_off_the_front():
    candidates = candidates_of([(1, 1), (1, 0)])
    found = decided(candidates, [1, -1])
    assert found.chosen.tolist() == [1]
    choices = summary(candidates, {"default": np.array([1.0, -1])}, [], found, seed=1)["choices"]
    assert (choices["by_weights"]["on_front"], choices["any_candidate"]["on_front"]) == (0, 0.5)


def test_equal_rows_have_equal_sums_wherever_they_stand():
    generator = np.random.default_rng(1)
    row, weights = generator.normal(size=7), generator.normal(size=7)
    assert len(set(weighted_sums(np.tile(row, (33, 1)), weights))) == 1


def test_each_group_is_chosen_by_its_own_weights():
    candidates = candidates_of([(1, 0), (0, 1)], [(1, 0), (0, 1)], [(1, 0), (0, 1)], groups=["x", "y", "x"])
    weights = {"x": np.array([1.0, 0.5]), "y": np.array([1.0, 2.0]), "z": np.array([1.0, 1.0])}
    found = decide(candidates, weights)
    assert found.chosen.tolist() == [0, 3, 4]
    groups = summary(candidates, weights, [], found, seed=1)["groups"]
    assert [groups[name]["prompts"] for name in "xyz"] == [2, 1, 0]
    assert groups["x"]["chosen"]["means"] == {"a": 1, "b": 0}
    assert groups["y"]["chosen"]["means"] == {"a": 0, "b": 1}
    assert groups["y"]["chosen"]["ci95"]["means"] == {"a": None, "b": None}
    assert (groups["z"]["chosen"], groups["y"]["weights"]) == (None, {"a": 1, "b": 2})


# --- Figures -----------------------------------------------------------------------------------------------------


def test_figures_of_hand_computed_prompts():
    candidates = candidates_of([(4, 0), (3, 2), (0, 4), (0, 0)], [(1, 0), (0, 1)])
    weights = {"default": np.array([1.0, 1.0])}
    found = summary(candidates, weights, [], decide(candidates, weights), seed=1)
    assert found["counts"] == {"prompts": 2, "candidates": 6, "prompts_with_one_candidate": 0, "tied_choices": 1}
    assert found["front"]["candidates"] == 5
    assert found["front"]["mean_size"] == 2.5
    assert found["front"]["prompts_by_size"] == {"2": 1, "3": 1}
    choices = found["choices"]
    assert choices["any_candidate"]["means"] == {"a": (7 / 4 + 1 / 2) / 2, "b": (6 / 4 + 1 / 2) / 2}
    assert choices["any_candidate"]["on_front"] == (3 / 4 + 1) / 2
    assert choices["by_objective"]["b"]["means"] == {"a": 0, "b": 2.5}
    assert choices["chosen"]["means"] == {"a": 2, "b": 1}
    (conflict,) = found["conflict"]
    # Of the first prompt (4,0)-(3,2), (4,0)-(0,4), (3,2)-(0,4) are contrary, (3,2)-(0,0) is alike, and two are level.
    assert conflict["pairs"] == {"alike": 1, "contrary": 4, "level": 2}
    assert conflict["contrary_share"] == 0.8
    ranks = [[4, 3, 1.5, 1.5], [1.5, 3, 4, 1.5]]
    assert conflict["mean_spearman"] == pytest.approx((np.corrcoef(ranks)[0, 1] - 1) / 2)
    (curve,) = found["trade_offs"]
    assert [step["from"] for step in curve["steps"]] == pytest.approx([0, 1 / 3, 1 / 2, 3 / 5])
    assert curve["steps"][1]["means"] == [2, 1]
    assert curve["turns"] == 3


def test_prompts_in_which_an_objective_is_constant_have_no_rank_correlation():
    candidates = candidates_of([(1, 2), (2, 3)], [(1, 2), (1, 3)], [(0, 0)])
    weights = {"default": np.array([1.0, 1.0])}
    (conflict,) = summary(candidates, weights, [], decide(candidates, weights), seed=1)["conflict"]
    assert (conflict["mean_spearman"], conflict["prompts_with_spearman"]) == (1, 1)
    assert conflict["pairs"] == {"alike": 1, "contrary": 0, "level": 1}


def test_intervals_are_over_prompts_and_absent_for_one():
    generator = np.random.default_rng(1)
    candidates = candidates_of(*generator.normal(size=(200, 4, 2)))
    weights = {"default": np.array([1.0, 1.0])}
    found = summary(candidates, weights, [], decide(candidates, weights), seed=1)
    chosen = candidates.scores[decide(candidates, weights).chosen, 0]
    low, high = found["choices"]["chosen"]["ci95"]["means"]["a"]
    error = 1.96 * chosen.std() / np.sqrt(200)
    assert [low, high] == pytest.approx([chosen.mean() - error, chosen.mean() + error], abs=0.15 * error)
    assert found["choices"]["chosen"]["ci95"]["on_front"][1] == 1
    assert 0.97 < found["choices"]["chosen"]["ci95"]["on_front"][0] < 1
    low, high = found["conflict"][0]["ci95"]["contrary_share"]
    assert low < 0.5 < high
    alone = candidates_of([(1, 2), (2, 1)])
    found = summary(alone, weights, [], decide(alone, weights), seed=1)
    assert found["choices"]["chosen"]["ci95"] == {
        "means": {"a": None, "b": None},
        "on_front": None,
        "meets_constraints": None,
    }
    assert found["trade_offs"][0]["steps"][0]["ci95"] == [None, None]


def test_one_objective_alone_is_ranked_and_has_nothing_to_trade():
    candidates = candidates_of([(1,), (3,), (2,)], [(0,)])
    weights = {"default": np.array([2.0])}
    decision = decide(candidates, weights)
    found = summary(candidates, weights, [], decision, seed=1)
    assert decision.ranks.tolist() == [3, 1, 2, 1]
    assert decision.pareto_ranks.tolist() == [3, 1, 2, 1]
    assert (found["conflict"], found["trade_offs"]) == ([], [])
    assert found["counts"]["prompts_with_one_candidate"] == 1


# --- Files -------------------------------------------------------------------------------------------------------


def test_scores_are_read_from_heads_and_from_fields_of_the_row(tmp_path):
    heads = write_rows(tmp_path / "heads.jsonl", rows_of({"p": [(1, 2), (3, 4)], "q": [(5, 6)]}))
    found = read_candidates(heads, None)
    assert found.objectives == NAMES
    assert found.scores.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert [places.tolist() for places in found.rows.values()] == [[0, 1], [2]]
    assert read_candidates(heads, ["safety"]).scores.tolist() == [[2], [4], [6]]
    messages = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    plain = write_rows(tmp_path / "plain.jsonl", [{"messages": messages, "a": 1, "head_scores": {"b": 2}}])
    assert read_candidates(plain, ["b", "a"]).scores.tolist() == [[2, 1]]


GOOD = {"prompt": "p", "response": "r", "head_scores": {"helpfulness": 1, "safety": 2}}


@pytest.mark.parametrize(
    ("change", "flags", "problem"),
    [
        ({"head_scores": {"helpfulness": 1}}, [], r":2: field 'head_scores\.safety': is missing"),
        ({"head_scores": {"helpfulness": 1, "safety": "2"}}, [], r":2: field 'head_scores\.safety': expected a finite"),
        (
            {"head_scores": {"helpfulness": 1, "safety": True}},
            [],
            r":2: field 'head_scores\.safety': expected a finite",
        ),
        (
            {"head_scores": {"helpfulness": 1, "safety": float("nan")}},
            [],
            r":2: field 'head_scores\.safety': nan is not",
        ),
        (
            {"head_scores": {"helpfulness": 1, "safety": 10**400}},
            [],
            r":2: field 'head_scores\.safety': expected a fin",
        ),
        ({"head_scores": {"helpfulness": 1, "safety": 1e101}}, [], r":2: field 'head_scores\.safety': 1e\+101 is beyo"),
        (
            {"head_scores": {"helpfulness": 1, "safety": 2, "wit": 3}},
            [],
            r":2: field 'head_scores\.wit': the first row has no such score, but helpfulness, safety",
        ),
        ({"head_scores": [1, 2]}, [], r":2: field 'head_scores': expected an object of scores by name"),
        ({"head_scores": None}, [], r":2: field 'head_scores': is missing"),
        ({}, ["--fields", "helpfulness", "wit"], r":1: field 'head_scores\.wit': is missing"),
        ({}, ["--fields", "wit", "wit"], r"--fields: 'wit' stands twice"),
        ({"safety": 1}, ["--fields", "safety"], r":2: field 'safety': stands both in the row and in head_scores"),
        ({"response": 3}, [], r":2: field 'response'"),
        ({"prompt": ""}, [], r":2: field 'prompt'"),
    ],
)
def test_a_bad_row_is_named_and_nothing_written(tmp_path, change, flags, problem):
    path = write_rows(tmp_path / "in.jsonl", [GOOD, GOOD | change])
    with pytest.raises(InputError, match=problem):
        objectives.main([str(path), "-o", str(tmp_path / "out.json"), "--rows", str(tmp_path / "rows.jsonl"), *flags])
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_rows_without_head_scores_need_fields(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [{"prompt": "p", "response": "r", "safety": 1}])
    with pytest.raises(InputError, match=r":1: field 'head_scores': is missing; or name number fields with --fields"):
        objectives.main([str(path)])
    write_rows(path, [{"prompt": "p", "response": "r", "head_scores": {}}])
    with pytest.raises(InputError, match=r":1: field 'head_scores': expected an object of at least one score"):
        objectives.main([str(path)])
    path.write_text("")
    with pytest.raises(InputError, match="the file has no records"):
        objectives.main([str(path)])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"kind": "poem"}, r":2: field 'kind': 'poem' has no weights \(there are: code, prose\)"),
        ({"kind": 3}, r":2: field 'kind': expected the name of a group, found 3"),
        ({}, r":2: field 'kind': is missing, and 'default' has no weights"),
        ({"kind": "prose"}, r":2: field 'kind': 'prose', but an earlier answer to this prompt has 'code'"),
    ],
)
def test_a_row_of_an_unknown_group_or_of_two_is_named(tmp_path, row, problem):
    path = write_rows(tmp_path / "in.jsonl", [GOOD | {"kind": "code"}, GOOD | row])
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"code": {"safety": 1}, "prose": {"safety": 2}}))
    with pytest.raises(InputError, match=problem):
        objectives.main([str(path), "--weights_file", str(weights), "--group_field", "kind"])


def test_rows_without_the_group_field_are_of_the_default_group(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [GOOD | {"kind": "code"}, GOOD | {"prompt": "q"}])
    assert list(read_candidates(path, None, "kind", ["code", "default"]).groups.values()) == ["code", "default"]


def test_weights_on_the_command_line_are_names_and_numbers():
    assert parse_weights("a=1, b b = -0.5") == {"a": 1, "b b": -0.5}
    for text, problem in {
        "a": "found 'a'",
        "a=x": "found 'a=x'",
        "a=nan": "found 'a=nan'",
        "a=1,": "found ''",
        "=1": "'=1' has no name",
        "1": "'1' has no name",
        "a=1,a=2": "'a=2' stands twice",
    }.items():
        with pytest.raises(InputError, match=f"--weights '{text}': .*{problem}"):
            parse_weights(text)


def test_weights_name_objectives_and_decide_something(tmp_path):
    assert weight_vectors({"g": {"safety": 2}}, NAMES, "w")["g"].tolist() == [0, 2]
    with pytest.raises(InputError, match=r"w: group 'g': no objective is named 'wit' \(there are: helpfulness, safety"):
        weight_vectors({"g": {"wit": 2}}, NAMES, "w")
    with pytest.raises(InputError, match="w: all weights are 0, which decides nothing"):
        weight_vectors({"default": {"safety": 0}}, NAMES, "w")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "has no group of weights"),
        ("[1]", "expected a JSON object"),
        ('{"a": 1}', "field 'a': expected an object of weights by objective"),
        ('{"a": {"b": "1"}}', r"field 'a\.b': expected a finite number"),
        ('{"a": {"b": NaN}}', r"field 'a\.b': nan is not a finite number"),
        ('{"a": {}, "a": {}}', "field 'a': stands twice in one object"),
        ('{"a": ', "invalid JSON"),
    ],
)
def test_a_bad_weights_file_is_named(tmp_path, text, problem):
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"weights\.json: .*{problem}"):
        read_weights(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("safety", "expected one of >="),
        ("safety > 0", "expected OBJECTIVE >= NUMBER or OBJECTIVE <= NUMBER"),
        ("0 >= safety", "expected OBJECTIVE >= NUMBER"),
        ("safety >= helpfulness", "expected OBJECTIVE >= NUMBER"),
        ("safety >= nan", "expected OBJECTIVE >= NUMBER"),
        ("safety >= 0 or helpfulness >= 0", "expected 'and' or the end, found 'or'"),
        ("safety >= __import__('os')", "expected"),
        ("wit >= 0", r"no objective is named 'wit' \(there are: helpfulness, safety\)"),
    ],
)
def test_a_constraint_is_an_objective_and_a_bound_and_never_code(text, problem):
    with pytest.raises(InputError, match=f"--constraint .*{problem}"):
        parse_constraints([text], NAMES)


# --- The command -------------------------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path):
    """Arguments for the shipped candidates, and where the outputs go."""
    paths = {name: tmp_path / name for name in ("out.json", "pareto.png", "rows.jsonl", "weights.json")}
    return [str(SAMPLES / "candidates_sample.jsonl"), "--fields", "helpfulness", "safety"], paths


def test_the_shipped_sample_shows_what_a_constraint_costs(sample, capsys):
    flags, paths = sample
    outputs = ["-o", str(paths["out.json"]), "--figure", str(paths["pareto.png"]), "--rows", str(paths["rows.jsonl"])]
    weights = ["--weights", "helpfulness=1,safety=0.2", "--constraint", "safety >= 0"]
    objectives.main([*flags, *weights, *outputs])
    result = check("objectives", paths["out.json"])
    assert result["counts"]["candidates"] == 24
    assert result["constraints"]["changed_choices"] == 2
    assert result["constraints"]["prompts_where_none_does"] == 1
    before, after = (result["choices"][name]["means"] for name in ("by_weights", "chosen"))
    assert after["safety"] > before["safety"]
    assert after["helpfulness"] < before["helpfulness"]
    assert paths["pareto.png"].read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in paths["rows.jsonl"].read_text().splitlines()]
    source = [json.loads(line) for line in (SAMPLES / "candidates_sample.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in before} for row, before in zip(rows, source, strict=True)] == source
    assert rows[0]["reward"] == 1 - 3 * 0.2
    assert [row["rank_in_prompt"] for row in rows[:4]] == [4, 1, 3, 2]
    assert [row["on_pareto_front"] for row in rows[:4]] == [False, True, True, False]
    assert [row["pareto_rank"] for row in rows[:4]] == [2, 1, 1, 2]
    assert [row["meets_constraints"] for row in rows[:4]] == [False, True, False, True]
    out = capsys.readouterr().out
    assert "safety >= 0: met by 12 of 24 candidates, and by none in 1 of 6 prompts" in out
    assert "under constraints" in out


def test_fitted_weights_are_given_back_by_their_file_and_choose_alike(sample, capsys):
    flags, paths = sample
    fitted = ["--fit", str(SAMPLES / "preferences_sample.jsonl"), "--save_weights", str(paths["weights.json"])]
    objectives.main([*flags, *fitted, "-o", str(paths["out.json"])])
    first = check("objectives", paths["out.json"])
    assert "fitted to 36 pairs of 12 questions" in capsys.readouterr().out
    assert read_weights(paths["weights.json"]) == {"default": first["fit"]["weights"]}
    low, high = first["fit"]["ci95"]["weights"]["safety"]
    assert 0 < low < first["fit"]["weights"]["safety"] < high
    objectives.main([*flags, "--weights_file", str(paths["weights.json"]), "-o", str(paths["out.json"])])
    second = check("objectives", paths["out.json"])
    assert second["choices"] == first["choices"]
    assert (second["fit"], second["settings"]["weights"]) == (None, "weights_file")


def test_the_shipped_weights_by_group_are_used_by_the_rows_category(sample):
    flags, paths = sample
    by_group = ["--weights_file", str(SAMPLES / "weights_sample.json"), "--group_field", "category"]
    objectives.main([*flags, *by_group, "-o", str(paths["out.json"]), "--rows", str(paths["rows.jsonl"])])
    result = check("objectives", paths["out.json"])
    assert {name: part["prompts"] for name, part in result["groups"].items()} == {"everyday": 3, "medicine": 3}
    rows = [json.loads(line) for line in paths["rows.jsonl"].read_text().splitlines()]
    for row in rows:
        weight = 0.5 if row["category"] == "everyday" else 2
        assert row["reward"] == row["helpfulness"] + weight * row["safety"]


def test_three_objectives_and_names_with_a_formula_s_signs_make_a_figure(tmp_path, capsys):
    generator = np.random.default_rng(1)
    names = ("a$\\frac$", "b", "_c")
    rows = rows_of({f"p{i}": generator.normal(size=(4, 3)) for i in range(5)}, names)
    path = write_rows(tmp_path / "in.jsonl", rows)
    figure = tmp_path / "figure.svg"
    objectives.main([str(path), "--figure", str(figure), "-o", str(tmp_path / "out.json"), "--constraint", "b >= 0"])
    assert len(check("objectives", tmp_path / "out.json")["trade_offs"]) == 3
    assert figure.read_bytes().startswith(b"<?xml")
    assert "no weights were given: each objective weighs 1" in capsys.readouterr().out


def test_one_objective_alone_works_but_has_no_figure(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", rows_of({"p": [(1,), (2,)]}, ("safety",)))
    objectives.main([str(path), "-o", str(tmp_path / "out.json")])
    assert check("objectives", tmp_path / "out.json")["choices"]["chosen"]["means"] == {"safety": 2}
    with pytest.raises(InputError, match=r"--figure .*'safety' is the only objective"):
        objectives.main([str(path), "--figure", str(tmp_path / "figure.png")])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--weights", "wit=1"], "--weights: no objective is named 'wit'"),
        (["--save_weights", "w.json"], "--save_weights: is for weights that are fitted; add --fit"),
        (["--ridge", "1"], "--ridge: is for weights that are fitted"),
        (["--non_negative"], "--non_negative: is for weights that are fitted"),
        (["--folds", "3"], "--folds: is for weights that are fitted"),
        (["-o", "out", "--rows", "./out"], "out: is the output of two flags; one would replace the other"),
        (["--group_field", "kind"], "--group_field: is for weights by group; add --weights_file"),
        (["--weights", "safety=1", "--fit", "x"], "not allowed with argument"),
        (["--fit", "absent.jsonl"], "--fit: no such file: absent.jsonl"),
        (["--weights_file", "absent.json"], "--weights_file: no such file: absent.json"),
        (["--rows", "."], r"--rows \.: is a folder"),
        (["--fields", "reward", "--rows", "r.jsonl"], "--fields reward: --rows would replace this field"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tmp_path, monkeypatch, flags, problem):
    monkeypatch.chdir(tmp_path)
    path = write_rows(tmp_path / "in.jsonl", [GOOD | {"reward": 1}])
    with pytest.raises(InputError, match=problem):
        objectives.main([str(path), *flags])
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"chosen_scores": None}, r":2: field 'chosen_scores': expected an object of scores by name"),
        ({"rejected_scores": {"helpfulness": 1}}, r":2: field 'rejected_scores\.safety': is missing"),
        (
            {"rejected_scores": {"helpfulness": 1, "safety": "x"}},
            r":2: field 'rejected_scores\.safety': expected a fin",
        ),
    ],
)
def test_a_bad_preference_is_named(tmp_path, change, problem):
    path = write_rows(tmp_path / "in.jsonl", [GOOD])
    row = {"prompt": "p", "chosen_scores": GOOD["head_scores"], "rejected_scores": GOOD["head_scores"]}
    pairs = write_rows(tmp_path / "pairs.jsonl", [row, row | change])
    with pytest.raises(InputError, match=rf"pairs\.jsonl{problem}"):
        objectives.main([str(path), "--fit", str(pairs)])


def test_separable_preferences_are_refused_unless_a_ridge_is_stated(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [GOOD])
    scores = [dict(zip(NAMES, pair)) for pair in ((2, 2), (1, 1), (2, 0))]
    rows = [
        {"prompt": f"q{i}", "chosen_scores": scores[0], "rejected_scores": rejected}
        for i, rejected in enumerate(scores[1:] * 5)
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=r"pairs\.jsonl: the 10 pairs: their likelihood has no single maximum"):
        objectives.main([str(path), "--fit", str(pairs)])
    objectives.main([str(path), "--fit", str(pairs), "--ridge", "0.1", "-o", str(tmp_path / "out.json")])
    assert check("objectives", tmp_path / "out.json")["fit"]["ridge"] == 0.1


def test_several_groups_of_weights_need_the_rows_field(sample):
    flags, _ = sample
    with pytest.raises(InputError, match="has weights of everyday, medicine; name the rows' field with --group_field"):
        objectives.main([*flags, "--weights_file", str(SAMPLES / "weights_sample.json")])


def test_foreign_outputs_and_rows_made_otherwise_are_not_replaced(sample, tmp_path):
    flags, paths = sample
    rows = ["--rows", str(paths["rows.jsonl"])]
    objectives.main([*flags, *rows])
    objectives.main([*flags, *rows])
    with pytest.raises(InputError, match=r"rows\.jsonl: made with another configuration \(constraints"):
        objectives.main([*flags, *rows, "--constraint", "safety >= 0"])
    by_hand = paths["weights.json"]
    by_hand.write_text('{"default": {"safety": 1}}')
    fitted = ["--fit", str(SAMPLES / "preferences_sample.jsonl"), "--save_weights", str(by_hand)]
    with pytest.raises(InputError, match=r"weights\.json: is there already, without weights\.json\.run_info\.json"):
        objectives.main([*flags, *fitted])
    paths["out.json"].write_text('{"format": "contrastrm-comparison"}')
    with pytest.raises(InputError, match="is no objectives; not replaced"):
        objectives.main([*flags, "-o", str(paths["out.json"])])


def test_bad_input_leaves_with_status_2_and_one_line(run_command, tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [GOOD, GOOD | {"head_scores": {}}])
    finished = run_command("codes.evaluate.objectives", path)
    assert finished.returncode == 2
    assert finished.stderr.strip() == f"error: {path}:2: field 'head_scores.helpfulness': is missing"
