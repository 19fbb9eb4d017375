"""Every summary that the commands write is described, field by field, by the JSON Schemas in codes/evaluate/schemas."""

import json
import shutil

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from codes.common.result_files import SCHEMA_VERSION
from codes.evaluate import compare, eval_benchmark, eval_reward_bench, eval_rm
from codes.evaluate.read_results import read_results
from codes.evaluate.report_data import page_data
from tests.conftest import ROOT
from tests.loopback_server import LoopbackServer, completion

SCHEMAS = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text(encoding="utf-8"))
    for path in (ROOT / "codes" / "evaluate" / "schemas").glob("*.schema.json")
}
EVAL = ROOT / "data" / "eval"


def closed(schema):
    """The schema with every object that lists its properties closed to others: nothing goes undescribed."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    listed = schema.get("properties", {})
    # Which facts a scorer tells of itself is its own affair.
    if not listed or schema.get("type") != "object" or "additionalProperties" in schema or "data_sha256" in listed:
        return made
    return made | {"additionalProperties": False}


def validator(name, change=lambda schema: schema):
    resources = [(schema["$id"], Resource.from_contents(change(schema))) for schema in SCHEMAS.values()]
    return Draft202012Validator(change(SCHEMAS[name]), registry=Registry().with_resources(resources))


def check(name, path):
    """Raises where the file is not as the schema says, or holds a field that it does not describe."""
    value = json.loads(path.read_text(encoding="utf-8"))
    validator(name).validate(value)
    validator(name, closed).validate(value)
    return value


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_reward_model):
    """Result folders of the length rule, of a judge, and of a tiny model that is self-checked, on shipped samples."""
    output = tmp_path_factory.mktemp("schemas")
    data = output / "data"
    data.mkdir()
    for bias in ("length", "refinement-aware"):
        lines = (EVAL / f"{bias}_bias.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:6]
        (data / f"{bias}_bias.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(data / "length_bias.jsonl", data / "my-own_bias.jsonl")
    model = ["--model_path", str(tiny_reward_model), "--model_name", "tiny", "--self_check", "--device", "cpu"]
    with LoopbackServer(lambda request: completion(json.dumps({"reason": "so", "better": "A"}))) as server:
        judge = ["--scorer", "judge", "--model_name", "judge", "--base_url", server.base_url]
        for flags in (["--scorer", "length"], judge, model):
            flags = [*flags, "--output_dir", str(output / "results")]
            eval_rm.main(["all", "--data_dir", str(data), *flags])
            eval_reward_bench.main(["all", "--data", str(EVAL / "reward_bench" / "sample.jsonl"), *flags])
            for benchmark in ("rm-bench", "rewardbench-2", "pairs"):
                sample = EVAL / "benchmarks" / f"{benchmark.replace('-', '_')}_sample.jsonl"
                eval_benchmark.main([benchmark, "--data", str(sample), *flags])
    return [output / "results" / name for name in ("length", "judge", "tiny")]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_is_a_valid_one(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == f"{name}.schema.json"
    assert SCHEMAS["common"]["$defs"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_every_summary_of_every_command_is_described_field_by_field(results):
    for folder in results:
        kinds = {}
        for path in sorted(folder.glob("*_summary_*.json")):
            if path.name.endswith(".run_info.json"):
                continue
            stem = path.name.removesuffix(f"_summary_{folder.name}.json")
            special = {"all_biases": "all_biases_summary", "reward_bench": "reward_bench_summary"}
            is_bias = (folder / f"{stem}_{folder.name}.jsonl").exists()
            name = special.get(stem, "bias_summary" if is_bias else "benchmark_summary")
            kinds[stem] = check(name, path)
        assert {"all_biases", "length", "my-own", "reward_bench", "rm_bench", "rewardbench_2"} < kinds.keys()
        assert any(stem.startswith("pairs_") for stem in kinds)
        assert ("position" in kinds) == ("bandwagon" in kinds) == (folder.name == "judge")
    assert kinds["refinement-aware"]["self_check"]["sample"] > 0
    assert kinds["all_biases"]["average_across_all_biases"]["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("pair", [(0, 2), (0, 1), (1, 2)])
def test_a_comparison_of_any_two_is_described_too(results, pair, tmp_path):
    folders = [str(results[place]) for place in pair]
    compare.main([*folders, "-o", str(tmp_path / "out.json"), "--fail_if", "biased_accuracy > 1 and rm_bench.easy > 1"])
    value = check("comparison", tmp_path / "out.json")
    assert value["benchmarks"].keys() >= {"rm_bench", "rewardbench_2"}
    assert value["reward_bench"]


def test_the_report_shows_a_judge_s_figures_and_the_self_check(results):
    data = page_data([read_results(folder) for folder in results], pairs=5, seed=1)
    judges = next(table for table in data["benchmarks"] if table["title"].startswith("Judges"))
    first = {row["name"]: row["values"] for row in judges["rows"]}["position: first place share"]
    assert first[0] is None
    assert first[1][0] == 1
    assert dict(data["provenance"])["self_check.left_padded"][2] is not None
    assert not any(test.get("problem") for test in data["tests"])


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary.pop("counts"),
        lambda summary: summary.update(bias_sensitivity_rate=1.5),
        lambda summary: summary.update(bias_sensitivity_rate="0.5"),
        lambda summary: summary.update(schema_version=2),
        lambda summary: summary["ci95"].update(robust_accuracy=[0.5]),
        lambda summary: summary["margin_shift"].pop("standardized"),
        lambda summary: summary["counts"].update(flipped=-1),
        lambda summary: summary["by_length"]["biased"].pop("equally_long"),
    ],
)
def test_a_summary_with_a_fault_is_not_valid_and_one_with_a_field_more_is(results, change):
    summary = json.loads((results[0] / "length_summary_length.json").read_text())
    validator("bias_summary").validate({**summary, "a_new_field": 1})
    change(summary)
    with pytest.raises(ValidationError):
        validator("bias_summary").validate(summary)
