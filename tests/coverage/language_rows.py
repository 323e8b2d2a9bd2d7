"""Language and speech models of the transformers library, small and with random weights."""

from __future__ import annotations

import torch

from tests.coverage.rows import VOCABULARY, Row, hf, ids, settings, tokens, with_inputs

_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
}
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    **_IDS,
}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **_IDS,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_WAV = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}


def _wave(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, 400)


def _mel(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, 16, 64)


_DECODES = tokens(decoder_input_ids=ids)

NAMED = (
    Row("bert", hf("BertModel", **_ENCODER), tokens()),
    Row(
        "distilbert",
        hf(
            "DistilBertForSequenceClassification",
            vocab_size=VOCABULARY,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
        ),
        tokens(),
    ),
    Row(
        "gpt2", hf("GPT2LMHeadModel", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, **_IDS), tokens()
    ),
    Row("gpt-neox", hf("GPTNeoXForCausalLM", **{**_ENCODER, **_IDS}), tokens()),
    Row("llama", hf("LlamaForCausalLM", **_DECODER), tokens()),
    Row("qwen2", hf("Qwen2ForCausalLM", **_DECODER), tokens()),
    Row("qwen3", hf("Qwen3ForCausalLM", head_dim=8, **_DECODER), tokens()),
    Row("mistral", hf("MistralForCausalLM", sliding_window=8, **_DECODER), tokens()),
    Row("t5", hf("T5ForConditionalGeneration", **_T5), _DECODES),
    Row(
        "whisper",
        hf(
            "WhisperForConditionalGeneration",
            num_mel_bins=16,
            max_source_positions=32,
            max_target_positions=32,
            **settings(_SEQ2SEQ, begin_suppress_tokens=None, suppress_tokens=None),
        ),
        with_inputs(input_features=_mel, decoder_input_ids=ids),
    ),
)

