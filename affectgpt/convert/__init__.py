"""Published checkpoints -> base-model folders and projector files of this package.

What a part of a file must hold is not written down here: it is asked from the model itself, built without memory in
the sizes that the file shows, so that a missing, surplus or misshapen tensor cannot pass.
"""

from affectgpt.convert.conversion import convert
from affectgpt.convert.files import ConvertError

__all__ = ["ConvertError", "convert"]
