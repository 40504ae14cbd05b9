"""Plans a study: its runs, what they share, and the status of each.

DIR/<row>/seed<k>             a row's joint stage
DIR/pretrain/<row>/seed<k>    a pretraining, named after the first row that uses it
DIR/prior/<row>.npz           a prior, likewise
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorjax import atomic
from colorjax.run.config import Config, pretraining_reads, validate
from colorjax.run.trees import flatten
from colorjax.run.workdir import (
    bind_config,
    classes_file,
    config_file,
    differences,
    evaluation_dir,
    latest_step,
    load_config,
    stage_dir,
)
from colorjax.study import rows as ablation_rows

_FAILURE = "failure.txt"
_SPLIT = "test"


@dataclass(frozen=True)
class Run:
    """One training: a row's joint stage, or a pretraining.

    Attributes:
        row: the row's name; for a pretraining, the first row that uses it.
        seed: the configuration's seed.
        stage: "pretrain" or "joint".
        config: the configuration to train with.
        workdir: the training's workdir.
        pretraining: the run that a joint stage starts from; None for a start from scratch.
        same_training: the run of an earlier row that differs only in decoding; None if there is none.
    """

    row: str
    seed: int
    stage: str
    config: Config
    workdir: Path
    pretraining: "Run | None" = None
    same_training: "Run | None" = None

    @property
    def name(self) -> str:
        """The workdir, relative to the study's folder."""
        return f"{'pretrain/' if self.stage == 'pretrain' else ''}{self.row}/seed{self.seed}"

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.config[self.stage].steps

    @property
    def batch_size(self) -> int:
        """Photos in a step."""
        return self.config[self.stage].batch_size

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation."""
        return evaluation_dir(self.workdir, _SPLIT)

    def trains_like(self, other: "Run") -> bool:
        """Whether the two runs differ at most in decoding."""
        return _selected(self.config, _affects_training) == _selected(other.config, _affects_training)

    def step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return latest_step(self.workdir, self.stage) or 0

    def trained(self) -> bool:
        """Whether the last step is saved."""
        return self.step() >= self.steps

    def evaluated(self, *, judges: Sequence[str] = ()) -> bool:
        """Whether the last step is evaluated, photo by photo, with all of these judges (see evaluate)."""
        record = self.evaluation / "metrics.json"
        if not self.trained() or not record.exists() or not (self.evaluation / "per_photo.csv").exists():
            return False
        found = json.loads(record.read_text())
        if self.stage == "joint" and not set(judges) <= found.get("judges", {}).keys():
            return False
        return (found["stage"], found["step"]) == (self.stage, self.step())

    def failure(self) -> str:
        """Why the last attempt failed; "" if it did not fail."""
        path = self.workdir / _FAILURE
        return path.read_text().strip() if path.exists() else ""

    def note_failure(self, reason: str) -> None:
        """Stores the reason of a failure for the report; "" removes it."""
        path = self.workdir / _FAILURE
        if reason:
            self.workdir.mkdir(parents=True, exist_ok=True)
            path.write_text(reason + "\n")
        else:
            path.unlink(missing_ok=True)

    def status(self) -> str:
        """done, failed with the reason, trained, the current step, or pending."""
        if self.evaluated():
            return "done"
        if reason := self.failure():
            return f"failed: {reason}"
        if self.trained():
            return "trained, not evaluated"
        return f"at step {self.step()} of {self.steps}" if self.step() else "pending"


def rows_named(names: str) -> list[str]:
    """The rows in --rows: "all", "cures", or names separated by commas.

    Returns:
        Names of rows in their usual order, in which the baseline `full` is first.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    groups = {"all": ablation_rows.ROWS, "cures": {"full": {}} | ablation_rows.CURES}
    known = [*ablation_rows.ROWS, *ablation_rows.CURES]
    asked = [row for name in names.split(",") if name for row in groups.get(name.strip(), [name.strip()])]
    if unknown := [row for row in asked if row not in known]:
        raise ValueError(f"--rows names {', '.join(unknown)}; it takes {', '.join([*groups, *known])}")
    if not asked:
        raise ValueError(f"--rows is empty; it takes {', '.join([*groups, *known])}")
    return [row for row in known if row in asked]


