"""Calls a second beside the openai package with asyncio and beside distilabel, against one local server that answers after 50 ms.

    pip install openai==3.54.0 distilabel==1.5.3 requests
    cargo build --release -p groundloom-llm --example throughput
    python scripts/bench_calls.py target/release/examples/throughput [ROWS CONCURRENCY]

Without ROWS and CONCURRENCY: 5,000 rows at 64 calls at a time and 10,000 at 1,024, within three minutes. The server is a process of its own and the same for both.
The ceiling is concurrency / 0.05 s; what bare sockets make, a thread each and no work at all, says how much of it the server itself leaves. Best on a machine that does nothing else: the load is printed. distilabel asks by its OpenAILLM, without the processes
and files of its pipelines, in batches as its steps do: all rows of a batch at once, the next batch when the last of them is answered.
"""

import asyncio
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time

ANSWER = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "test-model",
                     "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a picture of something"}}],
                     "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}}).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER


class Connection(asyncio.Protocol):
    """Answers each request 50 ms after its last byte; enough HTTP for both clients."""

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length:]
            asyncio.get_running_loop().call_later(0.05, self.transport.write, RESPONSE)


def serve(port):
    async def run():
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(run())


def question(row):
    return [{"role": "user", "content": f"describe picture number {row}"}]


def measured(ask_all, rows, concurrency):
    """What asking all rows takes of a process of its own."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    start, cpu = time.perf_counter(), used.ru_utime + used.ru_stime
    ask_all()
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - cpu
    print(json.dumps({"rows": rows, "concurrency": concurrency, "seconds": round(seconds, 3), "rows_per_second": round(rows / seconds),
                      "cpu_ms_per_call": round(1000 * cpu / rows, 3), "peak_mib": used.ru_maxrss // 1024, "own_mib": own_mib()}))


def own_mib():
    """Resident memory at the end that is not a file's: what one more process of the kind takes of the machine."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon:")).split()[1]) // 1024


def openai_asyncio(url, rows, concurrency):
    import httpx2
    import openai

    async def run():
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        http = openai.DefaultAsyncHttpxClient(limits=limits)
        client = openai.AsyncOpenAI(base_url=url, api_key="k", http_client=http)
        gate = asyncio.Semaphore(concurrency)

        async def ask(row):
            async with gate:
                await client.chat.completions.create(model="test-model", max_tokens=64, messages=question(row))

        await asyncio.gather(*(ask(row) for row in range(rows)))

    measured(lambda: asyncio.run(run()), rows, concurrency)


def distilabel(url, rows, concurrency):
    from distilabel.models.llms import OpenAILLM

    model = OpenAILLM(model="test-model", base_url=url, api_key="k", generation_kwargs={"max_new_tokens": 64})
    model.load()

    def run():
        for start in range(0, rows, concurrency):
            batch = [question(row) for row in range(start, min(start + concurrency, rows))]
            answers = model.generate_outputs(inputs=batch, **model.generation_kwargs)
            assert [answer["generations"] for answer in answers] == [["a picture of something"]] * len(batch)

    measured(run, rows, concurrency)


OTHERS = {"openai + asyncio": openai_asyncio, "distilabel": distilabel}


def measure(name, command, *arguments):
    ran = subprocess.run([*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Another's client may give up where ours does not: that is a result too.
    why = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
    print(name, f"gave up: {why}" if ran.returncode else ran.stdout.strip(), flush=True)
    if ran.returncode and name not in OTHERS:
        sys.exit(1)


def main():
    if sys.argv[1] in OTHERS:
        return OTHERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    # A socket per call at a time, on both sides.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    given = [int(n) for n in sys.argv[2:4]]
    runs = [tuple(given)] if len(given) == 2 else [(5_000, 64), (10_000, 1_024)]
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    while port.value == 0:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port.value}/v1"
    for rows, concurrency in runs:
        print(f"ceiling {concurrency / 0.05:.0f} rows/s; load {os.getloadavg()[0]:.1f}", flush=True)
        measure("bare sockets", [sys.argv[1]], url, rows, concurrency, "bare")
        with tempfile.TemporaryDirectory() as store:
            for name in ("first", "replayed"):
                measure(f"groundloom {name}", [sys.argv[1]], url, rows, concurrency, store)
        for name in OTHERS:
            measure(name, [sys.executable, "-W", "ignore", __file__, name], url, rows, concurrency)
    server.terminate()


if __name__ == "__main__":
    main()
