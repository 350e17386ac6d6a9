#!/usr/bin/env python3
"""Writes tests/configs/{keys,frequencies}.json: what Hugging Face transformers itself does.

    python -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0
    venv/bin/python scripts/rope_vectors.py

keys.json: for every model type that src/rope/config/model_types.rs knows and transformers can run,
a model of that type with tiny random weights encodes one token at two positions, and the keys that
it caches are written down, layer by layer, beside the config.json that describes the model. A token
that attends only to itself has the same hidden state wherever it stands, so the two keys differ by
the rotation alone: pairing, window, frequencies and rope-less layers are measured, not read. Beside
that, what a partial rotary factor of a half makes of the keys ("same", "other", or "fails"), and all
causal language models that transformers knows.

frequencies.json: for real models' published configurations, each rope's inverse frequencies, taken
from the model's own rotary module after a forward pass over a sequence of the given length.
"""

import copy
import dataclasses
import importlib
import inspect
import json
import os
import pathlib
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

HERE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "configs"
OLD, NEW = 3, 40

# The entries of a config.json from which a rope can be told. The rest is left out.
ROPE_KEYS = set(
    """model_type num_hidden_layers hidden_size num_attention_heads head_dim rope_parameters
    max_position_embeddings original_max_position_embeddings rope_theta rope_scaling
    partial_rotary_factor rotary_pct rotary_emb_base rotary_dim rope_local_base_freq
    global_rope_theta local_rope_theta layer_types layers_block_type sliding_window_pattern
    sliding_window global_attn_every_n_layers full_attention_interval full_attn_idxs
    attn_layer_indices layer_group_size no_rope_layers no_rope_layer_interval layer_rope_theta
    cross_attention_layers position_embedding_type alibi kv_lora_rank qk_rope_head_dim
    qk_nope_head_dim rope_interleave global_head_dim per_layer_config kv_channels n_embd n_head
    n_layer n_layers num_layers d_model n_heads max_seq_len attn_config num_layers_per_stack H_cycles
    L_cycles n_input_layers n_recurrent_layers n_output_layers n_recurrent_loops
    recurrent_kv_cache_mode rotary_value""".split()
)

# Small numbers for whatever dimensions a model type has.
SMALL = dict(
    vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, intermediate_size=64, moe_intermediate_size=32,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
    topk_group=1, q_lora_rank=24, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16,
    v_head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    shared_expert_intermediate_size=32, hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=64, linear_num_value_heads=2, linear_num_key_heads=2,
    linear_key_head_dim=16, linear_value_head_dim=16, num_kv_shared_layers=0, n_shared_experts=1,
    moe_topk=2, index_n_heads=2, index_head_dim=32, index_topk=8,
)  # fmt: skip

MLA = dict(num_key_value_heads=4)
THREE_AXES = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2]))
MAMBA = dict(mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16)
MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]

