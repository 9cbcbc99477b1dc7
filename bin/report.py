"""Runs `anpvs_tf.programs.report`."""

from anpvs_tf.programs.report import run

if __name__ == "__main__":
    run()
