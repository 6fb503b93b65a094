"""A stand-in for an OpenAI-compatible service on this machine: slow, unreliable, and it charges.

It answers by a rule, so that tests know what is right. Which attempts it answers badly is drawn
from a seed and the number of the attempt on that text. An attempt is charged when its answer is
made; one that repeats an idempotency key gets the same answer and is not charged again.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

Say = Callable[[str], tuple[str, float]]  # of the text: what the model writes, and its probability


@dataclass
class Faults:
    """Shares of attempts that go wrong, and what they get."""

    limited: float = 0.0  # 429 with Retry-After
    broken: float = 0.0  # 500
    html: float = 0.0
    half: float = 0.0  # half a JSON; charged, since the answer was made
    retry_after: float = 0.05

    def drawn(self, draw: float) -> str | None:
        for name in ("limited", "broken", "html", "half"):
            share = getattr(self, name)
            if draw < share:
                return name
            draw -= share
        return None


@dataclass
class StandIn:
    """A context manager; `url` is its address while it runs.

    `charges` counts the answers that were charged, by text; `spent` is the money.
    """

    say: Say = lambda text: ("good" if "good" in text else "bad", 0.9)
    latency: float = 0.0
    faults: Faults = field(default_factory=Faults)
    prices: Mapping[str, float] = field(default_factory=lambda: {"input": 1.0, "output": 2.0})
    key: str | None = None
    fixed: tuple[int, Mapping[str, str], bytes] | None = None  # one answer to everything
    idempotent: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        self.charges: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.spent = 0.0
        self.running = self.most_running = 0
        self._kept: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "StandIn":
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            self._stop = asyncio.Event()
            self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
            ready.set()
            await self._stop.wait()
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),))
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.run_until_complete(asyncio.sleep(0))  # what was cancelled ends
        self._loop.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                headers = {
                    k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:]) if k
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.running += 1
                self.most_running = max(self.most_running, self.running)
                try:
                    status, extra, said = await self._answer(headers, body)
                finally:
                    self.running -= 1
                self.statuses[str(status)] += 1
                made = {"content-length": str(len(said)), "content-type": "application/json"}
                head_lines = [f"HTTP/1.1 {status} -"]
                head_lines += [f"{k}: {v}" for k, v in {**made, **extra}.items()]
                writer.write("\r\n".join(head_lines).encode() + b"\r\n\r\n" + said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        if not body:  # a look at the books
            return 200, {}, json.dumps(self.books()).encode()
        await asyncio.sleep(self.latency)
        if self.fixed is not None:
            return self.fixed
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            given = headers.get("authorization", "")
            return 401, {}, json.dumps({"error": {"message": f"bad key {given}"}}).encode()
        asked = json.loads(body)
        self.bodies.append(asked)
        text = asked["messages"][-1]["content"]
        self.attempts[text] += 1
        draw = random.Random(f"{self.seed}/{text}/{self.attempts[text]}").random()
        fault = self.faults.drawn(draw)
        if fault == "limited":
            return 429, {"retry-after": str(self.faults.retry_after)}, b'{"error": {}}'
        if fault == "broken":
            return 500, {}, b'{"error": {"message": "broken"}}'
        if fault == "html":
            return 200, {"content-type": "text/html"}, b"<html>please wait</html>"
        whole = json.dumps(self._made(asked, text, headers.get("idempotency-key"))).encode()
        return 200, {}, whole[: len(whole) // 2] if fault == "half" else whole

    def books(self) -> dict[str, Any]:
        """What was charged, asked and answered."""
        return {
            "spent": self.spent,
            "charges": dict(self.charges),
            "statuses": dict(self.statuses),
            "attempts": sum(self.attempts.values()),
        }

    def _made(self, asked: Mapping[str, Any], text: str, key: str | None) -> dict[str, Any]:
        if self.idempotent and key in self._kept:
            return self._kept[key]
        label, confidence = self.say(text)
        content, extra = label, {"logprobs": {"content": tokens_of(label, confidence)}}
        if asked.get("response_format"):
            content, extra = json.dumps({"label": label, "confidence": confidence}), {}
        read, written = len(text.split()) + 8, 1 + crc32(text.encode()) % 5
        self.charges[text] += 1
        self.spent += (read * self.prices["input"] + written * self.prices["output"]) / 1e6
        said = {
            "choices": [
                {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
                | extra
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": written},
        }
        if key is not None:
            self._kept[key] = said
        return said


def tokens_of(label: str, confidence: float) -> list[dict[str, Any]]:
    """Tokens of a label whose probabilities have this product."""
    import math

    parts = [label[:2], label[2:]] if len(label) > 2 else [label]
    each = math.log(confidence) / len(parts)
    return [{"token": part, "logprob": each} for part in parts]


LABELS = ("sport", "politics", "science", "weather")


def graded(text: str) -> tuple[str, float]:
    """An answer to "<size> <number> ..." that is right as often as its probability says.

    The large model is right about 19 times in 20, the small one where it is sure.
    """
    size, number, *_ = text.split()
    draw = random.Random(f"{size}/{number}")
    sure = 0.97 if size == "large" else 0.3 + 0.69 * draw.random() ** 0.4
    right = draw.random() < sure
    return LABELS[(truth_of(number) + (0 if right else 1 + draw.randrange(3))) % 4], sure


def truth_of(number: str) -> int:
    """The class of an example."""
    return crc32(number.encode()) % len(LABELS)


if __name__ == "__main__":  # a process of its own, until its input ends
    import sys

    given = json.loads(sys.argv[1])
    given["faults"] = Faults(**given.get("faults", {}))
    with StandIn(say=graded, **given) as running:
        sys.stdout.write(running.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()
