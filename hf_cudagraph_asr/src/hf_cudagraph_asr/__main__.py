"""`python -m hf_cudagraph_asr`: the command line where no script is installed."""

from hf_cudagraph_asr.cli import script

if __name__ == "__main__":
    script()