def plan_runs(base: Config, *, rows: Sequence[str], seeds: Iterable[int], directory: Path) -> list[Run]:
    """Lists the runs of a study in the order in which to train them: all rows of one seed, then of the next.

    Args:
        base: the configuration that the rows change.
        rows: names of rows (see rows.py).
        seeds: every row is trained with each seed.
        directory: the study's folder.

    Raises:
        ValueError: a field is out of its range or is set by the study itself, a row has nothing to train, or the folder
            has runs of another configuration.
    """
    if base.joint.init_from:
        raise ValueError(
            f"joint.init_from is {base.joint.init_from!r}, which the study sets itself; to use an existing "
            f"pretraining, copy its workdir to {directory}/pretrain/full/seed0"
        )
    configs = {row: ablation_rows.apply(base, row) for row in (*ablation_rows.ROWS, *ablation_rows.CURES)}
    for row in rows:
        validate(configs[row])
    runs: dict[Path, Run] = {}
    for seed in seeds:
        for row in rows:
            run = _joint(row, seed, configs, base, directory)
            for each in (run.pretraining, run):
                if each and each.workdir not in runs:
                    differences(each.config, each.workdir)  # raises if the workdir belongs to another configuration
                    runs[each.workdir] = each
    return list(runs.values())


def _joint(row: str, seed: int, configs: dict[str, Config], base: Config, directory: Path) -> Run:
    def make(row: str) -> Run:
        config = configs[row].copy_and_resolve_references().unlock()
        if config.joint.steps < 1:
            raise ValueError(f"row {row}: joint.steps is {config.joint.steps}; a study compares the joint stage")
        config.seed, config.stage = seed, "joint"
        pretraining = _pretraining(row, seed, configs, directory) if config.pretrain.steps > 0 else None
        if pretraining:
            config.joint.init_from = str(pretraining.workdir)
        if not base.data.prior:
            # The prior depends on the photos alone (run.prior.count_prior), so rows of equal data share it.
            same = _first_alike(row, configs, lambda field: field.startswith("data."))
            config.data.prior = str(directory / "prior" / f"{same}.npz")
        return Run(row, seed, "joint", config.lock(), directory / row / f"seed{seed}", pretraining)

    run = make(row)
    same = _first_alike(row, configs, _affects_training)
    if same == row:
        return run
    return Run(**{**vars(run), "same_training": make(same)})


def _pretraining(row: str, seed: int, configs: dict[str, Config], directory: Path) -> Run:
    row = _first_alike(row, configs, pretraining_reads)
    config = configs[row].copy_and_resolve_references().unlock()
    config.seed, config.stage = seed, "pretrain"
    workdir = directory / "pretrain" / row / f"seed{seed}"
    if config_file(workdir).exists():
        # It may come from a study with another joint stage.
        saved = load_config(workdir).unlock()
        if _selected(saved, pretraining_reads) == _selected(config, pretraining_reads):
            config, config.stage = saved, "pretrain"
    return Run(row, seed, "pretrain", config.lock(), workdir)


def _affects_training(field: str) -> bool:
    return not field.startswith("decode.")


def _first_alike(row: str, configs: dict[str, Config], select: Callable[[str], bool]) -> str:
    """The first of all known rows whose selected fields are equal to this row's."""
    wanted = _selected(configs[row], select)
    return next(other for other, config in configs.items() if _selected(config, select) == wanted)


def _selected(config: Config, select: Callable[[str], bool]) -> dict[str, Any]:
    return {field: value for field, value in flatten(json.loads(config.to_json())).items() if select(field)}


def copy_training(run: Run) -> bool:
    """Copies the finished joint stage of `same_training`, if there is one; returns whether it did."""
    source = run.same_training
    if run.step() or not source or not source.trained():
        return False
    bind_config(run.config, run.workdir)
    shutil.copyfile(classes_file(source.workdir), classes_file(run.workdir))
    copy = stage_dir(run.workdir, "joint")
    shutil.rmtree(copy, ignore_errors=True)
    with atomic.new_folder(copy) as partial:
        shutil.copytree(stage_dir(source.workdir, "joint"), partial, dirs_exist_ok=True)
    return True


def find_runs(directory: Path, *, planned: Sequence[Run] = ()) -> list[Run]:
    """The planned runs and all others in a study's folder: pretrainings first, then in the order of the rows."""
    known = [*ablation_rows.ROWS, *ablation_rows.CURES]
    runs = {run.workdir: run for run in planned}
    for path in (*directory.glob("*/seed*/config.json"), *directory.glob("pretrain/*/seed*/config.json")):
        workdir = path.parent
        row, seed = workdir.parent.name, workdir.name.removeprefix("seed")
        if seed.isdigit() and workdir not in runs:
            stage = "pretrain" if workdir.parent.parent != directory else "joint"
            runs[workdir] = Run(row, int(seed), stage, load_config(workdir), workdir)
    return sorted(
        runs.values(),
        key=lambda run: (
            run.stage != "pretrain",
            known.index(run.row) if run.row in known else len(known),
            run.row,
            run.seed,
        ),
    )
