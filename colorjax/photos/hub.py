"""Colorizers on the Hugging Face Hub, through huggingface_hub's own mixin; an optional extra."""

from pathlib import Path
from typing import Any

FILES = ["config.json", "classes.json", "prior.npz", "model*.safetensors", "model.safetensors.index.json", "model.npz"]
"""Names and patterns of the files that are fetched."""


def on_hub(cls: type) -> Any:
    """A class with the methods of huggingface_hub's ModelHubMixin: `from_pretrained`, `push_to_hub`, `save_pretrained`.

    Args:
        cls: is made by `cls(folder, **options)`, and writes itself by `save(folder)`. `from_pretrained` returns it.

    Raises:
        ImportError: if huggingface_hub is not installed.
    """
    try:
        import jinja2  # noqa: F401 (it writes the model card)
        from huggingface_hub import ModelHubMixin, snapshot_download
    except ImportError as error:
        raise ImportError('the Hub needs huggingface_hub and jinja2: pip install "colorjax[hub]"') from error

    tags = ["colorization", "flax", "jax"]

    class OnHub(ModelHubMixin, cls, library_name="colorjax", pipeline_tag="image-to-image", tags=tags):
        def _save_pretrained(self, save_directory: Path) -> None:
            self.save(save_directory)

        @classmethod
        def _from_pretrained(
            _cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            **options: Any,
        ) -> Any:
            if Path(model_id).is_dir():
                return cls(Path(model_id), **options)
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=FILES,
            )
            return cls(Path(folder), name=model_id, **options)

    return OnHub
