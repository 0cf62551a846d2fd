#!/usr/bin/env bash
# Throughput, latency, start, scaling and memory on a CPU, and BGE-M3: export, measure, write JSON.
#
#     benchmarks/run_on_cpu.sh FOLDER
#
# Models have random weights, each in every precision that this machine runs. Run it again with
# the same FOLDER after it was stopped: bundles and tables that are there stay, and a table that was
# begun goes on. A table that fails does not keep the next from running; FOLDER/NAME.log has what it
# said. All of it takes hours on 2 cores. Needs `pip install 'bge-runtime[bench]'`.
#
# TABLES     which, in this order; default: all
# ROUNDS     of throughput; default: 1
# DATA       folder of the texts; default: where `bge-bench data` has put them
set -uo pipefail
folder=${1:?"say where the results are to go: benchmarks/run_on_cpu.sh FOLDER"}
default="base-natural base-mixed base-latency base-cold-start m3-512-tokens small-zh-natural"
default+=" small-zh-scaling small-en-memory large-natural large-mixed"
tables=${TABLES:-$default}
rounds=${ROUNDS:-1}
data=(${DATA:+--data "$DATA"})
english=(--texts xquad-en --texts xquad-en-questions "${data[@]}")
chinese=(--texts cmrc2018-zh --texts xquad-zh "${data[@]}")
full='from bge_bench.datasets.corpus import short_texts; print(*short_texts(24, words=700), sep="\n")'
failed=0
for name in $tables; do
    case " $default " in *" $name "*) continue ;; esac
    echo "there is no table $name; there are $default" >&2
    exit 2
done
mkdir -p "$folder"

exported() { # NAME MODEL [OPTION...]: a bundle in $folder/NAME
    [ -d "$folder/$1" ] && return
    bge-export "$2" --random-weights "${@:3}" --output "$folder/$1" >"$folder/$1-export.log" 2>&1
}

checkpoint() { # NAME MODEL: what the baselines read, in $folder/NAME-checkpoint
    [ -d "$folder/$1-checkpoint" ] && return
    bge-bench checkpoint "$2" "$folder/$1-checkpoint" >"$folder/$1-checkpoint.log" 2>&1
}

table() { # COMMAND BUNDLE [OPTION...]: $name.json
    bge-bench "$1" "$folder/$2" --json "$folder/$name.json" "${@:3}" >"$folder/$name.log" 2>&1
}

measured() {
    local all=(--precision fp32 --precision bf16 --precision int8)
    case $name in
    base-*) exported base bge-base-en-v1.5 "${all[@]}" || return ;;
    large-*) exported large bge-large-en-v1.5 "${all[@]}" || return ;;
    small-zh-*) exported small-zh bge-small-zh-v1.5 "${all[@]}" || return ;;
    esac
    case $name in
    base-natural | large-natural) table throughput "${name%-*}" "${english[@]}" --rounds "$rounds" ;;
    base-mixed | large-mixed) table throughput "${name%-*}" --rounds "$rounds" ;;
    base-latency) table latency base ;;
    base-cold-start) table cold-start base ;;
    small-zh-natural) table throughput small-zh "${chinese[@]}" --rounds "$rounds" ;;
    small-zh-scaling) table scaling small-zh ;;
    small-en-memory)
        exported small-en-2-layers bge-small-en-v1.5 --layers 2 && table memory small-en-2-layers
        ;;
    m3-512-tokens)
        exported m3 bge-m3 --precision fp32 --precision bf16 && checkpoint m3 bge-m3 || return
        "${PYTHON:-python3}" -c "$full" >"$folder/full.txt" || return
        table speed m3 --checkpoint "$folder/m3-checkpoint" --texts "$folder/full.txt" \
            --outputs all --baseline-batch-size 4 --rounds "$rounds"
        ;;
    esac
}

for name in $tables; do
    [ -f "$folder/$name.json" ] && continue
    start=$SECONDS
    measured
    status=$?
    ((status == 0)) || failed=1
    printf '%s\t%s\t%s s\n' "$name" "$status" "$((SECONDS - start))"
done
exit "$failed"
