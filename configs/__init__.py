"""The configurations; in an installed package they are in colorjax/configs/."""

from pkgutil import extend_path

# A folder configs/ of your own may have files beside these: `from configs import paper` works there too.
__path__ = extend_path(__path__, __name__)
