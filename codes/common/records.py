"""Record types of the four stages, and reading and writing them as UTF-8 JSONL.

A record stays the plain dict it was read as, so unknown fields pass through unchanged. Each record type has one check
function, which raises ``FieldError``; the reader turns that into an ``InputError`` naming file, line and field.
Files are replaced through a temporary file and a rename.
"""

import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

INJECTED_BIASES = ("length", "authority", "beauty", "assertiveness", "sycophancy", "sentiment", "concreteness")
PAIRWISE_BIASES = (*INJECTED_BIASES, "gender", "race")
REFINEMENT_BIAS = "refinement-aware"
# Measured of judges only, on the original pairs of the files there are.
JUDGE_BIASES = ("position", "bandwagon")
EVALUATED_BIASES = (*PAIRWISE_BIASES, REFINEMENT_BIAS)

CHOSEN_IS_BEST = "CHOSEN_IS_BEST"
VERIFICATION_OUTCOMES = (CHOSEN_IS_BEST, "CHOSEN_NOT_BEST", "UNDECIDED", "FAILED", "SKIPPED")
RESPONSE_LABELS = ("response1", "response2")
ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, str]
Question = str | list[Message]


class InputError(ValueError):
    """Bad usage or bad input. Its text is one line for the user; commands leave with exit status 2."""


class FieldError(ValueError):
    """What is wrong with one field of one record, before the file and line are known."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"field '{field}': {problem}")


# --- Checks: one per record type ---------------------------------------------------------------------------------


def check_train_record(record: dict) -> None:
    """question, chosen, rejected (a list, at least one); where present id, bias_type, rewards, verify_correctness."""
    check_question(record, "question")
    check_text(record, "chosen")
    rejected = _present(record, "rejected", list)
    if not rejected:
        raise FieldError("rejected", "the list is empty; at least one rejected answer is needed")
    for position, answer in enumerate(rejected):
        check_text({f"rejected[{position}]": answer}, f"rejected[{position}]")
    if "bias_type" in record:
        biases = _present(record, "bias_type", list)
        if not all(isinstance(bias, str) and bias for bias in biases):
            raise FieldError("bias_type", "every entry must be a non-empty string")
        if len(biases) > len(rejected):
            raise FieldError("bias_type", f"{len(biases)} entries for {len(rejected)} rejected answers")
    check_rewards(record)
    verification_outcome(record)


def verification_outcome(record: dict) -> str:
    """What the record's verification found; CHOSEN_IS_BEST without one. Raises FieldError for an unknown outcome."""
    outcome = record.get("verify_correctness", CHOSEN_IS_BEST)
    if outcome not in VERIFICATION_OUTCOMES:
        raise FieldError("verify_correctness", f"{outcome!r:.80} is not one of {', '.join(VERIFICATION_OUTCOMES)}")
    return outcome


def check_rewards(record: dict) -> None:
    """Where it is present: objective -> a rating, or null, of the chosen answer and of every rejected one."""
    rewards = _present(record, "rewards", dict) if "rewards" in record else {}
    rejected = len(record["rejected"])
    for name in rewards:
        field = f"rewards.{name}"
        if not name.strip():
            raise FieldError("rewards", "the name of an objective is empty")
        ratings = _present({field: rewards[name]}, field, list)
        if len(ratings) != 1 + rejected:
            raise FieldError(field, f"{len(ratings)} ratings for the chosen and {rejected} rejected answers")
        for position, rating in enumerate(ratings):
            if rating is not None:
                finite_number(rating, f"{field}[{position}]")


def check_bias_pair(record: dict) -> None:
    """question, two original and two rewritten responses, and the label of the better one."""
    check_question(record, "question")
    for field in ("original_response1", "original_response2", "rewritten_response1", "rewritten_response2"):
        check_text(record, field)
    label = _present(record, "label", str)
    if label not in RESPONSE_LABELS:
        raise FieldError("label", f"{label!r} is not one of {', '.join(RESPONSE_LABELS)}")


def check_refinement_pair(record: dict) -> None:
    """question, original_response and rewritten_response."""
    check_question(record, "question")
    check_text(record, "original_response")
    check_text(record, "rewritten_response")


def check_reward_bench_row(record: dict) -> None:
    """prompt, chosen, rejected (answers may be empty) and subset; whether it is known is for the metric to say."""
    check_question(record, "prompt")
    check_answer(record, "chosen")
    check_answer(record, "rejected")
    check_text(record, "subset")


def check_eval_record(bias: str) -> Callable[[dict], None]:
    """The check for the rows of a bias's evaluation file."""
    return check_refinement_pair if bias == REFINEMENT_BIAS else check_bias_pair


