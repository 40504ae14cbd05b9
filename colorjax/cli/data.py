"""`colorjax data` writes a pack: decodes photos once, so that training reads them at the disk's speed.

Decoding a JPEG photo takes some milliseconds of one core, every epoch anew; a pack takes none,
and needs no TensorFlow to be read. Write one, then train on it:

    python -m colorjax data --config=configs/paper.py --config.data.dir=~/tensorflow_datasets \\
        --config.data.source=food101 --out=~/packs/food101_256
    python train.py --config=configs/paper.py --config.data.source=packed \\
        --config.data.dir=~/packs/food101_256 --workdir=runs/paper

The photos have config.data.resolution pixels a side, S·S·3 bytes each: Food-101 at 256 takes
20 GB. config.data.train_fraction is settled at this point. Training still crops, turns and
scales at random, on the device. A run that was stopped is started again by the same command.
"""

from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from colorjax.data import open_source
from colorjax.data.batches import SPLITS
from colorjax.data.packed import write_pack

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration; its `data` part says which photos.", lock_config=True
)
_OUT = flags.DEFINE_string("out", None, "Folder of the new pack; it must not exist yet.", required=True)
_SPLITS = flags.DEFINE_list("splits", list(SPLITS), "Splits to write, separated by commas.")


def main() -> None:
    """Runs the command."""
    flags.mark_flag_as_required("config")
    app.run(_main)


def _main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    config = _CONFIG.value.data
    if config.source == "packed":
        raise app.UsageError(
            "--config.data.source='packed' is what this command writes: name the photos' source "
            "(food101, folder or sample)"
        )
    write_pack(open_source(config), _OUT.value, splits=_SPLITS.value, resolution=config.resolution)
