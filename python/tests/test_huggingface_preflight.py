"""Models whose positions are not those of rows, and what else would come out wrong without a word: it comes out right,
or is refused before the first byte is written."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import DynamicCache, StaticCache  # noqa: E402

from pie_rope import Edit, ModelRope, Plan, Rope  # noqa: E402
from pie_rope.huggingface import cache_argument, edit_cache, encode_spans, model_rope  # noqa: E402
from pie_rope.huggingface.compare import compared  # noqa: E402
from pie_rope.huggingface.ropes import Rotary  # noqa: E402
from test_huggingface import (  # noqa: E402
    EDITS,
    FREQUENCIES,
    LATENT,
    SMALL,
    TOKENS,
    VOCABULARY,
    cached,
    edited,
    model_of,
    refused,
    same,
)


class Untouched:
    """Whether a cache is as it was, to the last bit, layers and lengths included."""

    def __init__(self, cache):
        self.cache, self.layers = cache, list(cache.layers)
        self.before = [(layer.keys, layer.keys.clone(), layer.values, layer.values.clone()) for layer in cache.layers]
        self.rows = [int(layer.get_seq_length()) for layer in cache.layers]

    def check(self):
        assert len(self.cache.layers) == len(self.layers)
        for layer, was, rows, before in zip(self.cache.layers, self.layers, self.rows, self.before, strict=True):
            assert layer is was and int(layer.get_seq_length()) == rows
            keys, keys_before, values, values_before = before
            assert layer.keys is keys and layer.values is values
            assert torch.equal(keys, keys_before) and torch.equal(values, values_before)

    def refuses(self, call, text, error=ValueError):
        refused(call, text, error)
        self.check()


def paligemma():
    torch.manual_seed(0)
    text = dict(
        model_type="gemma", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    vision = dict(
        model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, image_size=28, patch_size=14,
    )  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_id=VOCABULARY - 1, vocab_size=VOCABULARY, projection_dim=64
    )
    return transformers.PaliGemmaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("edit", EDITS)
def test_a_model_that_counts_from_one(edit):
    """PaliGemma: rows that are encoded have the positions that it gives itself."""
    model = paligemma()
    tokens = torch.randint(VOCABULARY - 1, (2, TOKENS))
    new_tokens = edited(tokens, EDITS[edit]).clamp(max=VOCABULARY - 2)
    cache = cached(model, tokens, DynamicCache())
    spans = edit_cache(cache, model, EDITS[edit], tokens=tokens)
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    anew = cached(model, new_tokens, DynamicCache())
    same(cache.layers[0].keys, anew.layers[0].keys)
    same(cache.layers[0].values, anew.layers[0].values)
    with torch.no_grad():
        same(got, model(new_tokens).logits[:, -1])
    assert [compared(one, Rotary(one)).first for one in (model, model_of("llama"))] == [1, 0]


def test_rows_of_an_image_move_with_the_text_and_are_not_encoded():
    """Where positions are those of rows, rows of an image are as others; only they cannot be encoded as text."""
    model = paligemma()
    tokens = torch.randint(VOCABULARY - 1, (1, TOKENS))
    tokens[:, 10:14] = VOCABULARY - 1
    cache = cached(model, tokens, DynamicCache())
    edits = [Edit.insert(5, 3)]
    new_tokens = edited(tokens, edits).clone()
    new_tokens[:, 5:8] = 3
    encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits, tokens=tokens))
    same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)
    cache = cached(model, tokens, DynamicCache())
    spans = edit_cache(cache, model, edits)
    new_tokens[:, 6] = VOCABULARY - 1
    Untouched(cache).refuses(
        lambda: encode_spans(model, cache, new_tokens, spans), "tokens: row 6 stands for a part of an image"
    )


LLAMA4 = dict(
    num_key_value_heads=2, head_dim=16, num_local_experts=2, intermediate_size_mlp=96, max_position_embeddings=512,
    attention_chunk_size=512, pad_token_id=0,
)  # fmt: skip


@pytest.mark.parametrize("floor_scale", [16, 65, 66, 8192])
@pytest.mark.parametrize("rope", [0, 1], ids=["without a rope", "with one"])
def test_llama_4s_query_temperature(rope, floor_scale):
    """Rows are taken for consecutive from the cache's length on; so each span is a pass by itself."""
    model = model_of(
        "llama4_text", **LLAMA4, no_rope_layers=[rope], floor_scale=floor_scale, attn_scale=1.0,
        attn_temperature_tuning=True,
    )  # fmt: skip
    passes = []
    model.model.embed_tokens.register_forward_hook(lambda module, given, made: passes.append(given[0].shape[-1]))
    for edit in EDITS.values():
        tokens = torch.randint(VOCABULARY, (1, TOKENS))
        new_tokens = edited(tokens, edit)
        cache = cached(model, tokens, DynamicCache())
        spans = edit_cache(cache, model, edit)
        passes.clear()
        got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
        apart = new_tokens.shape[-1] >= floor_scale and spans and spans[0].row < new_tokens.shape[-1] - spans[0].len
        assert len(passes) == (len(spans) + 1 if apart else 1)
        with torch.no_grad():
            same(got, model(new_tokens).logits[:, -1])
        same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)


