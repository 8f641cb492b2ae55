"""`hf-cudagraph-asr serve`: answer requests, or write the configuration to do so elsewhere."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_cudagraph_asr.cli.console import Device, Dtype, Plan, say, sizes
from hf_cudagraph_asr.files import written_beside

if TYPE_CHECKING:
    from hf_cudagraph_asr.serve.settings import Batching, Limits, Settings

__all__ = ["serve"]


def serve(
    model: Annotated[str, typer.Option(help="A folder, or a model's name on the hub.")],
    plan: Plan = None,
    backend: Annotated[str, typer.Option(help="auto, eager, export, compile or cuda.")] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_sizes: Annotated[
        str | None, typer.Option(help="Rows to capture, as 1,2,4; by default the plan's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Models, each with its pool.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Scale from --replicas up to so many with the load.")
    ] = None,
    gateways: Annotated[int, typer.Option(min=1, help="Processes that decode uploads.")] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs, and threads, of each model.")] = 1.0,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each model; by default 1 if there is one.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="By default the plan's largest.")
    ] = None,
    batch_wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for others although the device is free.")
    ] = 0.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a request's body.")] = 16 * 2**20,
    max_seconds: Annotated[float, typer.Option(help="Of audio.")] = 30.0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.")] = 30.0,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Requests that wait; more are refused with 503.")
    ] = 128,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; by default one is started here.")
    ] = None,
    config_out: Annotated[
        Path | None, typer.Option(help="Write a configuration for `serve deploy`, serve nothing.")
    ] = None,
) -> None:
    """Answer POST /transcribe with Ray Serve, until interrupted."""
    from hf_cudagraph_asr.serve.settings import Batching, Limits, Settings

    settings = Settings.of(
        {
            "model": _local(model),
            "plan": None if plan is None else _local(_existing(plan)),
            "backend": backend,
            "device": device,
            "dtype": dtype,
            "batch_sizes": sizes(batch_sizes),
            "replicas": replicas,
            "gateways": gateways,
            "cpus": cpus,
            "gpus": _gpus(device) if gpus is None else gpus,
            "max_queued": max_queued,
        }
    )
    limits = Limits.of({"max_bytes": max_bytes, "max_seconds": max_seconds, "timeout_s": timeout})
    batching = Batching.of({"max_batch_size": max_batch_size, "batch_wait_s": batch_wait})
    autoscaling = None
    if max_replicas is not None:
        if max_replicas < replicas:
            raise ValueError(f"--max-replicas {max_replicas} is less than --replicas {replicas}")
        # Half of what a replica is sent: so a new one is there before requests are refused.
        target = max(settings.max_ongoing // 2, 1)
        autoscaling = {
            "min_replicas": replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target,
        }
    if config_out is None:
        _run(settings, limits, batching, autoscaling, host, port, address, max_replicas)
    else:
        from hf_cudagraph_asr.serve.application import configuration

        _write(
            config_out,
            configuration(settings, limits, batching, autoscaling, host=host, port=port),
        )
        say(f"{config_out}: start it with `serve run {config_out}`")


def _run(
    settings: Settings,
    limits: Limits,
    batching: Batching,
    autoscaling: dict[str, Any] | None,
    host: str,
    port: int,
    address: str | None,
    max_replicas: int | None,
) -> None:
    from hf_cudagraph_asr.serve.application import NAME, build

    # Ray reports its use over the network unless it is told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    application = build(settings, limits, batching, autoscaling)  # says what is not installed
    import ray
    from ray import serve

    where: dict[str, Any] = {"address": address}
    if address is None:
        # What was asked for is to fit, whatever the machine: CPUs are a promise to Ray, no more.
        wanted = math.ceil((max_replicas or settings.replicas) * settings.cpus) + 1
        most = max(os.cpu_count() or 1, wanted)
        where = {"address": "local", "num_cpus": most, "include_dashboard": False}
    try:
        ray.init(**where)
    except Exception as error:  # Ray has no class of its own for it
        raise ValueError(
            f"Ray did not start ({error}): try again when the machine is less busy, or start it "
            f"with `ray start --head` and give --address auto"
        ) from error
    try:
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        if address is None and settings.replicas * settings.gpus > gpus:
            raise ValueError(
                f"{settings.replicas} replicas with {settings.gpus:g} GPUs each do not fit in "
                f"{gpus:g}: give fewer --replicas, or let some share one, as with --gpus 0.5"
            )
        serve.start(http_options={"host": host, "port": port})
        try:
            try:
                serve.run(application, name=NAME)
            except RuntimeError as error:  # with what the replicas said, tracebacks and all
                raise ValueError(f"the application did not start: {error}") from error
            say(f"ready: POST a WAV or FLAC file to http://{host}:{port}/transcribe")
            with _interrupted() as stop:
                stop.wait()
        finally:
            if address is None:
                serve.shutdown()  # type: ignore[no-untyped-call]
            else:
                serve.delete(NAME)
    finally:
        ray.shutdown()


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Set by Ctrl-C and by a supervisor's SIGTERM, so that Ray's processes end with this one."""
    event = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in signals]
    try:
        yield event
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _existing(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no plan {path}: make one with `hf-cudagraph-asr plan`")
    return str(path)


def _local(name: str) -> str:
    """An absolute path where it is one: replicas run in folders of their own."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _gpus(device: str) -> float:
    if device.startswith("cpu"):
        return 0
    import torch

    return float(torch.cuda.is_available())


def _write(target: Path, content: dict[str, Any]) -> None:
    import yaml  # type: ignore[import-untyped, unused-ignore]  # ray brings it

    with written_beside(target) as beside:
        beside.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