def bias_name_problem(name: str) -> str | None:
    """Why a name cannot be that of a user's own bias, or None.

    Names become parts of file names, so they are plain, and none can be taken for another file's.
    """
    taken = ("original", "gptinst", "all", "judgebench", "llmbar", "evalbiasbench", "probe")
    if name in (*EVALUATED_BIASES, *JUDGE_BIASES, *taken):
        return "is taken"
    if not re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", name) or len(name) > 60:
        return "is no bias name: use lower-case letters, digits and single hyphens, 60 at most"
    return None


def check_text(record: dict, field: str) -> None:
    """The field is there and is a string with something to read in it."""
    if not _present(record, field, str).strip():
        raise FieldError(field, "is empty")


def check_answer(record: dict, field: str) -> None:
    """The field is there and is a string; an empty answer is an answer."""
    _present(record, field, str)


def check_answers(record: dict, field: str) -> None:
    """The field is a list of answers, at least one."""
    answers = _present(record, field, list)
    if not answers:
        raise FieldError(field, "the list is empty; at least one answer is needed")
    for position, answer in enumerate(answers):
        check_answer({f"{field}[{position}]": answer}, f"{field}[{position}]")


def check_question(record: dict, field: str) -> None:
    """The field is a non-blank string, or a list of {role, content} messages ending in a non-blank user turn."""
    question = _present(record, field, (str, list))
    if isinstance(question, str):
        return check_text(record, field)
    check_messages(question, field)
    if question[-1]["role"] != "user":
        raise FieldError(field, f"the messages end in a {question[-1]['role']} turn, not in a user turn")
    if not question[-1]["content"].strip():
        raise FieldError(f"{field}[{len(question) - 1}].content", "is empty")


def check_messages(messages: list, field: str) -> None:
    """A non-empty list of {role, content} messages with known roles and string contents."""
    if not messages:
        raise FieldError(field, "the list of messages is empty")
    for position, message in enumerate(messages):
        where = f"{field}[{position}]"
        if not isinstance(message, dict):
            raise FieldError(where, f"expected a message object, found {_kind(message)}")
        if _present(message, "role", str, where) not in ROLES:
            raise FieldError(f"{where}.role", f"{message['role']!r} is not one of {', '.join(ROLES)}")
        _present(message, "content", str, where)


