"""config.json, by which a run knows itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from colorjax.run.config import validate
from colorjax.run.trees import flatten
from colorjax.run.workdir import bind_config, differences, load_config
from colorjax.study import rows
from colorjax.training.optimizer import make_optimizer
from configs import food64, food101_small, paper, paper64, quickstart, vivid, vivid64


def changed(**fields: Any) -> Any:
    config = quickstart.get_config().unlock()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config.lock()


def there(workdir: Path) -> dict[str, object]:
    return flatten(json.loads((workdir / "config.json").read_text()))


def saved(workdir: Path, stage: str, name: str = "3") -> None:
    (workdir / stage / "checkpoints" / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", -1, "seed is -1; it must be between 0 and 2147483647"),
        ("joint.log_every", 0, "joint.log_every is 0; it must be 1 or more"),
        ("pretrain.eval_every", 0, "pretrain.eval_every is 0; it must be 1 or more"),
        ("joint.save_every", -1, "joint.save_every is -1; it must be 1 or more"),
        ("joint.batch_size", 0, "joint.batch_size is 0; it must be 1 or more"),
        ("pretrain.steps", -1, "pretrain.steps is -1; it must be 0 or more"),
        ("joint.learning_rate", -1e-3, "joint.learning_rate is -0.001; it must be 0 or more"),
        ("joint.learning_rate", float("inf"), "joint.learning_rate is inf; it must be 0 or more"),
        ("joint.clip_norm", float("nan"), "joint.clip_norm is nan; it must be 0 or more"),
        ("augment.rotation", -15.0, "augment.rotation is -15.0; it must be between 0 and 180"),
        ("loss.neighbors", 314, "loss.neighbors is 314; it must be between 1 and 313"),
        ("loss.sigma", 0.0, "loss.sigma is 0.0; it must be 0.001 or more"),
        ("loss.rarity", 1.5, "loss.rarity is 1.5; it must be between 0 and 1"),
        ("decode.temperature", -0.1, "decode.temperature is -0.1; it must be 0 or more"),
    ],
)
def test_a_number_out_of_its_range_is_named(field: str, value: float, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        validate(changed(**{field: value}))


@pytest.mark.parametrize("module", [quickstart, paper, food64, food101_small, paper64, vivid, vivid64])
def test_every_row_of_every_preset_is_within_all_ranges_and_has_an_optimizer(module: Any) -> None:
    for row in (*rows.ROWS, *rows.CURES):
        config = rows.apply(module.get_config(), row)
        validate(config)
        make_optimizer(config, "joint")


def test_what_ended_before_a_checkpoint_binds_nothing(tmp_path: Path) -> None:
    bind_config(changed(model__width=0.3), tmp_path)
    (tmp_path / "classes.json").write_text("[]")
    (tmp_path / "prior.npz").write_bytes(b"")
    saved(tmp_path, "pretrain", "3.orbax-checkpoint-tmp")  # killed while it saved
    assert differences(changed(model__width=0.5), tmp_path) == ["model.width"]
    assert there(tmp_path)["model.width"] == 0.3
    bind_config(changed(model__width=0.5), tmp_path)
    assert there(tmp_path)["model.width"] == 0.5
    assert (tmp_path / "prior.npz").exists()
    # Other photographs have other classes and colors.
    bind_config(changed(model__width=0.5, data__train_fraction=0.5), tmp_path)
    assert not (tmp_path / "classes.json").exists()
    assert not (tmp_path / "prior.npz").exists()


def test_the_joint_stage_may_change_until_it_has_saved(tmp_path: Path) -> None:
    bind_config(changed(joint__schedule="cosin"), tmp_path)
    saved(tmp_path, "pretrain")
    (tmp_path / "prior.npz").write_bytes(b"")
    # Pretraining does not read the head either.
    joint_only: Any = {
        "joint__schedule": "cosine",
        "loss__rarity": 0.7,
        "decode__temperature": 0.2,
        "model__head": "ab",
    }
    fixed = changed(**joint_only, stage="joint")
    bind_config(fixed, tmp_path)
    assert load_config(tmp_path).to_json() == fixed.to_json()
    assert (tmp_path / "prior.npz").exists()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"pretrain\.learning_rate is 0\.001 there and 0\.1 now.*--workdir"):
        bind_config(changed(pretrain__learning_rate=0.1, joint__schedule="constant"), tmp_path)
    saved(tmp_path, "joint")
    bind_config(changed(**joint_only, stage="both"), tmp_path)
    with pytest.raises(ValueError, match=r"configuration: loss\.rarity is 0\.7 there and 0\.5 now\. Use"):
        bind_config(changed(**(joint_only | {"loss__rarity": 0.5})), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_has_no_share_in_the_training_never_binds(tmp_path: Path) -> None:
    bind_config(changed(joint__schedule="constant", joint__steps=20), tmp_path)
    for stage in ("pretrain", "joint"):
        saved(tmp_path, stage, "4")
        saved(tmp_path, stage, "12")
    for name in ("classes.json", "prior.npz"):
        (tmp_path / name).write_bytes(b"")
    elsewhere = changed(
        joint__schedule="constant",
        joint__steps=30,
        joint__log_every=7,
        pretrain__save_every=9,
        data__dir="/elsewhere",
    )
    bind_config(elsewhere, tmp_path)
    assert load_config(tmp_path).to_json() == elsewhere.to_json()
    # The photographs are the same ones, in another place.
    assert (tmp_path / "classes.json").exists()
    assert (tmp_path / "prior.npz").exists()
    # What binds is listed alone.
    with pytest.raises(ValueError, match=r"configuration: joint\.batch_size is \d+ there and 3 now\. Use"):
        bind_config(changed(joint__schedule="constant", joint__steps=30, joint__batch_size=3), tmp_path)


def test_steps_may_grow_at_a_constant_rate_alone(tmp_path: Path) -> None:
    constant = {"pretrain__schedule": "constant", "joint__schedule": "constant", "pretrain__steps": 12}
    bind_config(changed(**constant, joint__steps=20), tmp_path)
    saved(tmp_path, "pretrain", "12")
    bind_config(changed(**(constant | {"pretrain__steps": 24}), joint__steps=20), tmp_path)
    bind_config(changed(**constant, joint__steps=20), tmp_path)
    with pytest.raises(ValueError, match=r"pretrain\.steps is 12 there and 11 now"):
        bind_config(changed(**(constant | {"pretrain__steps": 11}), joint__steps=20), tmp_path)
    saved(tmp_path, "joint", "8")
    bind_config(changed(**constant, joint__steps=40), tmp_path)
    # The joint stage started from step 12.
    with pytest.raises(ValueError, match=r"pretrain\.steps is 12 there and 24 now"):
        bind_config(changed(**(constant | {"pretrain__steps": 24}), joint__steps=40), tmp_path)
    falling = tmp_path / "falling"
    bind_config(changed(joint__schedule="cosine", joint__steps=20), falling)
    saved(falling, "joint", "8")
    with pytest.raises(ValueError, match=r"joint\.steps is 20 there and 40 now"):
        bind_config(changed(joint__schedule="cosine", joint__steps=40), falling)
    with pytest.raises(ValueError, match=r"joint\.schedule is 'cosine' there and 'constant' now"):
        bind_config(changed(joint__schedule="constant", joint__steps=40), falling)


def test_a_decay_may_move_until_it_begins(tmp_path: Path) -> None:
    def constant(steps: int, decay: int) -> Any:
        return changed(joint__schedule="constant", joint__steps=steps, joint__decay_steps=decay)

    bind_config(constant(100, 10), tmp_path)
    saved(tmp_path, "joint", "30")
    bind_config(constant(50, 20), tmp_path)
    bind_config(constant(45, 15), tmp_path)
    with pytest.raises(ValueError, match=r"joint\.steps is 45 there and 40 now"):
        bind_config(constant(40, 15), tmp_path)
    saved(tmp_path, "joint", "31")  # it has begun
    with pytest.raises(
        ValueError, match=r"joint\.decay_steps is 15 there and 10 now.*joint\.steps is 45 there and 100"
    ):
        bind_config(constant(100, 10), tmp_path)


def test_vivid_is_the_same_recipe_at_both_sizes() -> None:
    def chosen(config: Any, base: Any) -> dict[str, object]:
        fields, before = (flatten(json.loads(c.to_json())) for c in (config, base))
        return {k: v for k, v in fields.items() if k.startswith(("augment.", "loss.", "decode.", "joint."))} | {
            k: v for k, v in fields.items() if v != before[k]
        }

    full, small = chosen(vivid.get_config(), paper.get_config()), chosen(vivid64.get_config(), food64.get_config())
    assert {k: v for k, v in full.items() if k != "joint.log_every"} == {
        k: v for k, v in small.items() if k != "joint.log_every"
    }
    assert vivid.get_config().joint.steps * vivid.get_config().joint.batch_size == 10 * 16_000
    assert vivid64.get_config("no_rarity").loss.rarity == 1
