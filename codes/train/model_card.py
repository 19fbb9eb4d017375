"""The model card: README.md of a trained folder, with front matter that the Hub reads.

Everything comes from what the run wrote, run_info.json and metrics.jsonl, and from the base model's own card. Files
and models of this machine are named without their folders. What others wrote (names, licences) is quoted, never taken
for markup.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from codes.common.conversation import is_local
from codes.common.records import replace_file
from codes.common.run_info import run_info_path
from codes.train.adapters import ADAPTER_WEIGHTS
from codes.train.training_report import METRICS_FILE, read_metrics

logger = logging.getLogger(__name__)

UNKNOWN_LICENSE = "unknown"
CARD_FILE = "README.md"
# Of the base model's licence fields, what is carried over, and how it may look.
LICENSE_FIELDS = {"license": r"[\w.+-]{1,60}", "license_name": r"[\w .+-]{1,80}", "license_link": r"https://\S{1,200}"}
OWN_TAGS = ["reward-model", "contrastrm"]
# Configuration that says nothing without the machine it ran on, or stands elsewhere in the card.
LEFT_OUT = ("model_name_or_path", "revision", "train_data_sha256", "train_data_weights", "lora")
COUNTS = {
    "groups": "groups",
    "rejected_answers": "rejected answers",
    "tokens": "tokens",
    "dropped_answers_equal_to_chosen": "dropped, equal to the chosen answer",
    "dropped_groups_without_rejected": "groups dropped, nothing rejected left",
    "conversations_with_cut_prompt": "conversations with a cut prompt",
    "conversations_with_cut_answer": "conversations with a cut answer",
    "groups_without_rated_pair": "groups with no two answers rated differently",
}

STOCK = """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER{options}, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{more}messages = [{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "4."}}]
text = tokenizer.apply_chat_template(messages, tokenize=False)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")  # the template has the special tokens
print(model(**inputs).logits{read})
```"""
ADAPTER = """This folder holds a LoRA adapter and the reward head; with peft installed it loads onto its base model:

{stock}

`python -m codes.train.export FOLDER --output_dir MERGED` merges it into a whole model."""
HEADS = """The labels are the reward heads {names}: stock classes give a logit for each, in this order. The score is
{rule}; ContrastRM's commands combine them so."""
POOLED = """The head reads the {pooling} of all tokens' hidden states, which no stock class can express for a decoder:
they refuse this folder. With [ContrastRM](https://github.com/HuihuiChyan/ContrastRM)'s code:

```python
from codes.train.reward_model import RewardModel

