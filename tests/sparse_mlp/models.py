"""Small models of the classes that sparsify knows, randomly initialised: name to (model, inputs, MLPs, activation)."""

from functools import partial

import torch
from torch import nn

D_FF = 40
_TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_DECODER = _TEXT | {"intermediate_size": D_FF, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32}
_DECODER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _sequential(**_):
    return nn.Sequential(nn.Linear(16, D_FF), nn.ReLU(), nn.Dropout(0.2), nn.Linear(D_FF, 16))


def _t5(**more):
    from transformers import T5Config, T5Model

    sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": D_FF, "num_layers": 1, "num_heads": 2}
    return T5Model(T5Config(**sizes, dropout_rate=0.1, **more))


def _bert(**more):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_TEXT, intermediate_size=D_FF, max_position_embeddings=32, **more))


def _vit(**more):
    from transformers import ViTConfig, ViTModel

    sizes = _TEXT | {"intermediate_size": D_FF, "image_size": 8, "patch_size": 4}
    del sizes["vocab_size"]
    return ViTModel(ViTConfig(**sizes, **more))


class ViTLayer(nn.Module):
    """As transformers 5.0 has it: what came to be a ViTMLP is two modules of the layer, the same as BERT's."""

    __module__ = "transformers.models.vit.modeling_vit"

    def __init__(self, **more):
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput

        super().__init__()
        config = BertConfig(hidden_size=16, intermediate_size=D_FF, **more)
        self.intermediate, self.output = BertIntermediate(config), BertOutput(config)

    def forward(self, input):
        return self.output(self.intermediate(input), input)


def _gpt2(**more):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": D_FF, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, **more))


def _opt(**more):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = _TEXT | {"ffn_dim": D_FF, "max_position_embeddings": 32, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(**sizes, **more))


def _decoder(family, **more):
    import transformers

    name = f"{family}TextConfig" if family.startswith("Gemma3") else f"{family}Config"
    config = getattr(transformers, name)(**_DECODER | more)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def _gemma3n(pattern=(0.0, 0.0)):
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    sizes = _DECODER | {"intermediate_size": [D_FF] * 2, "activation_sparsity_pattern": list(pattern)}
    sizes |= {"vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
    sizes |= {"laurel_rank": 4, "layer_types": ["full_attention"] * 2}
    return Gemma3nForCausalLM(Gemma3nTextConfig(**sizes))


def _ids(model):
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if "T5" in type(model).__name__ else {})


def _inputs(model):
    name = type(model).__name__
    if name in ("Sequential", "ViTLayer"):
        return {"input": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))}
    if name == "ViTModel":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    return _ids(model)


MODELS = {  # how it is made, class of the MLPs, their activation
    "sequential": (_sequential, "Sequential", "relu"),
    "t5": (_t5, "T5DenseActDense", "relu"),
    "t5_gated": (partial(_t5, feed_forward_proj="gated-gelu"), "T5DenseGatedActDense", "gelu_tanh"),
    "bert": (_bert, "BertLayer", "gelu"),
    "bert_chunked": (partial(_bert, chunk_size_feed_forward=1), "BertLayer", "gelu"),
    "vit": (_vit, "ViTMLP", "gelu"),
    "vit_before": (ViTLayer, "ViTLayer", "gelu"),
    "gpt2": (_gpt2, "GPT2MLP", "gelu_tanh"),
    "opt": (_opt, "OPTDecoderLayer", "relu"),
    "opt_norm_after": (partial(_opt, do_layer_norm_before=False), "OPTDecoderLayer", "relu"),
    "llama": (partial(_decoder, "Llama", mlp_bias=True), "LlamaMLP", "silu"),
    "qwen2": (partial(_decoder, "Qwen2"), "Qwen2MLP", "silu"),
    "qwen3": (partial(_decoder, "Qwen3"), "Qwen3MLP", "silu"),
    "mistral": (partial(_decoder, "Mistral"), "MistralMLP", "silu"),
    "mistral_relu2": (partial(_decoder, "Mistral", hidden_act="relu2"), "MistralMLP", "squared_relu"),
    "gemma": (partial(_decoder, "Gemma"), "GemmaMLP", "gelu_tanh"),
    "gemma2": (partial(_decoder, "Gemma2"), "Gemma2MLP", "gelu_tanh"),
    "gemma3": (partial(_decoder, "Gemma3"), "Gemma3MLP", "gelu_tanh"),
    "gemma3n": (_gemma3n, "Gemma3nTextMLP", "gelu_tanh"),
}


def make(name, **more):
    """The model in eval mode, and inputs for it."""
    torch.manual_seed(0)
    model = MODELS[name][0](**more).eval()
    return model, _inputs(model)


def output(model, inputs):
    """[*]: of the model, its hidden states or logits."""
    out = model(*inputs.values()) if isinstance(model, nn.Sequential) else model(**inputs)
    return out if isinstance(out, torch.Tensor) else out[0]