@pytest.mark.parametrize("kind", ["dynamic", "padding"])
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("new_decoder", [False, True])
def test_falcon_with_alibi(edit, kind, new_decoder):
    """Keys do not turn, and each span is a pass by itself. (transformers has no alibi with a static cache.)"""
    model = model_of("falcon", alibi=True, new_decoder_architecture=new_decoder, num_kv_heads=2)
    padding = torch.tensor([0, 3]) if kind == "padding" else torch.tensor([0, 0])
    edits = EDITS[edit] if kind != "padding" or edit != "several" else EDITS[edit][1:]
    tokens = torch.randint(VOCABULARY, (2, TOKENS))
    new_tokens = edited(tokens, edits)
    before, after = ((torch.arange(t.shape[-1]) >= padding[:, None]).long() for t in (tokens, new_tokens))
    cache = DynamicCache()
    with torch.no_grad():
        model(tokens, attention_mask=before, use_cache=True, **{cache_argument(model): cache})
        want = model(new_tokens, attention_mask=after).logits[:, -1]
    masked = dict(attention_mask=before) if kind == "padding" else {}
    spans = edit_cache(cache, model, edits, **masked)
    masked = dict(attention_mask=after) if kind == "padding" else {}
    same(encode_spans(model, cache, new_tokens, spans, **masked).logits[:, -1], want)


def test_a_window_shorter_than_the_rows_on_the_other_side_of_a_switch():
    """Phi-3's LongRoPE: several passes would take several frequencies. The advice is not what was set already."""
    model_type, changes = FREQUENCIES["longrope"]
    model = model_of(model_type, **changes, sliding_window=40)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    untouched = Untouched(cache)
    for given in (model, model.config):
        untouched.refuses(
            lambda given=given: edit_cache(cache, given, [Edit.insert(5, 3)]),
            "its `sliding_window` of 40 is shorter than the 63 rows: encode the tokens anew",
        )
    # Where all passes are past the switch, it is right.
    edits = [Edit.replace(50, 52, 1)]
    new_tokens = edited(tokens, edits)
    got = encode_spans(model, cache, new_tokens, edit_cache(cache, model, edits)).logits[:, -1]
    with torch.no_grad():
        same(got, model(new_tokens).logits[:, -1])


def test_the_advice_fits():
    from pie_rope.huggingface.preflight import why_apart

    model = model_of("llama")
    assert why_apart(model.config, TOKENS) is None
    model.config._attn_implementation = "flash_attention_2"
    assert '`attn_implementation="sdpa"` all are one pass' in why_apart(model.config, TOKENS)
    for name, text in (("alibi", "alibi takes rows"), ("sliding_window", "its `sliding_window` of 7 is shorter")):
        config = dict(model_type="llama", **{name: 7})
        assert text in why_apart(config, TOKENS) and "sdpa" not in why_apart(config, TOKENS)


PADDING = torch.tensor([0, 7, 3])


def padded(tokens):
    return (torch.arange(tokens.shape[-1]) >= PADDING[:, None]).long()


def cached_with_padding(model, tokens):
    mask, cache = padded(tokens), DynamicCache()
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        arguments = {"attention_mask": mask, "position_ids": positions, cache_argument(model): cache}
        model(tokens, use_cache=True, **arguments)
    return cache


