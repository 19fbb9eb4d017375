"""codes.train.label_noise: labels that were turned round come first in the list of what held-out models contradict."""

import json

import pytest

from codes.common.records import InputError, read_jsonl
from codes.train import label_noise
from codes.train.reward_model import RewardModel
from tests.test_schemas import check

pytestmark = pytest.mark.usefixtures("small_runs")

FLIPPED = (3, 17, 28, 44)
FLAGS = {"learning_rate": "5e-3", "num_train_epochs": 4, "max_length": 64, "per_device_train_batch_size": 6}


def write(path, count=60, flipped=()):
    """Groups whose better answers end in one word and whose worse ones end in another, but for the flipped."""
    nouns = ("river", "number", "capital", "reason", "answer")
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            good, bad = (
                f"The {nouns[i % 5]} is {i * 7 % 31} indeed.",
                f"The {nouns[(i + 2) % 5]} is {i * 5 % 29} perhaps.",
            )
            chosen, rejected = (bad, good) if i in flipped else (good, bad)
            record = {"question": f"What is the {nouns[i % 5]} of {i}?", "chosen": chosen, "rejected": [rejected]}
            file.write(json.dumps(record | {"bias_type": ["beauty" if i % 2 else "length"]}) + "\n")
    return path


def find_noise(path, model, output, *flags):
    own = ["--model_name_or_path", str(model), "--folds", "2", "--output_file", str(output)]
    training = [part for name, value in FLAGS.items() for part in (f"--{name}", str(value))]
    label_noise.main([str(path), *own, *training, "--save_strategy", "no", *map(str, flags)])
    return output.with_name(output.name + ".summary.json")


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_model):
    """The folder of a finished search over groups with four flipped labels."""
    folder = tmp_path_factory.mktemp("noise")
    find_noise(write(folder / "train.jsonl", flipped=FLIPPED), tiny_model, folder / "review.jsonl")
    return folder


def test_the_flipped_labels_come_first_in_the_list(found):
    rows = read_jsonl(found / "review.jsonl")
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert sorted(row["line"] - 1 for row in rows[: len(FLIPPED)]) == list(FLIPPED)
    first = rows[0]
    assert first["chosen"].endswith("perhaps.")
    assert first["rejected"].endswith("indeed.")
    assert first["margin"] < 0 < first["flip_probability"]
    assert (first["file"], first["rejected_index"]) == ("train.jsonl", 0)
    assert first["bias_type"] == ("beauty" if (first["line"] - 1) % 2 else "length")


def test_the_summary_estimates_how_many_labels_are_wrong_overall_and_by_bias_type(found):
    summary = check("label_noise", found / "review.jsonl.summary.json")
    low, high = summary["ci95"]["noise_rate"]
    assert low <= len(FLIPPED) / 60 <= high
    low, high = summary["confident"]["ci95"]["share"]
    assert low <= len(FLIPPED) / 60 <= high
    assert summary["all"]["pairs"] == summary["records"] == summary["questions"] == 60
    assert summary["all"]["expected_flips"] == pytest.approx(60 * summary["noise_rate"], abs=0.5)
    assert sum(part["pairs"] for part in summary["by_bias_type"].values()) == 60
    assert len(summary["by_fold"]) == 2


def test_models_go_when_their_fold_has_scored_and_the_same_command_computes_nothing_again(
    found, tiny_model, monkeypatch, capsys
):
    work = found / "review.jsonl.folds"
    assert sorted(path.name for path in (work / "fold-1").iterdir()) == [
        "held_out.jsonl",
        "scores.jsonl",
        "train.jsonl",
    ]
    monkeypatch.setattr(label_noise, "train", lambda flags: pytest.fail("trained again"))
    before = (found / "review.jsonl").read_bytes()
    find_noise(found / "train.jsonl", tiny_model, found / "review.jsonl")
    assert (found / "review.jsonl").read_bytes() == before
    printed = capsys.readouterr().out
    assert "labels wrong at random: " in printed
    assert "mistakes that a model can learn from the other folds do not show in these figures" in printed
    find_noise(found / "train.jsonl", tiny_model, found / "review.jsonl", "--all_pairs")
    assert len(read_jsonl(found / "review.jsonl")) == 60
    with pytest.raises(InputError, match="made with another configuration"):
        find_noise(found / "train.jsonl", tiny_model, found / "review.jsonl", "--weight_decay", "0.1")