def finite_number(value: object, field: str) -> float:
    """The field's value as a float. Raises FieldError where it is no number, or none that a float can hold."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number larger than any float
            number = math.inf
        if math.isfinite(number):
            return number
    raise FieldError(field, f"expected a finite number, found {value!r:.80}")


def _present(record: dict, field: str, kind: type | tuple[type, ...], where: str = ""):
    name = f"{where}.{field}" if where else field
    if field not in record:
        raise FieldError(name, "is missing")
    if not isinstance(record[field], kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_KIND_NAMES[k] for k in kinds)
        raise FieldError(name, f"expected {wanted}, found {_kind(record[field])}")
    return record[field]


_KIND_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def _kind(value: object) -> str:
    return "null" if value is None else _KIND_NAMES.get(type(value), type(value).__name__)


# --- Reading -----------------------------------------------------------------------------------------------------


def iter_jsonl(path: str | os.PathLike, check: Callable[[dict], None] | None = None) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) from a JSONL file, one line in memory at a time; blank lines are passed over.

    Raises InputError for an absent or empty file, invalid UTF-8 or JSON, a line that is no object, a non-finite
    number, and whatever ``check`` finds, always naming file, line and field.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    found = False
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = True
            try:
                record = parse_record(line)
                if check is not None:
                    check(record)
            except FieldError as error:
                raise InputError(f"{path}:{number}: {error}") from None
            yield number, record
    if not found:
        raise InputError(f"{path}: the file has no records")


def parse_record(line: bytes) -> dict:
    """One JSON object from one line of UTF-8. Raises FieldError naming the byte, the column or the field."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FieldError("(line)", f"invalid UTF-8 at byte {error.start + 1}") from None
    try:
        record = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except json.JSONDecodeError as error:
        raise FieldError("(line)", f"invalid JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise FieldError("(line)", "the JSON is nested too deeply") from None
    except FieldError:
        raise
    except ValueError:
        # The one other thing that json refuses: Python limits the digits of the whole numbers it converts.
        raise FieldError("(line)", "a whole number has too many digits") from None
    if not isinstance(record, dict):
        raise FieldError("(line)", f"expected a JSON object, found {_kind(record)}")
    for field, value in record.items():
        _check_storable(field, "(line)")
        _check_storable(value, field)
    return record


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise FieldError(twice, "stands twice in one object")
    return record


def _check_storable(value: object, field: str) -> None:
    """Refuse what UTF-8 JSON cannot hold: NaN, infinities and lone surrogates."""
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(field, f"{value} is not a finite number")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FieldError(field, f"a lone surrogate at character {error.start + 1} is not valid text") from None
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_storable(item, f"{field}[{position}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_storable(key, field)
            _check_storable(item, f"{field}.{key}")


def read_jsonl(path: str | os.PathLike, check: Callable[[dict], None] | None = None) -> list[dict]:
    """All records of a file in order, checked; no id may stand twice."""
    records, first_line = [], {}
    for number, record in iter_jsonl(path, check):
        if "id" in record:
            key = record_key(path, number, record)
            if key in first_line:
                raise InputError(f"{path}:{number}: field 'id': {key!r} stands already on line {first_line[key]}")
            first_line[key] = number
        records.append(record)
    return records


def record_key(path: str | os.PathLike, number: int, record: dict) -> str:
    """The record's own id as a string. Raises InputError where it is neither a string nor a whole number."""
    given = record["id"]
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise InputError(f"{path}:{number}: field 'id': expected a non-empty string or a whole number, found {given!r}")
    return str(given)


def iter_train_records(path: str | os.PathLike) -> Iterator[dict]:
    """Stream checked train records, each with an ``id``: its own, or one from its content and occurrence number."""
    first_line: dict[str, int] = {}
    occurrences: Counter[bytes] = Counter()
    for number, record in iter_jsonl(path, check_train_record):
        if "id" in record:
            key = record_key(path, number, record)
        else:
            digest = content_hash(record["question"], record["chosen"], record["rejected"])
            key = f"{digest[:16]}-{occurrences[bytes.fromhex(digest[:32])]}"
            occurrences[bytes.fromhex(digest[:32])] += 1
            record = {"id": key, **record}
        if key in first_line:
            raise InputError(f"{path}:{number}: field 'id': {key!r} stands already on line {first_line[key]}")
        first_line[key] = number
        yield record


def aligned_bias_types(record: dict) -> list[str]:
    """One bias name per rejected answer; a shorter ``bias_type`` aligns with the tail, the head is original."""
    biases = record.get("bias_type", [])
    return ["original"] * (len(record["rejected"]) - len(biases)) + biases


def rewards_of(record: dict, rejected: Sequence[int | None]) -> dict[str, dict]:
    """``rewards`` for a record made of the chosen and the rejected answers at these positions, None for a new answer,
    which nobody has rated; nothing for a record without the field.
    """
    if "rewards" not in record:
        return {}
    kept = [0, *(None if position is None else 1 + position for position in rejected)]
    ratings = {name: [None if i is None else rated[i] for i in kept] for name, rated in record["rewards"].items()}
    return {"rewards": ratings}


def content_hash(*values: object) -> str:
    """SHA-256 of the values' canonical JSON, in hexadecimal."""
    return hashlib.sha256(to_json(values, sort_keys=True).encode("utf-8")).hexdigest()


def seeded_random(*values: object) -> Random:
    """A generator that depends on the values alone."""
    return Random(int(content_hash(*values)[:16], 16))


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Writing -----------------------------------------------------------------------------------------------------


def to_json(value: object, **options) -> str:
    """JSON text as every file of the project holds it: readable UTF-8, never NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)


def write_jsonl(path: str | os.PathLike, records: Iterable[dict]) -> int:
    """Replace a JSONL file whole: written beside it, synced, then renamed. Returns the number of records."""
    count = 0
    with replace_file(path) as file:
        for record in records:
            file.write(to_json(record) + "\n")
            count += 1
    return count


def write_json(path: str | os.PathLike, value: object) -> None:
    """Replace a JSON file whole, indented for reading."""
    with replace_file(path) as file:
        file.write(to_json(value, indent=2) + "\n")


class replace_file:
    """Context manager: a file, of text unless ``binary``, that takes its name only when the block ends well, and is
    removed otherwise.
    """

    def __init__(self, path: str | os.PathLike, *, binary: bool = False):
        self.path = Path(path)
        self.how = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": "\n"}

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self.temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        self.file = os.fdopen(handle, **self.how)
        return self.file

    def __exit__(self, error_type, error, traceback):
        try:
            if error_type is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if error_type is None:
                os.chmod(self.temporary, 0o666 & ~_umask())
                os.replace(self.temporary, self.path)
            elif isinstance(error, OSError):
                name_the_file(error, self.path)
        except OSError as failure:
            name_the_file(failure, self.path)
            raise
        finally:
            if os.path.exists(self.temporary):
                os.unlink(self.temporary)


def name_the_file(error: OSError, path: Path) -> None:
    """A write for which there is no room says so, but not of which file."""
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error.filename = str(path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
