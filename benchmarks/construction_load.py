"""Construction under load: the row runner against a loopback server that fails as real ones do. Prints figures.

    python -m benchmarks.construction_load faults|kills|memory [--rows N]

The server runs on another core. Times are scaled down: an answer takes 0.2 s and a hung request is given up after 2 s,
which keeps the usual ratio of an answer in 10 s and a timeout of 100 s. `faults` refuses 20% of the requests with 429,
in bursts of 100, and more than 32 at once; 5% are answered 500, 2% hang, 1% drip, 1% are HTML, 1% have null content and
1% of the prompts are always truncated. `kills` does the same with 20 kills -9, the input shuffled at each and extended
once. `memory` is 100,000 rows through a server that answers at once.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from codes.common.cli import command_parser, positive_int, run_main
from codes.common.llm import Answer, Ask, Call, OpenAIBackend, run_rows
from codes.common.row_runner import failures_path
from tests.loopback_server import HANG, LoopbackServer, Reply, Request, completion, error, html

ALLOWED, LATENCY, TIMEOUT = 32, 0.2, 2.0  # requests at once; seconds; seconds
BURST_EVERY, BURST = 500, 100  # requests
PASSING_FAULTS = {"500": 0.05, "hang": 0.02, "drip": 0.01, "html": 0.01, "null": 0.01}  # shares of what is let in
TRUNCATED = 0.01  # share of the prompts
KILLS = 20
ROWS = {"faults": 20_000, "kills": 6_000, "memory": 100_000}
STATS = "what have you done"


def main() -> None:
    parser = command_parser(__doc__, "benchmarks.construction_load")
    parser.add_argument("what", choices=(*ROWS, "serve", "client"), help="the measurement")
    parser.add_argument("--rows", type=positive_int, help="rows of the input (default: 20,000, 6,000 and 100,000)")
    parser.add_argument("--seed", type=int, default=42, help="of faults and kills")
    for name in ("--port_file", "--base_url", "--output_file", "--faulty"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # between the processes of one measurement
    args = parser.parse_args()
    if args.what == "serve":
        return serve(Path(args.port_file), args.faulty == "yes", args.seed)
    if args.what == "client":
        ask_all(args.base_url, stored_rows(args.output_file), Path(args.output_file), args.rows)
        return None
    with tempfile.TemporaryDirectory() as folder:
        {"faults": measure_faults, "kills": measure_kills, "memory": measure_memory}[args.what](
            Path(folder), args.rows or ROWS[args.what], args.seed
        )
    return None


# --- The server ----------------------------------------------------------------------------------------------------


class BusyServer:
    """Refuses bursts and what is too much at once, and breaks at random."""

    def __init__(self, faulty: bool, seed: int):
        self.faulty = faulty
        self.kinds: Counter[str] = Counter()
        self.answered: Counter[bytes] = Counter()
        self._random = random.Random(seed)

    def __call__(self, request: Request) -> Reply:
        if request.prompt == STATS:
            twice = sum(count - 1 for count in self.answered.values())
            stats = {"kinds": self.kinds, "answered": len(self.answered), "twice": twice, "now": request.in_flight - 1}
            return completion(json.dumps(stats))
        kind = self._kind(request)
        self.kinds[kind] += 1
        text = f"answer to <{request.prompt}>"
        if kind == "answer":
            self.answered[hashlib.md5(request.prompt.encode()).digest()] += 1
        replies = {
            "burst": lambda: error(429, "slow down", "rate_limit_exceeded", retry_after_ms="100"),
            "too many": lambda: error(429, "slow down", "rate_limit_exceeded", retry_after_ms="100"),
            "500": lambda: error(500),
            "hang": lambda: completion(text, delay=HANG),
            "drip": lambda: completion(text, drip=0.05),
            "html": html,
            "null": lambda: completion(None),
            "truncated": lambda: completion("half an ans", "length"),
            "answer": lambda: completion(text),
        }
        reply = replies[kind]()
        if self.faulty and kind not in ("burst", "too many", "hang"):
            reply.delay = LATENCY
        return reply

    def _kind(self, request: Request) -> str:
        if self.faulty:
            if request.number % BURST_EVERY >= BURST_EVERY - BURST:
                return "burst"
            if request.in_flight > ALLOWED:
                return "too many"
        if int(hashlib.md5(request.prompt.encode()).hexdigest()[:8], 16) < TRUNCATED * 2**32:
            return "truncated"
        if self.faulty:
            drawn = self._random.random()
            for kind, share in PASSING_FAULTS.items():
                drawn -= share
                if drawn < 0:
                    return kind
        return "answer"


def serve(port_file: Path, faulty: bool, seed: int) -> None:
    on_core(1)
    server = LoopbackServer(BusyServer(faulty, seed), keep_requests=False)
    asyncio.run(server.serve(lambda: port_file.write_text(server.base_url)))


class ServerProcess:
    """The server in a process of its own while the ``with`` block runs."""

    def __init__(self, folder: Path, faulty: bool, seed: int = 0):
        self._port_file = folder / f"port-{time.monotonic_ns()}"
        self._command = [sys.executable, "-m", "benchmarks.construction_load", "serve", "--seed", str(seed)]
        self._command += ["--port_file", str(self._port_file), "--faulty", "yes" if faulty else "no"]

    def __enter__(self) -> "ServerProcess":
        self._process = subprocess.Popen(self._command)
        while not (self._port_file.exists() and self._port_file.read_text()):
            time.sleep(0.05)
        self.base_url = self._port_file.read_text()
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def stats(self) -> dict:
        body = json.dumps({"messages": [{"role": "user", "content": STATS}]}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(f"{self.base_url}/chat/completions", body)) as reply:
            return json.loads(json.load(reply)["choices"][0]["message"]["content"])


# --- The client ----------------------------------------------------------------------------------------------------


def make_rows(count: int) -> Iterator[dict]:
    padding = "Explain how the tides follow from the motion of the moon, and say what is left out. " * 6
    for number in range(count):
        yield {"id": f"row-{number}", "question": f"{number}: {padding}"}


def stored_rows(output_file: str) -> list[dict]:
    """The rows for a process that is going to be killed, which were written beside its output."""
    return [{"id": f"row-{number}"} for number in json.loads(Path(output_file + ".order.json").read_text())]


def on_core(number: int) -> None:
    """Keep this process to one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def ask_all(
    base_url: str, rows, output: Path, total: int | None, seen: Callable[[int, OpenAIBackend], None] = lambda n, b: None
):
    """One request for each row. ``seen`` is called with the number of rows answered so far."""
    on_core(0)
    backend = OpenAIBackend("m", base_url=base_url, timeout=TIMEOUT, concurrency=128, max_attempts=10)
    answered = 0
    texts = {row["id"]: row["question"] for row in make_rows(ROWS["kills"])} if isinstance(rows, list) else {}

    async def process(row: dict, ask: Ask) -> dict:
        nonlocal answered
        prompt = row.get("question") or texts[row["id"]]
        answer: Answer = await ask(Call(f"{row['id']}/answer/0", [{"role": "user", "content": prompt}], {}))
        answered += 1
        seen(answered, backend)
        return {"id": row["id"], "answer": answer.text}

    source = (lambda: iter(rows)) if isinstance(rows, list) else rows
    return run_rows(source, process, backend, output, {}, concurrency=128, total=total, desc="load"), backend


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- The measurements ----------------------------------------------------------------------------------------------