model = RewardModel.from_pretrained(FOLDER).eval()
```"""


def base_license(model: str, revision: str | None = None) -> dict[str, str]:
    """The licence fields of a model's card, from its folder or the Hub; ``license`` is ``unknown`` where none says."""
    try:
        path = Path(model) / CARD_FILE
        text = path.read_text(encoding="utf-8") if is_local(model) else _hub_card(model, revision)
        data = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception:
        # No card, no such model, no network, front matter that is no YAML: each means that nobody says.
        data = {}
    fields = {
        name: data[name]
        for name, pattern in LICENSE_FIELDS.items()
        if isinstance(data.get(name), str) and re.fullmatch(pattern, data[name])
    }
    return fields if "license" in fields else {"license": UNKNOWN_LICENSE}


def _hub_card(model: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, CARD_FILE, revision=revision)).read_text(encoding="utf-8")


def model_card(info: Mapping, logs: Sequence[Mapping], license_fields: Mapping[str, str], *, is_adapter: bool) -> str:
    """The card's text: a run's provenance, its logs and the base model's licence -> front matter and Markdown."""
    configuration = info["configuration"]
    base, on_hub = configuration["model_name_or_path"], not _looks_local(configuration["model_name_or_path"])
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification",
        tags=OWN_TAGS,
        **({"base_model": base} if on_hub else {}),
        **license_fields,
    )
    license_text = license_fields.get("license_name", license_fields["license"])
    revision = f" at revision {_code(configuration['revision'])}" if configuration.get("revision") else ""
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# Reward model",
        f"Trained with ContrastRM from {_code(base if on_hub else _name(base))}{revision}, whose licence is "
        f"{_code(license_text)}{'' if license_text != UNKNOWN_LICENSE else ' to this card'}. It gives a conversation "
        "one score, and a higher one to the better answer; scores of answers to different questions do not compare.",
        "## How to load",
        _how_to_load(info["model"], is_adapter),
        "## Data",
        *[_data_section(name, info[f"{name}_data"]) for name in ("train", "eval") if info.get(f"{name}_data")],
        "## Settings",
        _table(("setting", "value"), _settings(configuration)),
        "## Last evaluation",
        _last_evaluation(logs),
    ]
    return "\n\n".join(sections) + "\n"


def _how_to_load(model: Mapping, is_adapter: bool) -> str:
    heads = model.get("heads")
    told = [_loading_code(model, is_adapter, labels=len(heads["names"]) if heads else 1)]
    if heads:
        names = ", ".join(map(_code, heads["names"]))
        told.append(HEADS.format(names=names, rule=_rule_in_words(heads)))
    return "\n\n".join(told)


def _rule_in_words(heads: Mapping) -> str:
    if heads["rule"] == "weighted":
        return " + ".join(f"{weight:g} x {_code(name)}" for name, weight in heads["weights"].items())
    return {
        "mean": "their mean",
        "minimum": "the least of them",
        "penalised": f"their mean less {heads.get('penalty', 1):g} times their variance",
    }[heads["rule"]]


def _loading_code(model: Mapping, is_adapter: bool, labels: int) -> str:
    if model.get("pooling", "last") != "last":
        return POOLED.format(pooling={"mean": "mean", "weighted": "position-weighted mean"}[model["pooling"]])
    read = ".item()" if labels == 1 else "[0].tolist()"
    if is_adapter:
        more = "model.config.pad_token_id = tokenizer.pad_token_id\n"
        return ADAPTER.format(stock=STOCK.format(options=f", num_labels={labels}", more=more, read=read))
    return STOCK.format(options="", more="", read=read)


def _data_section(name: str, data: Mapping) -> str:
    files = _table(("file", "SHA-256"), [(_code(_name(file["path"])), _code(file["sha256"])) for file in data["files"]])
    counts = data["counts"]
    rows = [(label, f"{counts[key]:,}") for key, label in COUNTS.items() if counts.get(key)]
    left_out = counts.get("left_out_by_verification", {})
    rows += [(f"records left out, {_code(outcome)}", f"{number:,}") for outcome, number in left_out.items()]
    return f"### {'Training' if name == 'train' else 'Evaluation during training'}\n\n{files}\n\n" + _table(
        ("count", ""), rows
    )


def _settings(configuration: Mapping) -> Iterable[tuple[str, str]]:
    for name, value in {**configuration, **(configuration.get("lora") or {})}.items():
        if name not in LEFT_OUT and value not in (None, False, {}, []):
            yield name if name not in (configuration.get("lora") or {}) else f"lora {name}", _code(json.dumps(value))


def _last_evaluation(logs: Sequence[Mapping]) -> str:
    evaluations = [log for log in logs if "eval_loss" in log]
    last = (evaluations or [log for log in logs if "loss" in log] or [None])[-1]
    if last is None:
        return "None was made."
    kind = (
        "On the evaluation data" if evaluations else "No evaluation data was given; on the last logged training steps"
    )
    figures = [
        (name.removeprefix("eval_"), f"{value:.4g}")
        for name, value in last.items()
        if isinstance(value, float) and (name.startswith("eval_") if evaluations else "per_second" not in name)
    ]
    return f"{kind}, at step {last['step']}:\n\n" + _table(("metric", "value"), figures)


def _table(header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in [header, ("---", "---"), *rows])


def _code(text: str) -> str:
    """Text as a code span, whatever is in it; a table's bars would end the cell."""
    return "`" + re.sub(r"[`|\s]+", " ", text).strip() + "`"


def _name(path: str) -> str:
    return PureWindowsPath(path).name or path


def _looks_local(model: str) -> bool:
    """Whether a model is a folder of the machine that trained it: it is here, or cannot be a Hub name."""
    try:
        validate_repo_id(model)
    except HFValidationError:
        return True
    return is_local(model)


def write_model_card(
    run: Path, folder: Path | None = None, *, step: int | None = None, heads_merged: bool = False
) -> None:
    """Write the card of the run in ``run`` into ``folder``, by default the run's own; someone else's card stays.

    ``step``: the one whose weights the folder holds; what was logged later is not theirs. ``heads_merged``: the folder
    has one head in the place of those that were trained.
    """
    folder = folder or run
    path = folder / CARD_FILE
    if path.exists() and f"- {OWN_TAGS[-1]}\n" not in path.read_text(encoding="utf-8", errors="replace"):
        logger.warning("%s is no card of ours, and stays as it is", path)
        return
    info = json.loads(run_info_path(run).read_text(encoding="utf-8"))
    if heads_merged:
        info["model"].pop("heads", None)
    metrics = run / METRICS_FILE
    logs = [log for log in (read_metrics(metrics) if metrics.exists() else []) if step is None or log["step"] <= step]
    configuration = info["configuration"]
    license_fields = base_license(configuration["model_name_or_path"], configuration.get("revision"))
    text = model_card(info, logs, license_fields, is_adapter=(folder / ADAPTER_WEIGHTS).exists())
    with replace_file(path) as file:
        file.write(text)
