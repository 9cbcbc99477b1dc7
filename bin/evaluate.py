"""Runs `anpvs_tf.programs.evaluate`."""

from anpvs_tf.programs.evaluate import run

if __name__ == "__main__":
    run()
