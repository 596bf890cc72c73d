#!/bin/bash
# HPSS behind its client hsi, as an archive of sfxreduce: exec:/etc/sfxreduce/hpss-hsi.sh
#
# A starting point: the output of hsi differs between versions and sites. Try each line by hand,
# and run 'sfxreduce archive recall-test' before anything is released.
#
# A pool is a class of service, named in the case below. HPSS_ROOT is the folder in HPSS.
set -euo pipefail

HSI=${HSI:-hsi}
ROOT=${HPSS_ROOT:-/sfxreduce}

refuse() { echo "hpss-hsi: $*" >&2; exit 2; }

# hsi reads commands as text: nothing but plain characters may get there.
plain() {
    case $1 in
        '' | -* | *[!A-Za-z0-9._/+=@-]* | *..*) refuse "unexpected characters in '$1'" ;;
    esac
}

class_of() {
    case $1 in
        copy1) echo 11 ;;
        copy2) echo 12 ;;
        *) refuse "no such pool '$1'" ;;
    esac
}

query() {
    local path=$1 pool=$2 remote=$ROOT/$2/$1 size value state=BUFFER medium=""
    # Reads the file from tape, without staging it, and compares it with the stored checksum.
    # It fails if they differ, and then so do we.
    "$HSI" -q "hashverify -A -S $remote" >&2
    value=$("$HSI" -q "hashlist $remote" 2>&1 | grep -Eo '[0-9a-f]{64}' | head -n 1)
    size=$("$HSI" -q "ls -s -l $remote" 2>&1 | awk -v f="${remote##*/}" '$NF ~ f {print $5; exit}')
    # Where it lies: a copy counts once a tape volume holds it, not while it is on the disk level.
    medium=$("$HSI" -q "ls -X $remote" 2>&1 | awk '/[Tt]ape/ {t = 1} t && /PV List|VV/ {print $NF; exit}')
    [ -n "$medium" ] && state=ONTAPE
    printf '{"path": "%s", "size": %d, "algorithm": "sha256", "value": "%s",' "$path" "$size" "$value"
    printf ' "value_source": "reread", "state": "%s", "tool": "hsi",' "$state"
    printf ' "copies": [{"pool": "%s", "medium": "%s", "archive_id": "%s"}]}\n' "$pool" "$medium" "$remote"
}

case ${1:-} in
    capabilities)
        echo '{"tool": "hsi", "pools": ["copy1", "copy2"], "rereads": true, "recalls_from_medium": false}'
        ;;
    put)
        local_file=$2 path=$3 pool=$4
        plain "$local_file"; plain "$path"; plain "$pool"
        cos=$(class_of "$pool")
        "$HSI" -q "mkdir -p $ROOT/$pool/$(dirname "$path")" >&2
        # cput: only if it is not there. -c on: HSI's checksums are off unless they are asked for.
        "$HSI" -q "cput -c on -H sha256 $local_file : $ROOT/$pool/$path cos=$cos" >&2
        query "$path" "$pool"
        ;;
    query)
        plain "$2"; plain "$3"; class_of "$3" > /dev/null
        query "$2" "$3"
        ;;
    recall)
        path=$2 into=$3 pool=$4
        plain "$path"; plain "$into"; plain "$pool"; class_of "$pool" > /dev/null
        # Away with the copy on HPSS's disks, so that the tape is read.
        "$HSI" -q "purge $ROOT/$pool/$path" >&2 || true
        "$HSI" -q "get -c on $into : $ROOT/$pool/$path" >&2
        ;;
    *) refuse "expected put, query, recall or capabilities" ;;
esac