# model type -> what its tiny configuration needs besides SMALL. Eight layers where layers differ.
MODELS = {
    name: {}
    for name in """apertus apertus1p5_text arcee aria_text bitnet cohere cwm diffllama doge dots1 emu3_text_model
    ernie4_5 ernie4_5_moe evolla exaone falcon falcon_h1 flex_olmo gemma gemma2 glm glm4 glm4_moe gpt_neox
    gpt_neox_japanese gpt_oss granite granite_docling_text granitemoe granitemoeshared helium
    hrm_text hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe llama
    minimax_m2 ministral ministral3 mistral mixtral molmo2_text moshi nemotron
    olmo olmo2 olmoe persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe
    qwen3_vl_moe_text qwen3_vl_text sarvam_moe seed_oss solar_open stablelm starcoder2 t5gemma vaultgemma""".split()
}
MODELS |= {
    name: dict(MLA)
    for name in """axk1 deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3 sarvam_mla youtu""".split()
}
MODELS |= {
    name: dict(THREE_AXES)
    for name in """cosmos3_edge_text glm4v_text glm_image_text glm_ocr_text qwen2_5_omni_text
    qwen2_5_vl_text qwen2_vl_text qwen3_omni_moe_text""".split()
}
MODELS |= {
    name: dict(num_hidden_layers=8)
    for name in """afmoe beam cohere2 cohere2_moe exaone4 exaone_moe flint gemma3_text gemma3n_text
    kolibri1 laguna llama4_text mellum mimo_v2_flash modernbert-decoder muse_glimmer_text
    muse_spark_text olmo3 olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next smollm3""".split()
}
MODELS |= {
    "bailing_hybrid": dict(MLA, num_hidden_layers=8, layer_group_size=4),
    "bamba": dict(MAMBA, num_hidden_layers=4, attn_layer_indices=[1, 3]),
    "chameleon": dict(
        vocabulary_map={"<image>": 5},
        vq_config=dict(
            embed_dim=8, num_embeddings=16, base_channels=32, channel_multiplier=[1, 1],
            num_res_blocks=1, latent_channels=8, resolution=16,
        ),
    ),
    "codegen": dict(rotary_dim=8),
    "cohere_compass_text": dict(
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=dict(
            full_attention=None,
            sliding_attention=dict(rope_type="default", rope_theta=5e4, mrope_section=[4, 2, 2]),
        ),
    ),
    "dbrx": dict(
        # Under both names: this version does not look at the inner one, which published files have.
        rope_theta=5e5, attn_config=dict(kv_n_heads=2, rope_theta=5e5, clip_qkv=8.0),
        ffn_config=dict(ffn_hidden_size=64, moe_num_experts=4, moe_top_k=2),
    ),
    "dory": dict(num_hidden_layers=8, n_input_layers=2, n_output_layers=2, n_recurrent_loops=3),
    "ernie4_5_vl_moe_text": dict(
        moe_intermediate_size=[32, 32],
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[3, 3, 2]),
    ),
    "gemma4_text": dict(num_hidden_layers=8, global_head_dim=32),
    "gemma4_unified_text": dict(num_hidden_layers=8, global_head_dim=32),
    "glm4v_moe_text": dict(
        rope_parameters=dict(
            rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5, mrope_section=[2, 1, 1]
        )
    ),
    "gptj": dict(rotary_dim=8),
    "granite_swa": dict(num_hidden_layers=4, layer_rope_theta=[1e4, 0, 1e6, 0]),
    "granitemoe_swa": dict(num_hidden_layers=4, layer_rope_theta=[0, 1e4, 1e6, 1e6]),
    "granitemoehybrid": dict(
        MAMBA, num_hidden_layers=4, layer_types=MIXED, position_embedding_type="rope"
    ),
    "kimi_linear": dict(MLA, num_hidden_layers=5),
    "lara_mini": dict(num_hidden_layers=5),
    "lfm2": dict(num_hidden_layers=4, full_attn_idxs=[1, 2]),
    "lfm2_moe": dict(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
    "lfm3": dict(num_hidden_layers=8),
    "longcat_flash": dict(MLA, num_layers=2),
    "minimax": dict(num_hidden_layers=4, layer_types=MIXED),
    "minimax_m3_vl_text": dict(partial_rotary_factor=0.5, rotary_dim=8),
    "mistral4": dict(MLA, head_dim=32),
    "mllama_text_model": dict(num_hidden_layers=5, cross_attention_layers=[3]),
    "roformer": dict(is_decoder=True),
}

# These cache a latent row's rotated half de-interleaved. The permutation is undone here, because an
# engine that keeps the checkpoint's order (vLLM, SGLang) caches interleaved pairs.
DEINTERLEAVED = set(
    """axk1 bailing_hybrid deepseek_v3 glm4_moe_lite longcat_flash mistral4 sarvam_mla youtu""".split()
)