MORE = (
    Row("bert-classifier", hf("BertForSequenceClassification", **_ENCODER), tokens()),
    Row("roberta", hf("RobertaForMaskedLM", **_ENCODER), tokens()),
    Row("electra", hf("ElectraForSequenceClassification", embedding_size=16, **_ENCODER), tokens()),
    Row("albert", hf("AlbertModel", embedding_size=16, **_ENCODER), tokens()),
    Row("mpnet", hf("MPNetModel", **_ENCODER), tokens()),
    Row("camembert", hf("CamembertModel", **_ENCODER), tokens()),
    Row("roformer", hf("RoFormerModel", **_ENCODER), tokens()),
    Row("deberta-v2", hf("DebertaV2Model", **_ENCODER), tokens()),
    Row(
        "deberta-v2-relative",
        hf(
            "DebertaV2ForSequenceClassification",
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            **_ENCODER,
        ),
        tokens(),
    ),
    Row(
        "deberta",
        hf("DebertaModel", relative_attention=True, pos_att_type=["p2c", "c2p"], **_ENCODER),
        tokens(),
    ),
    Row("squeezebert", hf("SqueezeBertModel", embedding_size=32, **_ENCODER), tokens()),
    Row(
        "mobilebert", hf("MobileBertModel", embedding_size=16, intra_bottleneck_size=16, **_ENCODER), tokens()
    ),
    Row("convbert", hf("ConvBertModel", embedding_size=16, **_ENCODER), tokens()),
    Row("modernbert", hf("ModernBertForMaskedLM", **settings(_ENCODER, local_attention=8)), tokens()),
    Row("fnet", hf("FNetModel", tpu_short_seq_length=12, **_ENCODER), tokens(mask=False)),
    Row(
        "xlnet",
        hf("XLNetModel", vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64),
        tokens(),
    ),
    Row(
        "funnel",
        hf(
            "FunnelModel",
            vocab_size=VOCABULARY,
            block_sizes=[1, 1],
            d_model=32,
            n_head=4,
            d_head=8,
            d_inner=64,
            num_decoder_layers=1,
        ),
        tokens(),
    ),
    Row("bart", hf("BartForConditionalGeneration", **_SEQ2SEQ), _DECODES),
    Row("pegasus", hf("PegasusForConditionalGeneration", **_SEQ2SEQ), _DECODES),
    Row("marian", hf("MarianMTModel", **_SEQ2SEQ), _DECODES),
    Row("mbart", hf("MBartForConditionalGeneration", **_SEQ2SEQ), _DECODES),
    Row("t5-gated", hf("T5ForConditionalGeneration", feed_forward_proj="gated-gelu", **_T5), _DECODES),
    Row("opt", hf("OPTForCausalLM", word_embed_proj_dim=16, **settings(_DECODER, ffn_dim=64)), tokens()),
    Row(
        "bloom",
        hf("BloomForCausalLM", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **_IDS),
        tokens(),
    ),
    Row(
        "falcon",
        hf(
            "FalconForCausalLM",
            new_decoder_architecture=True,
            num_kv_heads=2,
            **settings(_DECODER, num_key_value_heads=2),
        ),
        tokens(),
    ),
    Row("falcon-multi-query", hf("FalconForCausalLM", multi_query=True, **_DECODER), tokens()),
    Row(
        "gpt-neo",
        hf(
            "GPTNeoForCausalLM",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            window_size=8,
            **_IDS,
        ),
        tokens(),
    ),
    Row(
        "gptj",
        hf("GPTJForCausalLM", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **_IDS),
        tokens(),
    ),
    Row(
        "codegen",
        hf("CodeGenForCausalLM", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **_IDS),
        tokens(),
    ),
    Row(
        "gpt-bigcode",
        hf("GPTBigCodeForCausalLM", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, **_IDS),
        tokens(),
    ),
    Row("gemma", hf("GemmaForCausalLM", head_dim=8, **_DECODER), tokens()),
    Row("gemma2", hf("Gemma2ForCausalLM", head_dim=8, sliding_window=8, **_DECODER), tokens()),
    Row(
        "gemma3",
        hf("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=8, sliding_window=8, **_DECODER),
        tokens(),
    ),
    Row("phi", hf("PhiForCausalLM", **_DECODER), tokens()),
    Row("phi3", hf("Phi3ForCausalLM", **_DECODER), tokens(), nothing=("parallel/*",)),
    Row("stablelm", hf("StableLmForCausalLM", **_DECODER), tokens()),
    Row("olmo2", hf("Olmo2ForCausalLM", **_DECODER), tokens()),
    Row("cohere", hf("CohereForCausalLM", **_DECODER), tokens()),
    Row("granite", hf("GraniteForCausalLM", **_DECODER), tokens()),
    Row("starcoder2", hf("Starcoder2ForCausalLM", **_DECODER), tokens()),
    Row("glm4", hf("Glm4ForCausalLM", head_dim=8, **_DECODER), tokens(), nothing=("parallel/*",)),
    Row("persimmon", hf("PersimmonForCausalLM", **_DECODER), tokens()),
    Row(
        "mixtral",
        hf("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **_DECODER),
        tokens(),
        nothing=("parallel/*",),
    ),
    Row(
        "qwen3-moe",
        hf(
            "Qwen3MoeForCausalLM",
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            **_DECODER,
        ),
        tokens(),
        nothing=("parallel/*",),
    ),
    Row(
        "mamba",
        hf(
            "MambaForCausalLM",
            vocab_size=VOCABULARY,
            hidden_size=32,
            state_size=4,
            num_hidden_layers=2,
            **_IDS,
        ),
        tokens(mask=False),
        nothing=("parallel/*",),
    ),
    Row(
        "mpt",
        hf("MptForCausalLM", d_model=32, n_heads=4, n_layers=2, vocab_size=VOCABULARY, max_seq_len=64),
        tokens(),
    ),
    Row(
        "clip-text",
        hf("CLIPTextModelWithProjection", projection_dim=24, **settings(_ENCODER, **_IDS)),
        tokens(),
    ),
    Row("blip-text", hf("BlipTextModel", **settings(_ENCODER, encoder_hidden_size=32)), tokens()),
    Row(
        "clip",
        hf(
            "CLIPModel",
            text_config=settings(_ENCODER, **_IDS),
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "image_size": 32,
                "patch_size": 8,
            },
            projection_dim=24,
        ),
        tokens(pixel_values=lambda batch, length: torch.randn(batch, 3, 32, 32)),
    ),
    Row(
        "perceiver",
        hf(
            "PerceiverForSequenceClassification",
            vocab_size=VOCABULARY,
            num_latents=8,
            d_latents=32,
            d_model=32,
            num_blocks=1,
            num_self_attends_per_block=2,
            num_self_attention_heads=4,
            num_cross_attention_heads=4,
            max_position_embeddings=64,
            num_labels=3,
        ),
        lambda batch, length: ((), {"inputs": ids(batch, length)}),
    ),
    Row("wav2vec2", hf("Wav2Vec2ForCTC", **_WAV), with_inputs(input_values=_wave)),
    Row(
        "wav2vec2-layer-norm",
        hf("Wav2Vec2ForCTC", do_stable_layer_norm=True, feat_extract_norm="layer", **_WAV),
        with_inputs(input_values=_wave),
    ),
    Row("hubert", hf("HubertModel", **_WAV), with_inputs(input_values=_wave)),
    Row(
        "data2vec-audio",
        hf("Data2VecAudioModel", **settings(_WAV, num_conv_pos_embeddings=2)),
        with_inputs(input_values=_wave),
    ),
    Row("sew", hf("SEWModel", **settings(_WAV, conv_dim=[16, 32])), with_inputs(input_values=_wave)),
    Row(
        "xglm",
        hf(
            "XGLMForCausalLM",
            vocab_size=VOCABULARY,
            d_model=32,
            ffn_dim=64,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=64,
            **_IDS,
        ),
        tokens(),
    ),
    Row(
        "openai-gpt",
        hf("OpenAIGPTLMHeadModel", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
        tokens(),
    ),
    Row("bigbird", hf("BigBirdModel", attention_type="original_full", **_ENCODER), tokens()),
    Row(
        "nystromformer",
        hf("NystromformerModel", num_landmarks=4, segment_means_seq_len=12, **_ENCODER),
        tokens(),
    ),
    Row("esm", hf("EsmModel", position_embedding_type="rotary", **_ENCODER), tokens()),
    Row("splinter", hf("SplinterModel", **_ENCODER), tokens()),
)
