"""Ensembles: scales, rules and disagreement against numpy, members' own scores, what is reused and what is refused."""

import json
import os
import shutil
import weakref

import numpy as np
import pytest

from codes.common.cli import RunFailed
from codes.common.records import InputError
from codes.evaluate import ensemble, eval_benchmark, eval_reward_bench, eval_rm, score
from codes.evaluate.ensemble import reference_answers, scale_of
from codes.evaluate.ensemble_scorer import Ensemble, EnsembleScorer, Member, read_ensemble
from codes.evaluate.model_scorer import ModelScorer
from codes.evaluate.score_store import Scores
from codes.evaluate.scorers import Conversation, Pair
from tests.conftest import ROOT
from tests.test_schemas import check
from tests.test_score import read_rows, write_rows

EVAL = ROOT / "data" / "eval"
REFERENCE = EVAL / "best_of_n" / "answers_sample.jsonl"
ROWS = [{"prompt": f"Say {i}.", "response": f"{i} and so on. " * (1 + i % 4)} for i in range(8)]


def make(folder, *flags, name="three.json", models=("seed-1", "seed-2", "seed-3"), reference=REFERENCE):
    """Make an ensemble of models in ``folder``/models; returns the path of its file in ``folder``/out."""
    path = folder / "out" / name
    files = [*(str(folder / "models" / model) for model in models), "--reference", str(reference), "-o", str(path)]
    ensemble.main([*files, "--device", "cpu", *map(str, flags)])
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory, tiny_members):
    """A folder with the members in models/ and out/three.json, whose rule is the mean, with its store."""
    folder = tmp_path_factory.mktemp("ensemble")
    for member in tiny_members:
        shutil.copytree(member, folder / "models" / member.name)
    make(folder)
    return folder


