"""A student with a CXI file, who wants to index it."""

from walks.walk import Step

PAGE = "how-to/indexamajig.md"
STEPS = (
    Step(
        "sfxreduce simulate --out made.zarr --experiment photosystem-i-8kev --events 40 --seed 1",
        ("next: sfxreduce filter --in made.zarr --out hits.zarr",),
    ),
    Step("sfxreduce convert --in made.zarr --out run.cxi", ("run.cxi: converted",)),
    Step("sfxreduce info run.cxi", ("CXI file", "frame_shape")),
    Step(
        "sfxreduce filter --in run.cxi --out hits.zarr --cxi hits.cxi --report report.html",
        (
            "indexamajig -g hits.geom -i hits.lst -o hits.stream",
            "report.html",
            "At most 0.99 % of the hits are rejected",
            "next: sfxreduce verify --in hits.zarr --against run.cxi",
        ),
    ),
    Step(
        "sfxreduce verify --in hits.zarr --against run.cxi",
        ("every kept event equals its source",),
    ),
)
