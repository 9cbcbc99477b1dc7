"""Runs `anpvs_tf.programs.export`."""

from anpvs_tf.programs.export import run

if __name__ == "__main__":
    run()
