"""The bench of loaders: ours against webdataset, MosaicML Streaming, LitData, SPDL, Grain and Hugging Face datasets.

make bench-loaders                       everything; about 25 minutes
python -m tests.bench.loaders --quick    small and rough; about 5 minutes

peers.py     who takes part, and their virtual environments
material.py  one source set, and from it every peer's own format, holding the very same encoded bytes
runner.py    runs in a rival's environment: reads an epoch once and prints what it measured as JSON
work.py      what is done to a sample: the decoders that all rivals share
peer_*.py    each rival, used as its own documentation says
contests.py  what is compared with what; rounds.py runs it, tables.py prints it
"""
