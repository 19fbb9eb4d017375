"""Fixtures that several test files share: a tiny model on disk, and running a command as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.headless_browser import Browser, chromium_path

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# What DeepSpeed compiles for CPU ranks: built once a checkout, and no lock of a run elsewhere is waited for.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / "output" / "torch_extensions"))

# A machine that does other work as well takes its time over an example now and then.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

TEXTS = [
    "The capital of France is Paris, and the Seine runs through it.",
    "def add(a, b):\n    return a + b\n",
    "I think the answer is probably 42, because six times seven makes forty-two.",
    "水在标准大气压下的沸点是一百摄氏度。",
] * 5

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODERS = {
    "Qwen3": SIZE | {"num_key_value_heads": 2, "head_dim": 8},
    "Llama": SIZE | {"num_key_value_heads": 2},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "GPTNeoX": SIZE,
    "Gemma2": SIZE | {"num_key_value_heads": 2, "head_dim": 8},
}
ENCODERS = {"Bert": SIZE, "ModernBert": SIZE}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a tiny causal language model (Qwen3 architecture), tokenizer and chat template."""
    from codes.train.tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder, TEXTS, vocab_size=400, hidden_size=32, layers=2)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tiny_model):
    """Folders with tiny random language models of each architecture, all with the tiny model's tokenizer."""
    import torch
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = {}

    def folder(architecture: str, **token_changes):
        key = (architecture, tuple(token_changes.items()))
        if key not in made:
            path = tmp_path_factory.mktemp(architecture)
            config_class = getattr(transformers, f"{architecture}Config")
            pads = {f"{name}_token_id": 0 for name in ("pad", "bos", "cls", "sep", "eos")}
            config = config_class(
                **(DECODERS | ENCODERS)[architecture], vocab_size=len(tokenizer), max_position_embeddings=256, **pads
            )
            config._attn_implementation = "eager"
            torch.manual_seed(1)
            suffix = (
                "ForMaskedLM"
                if architecture in ENCODERS
                else ("LMHeadModel" if architecture == "GPT2" else "ForCausalLM")
            )
            getattr(transformers, architecture + suffix)(config).save_pretrained(path)
            changed = AutoTokenizer.from_pretrained(tiny_model)
            for name, value in token_changes.items():
                setattr(changed, name, value)
            changed.save_pretrained(path)
            made[key] = path
        return str(made[key])

    return folder


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory, tiny_model) -> Path:
    """A folder with a stock reward model whose fresh head was scaled up, so that scores are well apart."""
    import torch

    from codes.train.reward_model import RewardModel

    torch.manual_seed(0)
    model = RewardModel.from_pretrained(str(tiny_model), new_head=True)
    model.ensure_own_pad_token()
    with torch.no_grad():
        model.model.score.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "tiny-reward"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_members(tmp_path_factory, tiny_reward_model) -> list[Path]:
    """Three reward models with the body of ``tiny_reward_model``, heads of their own and scales well apart."""
    import torch

    from codes.train.reward_model import RewardModel

    model = RewardModel.from_pretrained(str(tiny_reward_model))
    folders = [tmp_path_factory.mktemp("members") / f"seed-{seed}" for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, start=1):
        torch.manual_seed(seed)
        with torch.no_grad():
            model.model.score.weight.normal_(std=0.3 * 10.0 ** (seed - 2))
        model.save_pretrained(folder)
    return folders


@pytest.fixture(scope="session")
def tiny_ensemble(tmp_path_factory, tiny_model) -> Path:
    """A folder with a reward model of three heads, scaled up so that their scores are well apart."""
    import torch

    from codes.train.reward_heads import ensemble_heads
    from codes.train.reward_model import RewardModel

    torch.manual_seed(0)
    model = RewardModel.from_pretrained(str(tiny_model), new_head=True, heads=ensemble_heads(3, "minimum"))
    with torch.no_grad():
        model.model.score.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "tiny-ensemble"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_runs():
    """Training runs in this process go on one thread and draw no figures."""
    import torch

    # Models this small lose more to waiting for each other's threads than they gain.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # Figures take longer to draw than these runs; one test draws its own.
        patch.setattr("codes.train.training_log.draw_run", lambda folder: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window; tests that use it skip where it is absent."""
    if chromium_path() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium, or set CHROMIUM to one)")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def run_command():
    """Run ``python -m MODULE ARGS...`` from the repository root, offline; returns the finished process."""

    def run(module: str, *args: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def shared_data() -> Path:
    """The folder of real public data; tests that use it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real public data is not beside this checkout")
    return SHARED_DATA
