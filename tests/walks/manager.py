"""A data manager, who tries the whole way to a release before a run of anybody goes it."""

from walks.walk import Step

PAGE = "explanation/archive.md"
CAUTION = "no grace period: for trying, not for data that matter"
WAITING = "waiting for the facility"
VOID = "ticket void: a hold was placed"
STEPS = (
    Step(
        "sfxreduce simulate --out run.zarr --experiment photosystem-i-8kev --frame-shape 350x350 "
        "--events 12 --hit-rate 0.5 --serial",
        ("next: sfxreduce filter --in run.zarr --out hits.zarr",),
    ),
    Step("sfxreduce filter --in run.zarr --out hits.zarr --serial", ("rejected",)),
    Step("mkdir tape_a tape_b"),
    Step("sfxreduce policy show --preset try > try.toml"),
    Step(
        "sfxreduce archive plan run.zarr --policy try.toml --serial",
        (CAUTION, "hits.zarr", "next: sfxreduce archive approve run.zarr"),
    ),
    Step(
        "sfxreduce archive approve run.zarr",
        ("APPROVED", "next: sfxreduce archive execute run.zarr --to POOL=ARCHIVE"),
    ),
    Step('TO="--to a=posix:$PWD/tape_a --to b=posix:$PWD/tape_b"'),
    Step(
        "PLAN=$(sfxreduce archive status run.zarr --json | python -c "
        "\"import json, sys; print(json.load(sys.stdin)['plan_id'][:8])\")"
    ),
    Step(
        "sfxreduce archive execute run.zarr $TO",
        ("nothing was copied", "to do it: sfxreduce archive execute run.zarr", "--execute "),
    ),
    Step(
        "sfxreduce archive execute run.zarr $TO --execute $PLAN",
        ("ARCHIVED", "next: sfxreduce archive recall-test run.zarr --to a=posix:"),
    ),
    Step(
        "sfxreduce archive recall-test run.zarr $TO",
        ("none of them is bad", "next: sfxreduce archive release run.zarr --to a=posix:"),
    ),
    Step(
        "sfxreduce archive release run.zarr $TO --serial",
        ("it could be released", "to do it: sfxreduce archive release run.zarr"),
    ),
    Step(
        "sfxreduce archive release run.zarr $TO --serial --execute $PLAN",
        ("ticket written", CAUTION, "next: sfxreduce archive status run.zarr"),
    ),
    Step("sfxreduce archive status run.zarr", (WAITING, "--receipt FILE", CAUTION)),
    Step(
        'sfxreduce hold add run.zarr --reason "thesis of a student" --authority pi',
        ("run.zarr: held",),
    ),
    Step("sfxreduce archive status --root .", (VOID, "RELEASE_TICKETED")),
    Step(
        "sfxreduce archive restore run.zarr $TO --events @3,@7 --out back.zarr --serial",
        ("back.zarr: restored",),
    ),
)
