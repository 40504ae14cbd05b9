"""Planning a study, sharing between its runs, and failures; the training itself is replaced by writing files."""

import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from colorjax.model.colorizer import Classifier
from colorjax.model.program import Program
from colorjax.run.workdir import bind_config
from colorjax.study import execution, figure, report, rows
from colorjax.study import rows as ablation_rows
from colorjax.study.execution import carry_out, commands
from colorjax.study.plan import Run, copy_training, find_runs, plan_runs, rows_named
from colorjax.training import loop
from configs import paper, quickstart

EVERY = [*rows.ROWS, *rows.CURES]


def base(fields: dict[str, Any] | None = None) -> Any:
    config = quickstart.get_config().unlock()
    config.update_from_flattened_dict(fields or {})
    return config.lock()


def plan(directory: Path, rows: list[str] = EVERY, seeds: tuple[int, ...] = (0,), fields: Any = None) -> dict[str, Run]:
    return {run.name: run for run in plan_runs(base(fields), rows=rows, seeds=seeds, directory=directory)}


def test_rows_by_name() -> None:
    assert rows_named("all") == [*rows.ROWS]
    assert rows_named("cures") == ["full", *rows.CURES]
    assert rows_named("no_fusion, full,no_fusion") == ["full", "no_fusion"]
    with pytest.raises(ValueError, match="--rows names no_such; it takes all, cures, full, no_pretraining"):
        rows_named("full,no_such")
    with pytest.raises(ValueError, match="--rows is empty"):
        rows_named("")


def test_pretraining_is_shared_by_the_rows_that_share_it(tmp_path: Path) -> None:
    runs = plan(tmp_path)
    of_row = {run.row: run.pretraining and run.pretraining.row for run in runs.values() if run.stage == "joint"}
    assert of_row.keys() == {*EVERY}
    own = {row: row for row in ("no_patch_attention", "no_augmentation", "group_norm")}
    none = dict.fromkeys(("no_pretraining", "iizuka2016", "zhang2016_head"))
    assert of_row == dict.fromkeys(EVERY, "full") | own | none
    assert {run.row for run in runs.values() if run.stage == "pretrain"} == {"full", *own}
    for run in runs.values():
        if run.stage == "joint":
            expected = str(tmp_path / "pretrain" / str(of_row[run.row]) / "seed0") if of_row[run.row] else ""
            assert run.config.joint.init_from == expected
            assert run.config.stage == "joint"
            assert run.config.data.prior == str(tmp_path / "prior" / "full.npz")


def test_sharing_does_not_depend_on_which_rows_are_asked_for(tmp_path: Path) -> None:
    together, alone = plan(tmp_path, seeds=(0, 1)), plan(tmp_path, rows=["rarity_25"], seeds=(1,))
    assert [*alone] == ["pretrain/full/seed1", "rarity_25/seed1"]
    for name, run in alone.items():
        assert run.config.to_json() == together[name].config.to_json()
    assert together["full/seed1"].config.seed == 1
    # A whole seed first, and a pretraining before what starts from it.
    names = [*together]
    assert names.index("open_gate/seed0") < names.index("pretrain/full/seed1") < names.index("full/seed1")


def test_pretraining_does_not_depend_on_the_fields_it_does_not_read() -> None:
    def traced(config: Any) -> str:
        key = jax.random.key(0)
        model = nnx.eval_shape(
            lambda: Classifier(config.model, classes=3, image_size=config.data.image_size, rngs=nnx.Rngs(0))
        )
        program, params, stats = Program.split(model)

        def of_all(params: Any, stats: Any, l: Any) -> Any:
            return program(params, stats, l, train=True)

        initial = jax.make_jaxpr(
            lambda key: Program.split(
                Classifier(config.model, classes=3, image_size=config.data.image_size, rngs=nnx.Rngs(key))
            )[1:]
        )(key)
        l = jax.ShapeDtypeStruct((2, config.data.image_size, config.data.image_size, 1), "float32")
        return f"{initial}{jax.make_jaxpr(of_all)(params, stats, l)}"

    small = {"data.resolution": 40, "data.image_size": 32, "model.patch_attention": False}
    left_out = {
        "model.output_attention": "none",
        "model.output_gate": 0.5,
        "model.output_stride": 4,
        "model.fusion": False,
        "model.head": "ab",
    }
    alike, other = base(small), base(small | left_out)
    # Else what follows would be empty.
    assert {f"model.{k}" for k in alike.model if alike.model[k] != other.model[k]} == {*left_out}
    assert traced(alike) == traced(other)
    assert traced(alike) != traced(base(small | {"model.downsampling": "pool"}))


