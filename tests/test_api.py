"""The public names of nanochat, with their arguments: what code written for the original touches must be here."""

import dataclasses
import importlib
import inspect
from typing import Any

import pytest
import torch

from nanochat.engine import KVCache
from nanochat.execution import ExecutionResult
from nanochat.gpt import GPT, GPTConfig

# module -> callable -> its arguments in order ("*": those after it by name only). Ours may have more, with defaults.
CALLABLES: dict[str, dict[str, str]] = {
    "common": {
        "get_base_dir": "",
        "get_dist_info": "",
        "compute_init": "device_type",
        "compute_cleanup": "",
        "print0": "",
        "autodetect_device_type": "",
        "DummyWandb": "",
        "DummyWandb.log": "self",
        "DummyWandb.finish": "self",
        "download_file_with_lock": "url filename postprocess_fn",
        "get_peak_flops": "device_name",
        "get_peak_bandwidth": "device_name",
        "is_ddp_requested": "",
        "is_ddp_initialized": "",
    },
    "gpt": {
        "GPTConfig": "sequence_len vocab_size n_layer n_head n_kv_head n_embd window_pattern",
        "norm": "x",
        "has_ve": "i n_layer",
        "apply_rotary_emb": "x cos sin",
        "Linear": "in_features out_features",
        "CausalSelfAttention": "config layer_idx",
        "MLP": "config",
        "Block": "config layer_idx",
        "GPT": "config pad_vocab_size_to",
        "GPT.init_weights": "self",
        "GPT.get_device": "self",
        "GPT.forward": "self idx targets kv_cache loss_reduction",
        "GPT.generate": "self tokens max_tokens temperature top_k seed",
        "GPT.setup_optimizer": "self unembedding_lr embedding_lr matrix_lr weight_decay scalar_lr",
        "GPT.num_scaling_params": "model",
        "GPT.num_matmul_params": "model",
        "GPT.estimate_flops": "model",
        "GPT.estimate_decode_flops": "model ctx",
        "GPT.estimate_prefill_flops": "model n",
        "GPT.kv_bytes_per_token": "model",
        "GPT.kv_read_bytes": "model ctx",
    },
    "flash_attention": {
        "flash_attn.flash_attn_func": "q k v causal window_size",
        "flash_attn.flash_attn_with_kvcache": "q k_cache v_cache k v cache_seqlens causal window_size",
        "_resolve_use_fa3": "",
    },
    "optim": {
        "adamw_step_fused": "p grad exp_avg exp_avg_sq step lr beta1 beta2 eps wd",
        "muon_step_fused": (
            "stacked_grads stacked_params momentum_buffer second_momentum_buffer momentum lr wd beta2 ns_steps red_dim"
        ),
        "MuonAdamW": "param_groups",
        "MuonAdamW.step": "self",
        "Muon": "params lr momentum ns_steps beta2 weight_decay",
        "Muon.step": "self",
    },
    "fp8": {
        "Float8Linear.from_float": "linear",
        "Float8LinearConfig.from_recipe_name": "recipe_name",
        "convert_to_float8_training": "module * config module_filter_fn",
        "disable_fp8": "model",
        "_to_fp8": "x fp8_dtype",
    },
    "dataset": {
        "list_parquet_files": "data_dir",
        "parquets_iter_batched": "split start step",
    },
    "dataloader": {
        "tokenizing_distributed_data_loader_with_state_bos_bestfit": (
            "tokenizer B T split tokenizer_threads tokenizer_batch_size device resume_state_dict buffer_size"
        ),
        "tokenizing_distributed_data_loader_bos_bestfit": "",
    },
    "tasks.common": {
        "Task": "start stop step",
        "Task.num_examples": "self",
        "Task.get_example": "self index",
        "Task.evaluate": "self conversation assistant_response",
        "TaskMixture": "tasks",
        "TaskSequence": "tasks",
        "render_mc": "question letters choices",
    },
    "tasks.hub": {
        "HubDataset": "table",
        "HubDataset.shuffle": "self seed",
        "load_hub_dataset": "repo subset split",
    },
    "tasks.smoltalk": {"SmolTalk": "split"},
    "tasks.mmlu": {"MMLU": "subset split"},
    "tasks.arc": {"ARC": "subset split"},
    "tasks.gsm8k": {"GSM8K": "subset split", "GSM8K.reward": "self conversation assistant_response"},
    "tasks.humaneval": {"HumanEval": ""},
    "tokenizer": {
        "RustBPETokenizer": "enc bos_token",
        "RustBPETokenizer.train_from_iterator": "text_iterator vocab_size",
        "RustBPETokenizer.from_directory": "tokenizer_dir",
        "RustBPETokenizer.from_pretrained": "tiktoken_name",
        "RustBPETokenizer.save": "self tokenizer_dir",
        "RustBPETokenizer.encode": "self text prepend append num_threads",
        "RustBPETokenizer.__call__": "self text prepend append num_threads",
        "RustBPETokenizer.decode": "self ids",
        "RustBPETokenizer.encode_special": "self text",
        "RustBPETokenizer.get_bos_token_id": "self",
        "RustBPETokenizer.get_vocab_size": "self",
        "RustBPETokenizer.get_special_tokens": "self",
        "RustBPETokenizer.id_to_token": "self id",
        "RustBPETokenizer.decode_single_token_bytes": "self token_id",
        "RustBPETokenizer.render_conversation": "self conversation max_tokens",
        "RustBPETokenizer.render_for_completion": "self conversation",
        "RustBPETokenizer.visualize_tokenization": "self ids mask with_token_id",
        "get_tokenizer": "",
        "get_token_bytes": "device",
    },
    "engine": {
        "KVCache": "batch_size num_heads seq_len head_dim num_layers device dtype",
        "KVCache.reset": "self",
        "KVCache.get_pos": "self",
        "KVCache.get_layer_cache": "self layer_idx",
        "KVCache.advance": "self num_tokens",
        "KVCache.prefill": "self other",
        "sample_next_token": "logits rng temperature top_k",
        "use_calculator": "expr",
        "Engine": "model tokenizer",
        "Engine.generate": "self tokens num_samples max_tokens temperature top_k seed",
        "Engine.generate_batch": "self tokens num_samples",
    },
    "execution": {"execute_code": "code timeout maximum_memory_bytes"},
    "core_eval": {
        "render_prompts_mc": "item continuation_delimiter fewshot_examples",
        "render_prompts_schema": "item continuation_delimiter fewshot_examples",
        "render_prompts_lm": "item continuation_delimiter fewshot_examples",
        "find_common_length": "token_sequences direction",
        "stack_sequences": "tokens pad_token_id",
        "batch_sequences_mc": "tokenizer prompts",
        "batch_sequences_schema": "tokenizer prompts",
        "batch_sequences_lm": "tokenizer prompts",
        "forward_model": "model input_ids",
        "evaluate_example": "idx model tokenizer data device task_meta",
        "evaluate_task": "model tokenizer data device task_meta",
    },
    "base_eval": {"evaluate_core": "model tokenizer device max_per_task"},
    "chat_eval": {
        "run_categorical_eval": "task_object tokenizer model batch_size max_problems",
        "run_generative_eval": (
            "task_object tokenizer model engine num_samples max_new_tokens temperature top_k max_problems"
        ),
    },
    "loss_eval": {"evaluate_bpb": "model batches steps token_bytes"},
    "checkpoint_manager": {
        "save_checkpoint": "checkpoint_dir step model_data optimizer_data meta_data rank",
        "load_checkpoint": "checkpoint_dir step device load_optimizer rank",
        "build_model": "checkpoint_dir step device phase",
        "find_largest_model": "checkpoints_dir",
        "find_last_step": "checkpoint_dir",
        "load_model": "source device phase model_tag step",
        "load_model_from_dir": "checkpoints_dir device phase model_tag step",
        "load_optimizer_state": "source device rank model_tag step",
    },
}

