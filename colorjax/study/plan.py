"""A study: the runs that it is made of, what they share, and how far each is.

DIR/<row>/seed<k>             a row's joint stage
DIR/pretrain/<row>/seed<k>    a pretraining, under the first row that has it
DIR/prior/<row>.npz           a prior, likewise
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorjax.run.config import Config, validate
from colorjax.run.trees import flatten
from colorjax.run.workdir import (
    bind_config,
    classes_file,
    config_file,
    differences,
    evaluation_dir,
    latest_step,
    load_config,
)
from colorjax.study import rows as ablation_rows

# What pretraining does not depend on. All else it does, a field that is yet to be invented included: what is trained
# once too often costs time, what is shared wrongly costs the study.
_NOT_PRETRAINING = (
    "stage",
    "data.prior",
    "data.download",
    "model.output_attention",
    "model.output_gate",
    "model.output_stride",
    "model.fusion",
    "model.head",
    "loss.",
    "decode.",
    "joint.",
)
_FAILURE = "failure.txt"
_SPLIT = "test"


@dataclass(frozen=True)
class Run:
    """One training: a row's joint stage, or a pretraining.

    Attributes:
        row: its name; of a pretraining the first row that has it.
        seed: of everything random in it.
        stage: "pretrain" or "joint".
        config: what it is trained with.
        workdir: where.
        pretraining: what a joint stage starts from; None if from scratch.
        same_training: a row of the same training, which differs in the decoding alone; None if that is its own.
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
        """Its workdir within the study's."""
        return f"{'pretrain/' if self.stage == 'pretrain' else ''}{self.row}/seed{self.seed}"

    @property
    def steps(self) -> int:
        """How many it has."""
        return self.config[self.stage].steps

    @property
    def batch_size(self) -> int:
        """Photos a step."""
        return self.config[self.stage].batch_size

    @property
    def evaluation(self) -> Path:
        """Where its evaluation is."""
        return evaluation_dir(self.workdir, _SPLIT)

    def decodes(self, other: "Run") -> bool:
        """Whether it is the training of the other run, and at most decoded otherwise."""
        return _chosen(self.config, _shapes_training) == _chosen(other.config, _shapes_training)

    def step(self) -> int:
        """The step of its newest checkpoint."""
        return latest_step(self.workdir, self.stage) or 0

    def trained(self) -> bool:
        """Whether its last step is saved."""
        return self.step() >= self.steps

    def evaluated(self) -> bool:
        """Whether its last step is evaluated, photo by photo."""
        record = self.evaluation / "metrics.json"
        if not self.trained() or not record.exists() or not (self.evaluation / "per_photo.csv").exists():
            return False
        found = json.loads(record.read_text())
        return (found["stage"], found["step"]) == (self.stage, self.step())

    def failure(self) -> str:
        """Why the last attempt failed; "" if it did not."""
        path = self.workdir / _FAILURE
        return path.read_text().strip() if path.exists() else ""

    def note_failure(self, reason: str) -> None:
        """Keeps the reason for the report; "" removes it."""
        path = self.workdir / _FAILURE
        if reason:
            self.workdir.mkdir(parents=True, exist_ok=True)
            path.write_text(reason + "\n")
        else:
            path.unlink(missing_ok=True)

    def status(self) -> str:
        """In a word or two: done, failed and why, trained, at which step, or pending."""
        if self.evaluated():
            return "done"
        if reason := self.failure():
            return f"failed: {reason}"
        if self.trained():
            return "trained, not evaluated"
        return f"at step {self.step()} of {self.steps}" if self.step() else "pending"


def rows_named(names: str) -> list[str]:
    """The rows that `--rows` asks for: "all", "cures", or names with commas between; `full` first, as the baseline.

    Raises:
        ValueError: for an unknown name, or none.
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
    """The runs of a study in the order in which they are to be done: a whole seed first, then the next.

    Args:
        base: the configuration that the rows change; a row's own fields win over the same fields of the base.
        rows: names of configs/ablations.py.
        seeds: of the runs; every row is trained with each.
        directory: the study's.

    Raises:
        ValueError: a field is out of its range or the study's to set, a row has nothing to train, or the directory has
            runs of another configuration.
    """
    if base.joint.init_from:
        raise ValueError(
            f"joint.init_from is {base.joint.init_from!r}, which the study sets itself; for a pretraining from "
            f"elsewhere copy its workdir to {directory}/pretrain/full/seed0"
        )
    configs = {row: ablation_rows.apply(base, row) for row in (*ablation_rows.ROWS, *ablation_rows.CURES)}
    for row in rows:
        validate(configs[row])
    made: dict[Path, Run] = {}
    for seed in seeds:
        for row in rows:
            run = _joint(row, seed, configs, base, directory)
            for each in (run.pretraining, run):
                if each and each.workdir not in made:
                    differences(each.config, each.workdir)  # refuses what binds; a plan writes nothing
                    made[each.workdir] = each
    return list(made.values())


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
            # Counted with fixed targets (training.count_prior), so that it depends on the photographs alone.
            same = _first_alike(row, configs, lambda field: field.startswith("data."))
            config.data.prior = str(directory / "prior" / f"{same}.npz")
        return Run(row, seed, "joint", config.lock(), directory / row / f"seed{seed}", pretraining)

    run = make(row)
    same = _first_alike(row, configs, _shapes_training)
    if same == row:
        return run
    return Run(**{**vars(run), "same_training": make(same)})


def _pretraining(row: str, seed: int, configs: dict[str, Config], directory: Path) -> Run:
    row = _first_alike(row, configs, _shapes_pretraining)
    config = configs[row].copy_and_resolve_references().unlock()
    config.seed, config.stage = seed, "pretrain"
    workdir = directory / "pretrain" / row / f"seed{seed}"
    if config_file(workdir).exists():
        # It may have come from another study, whose joint stage was another.
        there = load_config(workdir).unlock()
        if _chosen(there, _shapes_pretraining) == _chosen(config, _shapes_pretraining):
            config, config.stage = there, "pretrain"
    return Run(row, seed, "pretrain", config.lock(), workdir)


def _shapes_pretraining(field: str) -> bool:
    return not field.startswith(_NOT_PRETRAINING)


def _shapes_training(field: str) -> bool:
    return not field.startswith("decode.")


def _first_alike(row: str, configs: dict[str, Config], counts: Callable[[str], bool]) -> str:
    """The first of all rows, whether they are asked for or not, whose fields are this row's as far as they count."""
    wanted = _chosen(configs[row], counts)
    return next(other for other, config in configs.items() if _chosen(config, counts) == wanted)


def _chosen(config: Config, counts: Callable[[str], bool]) -> dict[str, Any]:
    return {field: value for field, value in flatten(json.loads(config.to_json())).items() if counts(field)}


def take_over(run: Run) -> bool:
    """Copies the joint stage of the row that has the same training, if that is finished: True if it did."""
    source = run.same_training
    if run.step() or not source or not source.trained():
        return False
    bind_config(run.config, run.workdir)
    shutil.copyfile(classes_file(source.workdir), classes_file(run.workdir))
    # Whole or not at all, as this process may be killed.
    unfinished = run.workdir / "joint.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source.workdir / "joint", unfinished)
    shutil.rmtree(run.workdir / "joint", ignore_errors=True)
    unfinished.rename(run.workdir / "joint")
    return True


def find_runs(directory: Path, *, planned: Sequence[Run] = ()) -> list[Run]:
    """The planned runs and all others that lie in a study's directory: pretrainings first, in the order of
    configs/ablations.py."""
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