def test_an_unknown_field_gets_its_own_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ablation_rows.CURES, "unheard_of", {"model.unheard_of": 1})
    monkeypatch.setitem(ablation_rows.CURES, "less_data", {"data.train_fraction": 0.5})
    monkeypatch.setitem(ablation_rows.CURES, "longer", {"pretrain.steps": lambda c: 2 * c.pretrain.steps})
    config = base().unlock()
    config.model.unheard_of = 0
    rows = ["full", "unheard_of", "less_data", "longer"]
    runs = {run.name: run for run in plan_runs(config.lock(), rows=rows, seeds=[0], directory=tmp_path)}
    for row in rows:
        assert f"pretrain/{row}/seed0" in runs
    assert runs["longer/seed0"].config.data.prior == runs["full/seed0"].config.data.prior
    # Fewer photographs have other colors.
    assert runs["less_data/seed0"].config.data.prior == str(tmp_path / "prior" / "less_data.npz")


def test_a_rows_fields_win_over_those_of_the_base(tmp_path: Path) -> None:
    runs = plan(tmp_path, fields={"pretrain.steps": 7, "joint.steps": 40, "joint.batch_size": 6, "data.prior": "p.npz"})
    assert runs["pretrain/full/seed0"].steps == 7
    assert runs["no_pretraining/seed0"].pretraining is None
    assert (runs["steps_x4/seed0"].steps, runs["batch_x4/seed0"].steps) == (160, 10)
    assert runs["batch_x4/seed0"].batch_size == 24
    assert {run.config.data.prior for run in runs.values() if run.stage == "joint"} == {"p.npz"}


def test_each_cure_changes_one_thing_of_the_papers_recipe() -> None:
    full = paper.get_config()
    for row in rows.CURES:
        changed = paper.get_config(row)
        # The paper has a constant rate, and no warm-up, already.
        assert (changed.to_json() == full.to_json()) == (row == "constant_rate")
        assert changed.joint.steps * changed.joint.batch_size == {"steps_x4": 4}.get(row, 1) * 16_000


def test_impossible_studies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"joint\.init_from is 'there', which the study sets itself"):
        plan(tmp_path, fields={"joint.init_from": "there"})
    with pytest.raises(ValueError, match=r"row full: joint\.steps is 0"):
        plan(tmp_path, fields={"joint.steps": 0})
    run = plan(tmp_path)["no_fusion/seed0"]
    bind_config(run.config, run.workdir)
    before = (run.workdir / "config.json").read_bytes()
    plan(tmp_path, fields={"joint.learning_rate": 0.1})
    assert (run.workdir / "config.json").read_bytes() == before
    (run.workdir / "joint" / "checkpoints" / "10").mkdir(parents=True)
    plan(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)no_fusion/seed0 belongs to a run.*joint\.learning_rate.*0\.001 there"):
        plan(tmp_path, fields={"joint.learning_rate": 0.1})


def test_an_equal_pretraining_of_another_study_is_reused(tmp_path: Path) -> None:
    before = plan(tmp_path)["pretrain/full/seed0"]
    bind_config(before.config, before.workdir)
    (before.workdir / "pretrain" / "checkpoints" / "10").mkdir(parents=True)
    after = plan(tmp_path, rows=["full"], fields={"joint.steps": 9, "loss.rarity": 0.3})["pretrain/full/seed0"]
    assert after.config.to_json() == before.config.to_json()
    with pytest.raises(ValueError, match=r"pretrain\.batch_size.*16 there.*4 now"):
        plan(tmp_path, rows=["full"], fields={"pretrain.batch_size": 4})


# The training, replaced.


