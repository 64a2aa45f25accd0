#!/usr/bin/env bash
# mlflow 3.17.2: what is logged with synchronous=False while the server is away is lost for good, and the program is
# not told. Seen: 100 points before the server ends, 100 while it is away, 100 after it came back at the same address
# with the same data base: the run has 200 points and the status FINISHED. Each batch that failed leaves a line of level
# ERROR in Python's log; mlflow.flush_async_logging() and end_run() return normally, and nothing is sent again.
# Retries are set to one here, to be quick; the default of seven makes the time longer after which points are lost.
# What to do: keep points in a file, and send each with its own timestamp and step again until a call has returned;
# a point that is there already does not become two.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet mlflow==3.17.2 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="5", MLFLOW_DISABLE_TELEMETRY="true")
import mlflow

folder = sys.argv[1]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
address = f"http://127.0.0.1:{port}"


def start() -> subprocess.Popen:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    server = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=open(f"{folder}/server.log", "a"),
        start_new_session=True,
    )
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            return server
        except OSError:
            time.sleep(0.5)
    print("the server did not start")
    sys.exit(2)


def stop(server: subprocess.Popen) -> None:
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()


class Count(logging.Handler):
    lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += record.levelno >= logging.ERROR


def log(first: int) -> str:
    for step in range(first, first + 100):
        mlflow.log_metric("loss", 1 / (step + 1), step=step, synchronous=False)
    try:
        mlflow.flush_async_logging()
    except Exception as error:
        return f"raised {type(error).__name__}"
    return "returned"


queue = logging.getLogger("mlflow.utils.async_logging.async_logging_queue")
queue.propagate, queue.handlers = False, [Count()]
server = start()
try:
    mlflow.set_tracking_uri(address)
    run = mlflow.start_run().info.run_id
    flushes = [log(0)]
    stop(server)
    flushes.append(log(100))
    server = start()
    flushes.append(log(200))
    mlflow.end_run()
    client = mlflow.MlflowClient()
    steps = {point.step for point in client.get_metric_history(run, "loss")}
    status = client.get_run(run).info.status
finally:
    stop(server)
lost = sorted(set(range(300)) - steps)
print(f"mlflow {mlflow.__version__}: 300 points logged, {len(steps)} there, lost: {lost[:1]} to {lost[-1:]}")
print(f"flush_async_logging: {', '.join(flushes)}; status {status}; lines of level ERROR: {queue.handlers[0].lines}")
if lost != list(range(100, 200)) or flushes != ["returned"] * 3 or status != "FINISHED":
    sys.exit("the behaviour has changed: not what the head of this script says")
print("as described")
PYTHON
"$folder/env/bin/python" "$folder/check.py" "$folder"