def tiny_config(model_type, **special):
    cls = CONFIG_MAPPING[model_type]
    if model_type == "t5gemma":
        part = {k: SMALL[k] for k in SMALL if k in cls().decoder.to_dict()}
        return cls(encoder=dict(part), decoder=dict(part), vocab_size=64)
    names = set(cls().to_dict()) | {f.name for f in dataclasses.fields(cls)}
    values = {k: v for k, v in SMALL.items() if k in names}
    for general, own in cls.attribute_map.items():
        if general in SMALL and own in names:
            values.pop(general, None)
            values[own] = SMALL[general]
    return cls(**(values | special))


def language_model(config):
    """With random weights, those of norms and biases too, which are ones and zeros else: a norm behind the rotation
    would not show."""
    model = untrained(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def untrained(config):
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModel):
        try:
            return auto.from_config(config)
        except ValueError:
            pass
    # Text halves of multimodal models are in no auto class.
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    classes = [
        c
        for name, c in vars(module).items()
        if inspect.isclass(c)
        and c.__module__ == module.__name__
        and getattr(c, "config_class", None) is type(config)
        and not name.endswith("PreTrainedModel")
    ]
    endings = ("ForCausalLM", "TextModel", "Model")
    classes.sort(key=lambda c: [not c.__name__.endswith(e) for e in endings])
    return classes[0](config)


def text_part(config):
    """What describes the layers whose keys are looked at."""
    return config.decoder if config.model_type == "t5gemma" else config


def published(config):
    """The configuration as save_pretrained writes it, without what no rope depends on."""
    said = {k: v for k, v in json.loads(config.to_json_string()).items() if k in ROPE_KEYS}
    if "attn_config" in said:
        said["attn_config"] = {k: v for k, v in said["attn_config"].items() if k == "rope_theta"}
    return said


def cache_at(model, position):
    """A cache of one token at a position, and the row it has there."""
    token, at = torch.tensor([[7]]), torch.tensor([[position]])
    if model.config.model_type == "roformer":
        # It takes no positions. All tokens alike attend to what is alike, so it makes no difference.
        return model(input_ids=token.expand(1, position + 1), use_cache=True).past_key_values, position
    if model.config.model_type == "t5gemma":
        out = model(
            input_ids=token, decoder_input_ids=token, decoder_position_ids=at, use_cache=True
        )
        return out.past_key_values.self_attention_cache, 0
    return model(input_ids=token, position_ids=at, use_cache=True).past_key_values, 0


def cached_rows(model, config, position):
    cache, at = cache_at(model, position)
    layers = max(text_part(config).num_hidden_layers, len(cache.layers))
    rows = [None] * layers
    for index, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if keys is None or keys.numel() == 0:
            continue
        if getattr(config, "kv_lora_rank", None):
            row = torch.cat((keys, layer.values), -1)[0, 0, at]
            if config.model_type in DEINTERLEAVED:
                rank = config.kv_lora_rank
                halves = row[rank:].reshape(2, -1)
                row = torch.cat((row[:rank], halves.t().reshape(-1)))
        else:
            row = keys[0, -1, at]
        rows[index] = [float(f"{x:.5g}") for x in row.double()]
    return rows


def half_turned(config, rows):
    """What becomes of the keys where the file says that half of each head turns."""
    config = copy.deepcopy(config)
    given = getattr(text_part(config), "rope_parameters", None)
    if given is None:
        return None
    for rope in [v for v in given.values() if isinstance(v, dict)] or [given]:
        rope["partial_rotary_factor"] = 0.5
    torch.manual_seed(1)
    try:
        model = language_model(config).eval().float()
        with torch.no_grad():
            return "same" if cached_rows(model, config, NEW) == rows else "other"
    except RuntimeError:
        return "fails"