def train(config: Any, workdir: str | Path) -> None:
    stage, directory = config.stage, Path(workdir)
    bind_config(config, directory)
    (directory / "classes.json").write_text("[]")
    (directory / stage / "checkpoints" / str(config[stage].steps)).mkdir(parents=True, exist_ok=True)
    records = [{"step": s, "split": "train", "loss": 9.0 - s, "seconds_per_step": 0.5} for s in (1, 2, 3)]
    records.append({"step": 3, "split": "validation", "psnr": 20.0, "colorfulness": 30.0, "accuracy": 0.1})
    (directory / stage / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 4, "sp')


def evaluated(workdir: str | Path, *, split: str, lpips_weights: str | None = None) -> None:
    directory = Path(workdir)
    stage = "joint" if (directory / "joint").exists() else "pretrain"
    config = json.loads((directory / "config.json").read_text())
    folder = directory / "evaluation" / split
    folder.mkdir(parents=True, exist_ok=True)
    psnr = np.linspace(15, 25, 11) + (directory.parent.name == "no_rarity")
    lpips = 0.5 if lpips_weights else ""
    lines = [f"{i},{i % 3},pie,{x},40.0,0.25,{lpips}" for i, x in enumerate(psnr)]
    (folder / "per_photo.csv").write_text("\n".join(["index,label,class,psnr,true_colorfulness,top1,lpips", *lines]))
    # As with few classes, there is no top-5.
    rows = {"model": {"psnr": 20.0, "top1": 0.25}, "gray": {"psnr": 19.0}}
    record = {"stage": stage, "step": config[stage]["steps"], "split": split, "photos": 11, "rows": rows}
    record["judges"] = {"lpips": "checksum"} if lpips_weights else {}
    (folder / "metrics.json").write_text(json.dumps(record))


def color_photos(run: Run) -> None:
    true = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    np.savez(run.evaluation / "figure.npz", step=run.step(), gray=true // 2, true=true, predicted=true[::-1])


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces training, evaluation and coloring by writing files; returns the trainings in their order."""
    trained = []

    def recorded_train(config: Any, workdir: Path) -> None:
        train(config, workdir)
        trained.append(f"{workdir.parent.name}/{config.stage}")

    monkeypatch.setattr(execution, "train", recorded_train)
    monkeypatch.setattr(execution, "count_prior", lambda config, path: path.parent.mkdir(exist_ok=True))
    monkeypatch.setattr(execution, "evaluate", evaluated)
    monkeypatch.setattr(figure, "color_photos", color_photos)
    return trained


def report_rows(directory: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (directory / "report.csv").open(newline="") as f:
        return {(line["row"], line["metric"]): line for line in csv.DictReader(f)}


def test_a_failing_run_is_reported_and_the_others_continue(
    tmp_path: Path, faked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    working_train = execution.train

    def failing_train(config: Any, workdir: Path) -> None:
        if (workdir.parent.name, config.stage) in (("no_rarity", "joint"), ("no_augmentation", "pretrain")):
            raise FloatingPointError("joint: the loss of step 2 is nan | lower it")
        working_train(config, workdir)

    monkeypatch.setattr(execution, "train", failing_train)
    rows = ["full", "no_rarity", "no_augmentation", "temperature_20"]
    runs = [*plan(tmp_path, rows=rows).values()]
    assert not carry_out(runs, directory=tmp_path)
    assert faked == ["full/pretrain", "full/joint", "temperature_20/joint"]
    statuses = {run.name: run.status() for run in runs}
    assert statuses["full/seed0"] == statuses["temperature_20/seed0"] == "done"
    assert statuses["no_rarity/seed0"] == "failed: FloatingPointError: joint: the loss of step 2 is nan | lower it"
    assert "starts from pretrain/no_augmentation/seed0, which is failed: Fl" in statuses["no_augmentation/seed0"]
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "2 of 4 runs are done" in text
        assert "the loss of step 2 is nan" in text
    assert report_rows(tmp_path)["no_rarity", ""]["seeds_done"] == "0"

    monkeypatch.setattr(execution, "train", working_train)
    assert carry_out(runs, directory=tmp_path)
    assert faked[3:] == ["no_rarity/joint", "no_augmentation/pretrain", "no_augmentation/joint"]
    assert "failed" not in (tmp_path / "report.md").read_text()
    found = report_rows(tmp_path)
    assert [found["no_rarity", "psnr"][k] for k in ("mean", "difference", "low", "high")] == ["21", "1", "1", "1"]
    assert [found["temperature_20", "psnr"][k] for k in ("difference", "low", "high")] == ["0", "0", "0"]
    assert found["full", "psnr"]["difference"] == ""

    # Nothing is left to do, and the report can be written without knowing the plan.
    assert carry_out(runs, directory=tmp_path)
    assert len(faked) == 6
    assert [run.name for run in find_runs(tmp_path)] == [
        *("pretrain/full/seed0", "pretrain/no_augmentation/seed0"),
        *("full/seed0", "no_rarity/seed0", "no_augmentation/seed0", "temperature_20/seed0"),
    ]


def test_a_row_that_only_decodes_differently_copies_the_training(tmp_path: Path, faked: list[str]) -> None:
    runs = plan(tmp_path, rows=["full", "temperature_20", "rarity_25"])
    other = runs["temperature_20/seed0"]
    assert other.same_training is not None
    assert runs["rarity_25/seed0"].same_training is runs["full/seed0"].same_training is None
    assert not copy_training(other)  # there is nothing yet
    for name in ("pretrain/full/seed0", "full/seed0"):
        train(runs[name].config, runs[name].workdir)
    assert copy_training(other)
    assert other.trained()
    assert json.loads((other.workdir / "config.json").read_text())["decode"]["temperature"] == 0.2
    metrics = (other.workdir / "joint" / "metrics.jsonl").read_bytes()
    assert metrics == (runs["full/seed0"].workdir / "joint" / "metrics.jsonl").read_bytes()
    assert not copy_training(other)  # it has its own


def test_the_report_is_one_page_and_shows_unfinished_runs(tmp_path: Path, faked: list[str]) -> None:
    runs = plan(tmp_path, rows=["full", "no_rarity"], seeds=(0, 1))
    done = [run for name, run in runs.items() if name != "no_rarity/seed1"]
    assert carry_out(done, directory=tmp_path)
    later = [*plan(tmp_path, rows=["full", "no_rarity", "no_fusion"], seeds=(0, 1)).values()]
    report.write(tmp_path, find_runs(tmp_path, planned=later))
    html = (tmp_path / "report.html").read_text()
    # Gray, the two rows that have photos, the truth; of each row three charts, of the pretraining two.
    assert html.count("<img ") == html.count("data:image/jpeg;base64,") == 4
    assert html.count("<svg ") == 2 * 3 + 2
    assert "href" not in html
    assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "url(" not in html
    markdown = (tmp_path / "report.md").read_text()
    assert "3 of 6 runs are done: 3 rows, seeds 0, 1." in markdown
    assert "| no_rarity | " in markdown
    assert "**+1 [1, 1]**" in markdown
    assert "| no_fusion/seed1 | pending |" in markdown
    assert "loss.rarity=1" in markdown
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_lpips_is_added_to_a_finished_study(tmp_path: Path, faked: list[str]) -> None:
    runs = [*plan(tmp_path, rows=["full", "no_rarity"]).values()]
    assert carry_out(runs, directory=tmp_path)
    assert "LPIPS" not in (tmp_path / "report.md").read_text()
    assert ("full", "lpips") not in report_rows(tmp_path)
    pretraining = (runs[0].evaluation / "metrics.json").stat().st_mtime_ns
    assert carry_out(runs, directory=tmp_path, lpips_weights="lpips.npz")
    assert report_rows(tmp_path)["full", "lpips"]["mean"] == "0.5"
    assert "| LPIPS ↓ | perceptual distance" in " ".join((tmp_path / "report.md").read_text().split())
    assert (runs[0].evaluation / "metrics.json").stat().st_mtime_ns == pretraining
    # Without the weights what is there is enough.
    before = len(faked)
    assert carry_out(runs, directory=tmp_path)
    assert len(faked) == before


def test_there_is_one_command_for_each_run(tmp_path: Path, faked: list[str]) -> None:
    rows = ["full", "no_augmentation", "no_pretraining"]
    runs = [*plan(tmp_path, rows=rows, seeds=(0, 1)).values()]
    overrides = {"data.dir": "a b", "augment.scale": (0.5, 2.0), "stage": "both"}
    text = commands(runs, config="c.py", overrides=overrides, rows=rows, directory=tmp_path)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 4 + 6 + 1
    assert all("'--config.data.dir=a b' '--config.augment.scale=(0.5, 2.0)'" in line for line in lines)
    assert lines[0].endswith("--rows=full --seeds=0 --config.stage=pretrain")
    assert lines[4].endswith("--rows=full --seeds=0 --config.stage=joint")
    assert lines[-1].endswith("--rows=full,no_augmentation,no_pretraining --seeds=0,1 --report")
    assert carry_out(runs, directory=tmp_path)
    text = commands(runs, config="c.py", overrides=overrides, rows=rows, directory=tmp_path)
    assert text.count("python -m") == 1
    text = commands(runs, config="c.py", overrides={}, rows=rows, directory=tmp_path, lpips_weights="w.npz")
    assert "--lpips-weights=w.npz" in text


def test_a_signal_at_the_end_of_a_training_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As one that comes during the last validation: the training has no step left at which to heed it.
    monkeypatch.setattr(loop, "_check_stage", lambda *_, **__: None)
    monkeypatch.setattr(loop, "_train_stage", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(execution, "count_prior", lambda *_: None)
    run = plan(tmp_path, rows=["no_pretraining"])["no_pretraining/seed0"]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with pytest.raises(SystemExit, match="143"):
            carry_out([run], directory=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not run.failure()
