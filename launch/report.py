"""A run as one page to look at, report.html: course, curves, samples, scores, settings, machine.

    python -m launch.report --run runs/lcd --evaluation runs/lcd/evaluation
"""

from absl import flags

from launch import entry

RUN = flags.DEFINE_string("run", None, "Run folder of launch.train.")
EVALUATION = flags.DEFINE_multi_string("evaluation", [], "Folder of launch.evaluate's results; may be given again.")
OUT = flags.DEFINE_string("out", None, "The page; report.html in the run's folder by default.")
OPERATIONS = flags.DEFINE_bool("operations", False, "Count a step's operations, too: TFLOP/s and MFU. Traces the step.")
flags.mark_flag_as_required("run")


def main() -> None:
    from lcm_jax.assess import run_report

    if OUT.value is None:
        entry.on_this_machine(RUN.value)
    print(run_report.report(RUN.value, EVALUATION.value, OUT.value, OPERATIONS.value))


if __name__ == "__main__":
    entry.run(main)
