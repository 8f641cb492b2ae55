"""What a quarter of an hour on a GPU is to tell of hf_cudagraph_asr, in sections.

    python tests/gpu/probe.py --out OUT/probe.jsonl --budget 200
    python tests/gpu/probe.py --device cpu --geometry tiny       checks the script itself
    python tests/gpu/probe.py --only smoke parts

Each section writes a line of JSON for each finding, at once; one that fails is written as failed,
and one for which too little time is left as skipped. What a section's figures decide stands in its
docstring, in probe_programs.py and probe_pools.py.
"""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import probe_pools as pools
import probe_programs as programs
import torch
import transformers
from probing import Probe

# Each with the seconds it needs on a GPU; what matters most comes first.
SECTIONS: dict[Callable[[Probe], None], float] = {
    programs.environment: 5,
    pools.smoke: 15,
    programs.after_a_failure: 20,
    pools.latency: 25,
    programs.kernels: 10,
    programs.parts: 15,
    pools.latency_large: 15,
    programs.batches: 8,
    programs.streams: 8,
    pools.serving: 10,
    pools.swap: 15,
    programs.first_replay: 4,
    programs.new_lengths: 12,
    pools.compiled: 60,
}


def main() -> int:
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--geometry", default="base", help="base, large or tiny")
    parser.add_argument("--large", default="large", help="of the section latency_large")
    parser.add_argument("--out", type=Path, default=Path("out/probe.jsonl"))
    parser.add_argument("--budget", type=float, default=240, help="seconds for all sections")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    probe = Probe(arguments.device, arguments.geometry, arguments.large, arguments.out)
    if not probe.on_gpu:
        torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first
    torch.set_grad_enabled(False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    transformers.utils.logging.set_verbosity_error()
    failed = False
    for section, needs in SECTIONS.items():
        name = section.__name__
        left = arguments.budget - probe.seconds
        if name not in arguments.only:
            continue
        if left < needs:
            probe.say(name, skipped=f"{left:.0f} s are left, {needs:g} are needed")
            continue
        try:
            section(probe)
        except Exception:  # noqa: BLE001 - the other sections still have something to say
            failed = True
            probe.say(name, failed=traceback.format_exc()[-1200:])
        gc.collect()
        if probe.on_gpu:
            torch.cuda.empty_cache()
    probe.say("end", seconds=probe.seconds)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
