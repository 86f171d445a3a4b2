"""What people type who come from other tools, and what it is called here: flags, settings and verbs.

Suggestions only: where a word means the same everywhere the nearest spelling finds it already.
"""

from __future__ import annotations

from collections.abc import Collection

from shoestring.train.other_names import meant

# Their flags, without hyphens before and with underscores -> ours, of which a verb has at most one.
_FLAGS: dict[str, tuple[str, ...]] = {
    their: tuple(ours.split())
    for theirs, ours in (
        ("max_new_tokens n_predict num_predict max_gen_len num_tokens n", "--max-tokens"),
        ("temp t", "--temperature"),
        ("repeat_penalty rep_pen", "--repetition-penalty"),
        ("stop_sequence stop_sequences stop_strings reverse_prompt", "--stop"),
        ("max_length", "--max-tokens --context --sequence-length"),
        ("p text input_text message query question", "--prompt"),
        ("input", "--prompt --data"),
        ("f prompt_file input_file", "--file"),
        ("system_prompt system_message sys s", "--system"),
        ("random_seed", "--seed"),
        ("o output output_dir out_dir output_path output_file save_path save_dir outfile target", "--out"),
        ("torch_dtype precision outtype fp16 bf16 half", "--dtype --type"),
        ("quantization quantization_method quant qtype ftype", "--type"),
        ("gpu cuda device_map", "--device"),
        ("draft draft_model model_draft assistant_model prompt_lookup_num_tokens", "--speculate"),
        ("max_memory memory_limit ram vram low_vram offload cpu_offload", "--memory"),
        ("dataset dataset_name dataset_path data_path data_dir train_file eval_data task tasks", "--data --calibrate"),
        ("num_samples limit max_samples max_examples num_examples count size", "--examples -n --n --rows"),
        ("wbits w_bit n_bits num_bits", "--bits"),
        ("group_size groupsize q_group_size", "--group"),
        ("calibration calibration_data calib_data calibration_dataset", "--calibrate"),
        ("block_size max_seq_len max_seq_length seq_len ctx_size num_ctx n_ctx", "--context --sequence-length"),
        ("vocab_size", "--vocabulary"),
        ("tokenizer_name tokenizer_path", "--tokenizer"),
        ("text_column text_key field", "--text-field"),
        ("force overwrite force_download no_cache", "--refresh"),
        ("resume_from_checkpoint resume_from checkpoint", "--resume"),
        ("ignore_errors skip_errors skip_invalid", "--on-bad-line"),
        ("chat_template prompt_template", "--template"),
        ("val_size val_split test_size validation_split", "--validation --test"),
    )
    for their in theirs.split()
}
_MODEL = "model m model_name model_path model_id model_name_or_path base_model pretrained adapter".split()
_NOT_THERE = {
    "num_beams": "beams are searched by generate alone: --num-beams",
    "stream": "one prompt is streamed as it stands",
    "y": "nothing is asked: leave it out",
    "yes": "nothing is asked: leave it out",
    "verbose": "there is no such switch: progress goes to stderr, results to stdout",
    "v": "shoestring --version prints the version",
    "version": "shoestring --version prints the version",
    "quiet": "there is no such switch: 2>/dev/null leaves out progress, --json prints one object",
}

# Verbs of other tools, and of ours that are not there.
OTHER_VERBS: dict[str, str] = {
    their: ours
    for theirs, ours in (
        ("train", "pretrain trains a model from nothing, finetune teaches one your examples"),
        ("sft tune fine-tune lora qlora dpo teach", "did you mean finetune?"),
        ("pull download fetch install load", "did you mean get?"),
        ("run talk ask interactive", "did you mean chat, or generate?"),
        ("complete sample infer inference predict", "did you mean generate?"),
        ("eval benchmark bench test score measure", "did you mean evaluate?"),
        ("ppl", "did you mean perplexity?"),
        ("plot plots curves dashboard tensorboard wandb monitor", "did you mean report?"),
        ("inspect info summary count", "did you mean model show?"),
        ("estimate fit fits budget forecast predict-memory", "did you mean plan?"),
        ("fuse fold", "did you mean merge?"),
        ("list ls recipes config configs", "did you mean recipe list?"),
        ("tokenize encode preprocess", "did you mean prepare?"),
        ("dataset datasets view", "did you mean data show?"),
        ("resume continue", "shoestring pretrain --resume OUT, or finetune --resume OUT"),
        ("init new start demo", "did you mean quickstart?"),
        ("env check system devices", "did you mean doctor?"),
        ("convert", "shoestring get FILE.gguf --out FOLDER reads a GGUF file, shoestring export writes one"),
        ("server api openai", "did you mean serve?"),
        ("gguf save_pretrained_gguf ollama", "did you mean export?"),
        ("quant quantise gptq awq", "did you mean quantize?"),
        ("svd lowrank low-rank factorise decompose", "did you mean factorize?"),
        ("sparsify sparsegpt wanda slim shrink", "did you mean prune?"),
        ("student teacher imitate kd", "did you mean distill?"),
        ("completions complete-setup install-completion", "did you mean completion?"),
    )
    for their in theirs.split()
}


def flag_hint(name: str, chain: tuple[str, ...], flags: Collection[str], takes_settings: bool) -> str | None:
    """What to write for a flag that the command does not have; None where nobody calls anything that.

    chain: verb and sub-verb. flags: the command's own.
    """
    word = name.lstrip("-").replace("-", "_").lower()
    ours = next((flag for flag in _FLAGS.get(word, ()) if flag in flags), None)
    if ours is not None:
        return f"did you mean {ours}?"
    if takes_settings:
        keys, short = _settings(chain[0])
        found = meant(word, keys)
        if found is not None and (found.key != "model" or chain[0] == "recipe"):
            flag = next((f"--{name}".replace("_", "-") for name, key in short.items() if key == found.key), None)
            return found.hint(flag if flag in flags else f"--{found.key}")
    if word in _MODEL and chain[0] not in ("pretrain", "recipe", "data"):
        what = "ADAPTER" if chain[0] == "merge" else "RECIPE" if chain[0] == "model" else "MODEL"
        return f"it stands first, without a flag: shoestring {' '.join(chain)} {what}"
    return _NOT_THERE.get(word)


def _settings(verb: str) -> tuple[set[str], dict[str, str]]:
    """The settings of a verb's recipes, and those with a flag of their own."""
    from shoestring.compression.distill.config import SHORT as DISTILL_SHORT
    from shoestring.compression.distill.config import DistillRecipe
    from shoestring.core.config_keys import setting_keys
    from shoestring.finetuning.config import SHORT as FINETUNE_SHORT
    from shoestring.finetuning.config import FinetuneRecipe
    from shoestring.pretraining.config import SHORT as PRETRAIN_SHORT
    from shoestring.pretraining.config import PretrainRecipe

    keys: set[str] = set()
    if verb not in ("finetune", "distill"):
        keys |= set(setting_keys(PretrainRecipe))
    if verb in ("finetune", "recipe"):
        keys |= set(setting_keys(FinetuneRecipe))
    if verb in ("distill", "recipe"):
        keys |= set(setting_keys(DistillRecipe))
    return keys, {"finetune": FINETUNE_SHORT, "distill": DISTILL_SHORT}.get(verb, PRETRAIN_SHORT)
