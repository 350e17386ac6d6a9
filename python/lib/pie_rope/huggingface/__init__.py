"""Edits of the caches of Hugging Face transformers.

    spans = edit_cache(cache, model, [Edit.insert(120, 3)])
    output = encode_spans(model, cache, new_tokens, spans)

After the first line every cached row is where the edited sequence has it, its keys turned; after the second the rows of
the new tokens are filled in as well, and ``output.logits[:, -1]`` predicts what follows.

The cache then holds all rows, and ``output`` the same cache: pass it, or ``output.past_key_values``, on with the next
token. ``generate`` has to have a token left to encode, and takes the whole text for new if it has none; so drop the
last row first:

    cache.crop(-1)
    model.generate(new_tokens, past_key_values=cache)    # ``cache=cache`` in later versions of transformers

A static cache has no ``crop`` in earlier ones: ``edit_cache(cache, model, [Edit.delete(rows - 1, rows)])`` does the
same (with ``lengths=(rows, rows)`` under LongRoPE and dynamic NTK). Its ``max_cache_len`` must hold what is generated
as well; it does not grow.

What is compared
    At a model's first use, and again after a cast, one token is encoded at positions 0, 1 and 1000 or so, and once
    where the model counts, as far as the first layer of each of its ropes (the first layer alone in most models, the
    sixth in Gemma 3): two short passes, or three under LongRoPE and dynamic NTK. The keys show whether they turn as
    rotary modules and configuration say, to 0.005 of their size in float32, 0.02 in float16 and 0.1 in bfloat16, and
    from where the model counts positions. Modes, random numbers and what dynamic NTK remembers are as before; forward
    hooks are called. Each edit reads the frequencies, for which it waits for a GPU.

    Of the cache itself up to 16 rows are compared with what the model makes of their tokens, in the first layer: by
    ``edit_cache`` if it is given ``tokens``; by ``encode_spans`` of a batch, where there is padding, and under LongRoPE
    and dynamic NTK.
"""

import transformers

from .cache import edit_cache
from .encode import encode_spans
from .model import cache_argument
from .preflight import Spans
from .ropes import model_rope

__all__ = ["Spans", "cache_argument", "edit_cache", "encode_spans", "model_rope"]

# Earlier ones keep the keys of latent attentions otherwise, and the first of them do not count a static cache's rows.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15):
    raise ImportError(f"pie_rope.huggingface needs transformers 5.15 or later; this is {transformers.__version__}")
