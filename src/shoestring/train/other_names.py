"""What other trainers call our settings, so that a name of theirs leads to ours. Torch-free.

By a suggestion, not as an alias: the same word often counts something else (a batch of rows, not of tokens), and a
recipe says every setting by one name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

# Their names, hyphens as underscores -> our settings; a recipe that lacks the first has the second.
_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lr learning_rate", ("optimizer.learning_rate",)),
    ("wd weight_decay", ("optimizer.weight_decay",)),
    ("beta1 beta2 adam_beta1 adam_beta2 betas", ("optimizer.betas",)),
    ("eps adam_epsilon", ("optimizer.epsilon",)),
    ("optim optimizer_name", ("optimizer.kind",)),
    ("optimizer_in_bwd optimizer_in_backward fused_backward", ("optimizer.in_backward",)),
    ("embed_lr embedding_lr", ("optimizer.adamw.embedding_learning_rate",)),
    ("unembedding_lr head_lr", ("optimizer.adamw.head_learning_rate",)),
    ("ns_steps", ("optimizer.iterations",)),
    (
        "batch_size train_batch_size global_batch_size total_batch_size gradient_accumulation_steps grad_accum"
        " gradient_accumulation",
        ("train.batch_rows", "train.batch_tokens"),
    ),
    ("micro_batch_size microbatch_size device_batch_size per_device_train_batch_size", ("train.microbatch",)),
    ("max_steps max_iters num_steps num_iters n_steps iters total_steps train_steps num_iterations", ("train.steps",)),
    ("epochs num_epochs num_train_epochs n_epochs max_epochs", ("train.epochs", "train.tokens")),
    ("max_tokens num_tokens total_tokens train_tokens", ("train.tokens", "train.epochs")),
    ("max_time max_train_time", ("train.time",)),
    (
        "max_seq_length max_seq_len max_sequence_length max_length seq_len seq_length sequence_len block_size"
        " cutoff_len context_length ctx_len n_ctx model_max_length",
        ("train.sequence_length",),
    ),
    ("warmup warmup_steps warmup_ratio warmup_iters num_warmup_steps", ("schedule.warmup",)),
    ("lr_scheduler lr_scheduler_type scheduler lr_schedule", ("schedule.kind",)),
    ("min_lr", ("schedule.final",)),
    ("max_grad_norm grad_clip gradient_clipping clip_grad clip_grad_norm", ("train.clip",)),
    ("gradient_checkpointing activation_checkpointing grad_checkpoint", ("train.activation_checkpointing",)),
    ("eval_steps eval_interval eval_every evaluation_steps val_interval", ("train.evaluate_every",)),
    ("eval_iters eval_tokens", ("train.evaluate_tokens", "train.evaluate_examples")),
    ("save_steps save_every save_interval checkpoint_interval", ("train.checkpoint_every",)),
    ("save_total_limit", ("train.keep",)),
    ("early_stopping_patience patience", ("train.patience",)),
    ("logging_steps log_interval log_every log_steps", ("log.every",)),
    ("report_to", ("log.everywhere",)),
    ("use_wandb wandb_project", ("log.wandb",)),
    ("use_tensorboard logging_dir", ("log.tensorboard",)),
    ("output_dir out_dir output output_path save_dir save_path checkpoint_dir run_name", ("out",)),
    ("random_seed", ("seed",)),
    ("num_threads n_threads", ("threads",)),
    ("device_map cuda gpu", ("device",)),
    ("lora_r lora_rank r", ("adapter.rank",)),
    ("lora_alpha", ("adapter.alpha",)),
    ("lora_dropout", ("adapter.dropout",)),
    ("target_modules lora_target_modules lora_target lora_modules", ("adapter.modules",)),
    ("use_rslora rslora", ("adapter.rank_stabilized",)),
    ("use_dora dora use_lora lora use_peft peft qlora finetuning_type full_finetuning tuner", ("adapter.method",)),
    ("load_in_4bit load_in_8bit quantization quantization_bit quantize bits", ("adapter.base",)),
    ("fp16 bf16 mixed_precision dtype torch_dtype amp half float16 bfloat16", ("precision.compute",)),
    ("float8 use_fp8 fp8_recipe", ("precision.fp8",)),
    ("torch_compile use_compile", ("precision.compile",)),
    ("loss_scaling initial_scale init_scale grad_scaler initial_loss_scale", ("precision.loss_scale.initial",)),
    ("max_memory memory_limit gpu_memory", ("budget.memory",)),
    ("cpu_offload offload deepspeed low_vram", ("budget.engine",)),
    ("fsdp fsdp2 use_fsdp strategy sharding_strategy distributed_strategy data_parallel", ("parallel.kind",)),
    (
        "dataset dataset_name dataset_path dataset_dir train_file train_data train_dataset data_path data_dir"
        " training_file input_file",
        ("data.source",),
    ),
    (
        "validation_file val_file eval_file eval_data eval_dataset test_file val_data",
        ("data.validation_source", "data.validation"),
    ),
    ("val_size val_split validation_split test_size eval_split val_set_size", ("data.validation",)),
    ("text_column text_key dataset_text_field", ("data.text_field",)),
    ("max_samples max_train_samples max_docs", ("data.max_documents",)),
    ("chat_template prompt_template template_name", ("data.template",)),
    ("system_prompt system_message default_system", ("data.system",)),
    (
        "train_on_inputs train_on_prompt train_on_source completion_only completion_only_loss assistant_only_loss"
        " mask_prompt",
        ("data.supervise",),
    ),
    ("packing sample_packing pack", ("data.layout", "data.separate_documents")),
    ("vocab_size tokenizer_vocab", ("data.tokenizer.vocabulary",)),
    ("tokenizer_name tokenizer_path", ("data.tokenizer",)),
    ("model_name_or_path model_name model_id model_path base_model pretrained init_from", ("model.init", "model")),
    ("n_layer n_layers num_layers num_hidden_layers depth", ("model.layers",)),
    ("n_embd d_model hidden_size hidden_dim dim embed_dim", ("model.width",)),
    ("n_head n_heads num_heads num_attention_heads", ("model.attention.heads",)),
    ("n_kv_head n_kv_heads num_kv_heads num_key_value_heads", ("model.attention.kv_heads",)),
    ("head_dim", ("model.attention.head_width",)),
    ("intermediate_size ffn_dim d_ff mlp_dim", ("model.feed_forward.width",)),
    ("max_position_embeddings", ("model.context",)),
    ("rope_theta", ("model.position.theta",)),
)
OTHER_NAMES: dict[str, tuple[str, ...]] = {name: keys for names, keys in _GROUPS for name in names.split()}

# What a reader who comes from there should know besides.
_REMARKS = {
    "train.batch_tokens": "it counts the tokens of a step, not its rows",
    "train.microbatch": "the rows computed at once; train.batch_tokens is what a step has in all",
    "train.tokens": "pretraining has no epochs: it counts tokens",
    "log.everywhere": "a project, for TensorBoard and Weights & Biases; log.tensorboard and log.wandb are one each",
    "schedule.warmup": "in steps, or as a share of the run when below 1",
    "schedule.final": "the last learning rate as a share of the highest",
    "adapter.method": "lora, dora, qlora or full",
    "adapter.base": "int4, nf4 or int8, with adapter.method qlora",
    "precision.compute": "auto, float32, bfloat16, float16 or int8",
    "budget.engine": "or budget.memory: layers come from disk when they must",
    "parallel.kind": "ddp or fsdp",
    "data.supervise": "assistant, last or all",
}
# What is no setting at all.
_PROCESSES = (
    "several processes are started by torchrun: torchrun --nproc-per-node 2 -m shoestring VERB ...\n"
    "on one machine pretrain and finetune start them: --gpus 2, or --ranks 2 on its CPU"
)
_ELSEWHERE = dict.fromkeys(
    "num_gpus n_gpus gpus ngpus nproc nproc_per_node num_processes world_size".split(), _PROCESSES
)
_ELSEWHERE |= dict.fromkeys(("resume_from_checkpoint", "resume_from"), "--resume OUT goes on with the run in OUT")


class Meant(NamedTuple):
    """Our setting for another tool's name, None where it is none, and what to know about it besides."""

    key: str | None
    remark: str | None

    def hint(self, written: str | None = None) -> str:
        """In one or two lines. written: the setting as it is typed there, such as --rank."""
        first = None if self.key is None else f"did you mean {written or self.key}?"
        return "\n".join(line for line in (first, self.remark) if line is not None)


def meant(name: str, keys: Collection[str]) -> Meant | None:
    """What a setting that is not one of `keys` stands for elsewhere. name: its last word, as typed."""
    word = name.lstrip("-").replace("-", "_").lower()
    if word in _ELSEWHERE:
        return Meant(None, _ELSEWHERE[word])
    key = next((key for key in OTHER_NAMES.get(word, ()) if key in keys), None)
    return None if key is None else Meant(key, f"{key}: {_REMARKS[key]}" if key in _REMARKS else None)
