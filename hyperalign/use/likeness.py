"""Whether two models are the same to whoever searches: the same rows for the same pictures and captions.

A pair is packed in more than one way (a run, an exported folder, with and without weights), and none of that matters
here; what it gives does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hyperalign.use.dual import DualEncoder
from hyperalign.use.probes import probe_captions, probe_pictures

__all__ = ["is_like", "likeness"]

_MOST_APART = 0.05  # distance of unit rows, cosine 0.99875: bfloat16 and other processors differ by less


def likeness(model: DualEncoder) -> dict[str, Any]:
    """What a model is known by: its name, its width and its rows of two pictures and three captions."""
    rows = torch.cat([model.encode_image(probe_pictures()[2:4]), model.encode_text(probe_captions()[:3])])
    return {"name": model.name, "dim": model.embed_dim, "rows": [[round(x, 6) for x in row] for row in rows.tolist()]}


def is_like(known: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two likenesses are of one model, whatever each is called."""
    try:
        mine, theirs = (np.array(one["rows"], dtype=np.float64) for one in (known, other))
    except ValueError:  # rows of several lengths are of no model
        return False
    return mine.shape == theirs.shape and bool(np.linalg.norm(mine - theirs, axis=1).max() <= _MOST_APART)
