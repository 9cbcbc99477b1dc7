"""Command lines that the programs refuse: the program, its arguments, what the line must say.

In the arguments, {tmp} is a scratch directory, {run} a finished run, {begun} one that is not,
{zoo} a Keras model file, and the others are files that `prepare` makes.
"""

import json
import pathlib
import shutil

from anpvs_tf.zoo import shelf

HUGE = str(10**30)
ZOO = "digits-anpvs_vib"

TABLE: list[tuple[str, list[str], str]] = [
    # ---- Wrong kinds, NaN, huge, negative ----
    ("train", ["--epochs=many"], "--epochs=many"),
    ("train", ["--epochs=0"], "--epochs must be"),
    ("train", [f"--epochs={HUGE}"], "--epochs must be"),
    ("train", ["--batch_size=-1"], "--batch_size must be"),
    ("train", [f"--attack_steps={HUGE}"], "--attack_steps must be"),
    ("train", [f"--seed={HUGE}"], "--seed must be"),
    ("train", ["--seed=-1"], "--seed must be"),
    ("train", ["--beta=nan"], "--beta must be a finite number"),
    ("train", ["--lambda_vs=inf"], "--lambda_vs must be a finite number"),
    ("train", ["--epsilon=8"], "did you mean 8/255?"),
    ("train", ["--epsilon=0"], "--epsilon must be"),
    ("train", ["--epsilon=1/0"], "divides by zero"),
    ("train", ["--decay_at=x"], "--decay_at must be numbers"),
    ("train", ["--decay_at=0.7,0.5"], "increasing"),
    ("train", ["--layer_beta=conv1"], "--layer_beta must be layer=factor"),
    ("train", ["--layer_beta=nolayer=1"], "nolayer"),
    ("train", ["--image_size=1,2,3"], "--image_size must be"),
    ("train", ["--image_size=28", "--dataset=cifar10"], "images of cifar10 are 32 x 32 x 3"),
    ("train", ["--checkpoint_minutes=nan"], "--checkpoint_minutes must be a finite number"),
    ("train", ["--checkpoint_minutes=-1"], "--checkpoint_minutes"),
    ("train", ["--shrink=perhaps"], "--shrink=perhaps"),
    ("train", [f"--train_examples={10**8}"], "--train_examples=100000000 is more than"),
    ("train", ["--batch_size=4096"], "--batch_size=4096 is more than the 1295"),
    # ---- Unknown names ----
    ("train", ["--epochz=3"], "Did you mean: epochs"),
    ("train", ["stray"], "unexpected argument 'stray'"),
    ("train", ["--dataset=svhn"], "unknown dataset 'svhn'"),
    ("train", ["--dataset=a\nb"], "unknown dataset 'a\\nb'"),
    ("train", ["--method=fgsm"], "unknown method 'fgsm'"),
    ("train", ["--network=alexnet"], "unknown network 'alexnet'"),
    ("train", ["--network=vgg16"], "needs images of 32 x 32 x 3"),
    ("train", ["--network=mine.h5"], "or a Keras model file of yours, FILE.keras"),
    ("train", ["--network={tmp}/no.keras"], "no.keras does not exist"),
    ("train", ["--network={notes}"], "is not a Keras model file: File is not a zip file"),
    ("train", ["--network={zoo}", "--width=0.5"], "--width is for lenet5"),
    ("train", ["--network={zoo}", "--match_cost_of={run}"], "a Keras model file has its own"),
    ("train", ["--network={zoo}", "--dataset=cifar10"], "takes images of 28 x 28 x 1, the"),
    ("train", ["--network={zoo}", "--freeze_below=conv7"], "does not have; some of its layers"),
    ("train", ["--network={zoo}", "--input_range=255,0"], "--input_range must be two numbers"),
    ("train", ["--freeze_below=logits"], "--freeze_below=logits leaves lenet5 nothing to train"),
    ("train", ["--freeze_below=dense1_relu"], "leaves no gate to --method=anpvs"),
    ("train", ["--freeze_below=conv1", "--method=at"], "would hold initial weights"),
    ("train", ["--nopretrained"], "--pretrained is for a Keras model file"),
    ("train", ["--coupled"], "--coupled is for networks with residual sums"),
    ("train", ["--recipe=fastest"], "unknown recipe 'fastest'"),
    ("train", ["--recipe=short"], "--recipe=short exists for mnist only"),
    ("train", ["--strategy=tpu"], "--strategy=tpu"),
    ("train", ["--xla=yes"], "--xla=yes"),
    ("train", ["--threat_model=l1-3"], "--threat_model must be"),
    ("train", ["--threat_model=linf-0.1", "--epsilon=0.1"], "--threat_model says --epsilon too"),
    ("train", ["--method=at", "--beta=2"], "--beta is not used by --method=at"),
    ("train", ["--track=neptune"], "unknown tracker 'neptune'; choose of wandb, mlflow"),
    ("train", ["--track=wandb,wandb"], "--track names a tracker twice"),
    ("train", ["--logical_cpus=0"], "--logical_cpus"),
    ("train", ["--flagfile={tmp}/absent"], "absent"),
    # ---- Files for directories and the reverse; directories that are not what they should be ----
    ("train", ["--run_dir={file}"], "is a file"),
    ("train", ["--run_dir={file}/below"], "cannot be"),
    ("train", ["--run_dir={full}"], "is not empty and holds no run"),
    ("train", ["--run_dir={run}", "--beta=3"], "holds a run of other settings"),
    ("train", ["--run_dir={run}", "--beta=-3"], "--beta must be"),
    ("train", ["--run_dir={binary}"], "no readable config.json"),
    ("train", ["--run_dir={truncated}"], "no readable config.json"),
    ("train", ["--run_dir={later}"], "unknown setting 'hue'"),
    ("train", ["--base_run={tmp}/nothing"], "no readable config.json"),
    ("train", ["--base_run={begun}"], "is not finished"),
    ("train", ["--match_cost_of={tmp}/nothing", "--method=at"], "no readable config.json"),
    ("train", ["--dataset=folder:{tmp}/nothing"], "cannot be read"),
    ("train", ["--dataset=folder:{file}"], "cannot be read"),
    ("train", ["--dataset=folder:{empty}"], "0 sub-folder(s)"),
    ("train", ["--dataset=folder:{empty}", "--beta=-1"], "--beta must be"),
    ("train", ["--dataset=mnist", "--data_dir={empty}", "--nodownload"], "mnist is not in"),
    # ---- bin/evaluate.py ----
    ("train", ["--target_sparsity=0.5", "--freeze_gates_at=0.3"], "give 0.5 or more"),
    ("train", ["--epsilon=0.3", "--train_epsilon_scale=4"], "got 4 x 0.3 = 1.2"),
    ("evaluate", [], "give --run_dir, --saved_model or --zoo"),
    ("evaluate", ["--zoo=digits-anpvs_vib", "--run_dir={run}"], "one of them"),
    ("evaluate", ["--zoo=nothing"], "no network 'nothing' in the zoo; choose one of digits"),
    (
        "evaluate",
        ["--zoo=digits-anpvs_vib", "--dataset=mnist"],
        "a network of the zoo knows its own",
    ),
    ("evaluate", ["--zoo=digits-anpvs_vib", "--posterior_draws=3"], "belongs to --run_dir"),
    ("evaluate", ["--zoo=digits-anpvs_vib", "--track=wandb"], "--track belongs to --run_dir"),
    ("evaluate", ["--run_dir={run}", "--track=neptune"], "unknown tracker 'neptune'"),
    ("evaluate", ["--run_dir={run}", "--out_dir={tmp}/o"], "a run keeps its own results"),
    ("evaluate", ["--run_dir={run}", "--saved_model={file}"], "one of them"),
    ("evaluate", ["--run_dir={tmp}/nothing"], "no readable config.json"),
    ("evaluate", ["--run_dir=../x"], "no readable config.json"),
    ("evaluate", ["--run_dir={tmp}/a\nb"], "a\\nb holds no readable config.json"),
    ("evaluate", ["--run_dir={directory}"], "no readable config.json"),
    ("evaluate", ["--run_dir={odd}"], "results.json cannot be read"),
    ("evaluate", ["--run_dir={cut}"], "results.json cannot be read"),
    ("evaluate", ["--run_dir={begun}"], "is not finished"),
    ("evaluate", ["--run_dir={changed}"], "is not what was written"),
    ("evaluate", ["--run_dir={run}", "--attack=magic"], "unknown attack 'magic'"),
    ("evaluate", ["--run_dir={run}", "--attack="], "--attack names none"),
    ("evaluate", ["--run_dir={run}", "--split=train"], "--split must be one of test, validation"),
    ("evaluate", ["--run_dir={run}", "--epsilons=a"], "--epsilons: 'a' is no number"),
    ("evaluate", ["--run_dir={run}", "--epsilons=nan"], "is not finite"),
    ("evaluate", ["--run_dir={run}", "--epsilons=-0.1"], "epsilon must be positive"),
    ("evaluate", ["--run_dir={run}", "--epsilons=8"], "did you mean 8/255?"),
    ("evaluate", ["--run_dir={run}", "--norm=l1", "--epsilons=1"], "norm must be one of"),
    ("evaluate", ["--run_dir={run}", "--norm=l2"], "needs --epsilons"),
    ("evaluate", ["--run_dir={run}", "--check_examples=10"], "at least 50"),
    ("evaluate", ["--run_dir={run}", "--curve_examples=-1"], "--curve_examples"),
    ("evaluate", ["--run_dir={run}", "--gamma=2"], "--gamma is used by pgd-latent only"),
    ("evaluate", ["--run_dir={run}", "--attack=pgd", "--step_size=nan"], "--step_size"),
    ("evaluate", ["--run_dir={run}", "--attack=pgd", "--step_size=0"], "step_size must be"),
    ("evaluate", ["--run_dir={run}", "--out_dir=elsewhere"], "--out_dir belongs to"),
    ("evaluate", ["--run_dir={run}", "--input_range=0,255"], "--input_range belongs to"),
    ("evaluate", ["--run_dir={run}", "--dataset=mnist"], "a run knows its own"),
    ("evaluate", ["--run_dir={run}", "--attack_steps=0", "--attack=pgd"], "steps must be"),
    ("evaluate", ["--run_dir={run}", f"--attack_steps={HUGE}", "--attack=pgd"], "steps must be"),
    ("evaluate", ["--run_dir={run}", "--restarts=0"], "--restarts must be"),
    ("evaluate", ["--run_dir={run}", f"--restarts={HUGE}"], "restarts must be"),
    ("evaluate", ["--run_dir={run}", f"--seed={HUGE}"], "--seed must lie in"),
    ("evaluate", ["--run_dir={run}", "--attack=transfer"], "need each other"),
    (
        "evaluate",
        ["--run_dir={run}", "--attack=transfer", *["--source_run={run}"] * 2],
        "names a run twice",
    ),
    ("evaluate", ["--run_dir={run}", "--posterior_draws=0"], "--posterior_draws must be"),
    ("evaluate", ["--run_dir={run}", "--posterior_draws=2"], "needs a Bayesian run"),
    ("evaluate", ["--saved_model={file}"], "--saved_model needs --dataset"),
    ("evaluate", ["--saved_model={tmp}/no", "--dataset=digits"], "does not exist"),
    (
        "evaluate",
        ["--saved_model={file}", "--dataset=digits", "--out_dir={file}"],
        "is a file; choose another --out_dir",
    ),
    ("evaluate", ["--saved_model={file}", "--dataset=digits"], "cannot be loaded"),
    ("evaluate", ["--saved_model={empty}", "--dataset=digits"], "cannot be loaded"),
    ("evaluate", ["--saved_model={file}", "--dataset=nothing"], "unknown dataset"),
    (
        "evaluate",
        ["--saved_model={file}", "--dataset=digits", "--out_dir={file}"],
        "is a file",
    ),
    (
        "evaluate",
        ["--saved_model={file}", "--dataset=digits", "--input_range=255,0"],
        "--input_range must be two numbers",
    ),
    (
        "evaluate",
        ["--saved_model={file}", "--dataset=digits", "--attack=pgd-latent"],
        "needs --run_dir",
    ),
    ("evaluate", ["--litert={file}"], "give --run_dir, --saved_model or --zoo"),
    ("evaluate", ["--zoo=digits-anpvs_vib", "--litert={file}"], "--litert needs --run_dir"),
    ("evaluate", ["--run_dir={run}", "--litert={tmp}/no.tflite"], "no.tflite does not exist"),
    ("evaluate", ["--run_dir={run}", "--litert={file}"], "{file} cannot be read: "),
    ("evaluate", ["--run_dir={run}", "--litert={empty}"], "{empty} cannot be read: "),
    ("evaluate", ["--run_dir={run}", "--litert={file}", "--track=wandb"], "has no tracked run"),
    ("evaluate", ["--run_dir={run}", "--litert={file}", "--posterior_draws=3"], "no posterior"),
    (
        "evaluate",
        ["--run_dir={run}", "--litert={file}", "--attack=pgd-latent"],
        "needs --run_dir alone",
    ),
    (
        "evaluate",
        ["--run_dir={run}", "--litert={file}", "--epsilons=0.003"],
        "at least 1/255, one level of a pixel; got 0.003",
    ),
    (
        "evaluate",
        ["--run_dir={run}", "--litert={file}", "--source_run={run}"],
        "need each other",
    ),
    # ---- bin/export.py ----
    ("export", [], "--run_dir is missing"),
    ("export", ["--run_dir={run}"], "--export_base is missing"),
    ("export", ["--run_dir={tmp}/nothing", "--export_base={tmp}/e"], "no readable config.json"),
    ("export", ["--run_dir={begun}", "--export_base={tmp}/e"], "is not finished"),
    ("export", ["--run_dir={run}", "--export_base={tmp}/e", "--format=caffe"], "--format=caffe"),
    ("export", ["--run_dir={run}", "--export_base={tmp}/e", "--version=0"], "--version"),
    ("export", ["--run_dir={run}", "--export_base={file}"], "is a file"),
    (
        "export",
        ["--run_dir={run}", "--export_base={tmp}/e", "--quantize=int8"],
        "--quantize belongs to --format=tflite",
    ),
    (
        "export",
        ["--run_dir={run}", "--export_base={tmp}/e", "--format=tflite", "--quantize=int8,int4"],
        "unknown quantisation 'int4'",
    ),
    (
        "export",
        ["--run_dir={run}", "--export_base={tmp}/e", "--calibration_examples=0"],
        "--calibration_examples",
    ),
    (
        "export",
        ["--run_dir={run}", "--export_base={tmp}/e", "--format=tflite", "--calibration_examples=9"],
        "--calibration_examples belongs to --quantize=int8",
    ),
    ("export", ["--run_dir={run}", "--export_base={tmp}/e", "--dry_run"], "belongs to --push_to"),
    (
        "export",
        ["--run_dir={run}", "--export_base={tmp}/e", "--push_to=hf://me/it"],
        "--push_to belongs to --format=keras",
    ),
    *(
        (
            "export",
            ["--run_dir={run}", "--export_base={tmp}/e", "--format=keras", f"--push_to={address}"],
            "--push_to must be hf://USER/NAME",
        )
        for address in ("me/it", "hf://it", "hf://me/it/1", "hf://me/i t", "hf://")
    ),
    (
        "export",
        ["--run_dir={run}", "--export_base={tmp}/e", "--rival={run}"],
        "--rival belongs to --format=web",
    ),
    *(
        ("export", ["--run_dir={run}", "--export_base={tmp}/e", "--format=web", flag], message)
        for flag, message in (
            ("--rival={tmp}/nothing", "no readable config.json"),
            ("--rival={begun}", "is not finished"),
            ("--rival={other}", "same data, digits (28 x 28 x 1, 10 classes); {other} has mnist"),
            ("--push_to=hf://me/it", "--push_to belongs to --format=keras"),
        )
    ),
    # ---- bin/report.py ----
    ("report", [], "give run directories"),
    ("report", ["{run}"], "--out is missing"),
    ("report", ["--out={tmp}/r"], "give run directories"),
    ("report", ["{run}", "--out={tmp}/r", "--track=tb"], "unknown tracker 'tb'"),
    ("report", ["{tmp}/nothing", "--out={tmp}/r"], "no such directory"),
    ("report", ["{file}", "--out={tmp}/r"], "no such directory"),
    ("report", ["{empty}", "--out={tmp}/r"], "is not a run directory and holds none"),
    ("report", ["{odd}", "--out={tmp}/r"], "results.json cannot be read"),
    ("report", ["{run}", "--out={tmp}/r", "--examples=-1"], "--examples"),
    ("report", ["{run}", "--out={file}", "--examples=0"], "{file}"),
    ("report", ["{run}", "--out={full}", "--examples=0"], "{full}"),
    # ---- bin/tune.py ----
    ("tune", [], "--run_dir is missing"),
    ("tune", ["--run_dir={tmp}/s"], "holds no sweep, and no setting is given"),
    ("tune", ["--run_dir={tmp}/s", "--beta=2"], "nothing is swept"),
    ("tune", ["--run_dir={tmp}/s", "--network=lenet5|{tmp}/no.keras"], "does not exist"),
    ("tune", ["--run_dir={tmp}/s", "--beta=1:2", "--track=tb"], "unknown tracker 'tb'"),
    ("tune", ["--run_dir={tmp}/s", "--beta=5:1"], "is empty"),
    ("tune", ["--run_dir={tmp}/s", "--beta=0:1:log"], "begins above 0"),
    ("tune", ["--run_dir={tmp}/s", "--beta=nan:1"], "--beta must be of kind float"),
    ("tune", ["--run_dir={tmp}/s", "--beta=-1:1"], "--beta must be"),
    ("tune", ["--run_dir={tmp}/s", "--beta=1|1"], "has a choice twice"),
    ("tune", ["--run_dir={tmp}/s", "--epsilon=0.1|0.2"], "decides how a trial is measured"),
    ("tune", ["--run_dir={tmp}/s", "--beta=1:2", "--tuner=magic"], "unknown --tuner='magic'"),
    ("tune", ["--run_dir={tmp}/s", "--beta=1:2", "--trials=0"], "--trials must be"),
    ("tune", ["--run_dir={tmp}/s", "--beta=1:2", "--objective=best"], "unknown --objective"),
    ("tune", ["--run_dir={tmp}/s", "--beta=1:2", "--tuner=grid"], "needs steps or choices"),
    ("tune", ["--run_dir={file}", "--beta=1:2"], "{file}"),
    ("tune", ["--run_dir={full}", "--beta=1:2"], "is not empty and holds no sweep"),
    ("tune", ["--run_dir={sweep}"], "cannot be read"),
]