@pytest.mark.parametrize("edit", [Edit.delete(1, 3), Edit.insert(2, 2), Edit.delete(5, 9), Edit.replace(6, 7, 1)])
def test_edits_inside_of_some_sequences_padding_are_refused(edit):
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (3, TOKENS))
    cache = cached_with_padding(model, tokens)
    text = f"the edit begins at row {edit.start}, but sequence 1 has 7 rows of padding"
    Untouched(cache).refuses(lambda: edit_cache(cache, model, [edit], attention_mask=padded(tokens)), f"edits: {text}")
    # Not said there, it has to be; tokens show it.
    Untouched(cache).refuses(lambda: edit_cache(cache, model, [edit]), "attention_mask: of a batch it must be known")
    text = "sequences have padding on the left that `attention_mask` does not say"
    Untouched(cache).refuses(lambda: edit_cache(cache, model, [edit], tokens=tokens), text)
    # Said wrongly, it is seen before anything is encoded.
    ones = torch.ones_like(tokens)
    new_tokens = edited(tokens, [edit])
    spans = edit_cache(cache, model, [edit], attention_mask=ones)
    untouched = Untouched(cache)
    for given in (spans, list(spans)):
        untouched.refuses(lambda given=given: encode_spans(model, cache, new_tokens, given), text)
        more = dict(attention_mask=torch.ones_like(new_tokens))
        untouched.refuses(lambda given=given, more=more: encode_spans(model, cache, new_tokens, given, **more), text)
    untouched.refuses(
        lambda: encode_spans(model, cache, new_tokens, spans, attention_mask=padded(new_tokens)), "padding"
    )


@pytest.mark.parametrize("given", ["model", "configuration"])
def test_all_of_one_sequences_padding_is_deleted(given):
    """Its keys would be at positions before 0, and the new rows at those of the others."""
    model = model_of("llama")
    given = model if given == "model" else model.config
    tokens = torch.randint(VOCABULARY, (3, TOKENS))
    cache = cached_with_padding(model, tokens)
    edits = [Edit.delete(0, 7), Edit.insert(20, 1)]
    untouched = Untouched(cache)
    for said in ({}, dict(tokens=tokens)):
        text = "rows: give `attention_mask`" if given is not model or not said else "from those that the model makes"
        untouched.refuses(lambda said=said: edit_cache(cache, given, edits, **said), text)
    untouched.refuses(
        lambda: edit_cache(cache, given, edits, attention_mask=padded(tokens)), "sequence 1 has 7 rows of padding"
    )
    spans = edit_cache(cache, given, edits, attention_mask=torch.ones_like(tokens))
    new_tokens = edited(tokens, edits)
    untouched = Untouched(cache)
    for said in ({}, dict(attention_mask=torch.ones_like(new_tokens))):
        untouched.refuses(
            lambda said=said: encode_spans(model, cache, new_tokens, spans, **said), "from those that the model makes"
        )


def test_what_a_batch_without_padding_has_to_say():
    """One of two arguments; none where no row moves, in a single sequence, and where nothing turns."""
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (2, TOKENS))
    ones = torch.ones_like(tokens)
    for said in (dict(tokens=tokens), dict(attention_mask=ones), dict(tokens=tokens, attention_mask=ones)):
        for given in (model, model.config, model_rope(model)):
            cache = cached(model, tokens, DynamicCache())
            if given is not model and "attention_mask" not in said:
                text = "`tokens` show it only where the model itself is given"
                with pytest.raises(ValueError, match=text):
                    edit_cache(cache, given, EDITS["several"], **said)
                continue
            spans, new_tokens = edit_cache(cache, given, EDITS["several"], **said), edited(tokens, EDITS["several"])
            got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
            with torch.no_grad():
                same(got, model(new_tokens).logits[:, -1])
    for edits in ([], [Edit.delete(50, TOKENS)], [Edit.replace(50, TOKENS, 3)], EDITS["insertion at the end"]):
        edit_cache(cached(model, tokens, DynamicCache()), model, edits)
    edit_cache(cached(model, tokens[:1], DynamicCache()), model, EDITS["several"])


def test_padding_that_only_edit_cache_is_told_of():
    """It holds for `encode_spans`, too, which refuses another one."""
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (3, TOKENS))
    edits = [Edit.insert(9, 2), Edit.delete(20, 22)]
    cache, new_tokens = cached_with_padding(model, tokens), edited(tokens, edits)
    spans = edit_cache(cache, model, edits, attention_mask=padded(tokens))
    for wrong in (torch.ones_like(new_tokens), padded(new_tokens).roll(1, 0)):
        text = "rows of padding in it, but had [0, 7, 3] in edit_cache"
        Untouched(cache).refuses(
            lambda wrong=wrong: encode_spans(model, cache, new_tokens, spans, attention_mask=wrong), text
        )
    got = encode_spans(model, cache, new_tokens, spans).logits
    with torch.no_grad():
        for index, padding in enumerate(PADDING.tolist()):
            same(got[index, -1], model(new_tokens[index : index + 1, padding:]).logits[0, -1])