def ideal_seconds(rows: int) -> float:
    """An ideal client's time: always ALLOWED requests at work, each fault retried at once, refusals costing nothing."""
    again = sum(PASSING_FAULTS.values())
    attempts = rows / (1 - again)
    waited_out = (PASSING_FAULTS["hang"] + PASSING_FAULTS["drip"]) * attempts
    return (waited_out * TIMEOUT + (attempts - waited_out) * LATENCY) / ALLOWED


def measure_faults(folder: Path, rows: int, seed: int) -> None:
    limits: list[float] = []
    output = folder / "out.jsonl"
    with ServerProcess(folder, faulty=True, seed=seed) as server:
        begin = time.monotonic()
        counts, backend = ask_all(
            server.base_url, lambda: make_rows(rows), output, rows, lambda _, b: limits.append(b.control.limit)
        )
        seconds, stats = time.monotonic() - begin, server.stats()
    written = [json.loads(line) for line in output.read_text().splitlines()]
    failures = [json.loads(line) for line in failures_path(output).read_text().splitlines()]
    right = sum(record["answer"].startswith("answer to <" + record["id"][4:] + ":") for record in written)
    ids = Counter(record["id"] for record in (*written, *failures))
    print(
        f"{rows} rows in {seconds:.0f} s; ideal {ideal_seconds(rows):.0f} s: {seconds / ideal_seconds(rows):.2f} times"
    )
    print(f"answered {len(written)} (right: {right}), typed failures {dict(Counter(f['kind'] for f in failures))}")
    print(f"every row exactly once: {len(ids) == rows and set(ids.values()) == {1}}; requests {counts.asked} asked")
    print(f"the server saw {stats['kinds']}")
    median = statistics.median(limits[-len(limits) // 4 :])
    print(f"final limit {backend.control.limit:.1f}, median of the last quarter {median:.1f}; allowed {ALLOWED}")


def measure_kills(folder: Path, rows: int, seed: int) -> None:
    generator, output, in_flight = random.Random(seed), folder / "killed.jsonl", []
    order = list(range(rows))
    per_run = ideal_seconds(rows) * 1.2 / KILLS
    with ServerProcess(folder, faulty=True, seed=seed) as server:
        command = [sys.executable, "-m", "benchmarks.construction_load", "client", "--base_url", server.base_url]
        command += ["--output_file", str(output), "--rows", str(rows)]
        for kill in range(KILLS + 1):
            part = order[: 2 * rows // 3] if kill < KILLS // 2 else order
            shuffled = generator.sample(part, len(part)) if kill < KILLS else order
            Path(f"{output}.order.json").write_text(json.dumps(shuffled))
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            if kill < KILLS:
                time.sleep(1.0 + generator.uniform(0, per_run * 2))
                in_flight.append(server.stats()["now"])
                process.kill()
            process.wait()
        stats = server.stats()
    with ServerProcess(folder, faulty=False) as server:
        ask_all(server.base_url, order_rows(rows), folder / "whole.jsonl", rows)
    same = output.read_bytes() == (folder / "whole.jsonl").read_bytes()
    print(f"{KILLS} kills, {rows} rows, last exit status {process.returncode}; same bytes as in one run: {same}")
    print(f"answered {stats['answered']} prompts; answers given twice: {stats['twice']}; in flight at the kills:")
    print(f"{in_flight} (sum {sum(in_flight)}, most possible {KILLS * ALLOWED})")


def order_rows(rows: int) -> list[dict]:
    return [{"id": f"row-{number}"} for number in range(rows)]


def measure_memory(folder: Path, rows: int, seed: int) -> None:
    memory: dict[int, float] = {}
    early = min(10_000, rows // 10)

    def sample(answered: int, _) -> None:
        if answered == early:
            memory[early] = resident_mib()

    with ServerProcess(folder, faulty=False, seed=seed) as server:
        begin, used = time.monotonic(), time.process_time()
        counts, _ = ask_all(server.base_url, lambda: make_rows(rows), folder / "out.jsonl", rows, sample)
        seconds, cpu = time.monotonic() - begin, time.process_time() - used
    end = resident_mib()
    print(f"{rows} rows, {counts.asked} calls in {seconds:.0f} s: {counts.asked / seconds:.0f} calls/s on one core")
    print(f"processor time {cpu:.0f} s: {1000 * cpu / counts.asked:.2f} ms a call, so {counts.asked / cpu:.0f} calls/s")
    print(f"resident {memory[early]:.1f} MiB at {early} rows, {end:.1f} MiB at the end: {end / memory[early] - 1:+.1%}")


if __name__ == "__main__":
    run_main(main)
