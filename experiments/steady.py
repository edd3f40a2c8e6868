"""What makes a single jump differ from seed to seed, and what the scale of the loss changes. ``python -m experiments.steady``

Trained briefly on images, one jump of ``IntegralIdentity`` had a Frechet distance of 33.1 +- 5.4 over seeds. Here are five seeds of
it as it was then, and of one change at a time: the derivative by a finite gap, a velocity of less variance, more velocity
regression, a higher learning rate; and all that the search tried first.

The integral objectives sum the squared error over the elements of an example, ``FlowMatching`` averages. Adam forgets the scale of a
gradient, but ``clip`` does not: a largest norm of 1 is small for a sum over pixels, and large for their mean. So the scale is
measured by the norm that is clipped: none, 1 of the sum, and 64, which is 1 of the mean over the 64 elements of a digit.

Digits 8x8, rectified, a U-Net of width 16, 1,000 steps of batch 64: the settings of experiments.search, whose functions train and
measure. Distances are to the test images, of 2,000 samples at one, two and four jumps.

Writes steady.csv and its manifest into --out (results/reference/bench). What --runs keeps is not run again.
"""

import itertools

from experiments.common import choices, command_line
from experiments.searches import IMAGE_DEFAULTS, IMAGE_TRIED, known, train_on_images
from experiments.store import Store, write_table

SET, PATH, DRAWS = "digits", "rectified", {"1": 1, "2": 1, "4": 1}
#: variant -> its settings. "before" is what zoo trained with.
VARIANTS = {
    "before": IMAGE_DEFAULTS,
    "a gap": IMAGE_DEFAULTS | {"derivative": "gap", "gap": 0.02},
    "velocity of the batch": IMAGE_DEFAULTS | {"velocity": "batch", "tangent": "conditional"},
    "equal share 0.75": IMAGE_DEFAULTS | {"equal_share": 0.75},
    "lr 4e-3": IMAGE_DEFAULTS | {"lr": 4e-3},
    "tried": IMAGE_TRIED,
    "tried, no clipping": IMAGE_TRIED | {"clip": 0.0},
    "tried, clipped at 64": IMAGE_TRIED | {"clip": 64.0},
}


def main(arguments=None) -> None:
    options = command_line(__doc__, seeds=5, steps=1000, jobs=1, minutes=0)
    choices(options, "--variants", VARIANTS)
    given, runs = options.parse_args(arguments), {}
    for seed, variant in itertools.product(range(given.seeds), given.variants):
        own = {"dataset": SET, "path": PATH, "seed": seed, "steps": given.steps, "draws": DRAWS}
        runs[variant, seed] = (train_on_images, {"settings": known(VARIANTS[variant]), **own})
    found = Store(given.runs / "steady").get_all(runs, given.jobs, given.minutes)
    rows = [{"variant": key[0], **row} for key, run in found.items() for row in run.rows]
    manifests = {f"{variant}/seed{seed}": run.manifest for (variant, seed), run in found.items()}
    table = write_table(given.out, "steady", rows, runs=manifests)
    table = table[table.metric == "frechet_pca"]
    cells = table.groupby(["variant", "nfe"], sort=False).value
    print(cells.agg(["mean", "std", "count"]).unstack("nfe").round(4).to_string())


if __name__ == "__main__":
    main()