def prepare(run: pathlib.Path, tmp: pathlib.Path) -> dict[str, str]:
    """Makes the files of the table below `tmp`.

    Args:
        run: a finished run.
    """
    config = (run / "config.json").read_text()
    names = ("file", "full", "empty", "begun", "binary", "truncated", "later", "directory")
    names += ("changed", "odd", "cut", "sweep", "other")
    places = {name: tmp / name for name in names}
    places["file"].write_text("mine")
    for name in names[1:]:
        places[name].mkdir()
    (places["full"] / "thesis.txt").write_text("mine")
    (places["begun"] / "config.json").write_text(config)
    (places["binary"] / "config.json").write_bytes(b"\xff\xfe\x00{")
    (places["truncated"] / "config.json").write_text(config[:100])
    later = json.loads(config)
    later["settings"]["hue"] = 1
    (places["later"] / "config.json").write_text(json.dumps(later))
    (places["directory"] / "config.json").mkdir()
    for name in ("changed", "odd", "cut", "other"):
        shutil.copytree(run, places[name], dirs_exist_ok=True)
    other = json.loads(config)
    other["settings"]["dataset"] = "mnist"
    (places["other"] / "config.json").write_text(json.dumps(other))
    (places["other"] / "SHA256SUMS").unlink()
    weights = bytearray((run / "checkpoints/network.weights.h5").read_bytes())
    weights[len(weights) // 2] ^= 1
    (places["changed"] / "checkpoints/network.weights.h5").write_bytes(weights)
    for name, text in (("odd", '{"records": 1}'), ("cut", '[{"dataset": "di')):
        (places[name] / "results.json").write_text(text)
        (places[name] / "SHA256SUMS").unlink()
    (places["sweep"] / "sweep.json").write_bytes(b"\xff{")
    (tmp / "notes.keras").write_text("mine")
    keras_files = {"notes": str(tmp / "notes.keras"), "zoo": str(shelf.file_of(ZOO))}
    made = {name: str(path) for name, path in places.items()}
    return {"tmp": str(tmp), "run": str(run)} | keras_files | made
