"""`hf-cudagraph-asr serve`: an HTTP service on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hf_cudagraph_asr.cli import Backend, Device, Dtype, Model, Plan, say

NAME = "hf-cudagraph-asr"


def serve(
    model: Model,
    plan: Plan = None,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    replicas: Annotated[int, typer.Option(help="How many models, each with its own pool.")] = 1,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs of each model; 0.5: two share one. Default: 1 or 0.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another setting, such as max_seconds=9."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: all.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The key that clients are to send. Default: HF_CUDAGRAPH_ASR_API_KEY in the "
            "environment, which fewer can read than a command line."
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="What the logs of Ray Serve hold; info: a line for each request too."),
    ] = "info",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster. Default: Ray is started here.")
    ] = None,
) -> None:
    """Answer POST /transcribe with Ray Serve, until interrupted.

    In float32, a recording's text is that of the stock pipeline for it alone, whatever the load.
    """
    # Ray reports its use over the network by default, and opens its ports on all addresses; on a
    # machine that is said to have no cluster, on the loopback address. It reads both when imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        _check_port(host, port)
    try:
        from hf_cudagraph_asr.serve import Settings, app
    except ModuleNotFoundError as error:
        raise ImportError(
            f'serving needs {error.name}: pip install "hf-cudagraph-asr[serve]"'
        ) from error

    given: dict[str, Any] = {"model": _local(model), "backend": backend, "device": device}
    given |= {"dtype": dtype, "replicas": replicas}
    asked = {"plan": plan and _local(str(plan)), "gpus": gpus, "api_key": api_key}
    given |= {name: value for name, value in asked.items() if value is not None}
    for option in set_ or ():
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--set {option}: expected NAME=VALUE, such as max_seconds=9")
        given[name] = _local(value) if name in ("lexicon", "lm") else value
    settings, application = Settings.of(given), app(given)
    if address is None:
        _check(settings)
    _run(application, settings, host, port, log_level, address)


def _run(
    application: Any, settings: Any, host: str, port: int, log_level: str, address: str | None
) -> None:
    import ray
    from ray import serve

    where: dict[str, Any] = {"address": address}
    if address is None:
        # What was asked for is to fit, whatever the machine: CPUs are a promise to Ray, no more.
        cpus = max(os.cpu_count() or 1, int(settings.replicas * settings.cpus) + 2)
        where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        started: Any = ray.init(**where, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray has no class of its own for it
        raise ValueError(f"Ray did not start: {error}") from error
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        logs = {"log_level": log_level.upper()}
        serve.start(http_options={"host": host, "port": port}, logging_config=logs)
        try:
            serve.run(application, name=NAME, logging_config=logs)
        except RuntimeError as error:
            raise ValueError(f"the application did not start: {_cause(error)}") from None
        node = ray.nodes()[0]  # type: ignore[no-untyped-call]
        metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        say(f"ready: POST a recording to http://{host}:{port}/transcribe")
        say(f"metrics: {metrics}; logs: {started.address_info['session_dir']}/logs/serve")
        stop = threading.Event()
        for number in before:  # so that Ray's processes end with this one
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    finally:
        if address is not None:
            serve.delete(NAME)
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(error: Exception) -> str:
    """What a replica that failed said last; Serve's own exception does not hold it."""
    from ray import serve

    for deployment in serve.status().applications[NAME].deployments.values():
        if deployment.status == "DEPLOY_FAILED":
            return deployment.message.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    return str(error)


def _check(settings: Any) -> None:
    """Refuse what a replica would, as far as its configuration, the plan and devices tell."""
    import torch
    from transformers import AutoConfig

    from hf_cudagraph_asr.plan import BucketPlan
    from hf_cudagraph_asr.transcriber import loaded

    compiled = settings.backend in ("cuda", "compile")
    if compiled and settings.device == "cpu":
        raise ValueError(f"the {settings.backend} backend needs a CUDA device, not the CPU")
    if compiled or settings.gpus or settings.device.startswith("cuda"):
        there = torch.cuda.device_count()
        index = int(settings.device.partition(":")[2] or 0)
        if max(index + 1, settings.replicas * settings.gpus) > there:
            raise ValueError(
                f"{settings.replicas} x {settings.gpus:g} GPUs on device {settings.device} are too "
                f"many, torch sees {there}: share them, as with --gpus 0.5, or give --device cpu"
            )
    plan = None if settings.plan is None else BucketPlan.load(settings.plan)
    name, folder = settings.model, Path(settings.model)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise ValueError(f"{name} is no folder of a model, and no name on the hub")
        return  # a name on the hub: what it holds is known when a replica loads it
    config = loaded(AutoConfig, name)
    if plan is not None:
        plan.check_geometry(config)


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened at ({error.strerror}): give another --host or --port"
        ) from error


def _local(name: str) -> str:
    """Make a path that is there absolute: replicas run in folders of their own."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
