"""How models on this machine are run, and the flags of the scorers that are not one: `dpo`, `server` and `judge`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from codes.common.cli import positive_float, positive_int, rank_of_this_process
from codes.common.llm import RunOptions
from codes.common.records import InputError
from codes.common.server_flags import (
    add_price_flags,
    add_sampling_flags,
    add_server_flags,
    chat_backend,
    spending_allowed,
)

if TYPE_CHECKING:
    from codes.evaluate.scorers import Scorer

# A flag of the last column's scorers, given with another one, would be a mistake that nobody notices.
ONLY_WITH = {
    "ref_model": ("dpo",),
    "dpo_average": ("dpo",),
    "api": ("server",),
    "tokenizer": ("server",),
    "judge_mode": ("judge",),
    "judge_criteria": ("judge",),
    "top_p": ("judge",),
    "price_in": ("judge",),
    "price_out": ("judge",),
    "max_cost": ("judge",),
    "dry_run": ("judge",),
    "base_url": ("server", "judge"),
    "extra": ("server", "judge"),
    "rpm": ("server", "judge"),
    "tpm": ("server", "judge"),
}
SERVER_APIS = ("vllm_classify", "vllm_pooling", "sglang", "tei")
JUDGE_MODES = ("pairwise", "pointwise")
NO_REFERENCE = "none"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """How models on this machine are loaded and run."""
    parser.add_argument("--batch_size", type=positive_int, default=32, help="most conversations in one forward pass")
    parser.add_argument(
        "--tokens_per_batch",
        type=positive_int,
        metavar="N",
        help="about the most tokens in one forward pass, halved where memory does not suffice; default: 4096 on the "
        "CPU, 32768 on a GPU",
    )
    parser.add_argument("--max_length", type=positive_int, default=2048, help="most tokens of one conversation")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: bf16 on CUDA, fp32 on the CPU")
    parser.add_argument(
        "--prefix_sharing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute a question once for all its answers; auto: where it saves enough tokens; the scores are the same",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is")
    parser.add_argument(
        "--device_map",
        choices=("auto",),
        help="auto: spread a model that is too large for one GPU over all of them",
    )
    parser.add_argument("--no_cache", action="store_true", help="neither use nor keep scores in score_store/")
    parser.add_argument("--chat_template", help="file with a chat template to use instead of the tokenizer's")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that a Hub model brings along")


def check_model_flags(args: argparse.Namespace) -> None:
    """Raise InputError where ``add_model_flags``'s flags do not go together; nothing is read or loaded."""
    if args.device_map and args.device != "auto":
        raise InputError(f"--device_map {args.device_map} and --device {args.device} contradict each other")
    if args.device_map and rank_of_this_process()[1] > 1:
        raise InputError("--device_map spreads one model over all GPUs; start it without torchrun")
    if args.chat_template and not Path(args.chat_template).is_file():
        raise InputError(f"--chat_template: no such file: {args.chat_template}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `dpo`, of `server` and `judge` together, and of each alone."""
    dpo = parser.add_argument_group("--scorer dpo: implicit reward of the policy --model_path")
    dpo.add_argument(
        "--ref_model", metavar="REF", help=f"the reference policy: a folder or a Hub name; {NO_REFERENCE!r} for none"
    )
    dpo.add_argument(
        "--dpo_beta", type=positive_float, default=0.1, help="factor of the difference of log-probabilities"
    )
    dpo.add_argument(
        "--dpo_average", action="store_true", help="mean instead of sum over the answer's tokens (as SimPO does)"
    )
    served = parser.add_argument_group("--scorer server and judge: the model that --model_name names, on a server")
    add_server_flags(served)
    served.add_argument(
        "--api",
        choices=SERVER_APIS,
        help="server: how it is asked for a score: vLLM's /classify or /pooling, SGLang's /classify, Text Embeddings "
        "Inference's /predict",
    )
    served.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="server: folder or Hub name of the tokenizer; conversations are then rendered and cut here. Without it "
        "vLLM gets messages, renders them with its own template and cuts nothing",
    )
    judge = parser.add_argument_group("--scorer judge: a language model as judge")
    judge.add_argument(
        "--judge_mode",
        choices=JUDGE_MODES,
        help="pairwise: which of two answers is better, in both orders (default); pointwise: a score from 1 to 10",
    )
    judge.add_argument("--judge_criteria", metavar="FILE", help="text that replaces the criteria in the judge's prompt")
    add_sampling_flags(judge, temperature=0.0, max_tokens=1024)
    add_price_flags(judge)
    judge.add_argument(
        "--dry_run", action="store_true", help="judge: print what would be asked and cost at most; ask nothing"
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raise InputError where the flags do not go together or something is missing; nothing is read or loaded."""
    for name, scorers in ONLY_WITH.items():
        if args.scorer not in scorers and getattr(args, name) not in (None, False):
            raise InputError(f"--{name} goes with --scorer {' or '.join(scorers)}, not with {args.scorer}")
    if args.scorer == "dpo" and not (args.model_path and args.ref_model):
        raise InputError("--scorer dpo needs --model_path and --ref_model (a model, or 'none' for no reference)")
    if args.scorer == "ensemble" and not args.model_path:
        raise InputError("--scorer ensemble needs --model_path: the file that `python -m codes.evaluate.ensemble` made")
    if args.scorer in ("server", "judge") and not args.model_name:
        raise InputError(f"--scorer {args.scorer} needs --model_name: the name by which the server knows its model")
    if args.scorer == "server" and args.api is None:
        raise InputError(f"--scorer server needs --api: {', '.join(SERVER_APIS)}")
    if args.scorer == "server" and not (args.base_url or os.environ.get("OPENAI_BASE_URL")):
        raise InputError("--scorer server needs --base_url (or OPENAI_BASE_URL): the server's address")
    if args.scorer == "judge":
        _check_judge_flags(args)


def _check_judge_flags(args: argparse.Namespace) -> None:
    args.judge_mode = args.judge_mode or JUDGE_MODES[0]
    spending_allowed(args)
    if args.no_cache:
        raise InputError("--no_cache: a judge's replies are always journalled; choose another output to ask afresh")
    if rank_of_this_process()[1] > 1:
        raise InputError("--scorer judge: one process asks for everything; start it without torchrun")


def load(args: argparse.Namespace) -> "Scorer":
    """The scorer that the flags ask for; each imports what it needs by itself."""
    if args.scorer == "judge":
        from codes.evaluate.api import Judge

        options = RunOptions(mode="estimate" if args.dry_run else "ask", spending=spending_allowed(args))
        backend = chat_backend(args, args.model_name, options)
        criteria = args.judge_criteria and _criteria(Path(args.judge_criteria))
        return Judge(backend, args.judge_mode, concurrency=args.concurrency, criteria=criteria)
    if args.scorer == "server":
        from codes.evaluate.served_scorer import ServedScorer

        return ServedScorer(
            args.api,
            args.model_name,
            base_url=args.base_url or os.environ["OPENAI_BASE_URL"],
            tokenizer_path=args.tokenizer,
            max_length=args.max_length,
            chat_template=args.chat_template,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            extra=args.extra,
            timeout=args.timeout,
            concurrency=args.concurrency,
            rpm=args.rpm,
            tpm=args.tpm,
        )
    if args.scorer == "ensemble":
        from codes.evaluate.ensemble_scorer import EnsembleScorer

        return EnsembleScorer.load(
            Path(args.model_path), prefix_sharing=args.prefix_sharing, **local_model_options(args)
        )
    from codes.evaluate.dpo_scorer import DpoScorer

    return DpoScorer.load(
        args.model_path,
        None if args.ref_model == NO_REFERENCE else args.ref_model,
        beta=args.dpo_beta,
        average=args.dpo_average,
        **local_model_options(args),
    )


def local_model_options(args: argparse.Namespace) -> dict:
    """What a reward model and a policy are loaded with alike."""
    names = ("batch_size", "tokens_per_batch", "max_length", "dtype", "device", "device_map")
    return {name: getattr(args, name) for name in (*names, "chat_template", "revision", "trust_remote_code")}


def _criteria(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judge_criteria {path}: {error}") from None
    if not text:
        raise InputError(f"--judge_criteria {path}: is empty")
    return text
