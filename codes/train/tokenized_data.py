"""Tokenized training data on disk: written once, by all cores, as Arrow files that are mapped into memory.

Every file of train records has a folder of its own, named by a hash of all that decides its content: the file's bytes,
tokenizer, chat template, the encoding's settings and code. So a second start, another rank or another run that shares
the folder opens what is there, and nothing stale is ever taken for it.
"""

import json
import multiprocessing
import os
import shutil
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from codes.common import conversation
from codes.common.cli import RunFailed
from codes.common.conversation import template_hash
from codes.common.records import InputError, content_hash, file_sha256, iter_train_records, write_json
from codes.train import training_data
from codes.train.folder_lock import folder_lock
from codes.train.training_data import (
    DataCounts,
    EncodedGroup,
    EncodingSettings,
    encode_record,
    usable_records,
    with_in_batch_negatives,
)

GROUPS_FILE, COUNTS_FILE = "groups.arrow", "counts.json"
INT_LIST = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {"ids": INT_LIST, "lengths": INT_LIST, "characters": INT_LIST, "bias_types": pa.list_(pa.string())}
    | {"ratings": pa.list_(pa.float64()), "prefix": pa.int32()}
)
CHUNK = 256  # Records that are encoded, and written, at a time.
# Bytes of records below which starting processes takes longer than tokenizing does.
WORTH_PROCESSES = 16 << 20


class TokenizedFile:
    """The groups of one file of train records, mapped from disk; sizes of all groups are held in memory.

    answers, tokens, longest, prefix: int64 [groups]: the answers of each group, the tokens of all its conversations,
    those of its longest one, and how many first tokens all of them share.
    """

    def __init__(self, folder: Path):
        self.counts = DataCounts(**json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8")))
        self._rows = Dataset.from_file(str(folder / GROUPS_FILE)).with_format("arrow")
        lengths = self._rows.data.column("lengths")
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(pc.list_value_length(lengths).to_numpy())])
        of_answers = pc.list_flatten(lengths).to_numpy().astype(np.int64)
        self.answers = np.diff(starts)
        self.tokens = np.add.reduceat(of_answers, starts[:-1])
        self.longest = np.maximum.reduceat(of_answers, starts[:-1])
        self.prefix = self._rows.data.column("prefix").to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.answers)

    def conversation_tokens(self) -> np.ndarray:
        """The tokens of every conversation, int32 [conversations], each group's one after another."""
        return pc.list_flatten(self._rows.data.column("lengths")).to_numpy()

    def group(self, place: int, index: int) -> EncodedGroup:
        """The group at a place in this file, under its index in the whole data set."""
        row = self._rows[place]
        ids, lengths, characters, bias_types, ratings = (row.column(name)[0].values for name in SCHEMA.names[:5])
        ends = np.cumsum(lengths.to_numpy())
        objectives = len(ratings) // len(lengths)
        return EncodedGroup(
            index=index,
            answers=tuple(answer.tolist() for answer in np.split(ids.to_numpy(), ends[:-1])),
            answer_characters=tuple(characters.to_pylist()),
            bias_types=tuple(bias_types.to_pylist()),
            ratings=tuple(zip(*[iter(ratings.to_pylist())] * objectives)),
        )


def tokenized_file(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: EncodingSettings,
    cache_dir: str | os.PathLike,
    processes: int | None = None,
) -> TokenizedFile:
    """The file's groups, tokenized into ``cache_dir`` where they are not there yet.

    One process at a time writes; others that want the same, such as the other ranks, wait and open what it wrote.
    ``processes`` None takes all cores for files that are worth it. Raises InputError where a record is bad or the
    template refuses it, and where no group is left; nothing is kept then.
    """
    key = content_hash(file_sha256(path), _tokenizer_hash(tokenizer), asdict(settings), _code_hash())[:32]
    folder = Path(cache_dir).absolute() / key
    if not folder.exists():
        with folder_lock(folder):
            if not folder.exists():
                _tokenize_file(path, tokenizer, settings, folder, processes or _processes_for(path))
    return TokenizedFile(folder)


