"""The benchmarks' command line, and their peer: PyTorch's model is colorjax's, number by number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import __main__ as benchmarks
from colorjax.model.colorizer import Colorizer, parameter_count
from colorjax.model.program import build_program, init_model
from colorjax.training import losses
from configs import paper

CLASSES = 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steep"], "'steep' is not a benchmark; did you mean step?"),
        (["xyz"], "'xyz' is not a benchmark; there are patch_sum, relation"),
        (["step", "--repeats=0"], "--repeats: '0' is not a whole number of 1 or more"),
        (["step", "--joint-steps=1"], "--joint-steps is not an argument of python -m benchmarks step"),
        (["device"], "the following arguments are required: --out"),
        (["compile", "--topology=v5e:2x2,abacus:1"], "--topology: 'abacus:1' is not a topology; the chips are v4, v5e"),
        (["compile", "--programs=joined"], "--programs: 'joined' is not a program; there are joint, pretrain"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        benchmarks.main(arguments)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("name", benchmarks.TABLES + benchmarks.SCRIPTS)
def test_every_benchmark_describes_itself_and_is_listed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    parser, module = benchmarks.make_parser(name)
    assert hasattr(module, "rows" if name in benchmarks.TABLES else "run")
    assert f"python -m benchmarks {name}" in parser.format_help()
    with pytest.raises(SystemExit):
        benchmarks.main([])
    assert name in capsys.readouterr().out


def test_pytorchs_model_has_as_many_parameters() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import torch_model

    config = paper.get_config()
    ours = nnx.eval_shape(lambda: Colorizer(config.model, classes=101, image_size=224, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        peer = torch_model.Colorizer(classes=101, image_size=224)
    assert sum(p.numel() for p in peer.parameters()) == parameter_count(ours)


@pytest.mark.slow
def test_pytorchs_model_gives_the_same_outputs_loss_and_gradients() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import torch_model

    config: Any = paper.get_config().unlock()
    config.data.image_size = 32
    config.model.update(width=0.25, patch_kernels=(3, 5, 3), output_gate=0.7)
    program = build_program(config, "joint", classes=CLASSES)
    params, stats = init_model(config, "joint", classes=CLASSES)
    rng = np.random.default_rng(0)
    # Away from the zeros and ones that a fresh bias or scale is, so that none can be forgotten.
    params, stats = (
        jax.tree.map(lambda x: jnp.asarray(x * rng.uniform(0.7, 1.3, x.shape) + 0.05 * (x.ndim < 2), jnp.float32), tree)
        for tree in (params, stats)
    )
    l = rng.uniform(0, 100, (8, 32, 32, 1)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 8)
    neighbors = rng.permuted(np.tile(np.arange(313, dtype=np.int32), (8, 16, 16, 1)), axis=-1)[..., :5]
    shares = rng.dirichlet(np.ones(5), (8, 16, 16)).astype(np.float32)
    bins = np.zeros((8, 16, 16, 313), np.float32)
    np.put_along_axis(bins, neighbors, shares, axis=-1)
    weight = rng.uniform(0, 2, (8, 16, 16)).astype(np.float32)
    targets = losses.ColorTargets(
        ab=jnp.zeros((8, 16, 16, 2)),
        bins=list(jnp.moveaxis(jnp.asarray(neighbors), -1, 0)),
        shares=list(jnp.moveaxis(jnp.asarray(shares), -1, 0)),
        weight=jnp.asarray(weight),
        valid=jnp.ones((8, 16, 16)),
    )

    def loss(params: Any, train: bool) -> Any:
        outputs, _ = program(params, stats, jnp.asarray(l), train=train)
        of_class, _ = losses.class_terms(outputs.class_logits, jnp.asarray(labels), jnp.ones(8))
        of_color, _ = losses.color_terms(outputs.color, targets, prior=jnp.full(313, 1 / 313))
        return (of_class + of_color) / 8, outputs

    options: Any = {"static_argnums": 1, "compiler_options": {"xla_backend_optimization_level": 0}}
    in_training = jax.jit(loss, **options)(params, True)
    (value, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), **options)(params, False)

    def made_by_peer(tree: Any, train: bool) -> Any:
        peer = torch_model.Colorizer(classes=CLASSES, image_size=32, width=0.25, patch_kernels=(3, 5, 3))
        torch_model.load(peer, tree, stats)
        return peer.train(train).double()

    # BatchNorm over eight photos, of one pixel at the end, magnifies rounding: PyTorch's too, so that it has float64.
    for train, (of_ours, ours), tolerance in ((True, in_training, 1e-3), (False, (value, outputs), 1e-4)):
        peer = made_by_peer(params, train)
        class_logits, color_logits = peer(torch.tensor(l.transpose(0, 3, 1, 2)).double())
        of_peer = torch_model.loss(
            class_logits,
            color_logits,
            torch.tensor(labels),
            torch.tensor(bins.transpose(0, 3, 1, 2)).double(),
            torch.tensor(weight).double(),
        )
        np.testing.assert_allclose(ours.class_logits, class_logits.detach(), atol=tolerance)
        np.testing.assert_allclose(ours.color, color_logits.detach().permute(0, 2, 3, 1), atol=tolerance)
        assert float(of_ours) == pytest.approx(of_peer.detach().item(), rel=1e-5)
    # In training even PyTorch's own float32 and float64 gradients differ by a tenth here.
    of_peer.backward()
    # Ours as parameters, so that their names and layouts are found by the same rules.
    expected = dict(made_by_peer(gradient, False).named_parameters())
    for name, found in peer.named_parameters():
        assert found.grad is not None, name
        assert float((found.grad - expected[name]).norm().detach()) < 1e-4 * float(found.grad.norm()), name


def test_a_name_that_one_side_lacks_is_refused() -> None:
    pytest.importorskip("torch")
    from benchmarks import torch_model

    with pytest.raises(ValueError, match=r"on one side only: dense\.weight, .*output\.bias"):
        torch_model.load(
            torch_model.Classification(width=0.25, classes=3), {"output": {"kernel": np.zeros((64, 3))}}, {}
        )
