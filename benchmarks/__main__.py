"""Run the benchmarks that need nothing from outside, one after another; name the others."""

import argparse
import subprocess
import sys

SELF_CONTAINED = ("small_networks", "similarity_speed", "similarity_scaling", "transformer_latency")
NEED_DATA = ("vision_accuracy", "training", "planner_resnet", "depth_resnet", "analysis_speed")
OTHERS = f"""\
without names: {", ".join(SELF_CONTAINED)}
with a folder of images and weights, which `python -m benchmarks.prepare_data --help` explains:
{chr(10).join(f"  python -m benchmarks.{name} --data FOLDER" for name in NEED_DATA)}
benchmarks/README.md says what each measures."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=OTHERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks that need nothing from outside")
    names = parser.parse_args().names
    for name in names:
        if name not in SELF_CONTAINED:
            parser.error(f"{name!r} is none of {', '.join(SELF_CONTAINED)}")
    for name in names or SELF_CONTAINED:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    print(OTHERS)
