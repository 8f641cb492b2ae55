"""Train tinyvoice from nothing: speech from two synthesisers, then a small Wav2Vec2ForCTC.

    python docs/examples/tinyvoice/train.py                # on this machine's CPU or GPU
    accelerate launch docs/examples/tinyvoice/train.py     # on several GPUs

Speech, batches and all that perturbs them are functions of the seed and the step alone, so an
interrupted run resumes from its last checkpoint to the very weights it would have had.
"""

from __future__ import annotations

import logging

import tinyvoice
from recipe import parse

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tinyvoice.run(parse(description=__doc__))