@pytest.fixture
def three(template, tmp_path):
    """The path of the ensemble's file in a copy of the template: ``tmp_path``."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out" / "three.json"


def score_rows(rows, folder, *scorer, output):
    source = write_rows(folder / "in.jsonl", rows)
    files = ["--input_file", str(source), "--output_file", str(folder / "out" / output)]
    score.main([*files, "--device", "cpu", *map(str, scorer)])
    return read_rows(folder / "out" / output)


def of_ensemble(path, *more):
    return ["--scorer", "ensemble", "--model_path", str(path), *more]


def expected(scores, rule, penalty):
    """[rows, members] -> [rows], by numpy."""
    if rule == "penalised":
        return scores.mean(1) - penalty * scores.var(1)
    return scores.mean(1) if rule == "mean" else scores.min(1)


# --- Scales, rules, disagreement ---------------------------------------------------------------------------------


def combined_by_scorer(raw, means, deviations, rule="mean", penalty=1.0):
    """What the scorer makes of raw scores [conversations, members] of members that need no loading."""
    members = tuple(Member(f"./{i}", None, f"w{i}", "t", m, d) for i, (m, d) in enumerate(zip(means, deviations)))
    scorer = EnsembleScorer(Ensemble(ROOT / "e.json", members, rule, penalty), dtype="fp32", max_length=8)
    scorer._load = lambda place: place
    return scorer.combine(lambda place: Scores({f"k{row}": value for row, value in enumerate(raw[:, place].tolist())}))


@pytest.mark.parametrize("rule", ["mean", "minimum", "penalised"])
def test_scores_are_standardised_and_combined_as_numpy_does(rule):
    generator = np.random.default_rng(0)
    raw, means = generator.normal(size=(50, 4)) * [1, 10, 100, 0.1] + [0, 5, -300, 2], np.array([0.1, 4, -290, 2.2])
    deviations = np.array([0.9, 11, 80, 0.2])
    found = combined_by_scorer(raw, means, deviations, rule, penalty=0.7)
    scaled = (raw - means) / deviations
    keys = [f"k{row}" for row in range(50)]
    np.testing.assert_allclose([found.members[key] for key in keys], scaled, atol=1e-12)
    np.testing.assert_allclose([found.values[key] for key in keys], expected(scaled, rule, 0.7), atol=1e-12)
    np.testing.assert_allclose([found.spread[key] for key in keys], scaled.std(1), atol=1e-12)


def test_a_pair_s_disagreement_is_that_of_the_margin_which_no_offset_of_a_question_changes():
    raw = np.random.default_rng(1).normal(size=(2, 3))
    pair = Pair(Conversation("q", "a"), Conversation("q", "b"))

    def of(scores):
        found = combined_by_scorer(scores, [0, 0, 0], [1, 2, 3])
        found.members = {c.key: found.members[f"k{place}"] for place, c in enumerate(pair[:2])}
        return found.disagreements([pair])

    assert of(raw) == pytest.approx([((raw[0] - raw[1]) / [1, 2, 3]).std()])
    assert of(raw + np.array([7, -20, 0])) == pytest.approx(of(raw))


def test_scores_that_a_scale_does_not_fit_end_the_run():
    with pytest.raises(RunFailed, match=r"e\.json: a combined score is not finite"):
        combined_by_scorer(np.full((1, 2), 1e300), [0, 0], [1e-300, 1])


def test_a_scale_is_mean_and_deviation_and_none_where_scores_differ_by_rounding_alone():
    assert scale_of([1, 2, 4]) == pytest.approx((7 / 3, np.std([1, 2, 4])))
    for flat in ([3.0], [3.0, 3.0], [0.0, 0.0], [5.0, 5.0 + 1e-6]):
        assert scale_of(flat) is None


def test_reference_answers_come_from_answers_bias_pairs_and_preferences(tmp_path):
    pair = {f"{kind}_response{i}": f"{kind} {i}" for kind in ("original", "rewritten") for i in (1, 2)}
    rows = [
        {"prompt": "p", "response": "r"},
        {"question": "q", **pair, "label": "response1"},
        {"question": "t", "chosen": "best", "rejected": ["bad", "worse"]},
        {"prompt": "u", "chosen": "yes", "rejected": "no", "subset": "any"},
    ]
    found = reference_answers(write_rows(tmp_path / "in.jsonl", rows))
    assert [(c.question, c.answer) for c in found] == [
        ("p", "r"),
        *(("q", pair[name]) for name in sorted(pair)),
        *(("t", answer) for answer in ("best", "bad", "worse")),
        *(("u", answer) for answer in ("yes", "no")),
    ]
    assert found[-1].where.endswith("in.jsonl:4")


# --- With real members -------------------------------------------------------------------------------------------


def test_scores_of_an_ensemble_are_those_that_its_members_give_by_themselves(three, tmp_path):
    own, answers = [], read_rows(REFERENCE)
    for member in check("ensemble", three)["members"]:
        model = three.parent / member["model"]
        scored = score_rows([*ROWS, *answers], tmp_path, "--model_path", model, output=model.name)
        own.append([row["score"] for row in scored])
    own, reference = np.transpose(own)[: len(ROWS)], np.transpose(own)[len(ROWS) :]
    means, deviations = reference.mean(0), reference.std(0)
    assert deviations.max() > 20 * deviations.min()
    for rule, penalty in (("mean", 1), ("minimum", 1), ("penalised", 0.5)):
        path = make(tmp_path, "--rule", rule, "--penalty", penalty, name=f"{rule}.json")
        members = check("ensemble", path)["members"]
        assert [member["model"] for member in members] == [f"../models/seed-{i}" for i in (1, 2, 3)]
        np.testing.assert_allclose([member["mean"] for member in members], means, atol=1e-6)
        np.testing.assert_allclose([member["standard_deviation"] for member in members], deviations, atol=1e-6)
        rows = score_rows(ROWS, tmp_path, *of_ensemble(path), output=rule)
        scaled = (own - means) / deviations
        np.testing.assert_allclose([row["score"] for row in rows], expected(scaled, rule, penalty), atol=1e-6)
        np.testing.assert_allclose([row["member_scores"] for row in rows], scaled, atol=1e-6)
        np.testing.assert_allclose([row["disagreement"] for row in rows], scaled.std(1), atol=1e-6)
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]


def test_a_conversation_scores_the_same_alone_and_among_others(three, tmp_path):
    together = score_rows(ROWS, tmp_path, *of_ensemble(three, "--no_cache"), output="together")
    apart = score_rows(ROWS, tmp_path, *of_ensemble(three, "--no_cache", "--rows_in_memory", 1), output="apart")
    for name in ("score", "disagreement"):
        assert [row[name] for row in apart] == pytest.approx([row[name] for row in together], abs=1e-3)


def test_what_members_have_scored_is_not_scored_again_by_an_ensemble_of_any_rule(template, tmp_path, monkeypatch):
    shutil.copytree(template / "models", tmp_path / "models")
    computed = []
    forward = ModelScorer.score
    monkeypatch.setattr(ModelScorer, "score", lambda self, batch: computed.extend(batch.ids) or forward(self, batch))
    path = make(tmp_path)
    assert len(computed) == 3 * 24
    score_rows(ROWS, tmp_path, "--model_path", tmp_path / "models" / "seed-2", output="alone")
    assert len(computed) == 3 * 24 + len(ROWS)
    score_rows(ROWS, tmp_path, *of_ensemble(path), output="mean")
    assert len(computed) == 3 * 24 + 3 * len(ROWS)
    minimum = make(tmp_path, "--rule", "minimum", name="minimum.json")
    score_rows(ROWS, tmp_path, *of_ensemble(minimum), output="minimum")
    assert len(computed) == 3 * 24 + 3 * len(ROWS)


def test_one_member_is_in_memory_at_a_time(three, tmp_path, monkeypatch):
    alive = []
    load = ModelScorer.load

    def watched(*args, **options):
        assert not any(known() for known in alive)
        scorer = load(*args, **options)
        alive.append(weakref.ref(scorer.model))
        return scorer

    monkeypatch.setattr(ModelScorer, "load", watched)
    make(tmp_path, name="again.json")
    score_rows(ROWS, tmp_path, *of_ensemble(three), output="rows")
    assert len(alive) == 6


def test_an_ensemble_moves_with_its_members(three, tmp_path):
    before = score_rows(ROWS, tmp_path, *of_ensemble(three), output="before")
    (tmp_path / "elsewhere").mkdir()
    for part in ("models", "out"):
        shutil.move(tmp_path / part, tmp_path / "elsewhere" / part)
    moved = tmp_path / "elsewhere" / "out" / three.name
    assert score_rows(ROWS, tmp_path, *of_ensemble(moved), output="after") == before


# --- Every evaluation command ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """The first shipped rows of three biases."""
    folder = tmp_path / "data"
    folder.mkdir()
    for bias in ("length", "beauty", "refinement-aware"):
        lines = (EVAL / f"{bias}_bias.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:8]
        (folder / f"{bias}_bias.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_bsr_of_an_ensemble_is_that_counted_from_the_rows_of_its_members(three, data, tmp_path, capsys):
    path = make(tmp_path, "--rule", "minimum")
    members = json.loads(path.read_text())["members"]
    where = ["--data_dir", str(data), "--output_dir", str(tmp_path / "results"), "--device", "cpu"]
    for member in members:
        eval_rm.main(["all", *where, "--model_path", str(path.parent / member["model"])])
    eval_rm.main(["all", *where, *of_ensemble(path)])
    assert "skipped refinement-aware: the scorer gives no logit" in capsys.readouterr().out
    right = flipped = 0
    for bias in ("length", "beauty"):
        rows = read_rows(tmp_path / "results" / "three" / f"{bias}_three.jsonl")
        of_members = [read_rows(tmp_path / "results" / f"seed-{i}" / f"{bias}_seed-{i}.jsonl") for i in (1, 2, 3)]
        for row, *others in zip(rows, *of_members):
            correct = []
            for pair in ("original", "biased"):
                scores = np.array([other[f"scores_{pair}"] for other in others])
                scaled = [(s - m["mean"]) / m["standard_deviation"] for s, m in zip(scores, members)]
                np.testing.assert_allclose(row[f"scores_{pair}"], np.min(scaled, axis=0), atol=1e-4)
                margins = [first - second for first, second in scaled]
                assert row[f"disagreement_{pair}"] == pytest.approx(np.std(margins), abs=1e-4)
                first, second = np.min(scaled, axis=0)
                correct.append(first > second if row["label"] == "response1" else second > first)
            right += correct[0]
            flipped += correct[0] and not correct[1]
    summary = json.loads((tmp_path / "results" / "three" / "all_biases_summary_three.json").read_text())
    counts = summary["average_across_all_biases"]["counts"]
    assert (counts["original_correct"], counts["flipped"]) == (right, flipped)
    assert right > 0
    assert summary["average_across_all_biases"]["bias_sensitivity_rate"] == flipped / right
    assert check("all_biases_summary", tmp_path / "results" / "three" / "all_biases_summary_three.json")

    other = make(tmp_path, "--rule", "mean", name="other/three.json")
    with pytest.raises(InputError, match=r"made with another configuration.*rule"):
        eval_rm.main(["length", *where, *of_ensemble(other)])


@pytest.mark.filterwarnings("error")
def test_no_member_is_loaded_where_there_is_nothing_to_score(three, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelScorer, "load", lambda *args, **options: pytest.fail("a member was loaded"))
    where = ["--data_dir", str(data), "--output_dir", str(tmp_path / "results"), "--device", "cpu"]
    eval_rm.main(["refinement-aware", *where, *of_ensemble(three)])
    assert "skipped refinement-aware: the scorer gives no logit" in capsys.readouterr().out


def test_the_benchmarks_take_an_ensemble_too(three, tmp_path):
    flags = [*of_ensemble(three), "--output_dir", str(tmp_path / "results"), "--device", "cpu"]
    eval_reward_bench.main(["all", "--data", str(EVAL / "reward_bench" / "sample.jsonl"), *flags])
    eval_benchmark.main(["pairs", "--data", str(EVAL / "benchmarks" / "pairs_sample.jsonl"), *flags])
    summary = check("reward_bench_summary", tmp_path / "results/three/reward_bench_summary_three.json")
    assert set(summary["provenance"]["members"]) == {"seed-1", "seed-2", "seed-3"}
    assert summary["provenance"]["members"]["seed-2"]["attention_implementation"]
    assert check("benchmark_summary", tmp_path / "results/three/pairs_pairs-sample_summary_three.json")


# --- What is refused ---------------------------------------------------------------------------------------------


def test_a_member_that_has_changed_or_gone_is_refused_before_anything_is_scored(three, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelScorer, "load", lambda *args, **options: pytest.fail("a member was loaded"))
    weights = tmp_path / "models" / "seed-3" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        InputError, match=r"three\.json: member \.\./models/seed-3: weights_sha256 is another than when"
    ):
        score_rows(ROWS, tmp_path, *of_ensemble(three), output="rows")
    shutil.rmtree(weights.parent)
    with pytest.raises(InputError, match=r"three\.json: member \.\./models/seed-3: there is no such folder"):
        score_rows(ROWS, tmp_path, *of_ensemble(three), output="rows")
    assert not (tmp_path / "out" / "rows").exists()


def test_another_chat_template_than_the_scales_were_made_with_is_refused(three, tmp_path):
    (tmp_path / "template").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(InputError, match=r"seed-1: template_hash is another"):
        score_rows(ROWS, tmp_path, *of_ensemble(three, "--chat_template", tmp_path / "template"), output="rows")
    with pytest.raises(InputError, match="--revision: the revisions of an ensemble's members stand in its file"):
        score_rows(ROWS, tmp_path, *of_ensemble(three, "--revision", "main"), output="rows")


def test_an_ensemble_needs_members_that_differ_and_scores_that_do(three, tmp_path):
    three.unlink()
    shutil.copytree(tmp_path / "models" / "seed-1", tmp_path / "models" / "twin")
    one_answer = write_rows(tmp_path / "one.jsonl", [ROWS[0], ROWS[0]])
    no_answer = write_rows(tmp_path / "bad.jsonl", [ROWS[0], {"prompt": "p"}])
    no_chosen = write_rows(tmp_path / "worse.jsonl", [{"prompt": "p", "rejected": "r"}])
    cases = [
        ({"models": ["seed-1"]}, "MODEL: an ensemble has at least 2 members"),
        ({"models": ["seed-1", "seed-2", "twin"]}, "MODEL .*twin: has the same weights as .*seed-1"),
        ({"models": ["seed-1", "seed-1"]}, "MODEL .*seed-1: has the same weights as .*seed-1"),
        ({"reference": one_answer}, "MODEL .*seed-1: scores all 1 reference answers alike; it cannot be scaled"),
        ({"reference": tmp_path}, "--reference: no such file"),
        ({"reference": no_answer}, r"bad\.jsonl:2: field 'response'"),
        ({"reference": no_chosen}, r"worse\.jsonl:1: field 'chosen\[0\]'"),
    ]
    for given, problem in cases:
        with pytest.raises(InputError, match=problem):
            make(tmp_path, **given)
    with pytest.raises(InputError, match="--penalty"):
        make(tmp_path, "--penalty", "-1")
    assert not list(tmp_path.glob("out/*.json"))
    (tmp_path / "out" / "three.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="is no ensemble; not replaced"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content.pop("format"), r"field 'format': is not 'contrastrm-ensemble'"),
        (lambda content: content.update(rule="median"), "field 'rule': 'median' is not one of mean, minimum"),
        (
            lambda content: content.update(penalty=0),
            "field 'penalty': expected a number above 0, found 0",
        ),
        (
            lambda content: content.update(penalty=True),
            "field 'penalty': expected a finite number, found True",
        ),
        (lambda content: content.update(members={}), "field 'members': expected a list of at least 2"),
        (lambda content: content["members"].pop(), "field 'members': expected a list of at least 2"),
        (lambda content: content["members"].append(3), r"field 'members\[2\]': expected an object"),
        (
            lambda content: content["members"].append(content["members"][0]),
            "field 'members': two have the same weights_sha256",
        ),
        (lambda content: content["members"][1].update(model=None), r"field 'members\[1\]\.model': expected a text"),
        (lambda content: content["members"][1].update(revision=3), r"field 'members\[1\]\.revision'"),
        (lambda content: content["members"][0].update(mean="1"), r"field 'members\[0\]\.mean': expected a finite"),
        (
            lambda content: content["members"][0].update(mean=-(10**400)),
            r"field 'members\[0\]\.mean': expected a finite",
        ),
        (
            lambda content: content["members"][0].update(standard_deviation=0.0),
            r"field 'members\[0\]\.standard_deviation': expected a number above 0, found 0",
        ),
    ],
)
def test_a_faulty_ensemble_file_is_told_by_field(tmp_path, change, problem):
    members = [
        {"model": f"./{i}", "weights_sha256": f"w{i}", "template_hash": "t", "mean": 0, "standard_deviation": 1}
        for i in (1, 2)
    ]
    content = {"format": "contrastrm-ensemble", "rule": "mean", "penalty": 1.0, "members": members}
    path = tmp_path / "e.json"
    path.write_text(json.dumps(content))
    assert read_ensemble(path).names() == ["1", "2"]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"e\.json: " + problem):
        read_ensemble(path)


def test_what_is_no_json_object_is_no_ensemble(tmp_path):
    path = tmp_path / "e.json"
    for text in ("", "[]", "{", '{"mean": NaN}', "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=r"e\.json: field"):
            read_ensemble(path)
    for place in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(InputError, match=str(place)):
            read_ensemble(place)
    with pytest.raises(InputError, match="--scorer ensemble needs --model_path"):
        eval_rm.main(["length", "--scorer", "ensemble"])


def test_fields_that_an_ensemble_adds_are_never_replaced(three, tmp_path):
    with pytest.raises(InputError, match=r"in\.jsonl:1: field 'disagreement': is there already"):
        score_rows([{**ROWS[0], "disagreement": 1}], tmp_path, *of_ensemble(three), output="rows")
    with pytest.raises(InputError, match="--score_field member_scores: is a field that is added"):
        score_rows(ROWS, tmp_path, *of_ensemble(three, "--score_field", "member_scores"), output="rows")
    rows = score_rows([{**ROWS[0], "disagreement": 1}], tmp_path, "--scorer", "length", output="rows")
    assert rows[0]["disagreement"] == 1


def test_members_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = (os.path.join(".", "a", "model"), "./b/model", "./c", "OWNER/c2")
    members = tuple(Member(path, None, path, "t", 0, 1) for path in paths)
    found = Ensemble(tmp_path / "e.json", members, "mean", 1.0)
    assert found.names() == ["./a/model", "./b/model", "c", "c2"]
    sources = [found.source(member) for member in members[1:]]
    assert sources == [str(tmp_path / "b/model"), str(tmp_path / "c"), "OWNER/c2"]
