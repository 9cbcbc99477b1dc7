"""The command lines that make a run's records again."""

import math
import pathlib
import shlex

from anpvs_tf.attacks.settings import DRAWS, FLAGS, AttackSettings, usual_step_size
from anpvs_tf.runs import records
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.runs.result_record import ResultRecord

# The defaults of bin/evaluate.py for the settings of attacks; None for the dataset's own.
_USUAL = {name: getattr(AttackSettings, name) for name in FLAGS} | {"draws": DRAWS}


def shell(command: list[str]) -> str:
    """Writes a program's command line as a user types it in the project's directory."""
    program = pathlib.PurePath(command[0])
    if program.parent.name == "bin":
        program = pathlib.PurePath("bin", program.name)
    return shlex.join(["python", str(program), *command[1:]])


def training(run: FinishedRun) -> str:
    """Returns the command that trained a run."""
    if not run.command:
        return f"(trained from Python; {run.directory.config_path} has the settings)"
    return shell(run.command)


def evaluation(run: FinishedRun, record: ResultRecord) -> str:
    """Writes the command of bin/evaluate.py that makes a record of a run again.

    Self-checks are left out: they change no accuracy.
    """
    attack, threat = record["attack"], record["threat_model"]
    parts = attack["of"] if attack["name"] == records.WORST_CASE else [attack]
    flags = {"run_dir": run.path, "attack": ",".join(dict.fromkeys(p["name"] for p in parts))}
    flags["epsilons"] = str(threat["epsilon"])
    if threat["norm"] != run.settings.norm:
        flags["norm"] = threat["norm"]
    for name, flag in FLAGS.items():
        values = {part[name] for part in parts if name in part}
        # If the attacks of one command differ in a setting, they took its defaults.
        if len(values) == 1 and _USUAL[name] not in values:
            flags[flag] = str(values.pop())
    if "attack_steps" in flags and "step_size" in flags:
        usual = usual_step_size(threat["epsilon"], int(flags["attack_steps"]))
        if math.isclose(float(flags["step_size"]), usual):
            del flags["step_size"]
    if record["examples"] != run.trained["examples"] or run.settings.eval_examples:
        flags["examples"] = record["examples"]
    if record.get("posterior_draws"):
        flags["posterior_draws"] = record["posterior_draws"]
    if record.get("attack_seed"):
        flags["seed"] = record["attack_seed"]
    sources = dict.fromkeys(source for part in parts for source in part.get("sources", []))
    named = [f"--{name}={value}" for name, value in flags.items()]
    named += [f"--source_run={source}" for source in sources]
    return shell(["bin/evaluate.py", *named, "--check_examples=0"])
