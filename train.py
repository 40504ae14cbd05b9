"""Trains colorjax: `python train.py` for the quickstart, `python train.py --config=configs/paper.py --workdir=…` for
the paper. It is `colorjax train`; `--help` lists the flags.
"""

import sys

from colorjax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
