"""How the joint stage starts from a pretrained classifier: weights and statistics, by path."""

import logging
from pathlib import Path
from typing import NamedTuple

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
    if config.stage == "both" and config.pretrain.steps and not config.joint.init_from:
        _, pretrained_params, pretrained_stats = abstract_model(config, "pretrain", classes=classes)
        _graft(config, params, stats, _Pretrained(pretrained_params, pretrained_stats))
    elif pretrained := _load(config, workdir):
        _graft(config, params, stats, pretrained)


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
    pretrained = _load(config, workdir)
    if pretrained is None:
        return params, stats
    grafted = _graft(config, params, stats, pretrained)
    _log.info("joint: %s taken from %s", ", ".join(config.joint.carried), pretrained.source)
    return grafted


class _Pretrained(NamedTuple):
    """What the joint stage can start from.

    Attributes:
        params, stats: of a classifier or a colorizer.
        whole: whether it is a colorizer, all of whose layers are trained.
        source: where it was, for the log.
    """

    params: Tree
    stats: Tree
    whole: bool = False
    source: str = ""


def _load(config: Config, workdir: Path) -> _Pretrained | None:
    """What the joint stage starts from; None where it starts from scratch. Raises as `graft_pretrained`."""
    if not config.joint.init_from and config.pretrain.steps == 0:
        return None
    source = local_path(config.joint.init_from or workdir)
    if config.joint.init_from and is_portable(source):
        exported = load_trained(source)
        return _Pretrained(exported.params, exported.stats, whole=True, source=f"{source}, step {exported.step}")
    directory = checkpoint_dir(source, "pretrain")
    try:
        step, params, stats = load_checkpoint(directory)
    except FileNotFoundError as error:
        raise ValueError(
            f"the joint stage starts from a pretrained classifier, but there is {error}; train with stage=pretrain "
            "first, set joint.init_from to a pretrained workdir or an exported folder, or set pretrain.steps=0 to "
            "start from scratch"
        ) from error
    if not config.joint.init_from and step < config.pretrain.steps:
        raise ValueError(
            f"the pretraining in {workdir} stands at step {step} of {config.pretrain.steps}; finish it with "
            "stage=pretrain, or set joint.init_from to take it as it is"
        )
    return _Pretrained(params, stats, source=f"{directory}, step {step}")


def _graft(config: Config, params: Tree, stats: Tree, pretrained: _Pretrained) -> tuple[Tree, Tree]:
    carried, carriable = config.joint.carried, tuple(params) if pretrained.whole else SHARED
    if not set(carried) <= set(carriable):
        raise ValueError(f"joint.carried is {tuple(carried)}; it can only name {', '.join(carriable)}")
    untrained = () if pretrained.whole else UNUSED_BY_CLASSIFIER
    return (
        graft(params, pretrained.params, networks=carried, what="parameters", keep=untrained),
        graft(stats, pretrained.stats, networks=carried, what="statistics", keep=untrained),
    )