@pytest.mark.parametrize("rope_type", FREQUENCIES)
def test_padding_where_frequencies_change(rope_type):
    """A key turns from one frequency to the other by its position, which is not that of its row."""
    model_type, changes = FREQUENCIES[rope_type]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (3, 29))
    cache = cached_with_padding(model, tokens)
    for edits in ([Edit.insert(9, 20)], [Edit.insert(29, 20)]):
        text = "with padding keys would turn by other positions than theirs"
        Untouched(cache).refuses(
            lambda edits=edits: edit_cache(cache, model, edits, attention_mask=padded(tokens)), text
        )
        Untouched(cache).refuses(
            lambda edits=edits: edit_cache(cache, model, edits), "attention_mask: of a batch it must be known"
        )


def test_padding_that_is_said_to_edit_cache():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (3, TOKENS))
    for edit in (Edit.insert(7, 3), Edit.delete(7, 9), Edit.replace(8, 20, 2)):
        new_tokens = edited(tokens, [edit])
        cache = cached_with_padding(model, tokens)
        spans = edit_cache(cache, model, [edit], attention_mask=padded(tokens), tokens=tokens)
        got = encode_spans(model, cache, new_tokens, spans, attention_mask=padded(new_tokens)).logits
        with torch.no_grad():
            for index, padding in enumerate(PADDING.tolist()):
                same(got[index, -1], model(new_tokens[index : index + 1, padding:]).logits[0, -1])
    cache = cached_with_padding(model, tokens)
    for mask, text in (
        (torch.ones(3, 59), "attention_mask: it must be of [3, 60], as the rows, not [3, 59]"),
        (1 - padded(tokens), "attention_mask: padding must be on the left"),
    ):
        Untouched(cache).refuses(
            lambda mask=mask: edit_cache(cache, model, [Edit.delete(8, 9)], attention_mask=mask), text
        )


def test_positions_that_were_counted_otherwise_are_refused():
    """Without positions a model counts rows, padding among them, and its cache is as if there were none."""
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (3, TOKENS))
    cache = DynamicCache()
    with torch.no_grad():
        model(tokens, attention_mask=padded(tokens), use_cache=True, **{cache_argument(model): cache})
    text = "from those that the model makes of these tokens"
    edits = [Edit.insert(9, 2)]
    Untouched(cache).refuses(
        lambda: edit_cache(cache, model, edits, attention_mask=padded(tokens), tokens=tokens), text
    )
    spans, new_tokens = edit_cache(cache, model, edits, attention_mask=padded(tokens)), edited(tokens, edits)
    Untouched(cache).refuses(
        lambda: encode_spans(model, cache, new_tokens, spans, attention_mask=padded(new_tokens)), text
    )


def test_padding_counts_for_the_switch():
    """The longest sequence is as long as it is without the padding that all have."""
    model_type, changes = FREQUENCIES["longrope"]
    model = model_of(model_type, **changes)
    tokens = torch.randint(VOCABULARY, (2, 34))
    edits = [Edit.insert(8, 2), Edit.delete(20, 22)]
    new_tokens = edited(tokens, edits)
    mask = (torch.arange(34) >= 4).long()[None].expand(2, -1)
    cache = DynamicCache()
    with torch.no_grad():
        positions = (torch.arange(34) - 4).clamp(min=0)[None]
        arguments = {cache_argument(model): cache, "attention_mask": mask, "position_ids": positions}
        model(tokens, use_cache=True, **arguments)
        want = model(new_tokens[:, 4:]).logits[:, -1]
    spans = edit_cache(cache, model, edits, attention_mask=mask)
    same(encode_spans(model, cache, new_tokens, spans, attention_mask=mask).logits[:, -1], want)


IMAGE, VIDEO, START, END = VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 3, VOCABULARY - 4


def qwen2_vl():
    torch.manual_seed(0)
    text = dict(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]),
    )  # fmt: skip
    vision = dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=4, spatial_merge_size=2)
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config).eval()


def with_an_image(model, cache):
    """40 tokens, of which rows 10 to 17 are an image of 2 by 4."""
    tokens = torch.randint(END, (1, 40))
    tokens[:, 9], tokens[:, 10:18], tokens[:, 18] = START, IMAGE, END
    grid = torch.tensor([[1, 4, 8]])
    pixels = torch.randn(32, 3 * 2 * 4 * 4)
    arguments = {"pixel_values": pixels, "image_grid_thw": grid, cache_argument(model): cache}
    arguments["mm_token_type_ids"] = (tokens == IMAGE).int()
    with torch.no_grad():
        model(tokens, use_cache=True, **arguments)
    return tokens


