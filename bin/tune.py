"""Runs `anpvs_tf.programs.tune`."""

from anpvs_tf.programs.tune import run

if __name__ == "__main__":
    run()
