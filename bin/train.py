"""Runs `anpvs_tf.programs.train`."""

from anpvs_tf.programs.train import run

if __name__ == "__main__":
    run()
