"""Keys of configuration files that cannot change what a forward pass computes, by kind.

A key that is not listed here, and that no reader asks for, is an error.
"""

PARAMS_BOOKKEEPING = frozenset({"dtype", "max_batch_size"})

# fmt: off
# Attributes that transformers gives every configuration, of versions 4.45 to 5.24.
_EVERY_CONFIG = frozenset({
    "add_cross_attention", "architectures", "attention_dropout", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id", "dtype",
    "eos_token_id", "finetuning_task", "id2label", "ignore_index", "image_seq_length",
    "initializer_range", "is_composition", "is_decoder", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "problem_type",
    "return_dict", "sep_token_id", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache",
})
# Settings of generate(). Up to 4.49 each nested configuration is saved with all of the older ones.
_GENERATION = frozenset({
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight",
    "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens", "cache_config", "cache_implementation",
    "compile_config", "constraints", "continuous_batching_config", "disable_compile", "diversity_penalty",
    "do_sample", "dola_layers", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "force_words_ids", "forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id",
    "generation_kwargs", "guidance_scale", "is_assistant", "length_penalty", "low_memory", "max_cache_len",
    "max_length", "max_matching_ngram_size", "max_new_tokens", "max_time", "min_length", "min_new_tokens",
    "min_p", "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_logits", "output_scores", "penalty_alpha",
    "prefill_chunk_size", "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits",
    "repetition_penalty", "return_dict_in_generate", "return_legacy_cache", "sequence_bias",
    "speculation_type", "stop_strings", "suppress_tokens", "target_lookbehind", "temperature",
    "token_healing", "top_h", "top_k", "top_p", "typical_p", "use_model_defaults", "use_mtp",
    "watermarking_config",
})
# What training tools leave behind.
_TRAINING = frozenset({
    "attn_implementation", "gradient_checkpointing", "model_max_length", "neftune_noise_alpha",
    "processor_class", "tokenizer_model_max_length", "tokenizer_padding_side", "trust_remote_code",
    "unsloth_fixed", "unsloth_version",
})
# fmt: on
# Whether weights are quantised is for those to ask who open them.
HF_BOOKKEEPING = _EVERY_CONFIG | _GENERATION | _TRAINING | {"quantization_config"}
