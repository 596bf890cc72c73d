"""A scientist at the beam, who decides in minutes whether to trust the reduction."""

from walks.walk import Step

PAGE = "how-to/beam-time.md"
STEPS = (
    Step("sfxreduce doctor", ("self-test", "events filtered and verified")),
    Step(
        "sfxreduce simulate --out run.zarr --experiment photosystem-i-8kev --events 60 --seed 1",
        ("next: sfxreduce filter --in run.zarr --out hits.zarr",),
    ),
    Step(
        "sfxreduce filter --in run.zarr --out hits.zarr --report report.html",
        ("% of the hits are rejected", "next: sfxreduce verify --in hits.zarr --against run.zarr"),
    ),
    Step(
        "sfxreduce verify --in hits.zarr --against run.zarr",
        ("every kept event equals its source", "next: sfxreduce archive plan run.zarr"),
    ),
    Step(
        "sfxreduce why hits.zarr 3",
        ("is rejected", "To keep it: sfxreduce redecide --in hits.zarr"),
    ),
    Step(
        "sfxreduce redecide --in hits.zarr --against run.zarr --max-loss 0.005 --out more.zarr",
        ("At most 0.5 %", "next: sfxreduce verify --in more.zarr --against run.zarr"),
    ),
)
TRUST_PAGE = "how-to/trust-this-data.md"
TRUST_STEPS = (
    *STEPS[1:3],
    Step("sfxreduce label --in run.zarr --out labels.csv", ("labels.csv",)),
    Step("sfxreduce evaluate --in run.zarr --labels labels.csv", ("hit loss",)),
    Step(
        'sfxreduce audit draw --in hits.zarr --nonce "4 2 6 6 1 3" --max-loss 0.3 '
        "--confidence 0.9 --out draw.json",
        ("next: sfxreduce audit label --draw draw.json",),
    ),
    Step(
        "sfxreduce audit label --draw draw.json --against run.zarr --out drawn.csv",
        ("next: sfxreduce audit certify", "--draw draw.json --labels drawn.csv"),
    ),
    Step(
        "sfxreduce audit certify --in hits.zarr --draw draw.json --labels drawn.csv "
        "--max-loss 0.3 --confidence 0.9 --out certificate.json",
        ("With 90 % confidence", "next: sfxreduce archive plan", "--certificate certificate.json"),
    ),
)
