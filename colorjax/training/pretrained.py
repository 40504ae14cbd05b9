"""How the joint stage starts from a pretrained classifier: weights and statistics, by path."""

import logging
from pathlib import Path

from colorjax.model.colorizer import SHARED, UNUSED_BY_CLASSIFIER
from colorjax.model.program import Tree, abstract_model
from colorjax.run.checkpoints import load_checkpoint
from colorjax.run.config import Config
from colorjax.run.portable import is_portable
from colorjax.run.trained import load_trained
from colorjax.run.trees import graft
from colorjax.run.workdir import checkpoint_dir, local_path

_log = logging.getLogger(__name__)


def check_pretrained(config: Config, workdir: Path, params: Tree, stats: Tree, *, classes: int) -> None:
    """Refuses what `graft_pretrained` would refuse, before a pretraining that is still to run.

    Args:
        config: see configs/paper.py.
        workdir: of the run.
        params, stats: of the joint stage's model, shapes only.
        classes: number of class labels.

    Raises:
        ValueError: as `graft_pretrained`.
    """
    if config.joint.init_from or config.stage == "joint":
        graft_pretrained(config, workdir, params, stats)
    elif config.pretrain.steps:
        _, pretrained_params, pretrained_stats = abstract_model(config, "pretrain", classes=classes)
        _graft(config, params, stats, pretrained_params, pretrained_stats, whole=False)


def graft_pretrained(config: Config, workdir: Path, params: Tree, stats: Tree) -> tuple[Tree, Tree]:
    """The joint stage's parameters and statistics with those of the networks that pretraining hands over.

    They come from `joint.init_from`, else from the run's own pretraining, if it has one.

    Args:
        config: see configs/paper.py.
        workdir: of the run.
        params, stats: of the joint stage's model.

    Raises:
        ValueError: if there is no pretraining to start from, it is not finished, or it does not fit the model.
    """
    if not config.joint.init_from and config.pretrain.steps == 0:
        return params, stats
    source = local_path(config.joint.init_from or workdir)
    if whole := bool(config.joint.init_from) and is_portable(source):
        exported = load_trained(source)
        step, pretrained_params, pretrained_stats = exported.step, exported.params, exported.stats
    else:
        source = checkpoint_dir(source, "pretrain")
        try:
            step, pretrained_params, pretrained_stats = load_checkpoint(source)
        except FileNotFoundError as error:
            raise ValueError(
                f"the joint stage starts from a pretrained classifier, but there is {error}; train with "
                "stage=pretrain first, set joint.init_from to a pretrained workdir or an exported folder, or set "
                "pretrain.steps=0 to start from scratch"
            ) from error
    if not config.joint.init_from and step < config.pretrain.steps:
        raise ValueError(
            f"the pretraining in {workdir} stands at step {step} of {config.pretrain.steps}; finish it "
            "with stage=pretrain, or set joint.init_from to take it as it is"
        )
    grafted = _graft(config, params, stats, pretrained_params, pretrained_stats, whole=whole)
    _log.info("joint: %s from %s, step %d", ", ".join(config.joint.carried), source, step)
    return grafted


def _graft(
    config: Config, params: Tree, stats: Tree, pretrained_params: Tree, pretrained_stats: Tree, *, whole: bool
) -> tuple[Tree, Tree]:
    """Grafts `joint.carried`; `whole` says that the source is a colorizer, all of whose layers are trained."""
    carried, carriable = config.joint.carried, tuple(params) if whole else SHARED
    if not set(carried) <= set(carriable):
        raise ValueError(f"joint.carried is {tuple(carried)}; it can only name {', '.join(carriable)}")
    keep = () if whole else UNUSED_BY_CLASSIFIER
    return (
        graft(params, pretrained_params, networks=carried, what="parameters", keep=keep),
        graft(stats, pretrained_stats, networks=carried, what="statistics", keep=keep),
    )
