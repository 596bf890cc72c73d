#!/bin/bash
# Tape behind FTS, as sites with Rucio have it, as an archive of sfxreduce:
# exec:/etc/sfxreduce/rucio-fts.sh?timeout=172800
#
# A starting point: try each line by hand, and run 'sfxreduce archive recall-test' before anything
# is released. Needed: fts-rest-cli and gfal2-util, and a proxy or token in the environment.
#
# A transfer that is FINISHED without an archive timeout is in the disk buffer and nowhere else;
# with one it goes through ARCHIVING, and FINISHED then means on tape. What Rucio was told at the
# start of ARCHIVING counted as done for a while (rucio issue 5532), so ask FTS, and the tape.
set -euo pipefail

FTS=${FTS_ENDPOINT:-https://fts.example.org:8446}
SOURCE=${SOURCE_URL:-root://disk.example.org:1094/}
ARCHIVE_TIMEOUT_S=${ARCHIVE_TIMEOUT_S:-86400}
JOBS=${FTS_JOBS:-/var/lib/sfxreduce/fts-jobs}

refuse() { echo "rucio-fts: $*" >&2; exit 2; }

plain() {
    case $1 in
        '' | -* | *[!A-Za-z0-9._/+=@-]* | *..*) refuse "unexpected characters in '$1'" ;;
    esac
}

endpoint() {
    case $1 in
        tape-a) echo root://tape-a.example.org:1094//archive ;;
        tape-b) echo root://tape-b.example.org:1094//archive ;;
        *) refuse "no such pool '$1'" ;;
    esac
}

# Whether the tape says that it holds the file: NEARLINE, or ONLINE_AND_NEARLINE.
on_tape() { gfal-xattr "$1" user.status 2>&1 | grep -q NEARLINE; }

job_state() {
    local job=$1
    fts-rest-transfer-status -s "$FTS" --json "$job" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["job_state"])'
}

query() {
    local path=$1 pool=$2 url state=UNKNOWN size value="" source=catalogue note
    url=$(endpoint "$pool")/$path
    note=$JOBS/$pool/$path
    size=$(gfal-stat "$url" | awk '/Size:/ {print $2; exit}')
    case $(job_state "$(cat "$note")") in
        FINISHED) on_tape "$url" && state=ONTAPE || state=BUFFER ;;
        ARCHIVING | ACTIVE | SUBMITTED | READY) state=BUFFER ;;
    esac
    # Grid storage keeps adler32. For sha256 the file is staged back and read, once it is on tape.
    if [ "$state" = ONTAPE ]; then
        gfal-evict "$url" "" >&2 || true
        gfal-bringonline --polling-timeout "$ARCHIVE_TIMEOUT_S" "$url" >&2
        value=$(gfal-cat "$url" | sha256sum | cut -d' ' -f1)
        source=reread
    fi
    printf '{"path": "%s", "size": %d, "algorithm": "sha256", "value": "%s",' "$path" "$size" "$value"
    printf ' "value_source": "%s", "state": "%s", "tool": "fts",' "$source" "$state"
    printf ' "copies": [{"pool": "%s", "medium": "", "archive_id": "%s"}]}\n' "$pool" "$url"
}

case ${1:-} in
    capabilities)
        echo '{"tool": "fts", "pools": ["tape-a", "tape-b"], "rereads": true, "recalls_from_medium": false}'
        ;;
    put)
        local_file=$2 path=$3 pool=$4
        plain "$local_file"; plain "$path"; plain "$pool"
        url=$(endpoint "$pool")/$path
        note=$JOBS/$pool/$path
        # What was submitted is not submitted again.
        if [ ! -s "$note" ]; then
            mkdir -p "$(dirname "$note")"
            fts-rest-transfer-submit -s "$FTS" --archive-timeout "$ARCHIVE_TIMEOUT_S" \
                --compare-checksum "$SOURCE/$local_file" "$url" |
                grep -Eo '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' > "$note.new"
            mv "$note.new" "$note"
        fi
        # The transfer itself has to be over before there is anything to tell.
        while true; do
            case $(job_state "$(cat "$note")") in
                SUBMITTED | READY | ACTIVE) sleep 30 ;;
                FAILED | CANCELED) refuse "job $(cat "$note") failed; remove $note and put again" ;;
                *) break ;;
            esac
        done
        query "$path" "$pool"
        ;;
    query)
        plain "$2"; plain "$3"
        query "$2" "$3"
        ;;
    recall)
        path=$2 into=$3 pool=$4
        plain "$path"; plain "$into"; plain "$pool"
        url=$(endpoint "$pool")/$path
        gfal-evict "$url" "" >&2 || true
        gfal-bringonline --polling-timeout "$ARCHIVE_TIMEOUT_S" "$url" >&2
        gfal-copy "$url" "file://$into" >&2
        ;;
    *) refuse "expected put, query, recall or capabilities" ;;
esac