@pytest.mark.parametrize("edits", [[Edit.delete(2, 4)], [Edit.delete(9, 19)], [Edit.insert(30, 2)]])
def test_cached_images_under_m_rope_are_refused(edits):
    """Whether text before the image is edited, behind it, or the image itself deleted."""
    model = qwen2_vl()
    cache = DynamicCache()
    tokens = with_an_image(model, cache)
    untouched = Untouched(cache)
    untouched.refuses(lambda: edit_cache(cache, model, edits), "model: it has seen images or videos (`rope_deltas`)")
    text = "tokens: some stand for an image, a video or sound"
    untouched.refuses(lambda: edit_cache(cache, model, edits, tokens=tokens), text)
    untouched.refuses(lambda: edit_cache(cache, model.config, edits, tokens=tokens), text)
    # A configuration sees no state.
    text = "model: with M-RoPE the positions of a sequence with images"
    for given in (model.config, model.config.to_dict(), model.config.to_json_string(use_diff=False)):
        untouched.refuses(lambda given=given: edit_cache(cache, given, edits), text)
    # And its inner part does not know which tokens are images.
    untouched.refuses(lambda: edit_cache(cache, model.config.text_config, edits, tokens=tokens), text)
    # What is taken as it is, is seen before new rows are encoded.
    spans = edit_cache(cache, model_rope(model), edits)
    new_tokens = edited(tokens, edits).where(edited(tokens, edits) != START, 1)
    new_tokens = torch.cat([new_tokens[:, :-1].clamp(max=IMAGE), torch.ones(1, 1, dtype=int)], -1)
    text = "stand for an image" if (new_tokens == IMAGE).any() else "it has seen images or videos"
    Untouched(cache).refuses(lambda: encode_spans(model, cache, new_tokens, spans), text)


def test_text_alone_under_m_rope():
    model = qwen2_vl()
    tokens = torch.randint(END, (2, TOKENS))

    def right(given=model, **said):
        new_tokens = edited(tokens, EDITS["several"]).clamp(max=END - 1)
        cache = cached(model, tokens, DynamicCache())
        spans = edit_cache(cache, given, EDITS["several"], **said)
        got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
        same(cache.layers[0].keys, cached(model, new_tokens, DynamicCache()).layers[0].keys)
        with torch.no_grad():
            same(got, model(new_tokens).logits[:, -1])

    right(attention_mask=torch.ones_like(tokens))
    # After another sequence that had an image, tokens say that this one has none.
    with_an_image(model, DynamicCache())
    cache = cached(model, tokens, DynamicCache())
    Untouched(cache).refuses(lambda: edit_cache(cache, model, [Edit.delete(3, 4)]), "say so by edit_cache's `tokens`")
    deltas = model.model.rope_deltas
    right(tokens=tokens)
    for given in (model.config, model.config.to_dict()):
        right(given, tokens=tokens, attention_mask=torch.ones_like(tokens))
    assert model.model.rope_deltas is deltas


def test_expanded_memory():
    """One prefix for several sequences: an insertion copies it, in place nothing can be done."""
    model = model_of("llama", num_hidden_layers=2)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))

    def expanded():
        cache = cached(model, tokens, DynamicCache())
        for layer in cache.layers:
            layer.keys, layer.values = (part.expand(3, -1, -1, -1) for part in (layer.keys, layer.values))
        return cache

    edits = [Edit.insert(20, 5)]
    new_tokens = edited(tokens.expand(3, -1), edits)
    cache = expanded()
    ones = torch.ones_like(tokens).expand(3, -1)
    spans = edit_cache(cache, model, edits, attention_mask=ones)
    got = encode_spans(model, cache, new_tokens, spans)
    other = cached(model, tokens.expand(3, -1), DynamicCache())
    want = encode_spans(model, other, new_tokens, edit_cache(other, model, edits, attention_mask=ones))
    same(got.logits[:, -1], want.logits[:, -1])
    for one, same_one in zip(cache.layers, other.layers, strict=True):
        same(one.keys, same_one.keys)
    for edits in ([Edit.delete(20, 22)], [Edit.replace(20, 22, 2)], []):
        cache = expanded()
        Untouched(cache).refuses(
            lambda cache=cache, edits=edits: edit_cache(cache, model, edits, attention_mask=ones),
            "cache: sequences of layer 0 share the memory of their keys (`expand`), which cannot be edited in place:"
            " set them to `layer.keys.contiguous()`",
        )
    cache = expanded()
    untouched = Untouched(cache)
    untouched.refuses(lambda: encode_spans(model, cache, tokens.expand(3, -1), []), "share the memory of their keys")


