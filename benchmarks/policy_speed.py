"""How long it takes to learn policies from a trace, and in how much memory.

50,000 examples x 5 stages x 100 classes, 50 trade-offs, the full chain; and one million examples
x 3 stages x 10 classes. Each case runs in a process of its own, so that peaks do not mix; what
making the trace and importing take is not counted in `seconds`, but is in `peak_mib`.
"""

import json
import subprocess
import sys
import time

import numpy as np
from harness import parser, peak_mib, report

CASES = {"": (50_000, 5, 100), "million_": (1_000_000, 3, 10)}
TRADE_OFFS = 50


def measure(n: int, stages: int, classes: int) -> dict[str, float]:
    """Fit the full chain once for every trade-off."""
    from offramp._core.topology import Topology
    from offramp.fitting.learned import fit_learned
    from offramp.trace.testing import make_trace

    trace = make_trace(n=n, stages=stages, classes=classes, seed=0)
    before = peak_mib()
    start = time.perf_counter()
    candidates = fit_learned(
        trace,
        reference=trace.stages[-1],
        cost_weights=[0.0, *np.geomspace(1e-3, 1.0, TRADE_OFFS - 1).tolist()],
        combines=["last"],
        topologies=[Topology.of(trace.stages, edges="chain")],
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "before_mib": before,
        "settings": len(candidates),
    }


def main() -> None:
    """Run each case in a fresh process."""
    options = parser(__doc__ or "")
    options.add_argument("--case", choices=list(CASES), help="run one case in this process")
    options.add_argument("--examples", type=int, default=1_000_000, help="of a case at most")
    arguments = options.parse_args()
    if arguments.case is not None:
        n, stages, classes = CASES[arguments.case]
        print(json.dumps(measure(min(n, arguments.examples), stages, classes)))
        return
    result: dict[str, float] = {}
    for name in CASES:
        command = [sys.executable, __file__, f"--case={name}", f"--examples={arguments.examples}"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result |= {name + key: value for key, value in json.loads(printed).items()}
    report(arguments, result)


if __name__ == "__main__":
    main()
