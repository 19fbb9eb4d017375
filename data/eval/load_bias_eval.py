"""Fetch the ten public bias-evaluation files once, for nodes without internet.

    python data/eval/load_bias_eval.py
    python -m codes.evaluate.eval_rm all --scorer length --data_dir data/eval/public

They come from the repository HuihuiChyan/ContrastRM at a fixed commit, or from --from. Each must have the SHA-256 and
the number of rows below; a broken transfer is continued by the next run, and a file that differs is never overwritten.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from codes.common.cli import EXIT_DONE, command_parser, random_seed, run_main  # noqa: E402
from codes.common.download import PinnedFile, fetch_pinned_file, is_url  # noqa: E402
from codes.common.records import InputError  # noqa: E402
from codes.common.run_info import redact, write_run_info  # noqa: E402

COMMIT = "1dbb1639976020aed5ad700952f88e9af4984c30"
SOURCE = f"https://raw.githubusercontent.com/HuihuiChyan/ContrastRM/{COMMIT}/data/eval"
PUBLIC_FILES = tuple(
    PinnedFile(f"{bias}_bias.jsonl", rows, sha256)
    for bias, rows, sha256 in (
        ("length", 291, "c7eb05986cab28c3a0fc846adf0474d27106590b349867cd7dd64dc6d33ae221"),
        ("authority", 380, "1e21790b0743eb9a1dbfabf656a385ad7152123e6aa9d1ea0742dddf68db061c"),
        ("beauty", 304, "19ff7217ed8c8e17907c65b0bafaa8418c2877e5a28d0d22d4b24b756715326b"),
        ("assertiveness", 351, "3262171f959c7d9b03792ab3e5f637ecea856222b190248ea2b4ffe5d9669ad3"),
        ("sycophancy", 295, "5ba53e1588fa5501ca02cae5e9434b894a64925bec59d4a42aa83b8fb2493a9e"),
        ("sentiment", 397, "22d74ab006ff285cb359fbbc1913543e6529f262450d2dc623d83d277d9e38b9"),
        ("concreteness", 362, "b52055e4227cd4ad585fc5fc0c1cd675fdd3575f058f6c0c861ae2224ffe4999"),
        ("gender", 327, "42a28480347c6bde2d8f0f76ec92f027e1308c67abae77757afdc8e8ab5e1749"),
        ("race", 297, "ccc9a6dbd132de52cc0bf45d4f70eda4ebb155e23f14bd8c39e6e8301e2f1fcf"),
        ("refinement-aware", 499, "b029e50e77293e7c655a3b72b08a56540a54d3ba3cac3a381c7386ea03e2d975"),
    )
)


def fetch_files(source: str, output_dir: Path, files: Sequence[PinnedFile] = PUBLIC_FILES) -> int:
    """Fetch the files that are not there yet; returns how many that were."""
    if not is_url(source) and not Path(source).is_dir():
        raise InputError(f"--from {source}: is neither a URL nor a folder")
    fetched = 0
    for file in files:
        new = fetch_pinned_file(source, file, output_dir)
        fetched += new
        print(f"{file.rows:>6} rows  {output_dir / file.name}{'' if new else '  (was there already)'}")
    pinned = {file.name: {"rows": file.rows, "sha256": file.sha256} for file in files}
    write_run_info(output_dir, {"command": "load_bias_eval", "files": pinned}, source=redact(source))
    return fetched


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, "")
    parser.prog = "python data/eval/load_bias_eval.py"
    parser.add_argument(
        "--from", dest="source", metavar="URL_OR_DIR", default=SOURCE, help="a URL or a folder that holds the files"
    )
    parser.add_argument("--output_dir", help="the folder to put them into; default: public/ beside this script")
    parser.add_argument("--seed", type=random_seed, default=42, help="has no effect here; taken as by every command")
    arguments = parser.parse_args(argv)
    fetch_files(arguments.source, Path(arguments.output_dir or Path(__file__).with_name("public")))
    return EXIT_DONE


if __name__ == "__main__":
    run_main(main)