def test_folds_hold_whole_questions_and_every_record_once(found):
    held_out = [read_jsonl(found / "review.jsonl.folds" / f"fold-{k}" / "held_out.jsonl") for k in (1, 2)]
    train = [read_jsonl(found / "review.jsonl.folds" / f"fold-{k}" / "train.jsonl") for k in (1, 2)]
    assert sorted(int(row["id"]) for part in held_out for row in part) == list(range(60))
    for inside, outside in zip(held_out, train):
        assert not {row["question"] for row in inside} & {row["question"] for row in outside}


def test_folds_can_be_done_one_by_one_and_after_a_kill_only_what_is_missing_is_done(
    tmp_path, tiny_model, capsys, monkeypatch
):
    path, output = write(tmp_path / "train.jsonl", count=12), tmp_path / "review.jsonl"
    find_noise(path, tiny_model, output, "--only_fold", 2, "--max_steps", 1, "--keep_models")
    assert "folds still to be done: 1" in capsys.readouterr().out
    assert not output.exists()
    assert (tmp_path / "review.jsonl.folds" / "fold-2" / "model" / "model.safetensors").exists()
    trained = []
    train = label_noise.train
    monkeypatch.setattr(label_noise, "train", lambda flags: trained.append(flags) or train(flags))
    monkeypatch.setattr(label_noise, "_score_fold", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        find_noise(path, tiny_model, output, "--max_steps", 1)
    monkeypatch.undo()
    monkeypatch.setattr(label_noise, "train", lambda flags: pytest.fail("trained again"))
    find_noise(path, tiny_model, output, "--max_steps", 1)
    assert len(trained) == 1
    assert output.exists()


def test_a_record_s_scores_are_those_of_its_answers_alone_in_any_batch(tiny_reward_model):
    model = RewardModel.from_pretrained(str(tiny_reward_model)).eval()
    records = [
        {"question": f"Q{i}", "chosen": "a b c " * (1 + i), "rejected": ["d e", "f " * i + "g"], "id": i}
        for i in range(7)
    ]
    model.share_prefixes("auto")
    whole = label_noise.score_records(model, records, 64, 10_000)
    single = label_noise.score_records(model, records, 64, 1)
    for one, other in zip(whole, single):
        assert one == pytest.approx(other, abs=1e-4)
        assert len(one) == 3


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--folds", "1"], "--folds 1: leaves nothing to train on"),
        (["--folds", "9"], "4 questions make no 9 folds"),
        (["--only_fold", "3"], "--only_fold 3: there are 2 folds"),
        (["--output_dir", "x"], "--output_dir: is this command's to say"),
        (["--eval_data_path=x"], "--eval_data_path: is this command's to say"),
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--work_dir", __file__], "is a file, not a folder"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_any_work(tmp_path, tiny_model, flags, problem):
    path = write(tmp_path / "train.jsonl", count=4)
    with pytest.raises(InputError, match=problem):
        find_noise(path, tiny_model, tmp_path / "review.jsonl", *flags)
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.jsonl"]


def test_foreign_outputs_and_work_folders_are_not_touched(tmp_path, tiny_model):
    path = write(tmp_path / "train.jsonl", count=4)
    with pytest.raises(InputError, match="is no list of this command"):
        find_noise(path, tiny_model, path)
    with pytest.raises(InputError, match="holds something else than folds"):
        find_noise(path, tiny_model, tmp_path / "review.jsonl", "--work_dir", tmp_path)
