"""`colorjax attention`: draws what a colorizer's attentions look at from a point of a photo."""

import argparse
from pathlib import Path

from colorjax.cli.arguments import CHECKPOINT, Parser
from colorjax.cli.errors import UsageError, as_usage_error

DESCRIPTION = """Draws what a colorizer's attentions look at from a point of a photo: the self-attention at the output,
over the whole photo, and the weights of the patchwise attention at its three resolutions. It writes one picture, in
which an attention that the colorizer lacks is left out."""

EXAMPLES = """
colorjax attention old.jpg --at 120,80 --out attention.png
colorjax attention old.jpg --at 120,80 --out attention.png --checkpoint runs/paper
"""


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("photo", type=Path, metavar="PHOTO", help="the photo; only its lightness is used")
    add("--at", type=_place, required=True, metavar="X,Y", help="the point, in pixels from the photo's left and top")
    add("--out", type=Path, required=True, metavar="FILE", help="the picture, .png or .jpg")
    add("--checkpoint", metavar="PATH", help=f"the colorizer: {CHECKPOINT}; by default food101")


def run(args: argparse.Namespace) -> None:
    """Draws the picture."""
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"--out is {args.out}; the picture is a .png or .jpg file")
    from PIL import Image

    from colorjax import atomic
    from colorjax.photos.attention import attention_weights, draw_attention
    from colorjax.photos.files import read_photo
    from colorjax.run.compilation import keep_compiled_programs
    from colorjax.run.locate import locate
    from colorjax.run.trained import load_trained

    with as_usage_error(OSError, ValueError):
        photo = read_photo(args.photo).array
    with as_usage_error(FileNotFoundError, ValueError, flag="--checkpoint"):
        trained = load_trained(locate(args.checkpoint))
    keep_compiled_programs()
    with as_usage_error(ValueError, flag="--at"):
        weights = attention_weights(trained, photo, args.at)
    picture = draw_attention(photo, args.at, weights, size=trained.config.data.image_size)
    with atomic.replacing(args.out) as temporary:
        Image.fromarray(picture).save(temporary, "PNG" if args.out.suffix.lower() == ".png" else "JPEG", quality=92)
    print(f"wrote {args.out}")


def _place(text: str) -> tuple[int, int]:
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; give two whole numbers, as in 120,80") from None
    return x, y
