"""`colorjax evaluate`: measures a run on a whole split."""

from absl import app, flags

from colorjax.cli.terminal import log_to_terminal
from colorjax.evaluation.evaluate import evaluate
from colorjax.run import compilation


def main() -> None:
    """Runs the command."""
    flags.DEFINE_string("workdir", None, "The --workdir of train.py.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which photos.")
    flags.DEFINE_string("data_dir", None, "Where the photographs lie now, if not in the run's own config.data.dir.")
    flags.DEFINE_list(
        "temperature", [], "Of the annealed mean, instead of the run's own; several, as 0.1,0.2,0.4, are a sweep."
    )
    flags.DEFINE_bool(
        "frechet", False, "Also the Fréchet distance of EfficientNet-Lite0 features, at 0.4 GFLOP a photo."
    )
    flags.DEFINE_string("lpips_weights", None, "Also LPIPS, with the weights in this .npz file.")
    flags.DEFINE_string("inception_weights", None, "Also FID, with the weights in this .npz file.")
    app.run(_main)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a --flag")
    log_to_terminal()
    compilation.keep_compiled_programs()
    values = flags.FLAGS
    try:
        temperature = [float(t) for t in values.temperature]
    except ValueError as error:
        raise app.UsageError(f"--temperature={','.join(values.temperature)}: {error}") from error
    evaluate(
        values.workdir,
        split=values.split,
        data_dir=values.data_dir,
        temperature=temperature or None,
        frechet=values.frechet,
        lpips_weights=values.lpips_weights,
        inception_weights=values.inception_weights,
    )
