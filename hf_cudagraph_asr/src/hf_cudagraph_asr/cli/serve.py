"""`hf-cudagraph-asr serve`: an HTTP service on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_cudagraph_asr.cli import Device, Dtype, Plan, say

NAME = "hf-cudagraph-asr"


def serve(
    model: Annotated[str, typer.Option(help="The model's folder, or its name on the hub.")],
    plan: Plan = None,
    backend: Annotated[
        str, typer.Option(help="The backend: auto, cuda, export, compile or eager.")
    ] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_sizes: Annotated[
        str | None, typer.Option(help="Rows to capture, such as 1,2,4. Default: the plan's.")
    ] = None,
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

    given: dict[str, Any] = {"model": _local(model), "plan": plan and _local(str(plan))}
    given |= {"backend": backend, "device": device, "dtype": dtype, "batch_sizes": batch_sizes}
    given |= {"replicas": replicas, "gpus": gpus}
    for option in set_ or ():
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--set {option}: expected NAME=VALUE, such as max_seconds=9")
        given[name] = value
    given = {name: value for name, value in given.items() if value is not None}
    settings, application = Settings.of(given), app(given)
    if address is None:
        _check(settings)
    _run(application, settings, host, port, address)


def _run(application: Any, settings: Any, host: str, port: int, address: str | None) -> None:
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
        raise ValueError(
            f"Ray did not start ({error}): try again when the machine is less busy, or start it "
            f"with `ray start --head` and give --address auto"
        ) from error
    try:
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(application, name=NAME)
        except RuntimeError as error:
            raise ValueError(f"the application did not start: {_cause(error)}") from None
        metrics = ", ".join(
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in ray.nodes()  # type: ignore[no-untyped-call]
        )
        say(f"ready: POST a WAV or FLAC file to http://{host}:{port}/transcribe")
        say(f"metrics: {metrics}; logs: {started.address_info['session_dir']}/logs/serve")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # so that Ray's processes end with this one
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    finally:
        if address is not None:
            serve.delete(NAME)
        ray.shutdown()


def _cause(error: Exception) -> str:
    """What a replica that failed said last; Serve's own exception does not hold it."""
    from ray import serve

    for deployment in serve.status().applications[NAME].deployments.values():
        if deployment.status == "DEPLOY_FAILED":
            return deployment.message.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    return str(error)


def _check(settings: Any) -> None:
    """Refuse what the model's start would, before Ray starts; all but the weights is looked at."""
    import torch
    from transformers import MODEL_FOR_CTC_MAPPING, AutoConfig, AutoProcessor

    from hf_cudagraph_asr.geometry import Geometry
    from hf_cudagraph_asr.plan import BucketPlan
    from hf_cudagraph_asr.transcriber import device_of, loaded

    device, model, folder = device_of(settings.device), settings.model, Path(settings.model)
    if settings.backend in ("cuda", "compile") and device.type != "cuda":
        raise ValueError(f"the {settings.backend} backend needs a CUDA device, not {device}")
    if settings.replicas * settings.gpus > (gpus := torch.cuda.device_count()):
        raise ValueError(
            f"{settings.replicas} replicas with {settings.gpus:g} GPUs each do not fit in {gpus}: "
            f"give fewer --replicas, or let some share one, as with --gpus 0.5"
        )
    plan = None if settings.plan is None else BucketPlan.load(settings.plan)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            raise ValueError(f"{model} is no folder of a model, and no name on the hub")
        return  # a name on the hub: what it holds is known when a replica loads it
    config = loaded(AutoConfig, folder)
    names = config.architectures or [type(config).__name__]
    if type(config) not in MODEL_FOR_CTC_MAPPING or not names[0].endswith("CTC"):
        raise ValueError(f"{model} holds a {names[0]}, expected a CTC model as Wav2Vec2ForCTC")
    if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise ValueError(f"{model} holds no weights: expected model.safetensors beside its config")
    extractor = getattr(loaded(AutoProcessor, folder), "feature_extractor", None)
    if plan is not None and extractor is not None:
        plan.check_geometry(Geometry.of(config, sampling_rate=extractor.sampling_rate))


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
