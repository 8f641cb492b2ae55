"""`python -m hf_cudagraph_asr`: the command `hf-cudagraph-asr`."""

from hf_cudagraph_asr.cli import script

script()
