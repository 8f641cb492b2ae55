"""The package's own formats, registered through the hook that anybody's are."""

from __future__ import annotations

from collections.abc import Callable

from weaklabel.formats import huggingface, kaldi, lhotse, nemo
from weaklabel.plugins import Exporter, hookimpl


@hookimpl
def weaklabel_exporters(register: Callable[[Exporter], None]) -> None:
    """Register the package's own formats."""
    for exporter in (
        Exporter(
            "huggingface",
            "a folder for datasets.load_dataset: Parquet and a dataset card",
            huggingface.REQUIRED,
            huggingface.write,
        ),
        Exporter("nemo", "a NeMo manifest of JSON lines", nemo.REQUIRED, nemo.write),
        Exporter("lhotse", "Lhotse recordings and supervisions", lhotse.REQUIRED, lhotse.write),
        Exporter("kaldi", "a Kaldi data folder with utt2weight", kaldi.REQUIRED, kaldi.write),
    ):
        register(exporter)