def test_another_models_heads_are_refused():
    model = model_of("llama", num_hidden_layers=2)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    untouched = Untouched(cache)
    for hidden, heads in ((32, 4), (64, 8), (128, 4)):
        other = model_of("llama", num_hidden_layers=2, hidden_size=hidden, num_attention_heads=heads)
        width = hidden // heads
        for given in (other.config, other.config.to_dict()):
            untouched.refuses(
                lambda given=given: edit_cache(cache, given, [Edit.delete(3, 4)]),
                f"model: its heads have {width} dimensions, the cached keys of layer 0 have 16",
            )
        untouched.refuses(
            lambda other=other: edit_cache(cache, other, [Edit.delete(3, 4)]),
            f"model: it makes keys and values of {width} and {width} dimensions in layer 0, the cache's have 16 and 16",
        )
    edit_cache(cache, model, [Edit.delete(3, 4)])


class Failing(RuntimeError):
    pass


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["first layer", "second layer", "the head"])
@pytest.mark.parametrize("apart", [False, True], ids=["one pass", "a pass for each span"])
def test_a_pass_that_fails_leaves_the_cache_as_it_was(where, apart, kind, monkeypatch):
    """New rows hold nothing, kept rows what they held, and another try succeeds."""
    if apart:
        monkeypatch.setattr("pie_rope.huggingface.preflight.why_apart", lambda config, rows: "it is asked for")
    model = model_of("llama", num_hidden_layers=2)
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    edits = EDITS["several"]
    new_tokens = edited(tokens, edits)
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=96)
    cached(model, tokens, cache)
    spans = edit_cache(cache, model, edits)
    untouched = Untouched(cache)
    module = model.model.layers[where].mlp if where < 2 else model.lm_head
    last = new_tokens.shape[-1] - 1

    def fail(module, given, made):
        # In the last pass.
        if not apart or calls.append(1) or len(calls) == len(spans) + 1:
            raise Failing("on purpose")

    calls = []
    hook = module.register_forward_hook(fail)
    with pytest.raises(Failing) as raised:
        encode_spans(model, cache, new_tokens, spans)
    hook.remove()
    untouched.check()
    notes = getattr(raised.value, "__notes__", ["its new rows are still to be encoded"])
    assert "its new rows are still to be encoded" in notes[-1]
    assert last not in range(spans[-1].row, spans[-1].row + spans[-1].len)
    got = encode_spans(model, cache, new_tokens, spans).logits[:, -1]
    other = cached(model, tokens, DynamicCache())
    same(got, encode_spans(model, other, new_tokens, edit_cache(other, model, edits)).logits[:, -1])


def test_a_model_that_cannot_be_looked_at_is_refused_with_a_way_out():
    model = model_of("llama")
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    untouched = Untouched(cache)

    def fail(*given):
        raise Failing("it needs an image")

    hook = model.model.layers[0].register_forward_pre_hook(fail)
    untouched.refuses(
        lambda: edit_cache(cache, model, [Edit.delete(3, 4)]),
        "model: one token cannot be encoded by itself, to see how keys turn (Failing: it needs an image)",
    )
    edit_cache(cache, ModelRope.uniform(Rope.from_theta(1e4, 16), 1), [Edit.delete(3, 4)])
    hook.remove()
    with pytest.raises(TypeError, match="model: it must be a model of transformers, a configuration of"):
        model_rope(3)


def test_latent_rows_of_another_width_are_refused():
    model = model_of("deepseek_v3")
    other = model_of("deepseek_v3", **{**LATENT, "kv_lora_rank": 16})
    tokens = torch.randint(VOCABULARY, (1, TOKENS))
    cache = cached(model, tokens, DynamicCache())
    untouched = Untouched(cache)
    text = "cache: a latent attention keeps rows of 16 and 16, these are of [32, 16]"
    untouched.refuses(lambda: edit_cache(cache, other.config, [Edit.delete(3, 4)]), text)
    untouched.refuses(
        lambda: edit_cache(cache, other, [Edit.delete(3, 4)]), "model: it makes keys and values of 16 and 16 dimensions"
    )
    assert SMALL["hidden_size"] == 64 and Plan.from_edits(1, []).new_rows == 1
