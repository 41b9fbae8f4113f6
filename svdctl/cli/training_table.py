"""The options of both training commands, the paper's among them: a row each, in the order in which they take effect."""

from pathlib import Path

from svdctl.checkpoint.paper_normalization import HALF
from svdctl.cli import training_rules as rules
from svdctl.cli.help_page import Panel
from svdctl.cli.options import Flag, Flags
from svdctl.cli.paper_flags import CLIPPING, CLIPPING_WORDS, LAYERS
from svdctl.config.model_config import PUBLISHED
from svdctl.registry import DATA

FORMS_OF_DATA = tuple(DATA.get(kind).form for kind in DATA.builtin_kinds())
PLUGIN = Flag(
    panel=Panel.RUN,
    text="Import a Python module or ./file.py of your own, which registers data sets, layers or other parts. "
    "Repeatable.",
    type=list[str],
    value="MODULE|FILE",
    default="",
)
SET = Flag(
    panel=Panel.RUN,
    text="Set any key of the configuration, as control.max_sigma=2. Repeatable.",
    type=list[str],
    value="KEY=VALUE",
    default="",
)
DEBUG = Flag(panel=Panel.RUN, text="Show the whole traceback of an error.", type=bool)
WRN, LIP = "train", "train-lipconv"
HARDWARE = ("accelerator", "devices", "num_nodes", "precision", "compile", "capture", "deterministic")
FLAGS: Flags = {
    "preset": Flag(
        panel=Panel.RUN,
        text="Settings to begin with: a shipped preset (see --list-presets) or a TOML file, such as config.toml of a "
        "run.",
        type=str,
        value="NAME|FILE",
        default="",
    ),
    "set": SET,
    "plugin": PLUGIN,
    "resume": Flag(
        panel=Panel.RUN,
        text="Go on with a run that was stopped: its folder or its last.pt. With --epochs it becomes longer; --dataset "
        "says where its images lie now.",
        type=Path,
        value="RUN",
        default="",
    ),
    "allow_changed_data": Flag(
        panel=Panel.RUN, text="With --resume: go on although the images have changed since.", type=bool
    ),
    "list_presets": Flag(panel=Panel.RUN, text="List the presets and stop.", type=bool),
    "print_config": Flag(panel=Panel.RUN, text="Print the whole configuration as TOML and stop.", type=bool),
    "dry_run": Flag(panel=Panel.RUN, text="Print what would be done, without the images, and stop.", type=bool),
    "debug": DEBUG,
    "out_dir": Flag("out_dir", Panel.OUTPUT, value="FOLDER"),
    "name": Flag("name", Panel.OUTPUT, value="NAME"),
    "select": Flag(
        "evaluation.select",
        Panel.RUN,
        "Epoch that best.pt is of: none beside last.pt (last); the best on a part of the training images (validation); "
        "or the best on the test images, as in the paper's code, which is said in every output.",
    ),
    "max_steps": Flag(
        "max_steps", Panel.RUN, "Stop after this many steps; the learning-rate schedule still spans --epochs."
    ),
    "wandb": Flag("log.wandb", Panel.OUTPUT),
    "log": Flag(
        "log.loggers",
        Panel.OUTPUT,
        "A further log beside metrics.jsonl, which is always written; NAME is one of your own. Repeatable.",
        type=list[str],
        rule=rules.set_loggers,
        choices=("tensorboard", "mlflow", "wandb", "NAME"),
    ),
    "checkpoint_activations": Flag("model.checkpoint_activations", Panel.DEVICES, of=LIP),
    "dataset": Flag(
        "data.kind",
        Panel.DATA,
        "Images to train and test on. A folder holds train/ and test/, or train/ and val/, which is then what is "
        "tested on, with a folder for each class; CIFAR is downloaded.",
        type=str,
        rule=rules.set_data,
        choices=FORMS_OF_DATA,
    ),
    "dataset_root": Flag("data.root", Panel.DATA, rule=rules.set_root, value="FOLDER", of=WRN),
    "data_dir": Flag(
        "data.root", Panel.DATA, rule=rules.set_root, spellings=("--dataset-root",), value="FOLDER", of=LIP
    ),
    "image_size": Flag(
        "data.size",
        Panel.DATA,
        "Scale and crop the images of a folder to this side in pixels.",
        rule=rules.set_image_size,
        default="none is scaled, all must be 32 x 32",
    ),
    "storage": Flag("data.storage", Panel.DATA, rule=rules.set_of_folder, default="resident up to 2 GiB"),
    "workers": Flag("data.workers", Panel.DATA, rule=rules.set_of_folder, default="one for each core, at most 16"),
    "resized_crop": Flag(
        panel=Panel.DATA,
        text="Train on random parts of an image, of at least this share of its area, scaled up to the whole size.",
        type=float,
        rule=rules.set_resized_crop,
        default="off",
    ),
    "architecture": Flag(
        panel=Panel.MODEL,
        text="Wide residual network of this depth and width, or VGG-19.",
        type=str,
        rule=rules.set_architecture,
        of=WRN,
        choices=("wrn16-10", "wrnDEPTH-WIDTH", "vgg19"),
        default="wrn10-2",
    ),
    "model": Flag(
        "model.network",
        Panel.MODEL,
        "Network of torchvision, of timm, or made by a function of yours, which is imported and called.",
        type=str,
        rule=rules.set_model,
        of=WRN,
        choices=("torchvision:NAME", "timm:NAME", "MODULE:FUNCTION", "FILE.py:FUNCTION"),
        default="that of --architecture",
    ),
    "init_from": Flag(
        "initial.file",
        Panel.MODEL,
        "Trained weights to start from: a file of any kind that inspect-spectrum reads, or those that torchvision "
        "publishes for its network, which it downloads.",
        type=str,
        rule=rules.set_init_from,
        of=WRN,
        choices=("FILE", PUBLISHED),
        default="random weights",
    ),
    "lenient": Flag(
        "initial.lenient",
        Panel.MODEL,
        "With --init-from: take the weights that fit, and list the others.",
        needs=rules.is_initialized,
        of=WRN,
    ),
    "key": Flag(
        "initial.key",
        Panel.MODEL,
        "With --init-from: which weights of a file that has several sets of them, as ema.",
        needs=rules.is_initialized,
        value="NAME",
        default="",
        of=WRN,
    ),
    "mean": Flag(
        "normalize.mean",
        Panel.MODEL,
        "Mean of each channel of the pixels in [0, 1], by which the network normalises its input: 1 or 3 numbers.",
        list[str],
        rules.set_channels,
        value="FLOAT,...",
        default="the network's own, else 0.5",
        of=WRN,
    ),
    "std": Flag(
        "normalize.std",
        Panel.MODEL,
        "Standard deviation of each channel: as many numbers as --mean has.",
        list[str],
        rules.set_channels,
        value="FLOAT,...",
        default="the network's own, else 0.5",
        of=WRN,
    ),
    "block_size": Flag("model.block_size", Panel.MODEL, of=LIP),
    "in_channels": Flag("model.in_channels", Panel.MODEL, of=LIP),
    "new_layer": Flag(
        "layer.kind",
        Panel.LAYER,
        "Kind of the convolutions: ordinary ones, or tensor-train (TT).",
        words=LAYERS,
        of=WRN,
        choices=("standard", "tt"),
    ),
    "conv_type": Flag(
        "layer.kind",
        Panel.LAYER,
        "Kind of the convolutions: ordinary, skew orthogonal (SOC), tensor-train (TT), or skew orthogonal in "
        "tensor-train form (SOTT).",
        words=LAYERS,
        of=LIP,
        choices=("standard", "skew", "tt", "sott"),
    ),
    "dec_rank": Flag(
        "layer.rank",
        Panel.LAYER,
        "Rank of the TT or SOTT layers, or '64, 64, 64, 128, 128, 128': one for each of the five stages and for the "
        "last layer.",
        type=str,
        off=(-1, "-1"),
        rule=rules.set_rank,
        needs=rules.is_ranked,
        value="INT",
    ),
    "dec_scale": Flag(
        "layer.rank_scale",
        Panel.LAYER,
        "Ranks as this share of the channels of each layer, in place of --dec-rank.",
        off=(-1,),
        rule=rules.set_rank_scale,
        needs=rules.is_ranked,
        of=WRN,
    ),
    "no_compress_first": Flag(
        panel=Panel.LAYER,
        text="Leave the first convolution as it is, not in TT form.",
        type=bool,
        rule=rules.setting(("layer.compress_first", False)),
        needs=rules.is_ranked,
        of=WRN,
    ),
    "orthogonal_k": Flag(
        "layer.frames.weight",
        Panel.LAYER,
        "Keep frames orthonormal by a penalty in the loss, of this weight, as the paper does (--frames penalty).",
        off=(-1,),
        rule=rules.set_frames_weight,
        needs=rules.is_ranked,
        default="1e5 with --frames penalty",
    ),
    "frames": Flag(
        "layer.frames.kind",
        Panel.LAYER,
        "How the frames, the two outer matrices of a TT layer, keep orthonormal columns: put right after each step "
        "(retract), by torch's parametrization, by a penalty in the loss, or not at all (free).",
        needs=rules.is_ranked,
    ),
    "clipping": Flag(
        "control.kind",
        Panel.CONTROL,
        "What is done to singular values above --clip-to. clip: each becomes --clip-to; divide-by-largest, "
        "divide-by-exact-largest: the layer is scaled down, by an estimate or a proved bound of the largest; "
        "divide-each-by-largest: so is each factor of a TT layer; assign: all become --clip-to, the smaller ones too.",
        rule=rules.set_control_kind,
        words=CLIPPING,
        choices=CLIPPING_WORDS,
    ),
    "clip_to": Flag("control.max_sigma", Panel.CONTROL, needs=rules.is_controlled),
    "clip_from": Flag(
        "control.max_sigma_start",
        Panel.CONTROL,
        "Largest singular value allowed at the first step, from which it moves to --clip-to.",
        needs=rules.is_controlled,
        default="--clip-to",
    ),
    "clip_epochs": Flag(
        "control.max_sigma_epochs",
        Panel.CONTROL,
        "With --clip-from: epochs until it has moved to --clip-to.",
        needs=rules.is_controlled,
        default="",
    ),
    "clip_freq": Flag("control.every_steps", Panel.CONTROL, needs=rules.is_controlled, of=WRN),
    "assigning_freq": Flag("control.every_steps", Panel.CONTROL, needs=rules.is_controlled, of=LIP),
    "clip_linear": Flag(
        panel=Panel.CONTROL,
        text="Control linear layers too, up to --clip-linear-to or, without it, up to --clip-to.",
        type=bool,
        rule=rules.set_clip_linear,
        needs=rules.is_controlled,
        of=WRN,
    ),
    "clip_linear_to": Flag(
        "control.linear_max",
        Panel.CONTROL,
        "Largest singular value that linear layers may have.",
        off=(-1,),
        rule=rules.set_linear_max,
        of=WRN,
    ),
    "procedure": Flag("control.procedure", Panel.CONTROL, needs=rules.is_controlled),
    "lip_bn": Flag(
        panel=Panel.CONTROL,
        text="Limit the gain of BatchNorm, the largest |gamma / sqrt(running_var + eps)|, to --bn-eps.",
        type=bool,
        rule=rules.setting(("batchnorm", {"max_gain": 1.0})),
        needs=lambda merge, name, value: not merge.to.section("batchnorm"),
        of=WRN,
    ),
    "bn_eps": Flag("batchnorm.max_gain", Panel.CONTROL, needs=rules.is_batchnorm_limited, of=WRN),
    "freq_bn": Flag("batchnorm.every_steps", Panel.CONTROL, needs=rules.is_batchnorm_limited, of=WRN),
    "opt": Flag(
        "optimizer.kind",
        Panel.OPTIMISER,
        "Optimiser, in capitals or not.",
        rule=rules.set_optimizer,
        choices=rules.OPTIMIZERS,
    ),
    "init_lr": Flag("optimizer.lr", Panel.OPTIMISER, of=WRN),
    "weight_dec": Flag("optimizer.weight_decay", Panel.OPTIMISER, rule=rules.set_weight_decay, of=WRN),
    "nesterov": Flag("optimizer.nesterov", Panel.OPTIMISER, rule=rules.set_nesterov, negatable=True, of=WRN),
    "lr_schedule": Flag(
        "schedule.kind",
        Panel.OPTIMISER,
        "Learning rate over the run: a tenth after 50 and 75 % of it (multistep), up and down over and over (cyclic), "
        "half a cosine down to 0, or constant.",
        rule=rules.set_schedule,
        spellings=("--schedule",),
        choices=rules.SCHEDULES,
    ),
    "lr_min": Flag(
        "schedule.lr_min",
        Panel.OPTIMISER,
        "With --lr-schedule cyclic: lowest learning rate, where each cycle begins and ends.",
        rule=rules.set_lr_min,
        of=LIP,
    ),
    "warmup": Flag(
        "schedule.warmup",
        Panel.OPTIMISER,
        "With --lr-schedule cosine: share of all steps in which the learning rate first rises from nearly 0.",
        rule=rules.set_warmup,
    ),
    "clip_grad": Flag("optimizer.clip_norm", Panel.OPTIMISER, default="off"),
    "mixup": Flag(
        "augment.mixup",
        Panel.DATA,
        "Train on mixtures of two images each (mixup), their shares drawn from Beta(a, a): the number a.",
        default="off",
    ),
    "accumulate": Flag("accumulate", Panel.OPTIMISER, default="1"),
    "ema": Flag(
        "ema.decay",
        Panel.OPTIMISER,
        "Evaluate and save a moving average of the weights, of this decay, as 0.999.",
        default="off",
    ),
    "label_smoothing": Flag("loss.label_smoothing", Panel.OPTIMISER, type=float, default="0"),
    "lr_max": Flag("optimizer.lr", Panel.OPTIMISER, of=LIP),
    "weight_decay": Flag("optimizer.weight_decay", Panel.OPTIMISER, of=LIP),
    "momentum": Flag("optimizer.momentum", Panel.OPTIMISER, of=LIP),
    "epsilon": Flag("certificate.epsilon", Panel.RUN, of=LIP),
    "epochs": Flag("epochs", Panel.OPTIMISER),
    "batch_size": Flag("batch_size", Panel.OPTIMISER),
    "init": Flag("init", Panel.MODEL),
    "conv_init": Flag("layer.init", Panel.LAYER, default="the network's own way", of=WRN),
    "gouk_transforms": Flag(
        panel=Panel.PAPER,
        text="Pad images by mirroring their edges, and normalise pixels by mean and standard deviation 0.5.",
        type=bool,
        rule=rules.setting(("augment.pad", "symmetric"), ("normalize", HALF)),
        of=WRN,
    ),
    "seed": Flag("seed", Panel.RUN),
    "save_chp_every": Flag(
        "checkpoint.every_epochs",
        Panel.OUTPUT,
        "Keep a checkpoint epoch-<n>.pt every so many epochs; last.pt is written after each of them anyway.",
        rule=rules.set_kept_epochs,
        default="none is kept",
        of=WRN,
    ),
    "checkpoints_path": Flag(
        panel=Panel.PAPER,
        text="The same as --out-dir.",
        type=str,
        rule=rules.set_folder,
        value="FOLDER",
        default="",
        of=WRN,
    ),
    "collect_sing_vals": Flag("log.singular_values", Panel.OUTPUT, of=WRN),
    "multiply_by": Flag(
        panel=Panel.PAPER,
        text="Accepted without effect: nothing in the paper's code reads it.",
        type=float,
        rule=rules.notice_without_effect,
        default="",
        of=WRN,
    ),
    **dict.fromkeys(
        ("opt_level", "loss_scale"),
        Flag(
            panel=Panel.PAPER,
            text="Accepted without effect; use --precision.",
            type=str,
            rule=rules.notice_without_effect,
            default="",
            of=LIP,
        ),
    ),
    **{name: Flag(f"hardware.{name}", Panel.DEVICES) for name in HARDWARE},
}
"""Options of both training commands, in the order in which they take effect."""
PAPER_BASIS = ("architecture", "new_layer", "conv_type")
"""Options of the paper's code that name network or layer: with one of them, flags change that code's defaults."""
