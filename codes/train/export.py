"""Make a stock model folder of a trained adapter, or of a checkpoint of any run.

    python -m codes.train.export output/reward_model --output_dir output/reward_model_merged
    python -m codes.train.export output/reward_model/checkpoint-400 --output_dir output/best --dtype bf16

A LoRA adapter is merged into its base model, in float32; --no-merge keeps it an adapter folder, without the optimizer's
state. --merge_heads makes one head of several whose scores are averaged or summed, so that any server of one-label
classifiers can serve the model. The scores are those of the model that was trained. What is written loads with a stock
AutoModelForSequenceClassification, unless the model was trained with --pooling mean or weighted: no stock class can
express that for a decoder, and such a folder says so, loads with the commands here and is refused by stock classes.
"""

import json
import logging
import shutil
import sys
from pathlib import Path

import transformers

from codes.common.cli import command_parser, run_main
from codes.common.records import InputError, file_sha256
from codes.common.run_info import run_info_path, write_run_info
from codes.train.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from codes.train.model_card import write_model_card
from codes.train.reward_heads import ADAPTER_HEADS
from codes.train.reward_model import DTYPES, RewardModel

logger = logging.getLogger(__name__)

# What an adapter folder holds besides a run's checkpoints, logs and provenance.
ADAPTER_FILES = (
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_HEADS, "config.json"),
    *("tokenizer*", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
)


def export(
    model_path: str,
    output_dir: Path,
    *,
    merge: bool = True,
    merge_heads: bool = False,
    dtype: str = "fp32",
    **source: object,
) -> None:
    """Write the model of a folder or Hub name to ``output_dir``; ``source`` are revision and trust_remote_code.

    Raises InputError where the output holds anything, or the model cannot be loaded; see ``RewardModel``.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"--output_dir: {output_dir} is not an empty folder; choose another or remove it")
    if not merge:
        if merge_heads:
            raise InputError("--merge_heads: needs a whole model; leave --no-merge out")
        if not Path(model_path).is_dir() or adapter_config(model_path) is None:
            raise InputError(f"--no-merge: {model_path} is no folder with an adapter")
        files = sorted({path for pattern in ADAPTER_FILES for path in Path(model_path).glob(pattern)})
        output_dir.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copyfile(path, output_dir / path.name)
        _write_card(Path(model_path), output_dir)
        return
    model = RewardModel.from_pretrained(model_path, dtype=DTYPES[dtype], **source)
    model.ensure_own_pad_token()
    if merge_heads:
        if model.heads.are_plain:
            raise InputError(f"--merge_heads: {model_path} has one head")
        model.merge_heads()
    model.save_pretrained(output_dir)
    _write_card(Path(model_path), output_dir, merge_heads)
    adapter = adapter_config(model_path, source.get("revision"))
    configuration = {"model_path": model_path, **source, "dtype": dtype}
    if merge_heads:
        configuration["merge_heads"] = True
    if adapter is not None:
        configuration |= {"base_model": adapter.base_model_name_or_path, "base_revision": adapter.revision}
        if (weights := Path(model_path) / ADAPTER_WEIGHTS).is_file():
            configuration["adapter_sha256"] = file_sha256(weights)
    write_run_info(output_dir, configuration, model=model.facts())


def _write_card(source: Path, output_dir: Path, heads_merged: bool = False) -> None:
    """The model card of the run that ``source``, its folder or one of its checkpoints, belongs to."""
    for run in (source, source.parent):
        if (path := run_info_path(run)).is_file() and "train_data" in json.loads(path.read_text(encoding="utf-8")):
            step = source.name.removeprefix("checkpoint-")
            step = int(step) if run != source and step.isdigit() else None
            write_model_card(run, output_dir, step=step, heads_merged=heads_merged)
            return


def main() -> None:
    parser = command_parser(__doc__, "codes.train.export")
    parser.add_argument("model_path", help="folder of a run, of a checkpoint or of an adapter, or a Hub name")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to; new or empty")
    parser.add_argument("--no-merge", action="store_true", help="keep an adapter an adapter")
    parser.add_argument(
        "--merge_heads", action="store_true", help="make one head of several whose scores are averaged or summed"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="precision of the weights that are written")
    parser.add_argument("--revision", help="commit, tag or branch of the model on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that the model's repository ships")
    args = parser.parse_args()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    export(
        args.model_path,
        args.output_dir,
        merge=not args.no_merge,
        merge_heads=args.merge_heads,
        dtype=args.dtype,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    logger.info("wrote %s", args.output_dir)


if __name__ == "__main__":
    run_main(main)