def keys():
    entries = []
    for model_type, special in sorted(MODELS.items()):
        torch.manual_seed(1)
        config = tiny_config(model_type, **copy.deepcopy(special))
        plain = copy.deepcopy(config)
        model = language_model(config).eval().float()
        with torch.no_grad():
            rows = [cached_rows(model, config, p) for p in (OLD, NEW)]
        default = text_part(CONFIG_MAPPING[model_type]())
        # `defaults` is the class's own configuration, against which a bare `model_type` is read.
        entries.append(
            {
                "config": published(text_part(config)),
                "defaults": published(default),
                "old": rows[0],
                "new": rows[1],
                "half": half_turned(plain, rows[1]),
            }
        )
        print(model_type, ["-" if row is None else len(row) for row in rows[0]], entries[-1]["half"], flush=True)
    return sorted(entries, key=lambda entry: entry["config"]["model_type"])


def causal():
    """The model types of all causal language models: of the text part, where there are others."""
    names = set()
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except StrictDataclassError:
            continue  # an assistant that is nothing without its model
        names.add(config.get_text_config(decoder=True).model_type or name)
    return sorted(names)


# Real models. The numbers are those of their published config.json; what no rope depends on is
# left out. PHI3_* are the lists of Phi-3-mini-128k.
PHI3_LONG = [
    1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547,
    1.2299998998641968, 1.2299998998641968, 1.2999999523162842, 1.4499999284744263,
    1.5999999046325684, 1.6499998569488525, 1.8999998569488525, 2.859999895095825,
    3.68999981880188, 5.419999599456787, 5.489999771118164, 5.489999771118164, 9.09000015258789,
    11.579999923706055, 15.65999984741211, 15.769999504089355, 15.789999961853027,
    18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203,
    32.35000228881836, 32.590003967285156, 35.56000518798828, 39.95000457763672,
    53.840003967285156, 56.20000457763672, 57.95000457763672, 59.29000473022461, 59.77000427246094,
    59.920005798339844, 61.190006256103516, 61.96000671386719, 62.50000762939453, 63.3700065612793,
    63.48000717163086, 63.48000717163086, 63.66000747680664, 63.850006103515625, 64.08000946044922,
    64.760009765625, 64.80001068115234, 64.81001281738281, 64.81001281738281,
]  # fmt: skip
PHI3_SHORT = (
    [1.05] * 3 + [1.1] * 3 + [1.25] * 2 + [1.4, 1.45, 1.55, 1.85, 1.9] + [2.0] * 19
    + [2.1, 2.1, 2.2] + [2.35] * 4 + [2.4, 2.4, 2.65, 2.7, 2.9, 2.95] + [3.05] * 3
)  # fmt: skip

