"""Reads images from strangers with care, or refuses them with a sentence that can be shown to them."""

import io
import warnings
from pathlib import Path

from PIL import Image

from modeling_showattend.image_processing_showattend import load_image

MAX_BYTES = 20 * 2**20  # of an upload
MAX_PIXELS = 50_000_000  # of an image: three bytes each in memory, several times over
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")  # none that runs other programs, like EPS


def read_image(path: str | Path) -> Image.Image:
    """Read an uploaded image, upright and RGB; the message of an OSError is for its owner and names no path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
        try:
            with Image.open(io.BytesIO(Path(path).read_bytes()), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return load_image(image)
        except Image.DecompressionBombError as error:
            most = f"{MAX_PIXELS / 1e6:.0f} million pixels"
            raise OSError(f"This photo is too large. Make it smaller: at most {most}.") from error
        except FileNotFoundError as error:
            raise OSError("This photo is no longer kept here. Choose it again.") from error
        except Image.UnidentifiedImageError as error:
            names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise OSError(f"This file is not a photo that can be read. Choose a {names} file.") from error
        except Exception as error:  # Pillow's decoders raise almost any type on a damaged file
            raise OSError("This photo is damaged: not all of it can be read. Choose another one.") from error
