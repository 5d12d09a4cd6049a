"""Settings that people look for under the words of other tools, such as --epochs."""

from __future__ import annotations

_WORDS = {
    'train.length, such as train.length="20 epochs"': (
        "epoch epochs num_epochs n_epochs max_epochs nepochs train_epochs total_epochs"
    ),
    'train.length, such as train.length="1000 steps"': (
        "step steps num_steps n_steps max_steps train_steps iters iterations num_iterations max_iter max_iters n_iter "
        "niter total_iter length"
    ),
    'train.length, such as train.length="25 minutes"': "minutes hours time time_limit max_time",
    "train.global_batch": "batch batch_size batchsize bs train_batch_size global_batch_size total_batch_size",
    "train.micro_batch": (
        "micro_batch_size per_device_batch_size batch_size_per_gpu per_gpu_batch_size grad_accum accumulate "
        "accumulate_grad_batches gradient_accumulation gradient_accumulation_steps"
    ),
    "train.lr": "lr learning_rate base_lr max_lr initial_lr lr0",
    "train.schedule": "scheduler lr_scheduler lr_schedule lr_policy",
    "train.warmup": "warmup_steps warmup_epochs warmup_ratio warmup_iter",
    "train.clip_norm": "clip grad_clip clip_grad gradient_clip max_norm max_grad_norm gradient_clip_val",
    "train.ema_decay": "ema",
    "train.betas": "beta1 beta2 beta momentum",
    "train.precision": "fp16 bf16 half amp mixed_precision dtype use_amp",
    "train.optimizer": "optim opt optimiser",
    "train.loss": "criterion losses loss_fn objective",
    "train.seed": "seed random_seed manual_seed rng_seed",
    "train.validate_every": "val_freq val_every eval_every eval_freq test_every val_interval val_check_interval",
    "train.checkpoint_every": "save_every save_freq save_interval checkpoint_freq checkpoint_interval save_steps",
    "train.log_every": "log_freq log_interval print_freq print_every log_steps",
    "train.init_from": "pretrained pretrain pre_train weights finetune fine_tune init_weights load_weights",
    "train.method": "gan trainer",
    "scale": "upscale upscale_factor scale_factor upscaling_factor factor sr_factor sf r",
    "source": (
        "data dataset datasets data_dir data_path data_root dataroot dir_data image images image_dir input input_dir "
        "inputs train_dir train_data train preprocess dir folder root path src sources photos"
    ),
    "home": (
        "out output outputs output_dir outdir out_dir save_dir save save_path result results results_dir dir_out dest "
        "runs runs_dir workdir work_dir log_dir logdir checkpoint_dir ckpt_dir default_root_dir storage_path"
    ),
    "cache": "cache_dir download_dir",
    "name": "exp exp_name experiment_name run_name project job_name",
    "preprocess.holdout": "val val_dir val_data valid validation validation_split val_split test_split holdout_set",
    "evaluate.benchmarks": (
        "test test_dir test_data test_set test_sets benchmark benchmarks eval evaluate eval_set testset set5 set14"
    ),
    "data.crop": "patch patch_size crop_size hr_size gt_size lr_size image_size img_size",
    "data.augment": "augmentation aug flip hflip rot",
    "cluster.workers": (
        "worker num_workers n_workers gpus num_gpus ngpus n_gpus gpus_per_node nproc nproc_per_node world_size devices "
        "nodes num_nodes nnodes threads num_threads n_threads jobs processes"
    ),
    "cluster.gpu": "gpu cuda device cpu use_gpu use_cuda no_cuda accelerator gpu_ids gpu_id",
    "cluster.address": "cluster ray_address head master_addr",
    "tracking.uri": "tracking mlflow mlflow_uri tracking_uri mlflow_tracking_uri backend_store_uri",
    "tracking.experiment": "experiment",
    "tracking.register_as": "register register_model registered_model registered_model_name model_name",
    "model.name": "model arch architecture network net backbone",
    "model.channels": "channels feats n_feats num_feat nf ngf filters width hidden num_filters",
    "model.blocks": "blocks n_blocks num_blocks n_resblocks resblocks num_block depth layers",
    "model.batch_norm": "bn norm batchnorm use_bn",
    "model.residual_scale": "res_scale residual_scaling",
    "tune.grid": "tune grid sweep search param_grid",
    "tune.samples": "num_samples n_trials trials",
    "--config": "config_file configfile cfg conf c yaml yml options opt_file settings",
}
"""For each setting, the words that stand for it elsewhere, in lower case and with underscores."""

_SENTENCES = {
    "no option is needed, rerun the same command to resume": (
        "resume auto_resume continue continue_train resume_from resume_from_checkpoint restart checkpoint ckpt load"
    ),
    "only pipeline.train and pipeline.tune take --dry-run": "dry_run dryrun plan",
    "only pipeline.run and pipeline.tune take --from-run": "from_run run_id reproduce",
}
"""Advice for words that no setting stands for."""

SETTINGS_BY_WORD = {word: setting for setting, words in _WORDS.items() for word in words.split()}
"""The setting that a word of another tool stands for, with an example where its value has another form."""
ADVICE_BY_WORD = {word: advice for advice, words in _SENTENCES.items() for word in words.split()}
"""Advice for an option that does not exist here."""


def plain_word(key: str) -> str:
    """Return an option or key in lower case, without dashes in front and with underscores instead of other signs."""
    return key.lstrip("-").lower().replace("-", "_").replace(".", "_").replace("/", "_")
