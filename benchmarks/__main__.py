"""Run the benchmarks that need nothing from outside, one after another; name the others."""

import subprocess
import sys

SELF_CONTAINED = ("similarity_speed", "similarity_scaling", "transformer_latency", "vision_speed")
NEED_DATA = ("vision_accuracy", "planner_resnet", "depth_resnet", "analysis_speed")

if __name__ == "__main__":
    for name in SELF_CONTAINED:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    print("need images and weights: " + ", ".join(f"python -m benchmarks.{name} --data FOLDER" for name in NEED_DATA))