def check_small_file(path: str) -> None:
    """Raise InputError for a bad line before a model is loaded, where reading the file takes no time to speak of."""
    if os.path.getsize(path) < WORTH_PROCESSES:
        for _ in iter_train_records(path):
            pass


def _tokenize_file(
    path: str, tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings, folder: Path, processes: int
) -> None:
    """Write the folder under another name first, so that one of this name is always whole."""
    unfinished = folder.with_name(f".{folder.name}-{socket.gethostname()}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a start that was killed
    created = [parent for parent in unfinished.parents if not parent.exists()]
    unfinished.mkdir(parents=True)
    try:
        counts = DataCounts()
        records: Iterable[dict] = usable_records(path, settings, counts)
        if settings.in_batch_negatives:
            records = with_in_batch_negatives(list(records), settings.in_batch_negatives, settings.seed)
        with pa.OSFile(str(unfinished / GROUPS_FILE), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as stream:
            for batch, batch_counts in _encoded_batches(records, partial(_encode, tokenizer, settings), processes):
                stream.write_batch(batch)
                counts.add(batch_counts)
        _require_groups(path, settings, counts)
        write_json(unfinished / COUNTS_FILE, counts.as_dict())
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # where it does, another machine was faster
                raise
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in created:
            parent.rmdir()
        raise
    shutil.rmtree(unfinished, ignore_errors=True)


def _require_groups(path: str, settings: EncodingSettings, counts: DataCounts) -> None:
    left_out = sum(counts.left_out_by_verification.values())
    if left_out == counts.records:
        raise InputError(f"{path}: verification left none of the {counts.records} records to use")
    if counts.groups == 0:
        raise InputError(
            f"{path}: no group is left to train on: in all {counts.records - left_out} records the first "
            f"{settings.max_length} tokens of the rejected answers equal the chosen one's; raise --max_length"
        )


def _encode(
    tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings, records: list[dict]
) -> tuple[pa.RecordBatch, DataCounts]:
    counts = DataCounts()
    rows = [encode_record(tokenizer, record, settings, counts) for record in records]
    return pa.RecordBatch.from_pylist([row for row in rows if row is not None], schema=SCHEMA), counts


def _encoded_batches(records: Iterable[dict], encode: partial, processes: int) -> Iterator:
    """Encoded chunks in the records' order; with several processes, a few chunks ahead of what is taken."""
    iterator = iter(records)
    chunks = iter(lambda: list(islice(iterator, CHUNK)), [])
    if processes == 1:
        yield from map(encode, chunks)
        return
    # Forked, as DataLoader's workers are: they need no import and no copy of the tokenizer.
    fork = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(processes, mp_context=fork, initializer=_start_worker, initargs=(encode,)) as pool:
            pending = deque()
            for chunk in chunks:
                pending.append(pool.submit(_encode_in_worker, chunk))
                if len(pending) > 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except BrokenProcessPool:
        raise RunFailed("a tokenizing process ended unexpectedly; is the memory used up?") from None


_worker: dict[str, partial] = {}


def _start_worker(encode: partial) -> None:
    # A core each: threads of the tokenizer's own would only stand in each other's way, and do not survive the fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker["encode"] = encode


def _encode_in_worker(records: list[dict]) -> tuple[pa.RecordBatch, DataCounts]:
    return _worker["encode"](records)


def _processes_for(path: str) -> int:
    return 1 if os.path.getsize(path) < WORTH_PROCESSES else len(os.sched_getaffinity(0))


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return content_hash(type(tokenizer).__name__, vocabulary, template_hash(tokenizer))


def _code_hash() -> str:
    """Whatever else the ids may depend on: the code that makes them, ours and the tokenizers'."""
    ours = [file_sha256(module.__file__) for module in (conversation, training_data)]
    return content_hash(ours, SCHEMA.to_string(), transformers.__version__, tokenizers.__version__)
