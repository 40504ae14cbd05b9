"""XLA's options: taken if this XLA knows them."""

import jax
import pytest

from colorjax.run import compilation


@pytest.fixture(autouse=True)
def unprobed():
    """As in a process that has not asked XLA yet."""
    compilation._cpu_options_known.cache_clear()
    yield
    compilation._cpu_options_known.cache_clear()


def test_options_that_xla_knows_are_taken_on_cpus_alone(monkeypatch):
    assert compilation.compiler_options() == compilation._CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() == {}


@pytest.mark.parametrize(
    "options",
    [{"xla_cpu_no_such_option": "1"}, dict.fromkeys(compilation._CPU, "NO_SUCH_FUSION")],
    ids=["no such option", "no such value"],
)
def test_an_option_that_xla_does_not_know_is_left_out(options, monkeypatch):
    monkeypatch.setattr(compilation, "_CPU", options)
    assert compilation.compiler_options() == {}
