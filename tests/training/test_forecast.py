"""When a run will end."""

import datetime

from anpvs_tf.runs import console, resolution
from anpvs_tf.training.forecast import Forecast, Work

SETTINGS = {"dataset": "digits", "method": "at", "epochs": 3, "batch_size": 10}
SETTINGS |= {"attack_steps": 2, "eval_attack_steps": 4, "epsilon": 8 / 255}


def test_work_by_hand():
    work = Work(resolution.resolve(SETTINGS), steps=6, validated=20, tested=40)
    # A step: two of the attack, two halves of the batch. An image: five of ten to a batch.
    assert work.of_step == 4 and work.of_epoch == 6 * 4 + 20 * 0.5
    assert work.whole == 3 * 34 + 40 * 0.5
    assert work.done(1, 2) == 34 + 8
    clean = SETTINGS | {"method": "standard", "attack_steps": None}
    standard = Work(resolution.resolve(clean), 6, 0, 0)
    assert standard.whole == 18


def test_it_says_once_what_the_first_minute_shows():
    forecast = Forecast(work=1000.0)
    assert forecast.update(10.0, now=5.0) is None  # That step compiled: it does not count.
    assert forecast.update(20.0, now=64.0) is None
    said = forecast.update(50.0, now=85.0)
    # 80 seconds for 40 units, 950 are left: 1,900 seconds.
    assert said.startswith("about 31:40 to go, until ")
    end = datetime.datetime.now() + datetime.timedelta(seconds=1900)
    assert f"{end:%a %H}" in said or end.minute == 0
    assert forecast.update(60.0, now=200.0) is None


def test_a_run_says_what_it_will_do():
    chosen = {"dataset": "digits", "method": "anpvs_vib", "target_sparsity": 0.75, "width": 0.5}
    text = console.plan(resolution.resolve(chosen | {"epsilon": 8 / 255}), 1079, "from scratch")
    for part in (
        "network           lenet5 at width 0.5, seed 0, from scratch",
        "40 epochs of 1,079 images in batches of 32, adam",
        "PGD-5 of step 0.04, linf 8/255",
        "75.0% of features by 50% of the training",
        "PGD-20 of step 0.02, linf 8/255",
    ):
        assert part in text
    plain = console.plan(resolution.resolve({"method": "standard"}), 1079, "from scratch")
    assert "clean images alone" in plain and "pruned" not in plain