VALUES = {
    "common": ["COMPUTE_DTYPE", "COMPUTE_DTYPE_REASON"],
    "flash_attention": ["USE_FA3", "HAS_FA3", "_override_impl", "flash_attn"],
    "optim": ["polar_express_coeffs"],
    "tokenizer": ["SPECIAL_TOKENS", "SPLIT_PATTERN"],
    "dataset": ["BASE_URL", "MAX_SHARD"],
}


def find(module: str, path: str) -> Any:
    found: Any = importlib.import_module(f"nanochat.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in CALLABLES.items() for name in names])
def test_callable(module: str, name: str) -> None:
    """It can be called with the original's arguments, in their order or by their names."""
    parameters = inspect.signature(find(module, name)).parameters
    expected = CALLABLES[module][name].split()
    by_name_only = expected[expected.index("*") + 1 :] if "*" in expected else []
    in_order = expected[: expected.index("*")] if "*" in expected else expected
    assert list(parameters)[: len(in_order)] == in_order
    assert set(by_name_only) <= set(parameters)
    for parameter in list(parameters.values())[len(in_order) :]:
        variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        assert variadic or parameter.default is not inspect.Parameter.empty or parameter.name in by_name_only


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in VALUES.items() for name in names])
def test_value(module: str, name: str) -> None:
    find(module, name)