DEEPSEEK_CODER = dict(
    model_type="llama", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
    max_position_embeddings=16384, rope_theta=100000,
    rope_scaling={"type": "linear", "factor": 4.0},
)  # fmt: skip
LLAMA31 = dict(
    model_type="llama", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
    max_position_embeddings=131072, rope_theta=500000.0,
    rope_scaling={
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
)  # fmt: skip
QWEN25_7B = dict(
    model_type="qwen2", hidden_size=3584, num_hidden_layers=28, num_attention_heads=28,
    max_position_embeddings=32768, rope_theta=1000000.0, sliding_window=131072,
)  # fmt: skip
QWEN_YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
DEEPSEEK_V3 = dict(
    model_type="deepseek_v3", hidden_size=7168, num_hidden_layers=61, num_attention_heads=128,
    kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, max_position_embeddings=163840,
    rope_theta=10000,
    rope_scaling={
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
)  # fmt: skip
PHI3 = dict(
    model_type="phi3", hidden_size=3072, num_hidden_layers=32, num_attention_heads=32,
    max_position_embeddings=131072, original_max_position_embeddings=4096, rope_theta=10000.0,
    rope_scaling={"long_factor": PHI3_LONG, "short_factor": PHI3_SHORT, "type": "longrope"},
)  # fmt: skip
INTERNLM3 = dict(
    model_type="internlm3", hidden_size=4096, num_hidden_layers=48, num_attention_heads=32,
    head_dim=128, max_position_embeddings=32768, rope_theta=50000000,
    rope_scaling={"factor": 6.0, "rope_type": "dynamic"},
)  # fmt: skip
GPT_OSS = dict(
    model_type="gpt_oss", hidden_size=2880, num_hidden_layers=24, num_attention_heads=64,
    head_dim=64, max_position_embeddings=131072, initial_context_length=4096, rope_theta=150000,
    rope_scaling={
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
        "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False,
    },
)  # fmt: skip

# name -> (configuration, tokens in the sequence)
PUBLISHED = {
    "DeepSeek-Coder 1.3B": (DEEPSEEK_CODER | dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=16), 1),
    "DeepSeek-Coder 6.7B": (DEEPSEEK_CODER, 1),
    "DeepSeek-Coder 33B": (DEEPSEEK_CODER | dict(hidden_size=7168, num_hidden_layers=62, num_attention_heads=56), 1),
    "Llama-3.1 8B": (LLAMA31, 1),
    "Llama-3.1 70B": (LLAMA31 | dict(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64), 1),
    "Qwen2.5-Coder 0.5B": (QWEN25_7B | dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14), 1),
    "Qwen2.5-Coder 7B": (QWEN25_7B, 1),
    "Qwen2.5-Coder 7B, yarn": (QWEN25_7B | dict(rope_scaling=QWEN_YARN), 1),
    "Qwen2.5-Coder 32B": (QWEN25_7B | dict(hidden_size=5120, num_hidden_layers=64, num_attention_heads=40), 1),
    "DeepSeek-V3": (DEEPSEEK_V3, 1),
    "Gemma 3 27B": (
        # As published: inside `text_config`, and what equals the class defaults is left out.
        dict(
            model_type="gemma3",
            text_config=dict(
                model_type="gemma3_text", head_dim=128, hidden_size=5376, num_attention_heads=32,
                num_hidden_layers=62, rope_scaling={"factor": 8.0, "rope_type": "linear"},
                sliding_window=1024,
            ),
        ),
        1,
    ),
    "Gemma 3 1B": (
        dict(
            model_type="gemma3_text", head_dim=256, hidden_size=1152, num_attention_heads=4,
            num_hidden_layers=26, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
            sliding_window=512, sliding_window_pattern=6,
        ),
        1,
    ),
    "Gemma 4": (dict(model_type="gemma4_text"), 1),
    "Phi-3-mini-128k": (PHI3, 1),
    "Phi-3-mini-128k at 4096": (PHI3, 4096),
    "Phi-3-mini-128k at 4097": (PHI3, 4097),
    "Phi-4-mini's geometry, Phi-3's factors": (
        PHI3 | dict(num_attention_heads=24, partial_rotary_factor=0.75), 1
    ),
    "gpt-oss 20b": (GPT_OSS, 1),
    "StarCoder2 7B": (
        dict(
            model_type="starcoder2", hidden_size=4608, num_hidden_layers=32, num_attention_heads=36,
            max_position_embeddings=16384, rope_theta=1000000,
        ),
        1,
    ),
    "GPT-J 6B": (dict(model_type="gptj", n_embd=4096, n_layer=28, n_head=16, rotary_dim=64), None),
    "GPT-NeoX 20B": (
        dict(
            model_type="gpt_neox", hidden_size=6144, num_hidden_layers=44, num_attention_heads=64,
            rotary_emb_base=10000, rotary_pct=0.25,
        ),
        1,
    ),
    "Llama 4 Scout": (
        dict(
            model_type="llama4",
            text_config=dict(
                model_type="llama4_text", hidden_size=5120, num_hidden_layers=48,
                num_attention_heads=40, head_dim=128, max_position_embeddings=10485760,
                no_rope_layers=[], rope_theta=500000.0,
                rope_scaling={
                    "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3",
                },
            ),
        ),
        1,
    ),
    "InternLM3 8B": (INTERNLM3, 1),
    "InternLM3 8B at 32768": (INTERNLM3, 32768),
    "InternLM3 8B at 100000": (INTERNLM3, 100000),
    "Olmo 3 7B": (
        dict(
            model_type="olmo3", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
            max_position_embeddings=65536, rope_theta=500000, sliding_window=4096,
            rope_scaling={
                "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1,
                "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
        ),
        1,
    ),
    "MiniMax-M2": (
        dict(
            model_type="minimax_m2", hidden_size=3072, num_hidden_layers=62, num_attention_heads=48,
            head_dim=128, rotary_dim=64, rope_theta=5000000,
        ),
        1,
    ),
    "Qwen2-VL 7B": (
        dict(
            model_type="qwen2_vl", hidden_size=3584, num_hidden_layers=28, num_attention_heads=28,
            rope_theta=1000000.0, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        ),
        1,
    ),
    "GLM-4.5 Air": (
        dict(
            model_type="glm4_moe", hidden_size=4096, num_hidden_layers=46, num_attention_heads=96,
            head_dim=128, rope_theta=1000000, partial_rotary_factor=0.5,
        ),
        1,
    ),
}  # fmt: skip


def frequencies():
    entries = []
    for name, (written, tokens) in PUBLISHED.items():
        config = CONFIG_MAPPING[written["model_type"]](**json.loads(json.dumps(written)))
        text = config.get_text_config(decoder=True)
        if tokens is None:
            # GPT-J has no rotary module: its sinusoidal table at position 1 is the angle itself.
            module = importlib.import_module("transformers.models.gptj.modeling_gptj")
            table = module.create_sinusoidal_positions(2, text.rotary_dim)
            sin, cos = table[1].double().chunk(2)
            ropes, types, tokens = {"": torch.atan2(sin, cos)}, [""] * text.num_hidden_layers, 1
        else:
            # The module that runs the model; InternLM3, for one, runs Llama's.
            module = importlib.import_module(MODEL_MAPPING[type(text)].__module__)
            rotary = next(
                c
                for n, c in vars(module).items()
                if n.endswith("RotaryEmbedding") and "Vision" not in n and c.__module__ == module.__name__
            )(text)
            keyed = getattr(rotary, "layer_types", None) or [""]
            position = torch.tensor([[tokens - 1]])
            ropes = {}
            for key in dict.fromkeys(keyed):
                arguments = dict(layer_type=key) if key else {}
                if text.model_type == "qwen2_vl_text":
                    rotary(torch.zeros(1), position.expand(3, 1, 1))
                else:
                    rotary(torch.zeros(1), position, **arguments)
                ropes[key] = getattr(rotary, f"{key}_inv_freq" if key else "inv_freq")
            types = text.layer_types if "" not in ropes else [""] * text.num_hidden_layers
            if text.model_type == "llama4_text":
                types = [t if f else None for t, f in zip(types, text.no_rope_layers)]
        order = list(dict.fromkeys(t for t in types if t is not None))
        entries.append(
            {
                "name": name,
                "config": written,
                "tokens": tokens,
                "inv_freq": [[float(f"{f:.9g}") for f in ropes[t].double()] for t in order],
                "layers": [None if t is None else order.index(t) for t in types],
            }
        )
        print(name, [len(f) for f in entries[-1]["inv_freq"]], flush=True)
    return entries


def write(name, what, entries, **more):
    head = {
        "about": what,
        "from": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, "
        "by scripts/rope_vectors.py",
    } | more
    compact = [json.dumps(entry, separators=(",", ":")) for entry in entries]
    text = json.dumps(head)[:-1] + ', "entries": [\n' + ",\n".join(compact) + "\n]}\n"
    (HERE / name).write_text(text)


if __name__ == "__main__":
    write(
        "frequencies.json",
        "inverse frequencies in f32, layer by layer, of published configurations",
        frequencies(),
    )
    write(
        "keys.json",
        f"keys of one token cached at position {OLD} (old) and {NEW} (new) by tiny random models",
        keys(),
        causal=causal(),
    )