def test_attributes_of_a_model() -> None:
    """Sizes, buffers and parts under their names; optimizer groups with all their hyperparameters."""
    model = GPT(GPTConfig(sequence_len=256, vocab_size=100, n_layer=4, n_head=2, n_kv_head=1, n_embd=32))
    assert model.window_sizes == [(128, 0)] * 3 + [(256, 0)]
    assert model.cos.shape == model.sin.shape == (1, 2560, 1, 8)
    assert model.config.n_kv_head == 1
    assert len(model.transformer.h) == 4
    assert list(model.value_embeds) == ["1", "3"]
    for parameter in (model.transformer.wte.weight, model.lm_head.weight):
        assert parameter.shape == (128, 32)
    assert model.resid_lambdas.shape == model.x0_lambdas.shape == (4,)
    model.init_weights()
    groups = model.setup_optimizer().param_groups
    assert [group["kind"] for group in groups][:6] == ["adamw"] * 6
    for group in groups:
        names = {"adamw": {"lr", "betas", "eps", "weight_decay"}}.get(
            group["kind"], {"lr", "momentum", "ns_steps", "beta2", "weight_decay"}
        )
        assert names | {"params", "kind", "initial_lr"} <= set(group)


def test_attributes_of_a_cache() -> None:
    cache = KVCache(batch_size=2, num_heads=3, seq_len=10, head_dim=4, num_layers=5, device="cpu", dtype=torch.float32)
    assert (cache.batch_size, cache.max_seq_len, cache.n_layers, cache.n_heads, cache.head_dim) == (2, 10, 5, 3, 4)
    assert cache.k_cache.shape == cache.v_cache.shape == (5, 2, 10, 3, 4)
    assert cache.cache_seqlens.tolist() == [0, 0]
    assert cache.prev_embedding is None


def test_fields_of_an_execution_result() -> None:
    fields = [field.name for field in dataclasses.fields(ExecutionResult)]
    assert fields == ["success", "stdout", "stderr", "error", "timeout", "memory_exceeded"]


def test_attention_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests of the original do: set `_override_impl`, then let `USE_FA3` follow."""
    from nanochat import flash_attention

    for implementation, expected in (("sdpa", False), ("fa3", True), (None, flash_attention.HAS_FA3)):
        monkeypatch.setattr(flash_attention, "_override_impl", implementation)
        assert flash_attention.USE_FA3 is expected
        assert flash_attention._resolve_use_fa3() is expected
